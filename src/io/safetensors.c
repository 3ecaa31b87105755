/* safetensors: see safetensors.h. The header is parsed once and turned into a list of tensors that
 * is sorted by offset; the list must then cover the bytes behind the header exactly. */
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "io/name_index.h"

enum {
  HEADER_LIMIT_BYTES = 100 * 1000 * 1000, /* the limit of the reference implementation */
  LENGTH_BYTES = 8,
  DATA_ALIGNMENT = 64,
  TENSORS_MAX = 1 << 20
};
/* In total, so that products of sizes stay far from overflow. */
static const int64_t ELEMENTS_MAX = INT64_C(1) << 48;

struct safetensors {
  struct file_map map;
  json_t *header;
  size_t data_start;
  struct stored_tensor *tensors;
  size_t count;
  struct name_index names;
};

int64_t stored_tensor_count(const struct stored_tensor *t) {
  int64_t count = 1;
  for (int i = 0; i < t->rank; i++) count *= t->shape[i];
  return count;
}

bool stored_tensor_is_aligned(const struct stored_tensor *t) {
  const struct dtype_traits *traits = dtype_traits(t->dtype);
  size_t unit = traits->block_length == 1 ? (size_t)traits->block_bytes : 1;
  return (uintptr_t)t->data % unit == 0;
}

/* ---- reading ---- */

static enum status parse_dtype(const json_t *entry, enum dtype *out, const char *path,
                               const char *name, struct error *err) {
  const char *text = json_get_string(entry, "dtype");
  for (int i = 0; text && i < DTYPE_COUNT; i++) {
    const char *known = dtype_traits((enum dtype)i)->safetensors;
    if (!known || strcmp(text, known) != 0) continue;
    *out = (enum dtype)i;
    return STATUS_OK;
  }
  return error_set(err, STATUS_REFUSED,
                   "%s: tensor \"%.200s\" has the type \"%.40s\", which "
                   "tessera does not read",
                   path, name, text ? text : "(none)");
}

static enum status parse_shape(const json_t *entry, struct stored_tensor *t, const char *path,
                               struct error *err) {
  const json_t *shape = json_object_get(entry, "shape");
  if (!json_is_array(shape) || json_array_size(shape) > TENSOR_RANK_MAX)
    return error_set(err, STATUS_REFUSED,
                     "%s: tensor \"%.200s\" has no shape of at most %d dimensions", path, t->name,
                     TENSOR_RANK_MAX);
  int64_t count = 1;
  t->rank = (int)json_array_size(shape);
  for (int i = 0; i < t->rank; i++) {
    const json_t *size = json_array_get(shape, (size_t)i);
    t->shape[i] = json_is_integer(size) ? json_integer_value(size) : -1;
    if (t->shape[i] < 0 || t->shape[i] > ELEMENTS_MAX ||
        __builtin_mul_overflow(count, t->shape[i], &count) || count > ELEMENTS_MAX)
      return error_set(err, STATUS_REFUSED, "%s: tensor \"%.200s\" has an impossible shape", path,
                       t->name);
  }
  return STATUS_OK;
}

/* Checks one tensor by itself; how it lies among the others is checked when all are known. */
static enum status parse_tensor(const struct safetensors *file, const json_t *entry,
                                struct stored_tensor *t, const char *path, struct error *err) {
  enum status status = parse_dtype(entry, &t->dtype, path, t->name, err);
  if (status == STATUS_OK) status = parse_shape(entry, t, path, err);
  if (status != STATUS_OK) return status;
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
  int64_t start = json_is_integer(first) ? json_integer_value(first) : -1;
  int64_t end = json_is_integer(last) ? json_integer_value(last) : -1;
  if (json_array_size(offsets) != 2 || start < 0 || end < start)
    return error_set(err, STATUS_REFUSED, "%s: tensor \"%.200s\" has no valid data_offsets", path,
                     t->name);
  size_t available = file->map.size_bytes - file->data_start;
  if ((uint64_t)end > available)
    return error_set(err, STATUS_REFUSED,
                     "%s: tensor \"%.200s\" ends at byte %" PRId64
                     " of the data, but only %zu are there; the file is cut short, fetch it again",
                     path, t->name, end, available);
  t->size_bytes = (size_t)(end - start);
  size_t needed;
  if (!dtype_bytes(t->dtype, (uint64_t)stored_tensor_count(t), &needed) || needed != t->size_bytes)
    return error_set(err, STATUS_REFUSED,
                     "%s: the shape of tensor \"%.200s\" does not fit its %zu bytes", path, t->name,
                     t->size_bytes);
  t->data = file->map.data + file->data_start + start;
  return STATUS_OK;
}

static int by_position(const void *left, const void *right) {
  const struct stored_tensor *a = left, *b = right;
  if (a->data != b->data) return a->data < b->data ? -1 : 1;
  if (a->size_bytes != b->size_bytes) return a->size_bytes < b->size_bytes ? -1 : 1;
  return strcmp(a->name, b->name);
}

/* The format leaves no byte without an owner, which also keeps anything from hiding in a file. */
static enum status check_coverage(const struct safetensors *file, const char *path,
                                  struct error *err) {
  const uint8_t *position = file->map.data + file->data_start;
  for (size_t i = 0; i < file->count; i++) {
    const struct stored_tensor *t = &file->tensors[i];
    if (t->data != position)
      return error_set(err, STATUS_REFUSED, "%s: tensor \"%.200s\" %s the one before it", path,
                       t->name, t->data < position ? "overlaps" : "leaves a gap behind");
    position += t->size_bytes;
  }
  size_t left = (size_t)(file->map.data + file->map.size_bytes - position);
  if (left)
    return error_set(err, STATUS_REFUSED, "%s: %zu bytes at the end belong to no tensor", path,
                     left);
  return STATUS_OK;
}

static enum status parse_tensors(struct safetensors *file, const char *path, struct error *err) {
  size_t most = json_object_size(file->header);
  if (most > TENSORS_MAX)
    return error_set(err, STATUS_REFUSED, "%s: more than %d tensors", path, TENSORS_MAX);
  file->tensors = calloc(most + 1, sizeof *file->tensors);
  if (!file->tensors) return error_set(err, STATUS_FAILED, "out of memory: %zu tensors", most);
  const char *name;
  json_t *entry;
  json_object_foreach(file->header, name, entry) {
    if (!strcmp(name, "__metadata__")) continue;
    struct stored_tensor *t = &file->tensors[file->count];
    t->name = name;
    enum status status = parse_tensor(file, entry, t, path, err);
    if (status != STATUS_OK) return status;
    file->count++;
  }
  qsort(file->tensors, file->count, sizeof *file->tensors, by_position);
  enum status status = check_coverage(file, path, err);
  for (size_t i = 0; status == STATUS_OK && i < file->count; i++)
    status =
        name_index_add(&file->names, file->tensors[i].name, strlen(file->tensors[i].name), i, err);
  return status == STATUS_OK ? name_index_finish(&file->names, path, err) : status;
}

static enum status check_metadata(const json_t *header, const char *path, struct error *err) {
  const json_t *metadata = json_object_get(header, "__metadata__");
  const char *key;
  json_t *value;
  if (metadata && !json_is_object(metadata))
    return error_set(err, STATUS_REFUSED, "%s: __metadata__ is not an object", path);
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value))
      return error_set(err, STATUS_REFUSED, "%s: the metadata \"%.100s\" is not a string", path,
                       key);
  }
  return STATUS_OK;
}

static enum status parse_header(struct safetensors *file, const char *path, struct error *err) {
  uint64_t length = 0;
  size_t size = file->map.size_bytes;
  if (size >= LENGTH_BYTES) memcpy(&length, file->map.data, LENGTH_BYTES);
  if (size < LENGTH_BYTES + 2 || length < 2 || file->map.data[LENGTH_BYTES] != '{')
    return error_set(err, STATUS_REFUSED, "%s is not a safetensors file", path);
  if (length > HEADER_LIMIT_BYTES)
    return error_set(err, STATUS_REFUSED,
                     "%s claims a header of %" PRIu64
                     " bytes; at most %d are allowed, so this is "
                     "no safetensors file or a damaged one",
                     path, length, HEADER_LIMIT_BYTES);
  if (length > size - LENGTH_BYTES)
    return error_set(err, STATUS_REFUSED,
                     "%s ends inside its header (%" PRIu64
                     " bytes announced, %zu there); fetch it "
                     "again",
                     path, length, size - LENGTH_BYTES);
  file->data_start = LENGTH_BYTES + (size_t)length;
  file->header = json_parse((const char *)file->map.data + LENGTH_BYTES, (size_t)length, path, err);
  if (!file->header) return STATUS_REFUSED;
  if (!json_is_object(file->header))
    return error_set(err, STATUS_REFUSED, "%s: the header is not an object", path);
  return check_metadata(file->header, path, err);
}

enum status safetensors_open(struct safetensors **out, const char *path, struct error *err) {
  *out = NULL;
  struct safetensors *file = calloc(1, sizeof *file);
  if (!file) return error_set(err, STATUS_FAILED, "out of memory");
  enum status status = file_map_open(&file->map, path, err);
  if (status == STATUS_OK) status = parse_header(file, path, err);
  if (status == STATUS_OK) status = parse_tensors(file, path, err);
  if (status == STATUS_OK)
    *out = file;
  else
    safetensors_close(file);
  return status;
}

void safetensors_close(struct safetensors *file) {
  if (!file) return;
  name_index_free(&file->names);
  free(file->tensors);
  json_decref(file->header);
  file_map_close(&file->map);
  free(file);
}

size_t safetensors_size(const struct safetensors *file) { return file->count; }

const struct stored_tensor *safetensors_at(const struct safetensors *file, size_t index) {
  INVARIANT(index < file->count);
  return &file->tensors[index];
}

const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name) {
  size_t index = name_index_find(&file->names, name, SIZE_MAX);
  return index == SIZE_MAX ? NULL : &file->tensors[index];
}

const char *safetensors_metadata(const struct safetensors *file, const char *key) {
  return json_get_string(safetensors_metadata_all(file), key);
}

const json_t *safetensors_metadata_all(const struct safetensors *file) {
  return json_object_get(file->header, "__metadata__");
}

/* ---- writing ---- */

enum status tensor_source_bytes(const struct tensor_source *t, size_t *bytes, struct error *err) {
  uint64_t count = 1;
  bool possible = t->rank >= 0 && t->rank <= TENSOR_RANK_MAX;
  for (int i = 0; possible && i < t->rank; i++)
    possible = t->shape[i] >= 0 && !__builtin_mul_overflow(count, (uint64_t)t->shape[i], &count);
  if (!possible || count > (uint64_t)ELEMENTS_MAX || !dtype_bytes(t->dtype, count, bytes))
    return error_set(err, STATUS_USAGE, "tensor \"%s\" has a shape that cannot be written as %s",
                     t->name, dtype_traits(t->dtype)->name);
  return STATUS_OK;
}

enum status tensor_source_put(const struct tensor_source *t, struct file_writer *out,
                              struct error *err) {
  size_t bytes = 0;
  enum status status = tensor_source_bytes(t, &bytes, err);
  if (status != STATUS_OK) return status;
  if (!t->produce) return file_writer_put(out, t->data, bytes, err);
  uint64_t before = out->written_bytes;
  status = t->produce(t->ctx, out, err);
  if (status != STATUS_OK) return status;
  INVARIANT(out->written_bytes - before == bytes);
  return STATUS_OK;
}

/* One header entry, in the form {"dtype":..,"shape":[..],"data_offsets":[start,end]}. */
static enum status describe(json_t *header, const struct tensor_source *t, uint64_t *offset,
                            struct error *err) {
  const char *dtype = dtype_traits(t->dtype)->safetensors;
  size_t bytes = 0;
  if (!dtype || !strcmp(t->name, "__metadata__") || json_object_get(header, t->name))
    return error_set(err, STATUS_USAGE,
                     "tensor \"%s\" (%s) cannot be stored: safetensors lacks the type or the name "
                     "is taken",
                     t->name, dtype_traits(t->dtype)->name);
  enum status status = tensor_source_bytes(t, &bytes, err);
  if (status != STATUS_OK) return status;
  json_t *shape = json_array();
  for (int i = 0; i < t->rank; i++) json_array_append_new(shape, json_integer(t->shape[i]));
  uint64_t end = *offset + bytes;
  json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets",
                            (json_int_t)*offset, (json_int_t)end);
  *offset = end;
  if (json_object_set_new(header, t->name, entry))
    return error_set(err, STATUS_USAGE, "the tensor name \"%s\" is not UTF-8", t->name);
  return STATUS_OK;
}

static enum status put_header(struct file_writer *w, const json_t *header, struct error *err) {
  struct strbuf text = {0};
  char *json = json_dumps(header, JSON_COMPACT);
  INVARIANT(json != NULL);
  strbuf_puts(&text, json);
  free(json);
  while ((LENGTH_BYTES + text.length) % DATA_ALIGNMENT) strbuf_putc(&text, ' ');
  uint64_t length = text.length;
  enum status status = file_writer_put(w, &length, LENGTH_BYTES, err);
  if (status == STATUS_OK) status = file_writer_put(w, text.data, text.length, err);
  strbuf_free(&text);
  return status;
}

enum status safetensors_write(const char *path, const struct tensor_source *tensors, size_t count,
                              const json_t *metadata, struct error *err) {
  struct file_writer w = {.fd = -1};
  uint64_t offset = 0;
  json_t *header = json_object();
  if (metadata) json_object_set(header, "__metadata__", (json_t *)metadata);
  enum status status = check_metadata(header, path, err);
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = describe(header, &tensors[i], &offset, err);
  if (status == STATUS_OK) status = file_writer_open(&w, path, err);
  if (status == STATUS_OK) status = put_header(&w, header, err);
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = tensor_source_put(&tensors[i], &w, err);
  if (status == STATUS_OK) status = file_writer_commit(&w, err);
  file_writer_abort(&w);
  json_decref(header);
  return status;
}
