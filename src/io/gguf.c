/* Reading GGUF: see gguf.h.
 *
 * A cursor walks once over values and tensor infos, which touches only the pages of the header;
 * tensor data are looked at by whoever uses them. Values point into the map. Strings of an array
 * have no fixed stride, so their offsets are noted on that walk: 8 bytes each, never more than the
 * string itself takes in the file. */
#include "io/gguf.h"

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/gguf_format.h"
#include "io/gguf_internal.h"

static const uint64_t ELEMENTS_MAX = UINT64_C(1) << 48;
/* The smallest a value or tensor info can be in the file: bounds what a lying count may claim. */
enum { VALUE_LEAST_BYTES = 8 + 4 + 1, TENSOR_LEAST_BYTES = 8 + 4 + 4 + 8 };

/* ---- the cursor ---- */

struct cursor {
  const uint8_t *at, *end;
  const char *path;
  struct error *err;
};

static enum status ends_early(const struct cursor *c) {
  return error_set(c->err, STATUS_REFUSED, "%s ends inside its header; fetch it again", c->path);
}

static size_t left(const struct cursor *c) { return (size_t)(c->end - c->at); }

static enum status take(struct cursor *c, void *out, size_t bytes) {
  if (left(c) < bytes) return ends_early(c);
  memcpy(out, c->at, bytes);
  c->at += bytes;
  return STATUS_OK;
}

static enum status skip(struct cursor *c, uint64_t count, size_t size) {
  size_t bytes;
  if (!checked_mul(count, size, &bytes) || bytes > left(c)) return ends_early(c);
  c->at += bytes;
  return STATUS_OK;
}

static enum status take_string(struct cursor *c, struct gguf_string *out) {
  uint64_t length = 0;
  enum status status = take(c, &length, sizeof length);
  if (status != STATUS_OK) return status;
  *out = (struct gguf_string){(const char *)c->at, (size_t)length};
  return skip(c, length, 1);
}

/* Names become C strings somewhere, so they are short and without NUL. */
static enum status take_name(struct cursor *c, struct gguf_string *out, const char *what) {
  enum status status = take_string(c, out);
  if (status != STATUS_OK) return status;
  if (out->length == 0 || out->length > GGUF_NAME_LIMIT_BYTES || memchr(out->data, 0, out->length))
    return error_set(c->err, STATUS_REFUSED, "%s: a %s of the header is damaged (%zu bytes long)",
                     c->path, what, out->length);
  return STATUS_OK;
}

/* How much of a name goes into a sentence: the precision of "%.*s". */
static int shown(struct gguf_string name) { return name.length < 200 ? (int)name.length : 200; }

/* ---- values ---- */

/* Walks over the strings of an array, noting where each begins. */
static enum status index_strings(struct cursor *c, const struct gguf_value *v, uint64_t **out) {
  if (v->count > left(c) / sizeof(uint64_t)) return ends_early(c);
  if (v->count > GGUF_STRINGS_MAX)
    return error_set(c->err, STATUS_REFUSED, "%s: \"%.*s\" has more than %d strings", c->path,
                     shown(v->key), v->key.data, GGUF_STRINGS_MAX);
  uint64_t *offsets = calloc(v->count + 1, sizeof *offsets);
  if (!offsets)
    return error_set(c->err, STATUS_FAILED, "%s: out of memory for %" PRIu64 " strings", c->path,
                     v->count);
  *out = offsets;
  for (uint64_t i = 0; i < v->count; i++) {
    struct gguf_string ignored;
    offsets[i] = (uint64_t)(c->at - v->data);
    enum status status = take_string(c, &ignored);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static enum status take_array(struct cursor *c, struct gguf_value *v, uint64_t **offsets) {
  uint32_t element = 0;
  enum status status = take(c, &element, sizeof element);
  if (status == STATUS_OK) status = take(c, &v->count, sizeof v->count);
  if (status != STATUS_OK) return status;
  v->element_type = (enum gguf_type)element;
  v->data = c->at;
  if (element == GGUF_STRING) {
    status = index_strings(c, v, offsets);
    v->string_offsets = *offsets;
    return status;
  }
  size_t size = element <= GGUF_F64 ? gguf_scalar_bytes(v->element_type) : 0;
  if (size == 0)
    return error_set(c->err, STATUS_REFUSED,
                     "%s: the value \"%.*s\" is an array of type %u, which is not read", c->path,
                     shown(v->key), v->key.data, element);
  return skip(c, v->count, size);
}

static enum status take_value(struct cursor *c, struct gguf_value *v, uint64_t **offsets) {
  uint32_t type = 0;
  enum status status = take_name(c, &v->key, "key");
  if (status == STATUS_OK) status = take(c, &type, sizeof type);
  if (status != STATUS_OK) return status;
  if (type > GGUF_F64)
    return error_set(c->err, STATUS_REFUSED, "%s: the value \"%.*s\" has the unknown type %u",
                     c->path, shown(v->key), v->key.data, type);
  v->type = (enum gguf_type)type;
  v->count = 1;
  v->data = c->at;
  struct gguf_string ignored;
  if (v->type == GGUF_ARRAY) return take_array(c, v, offsets);
  if (v->type == GGUF_STRING) return take_string(c, &ignored);
  return skip(c, 1, gguf_scalar_bytes(v->type));
}

static enum status take_values(struct cursor *c, struct gguf *file, uint64_t count) {
  if (count > GGUF_VALUES_MAX || count > left(c) / VALUE_LEAST_BYTES)
    return error_set(c->err, STATUS_REFUSED, "%s claims %" PRIu64 " values, more than it can hold",
                     c->path, count);
  file->values = calloc(count + 1, sizeof *file->values);
  file->offsets = calloc(count + 1, sizeof *file->offsets);
  if (!file->values || !file->offsets)
    return error_set(c->err, STATUS_FAILED, "%s: out of memory", c->path);
  for (; file->value_count < count; file->value_count++) {
    size_t i = file->value_count;
    enum status status = take_value(c, &file->values[i], &file->offsets[i]);
    if (status == STATUS_OK)
      status = name_index_add(&file->value_names, file->values[i].key.data,
                              file->values[i].key.length, i, c->err);
    if (status != STATUS_OK) {
      file->value_count++; /* its offsets are to be freed, too */
      return status;
    }
  }
  return name_index_finish(&file->value_names, c->path, c->err);
}

static enum status take_alignment(struct cursor *c, struct gguf *file) {
  int64_t alignment = GGUF_ALIGNMENT_DEFAULT;
  bool given = gguf_find(file, "general.alignment") != NULL;
  if (given && !gguf_get_int(file, "general.alignment", &alignment)) alignment = 0;
  if (alignment < 8 || alignment > GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
    return error_set(c->err, STATUS_REFUSED,
                     "%s: general.alignment must be a power of two from 8 to %d", c->path,
                     GGUF_ALIGNMENT_MAX);
  file->alignment = (uint64_t)alignment;
  return STATUS_OK;
}

/* ---- tensors ---- */

/* GGUF counts dimensions from the innermost; PyTorch from the outermost. */
static enum status take_shape(struct cursor *c, struct stored_tensor *t) {
  uint32_t rank = 0;
  uint64_t count = 1;
  enum status status = take(c, &rank, sizeof rank);
  if (status != STATUS_OK) return status;
  if (rank > GGUF_RANK_MAX)
    return error_set(c->err, STATUS_REFUSED,
                     "%s: tensor \"%.200s\" has %u dimensions, at most %d "
                     "are allowed",
                     c->path, t->name, rank, GGUF_RANK_MAX);
  t->rank = (int)rank;
  for (uint32_t i = 0; i < rank; i++) {
    uint64_t size = 0;
    status = take(c, &size, sizeof size);
    if (status != STATUS_OK) return status;
    if (size > ELEMENTS_MAX || __builtin_mul_overflow(count, size, &count) || count > ELEMENTS_MAX)
      return error_set(c->err, STATUS_REFUSED, "%s: tensor \"%.200s\" has an impossible shape",
                       c->path, t->name);
    t->shape[rank - 1 - i] = (int64_t)size;
  }
  return STATUS_OK;
}

/* Size from the shape; rows must be whole blocks. An unknown type has no size that one could
 * check: its tensor is refused when it is asked for. */
static enum status size_tensor(struct cursor *c, struct tensor_entry *entry) {
  struct stored_tensor *t = &entry->tensor;
  const struct gguf_tensor_type *type = gguf_tensor_type(entry->type);
  t->dtype = type ? (enum dtype)type->dtype : DTYPE_COUNT;
  if (!type) return STATUS_OK;
  int64_t row = t->rank ? t->shape[t->rank - 1] : 1;
  if (row % type->block_length)
    return error_set(c->err, STATUS_REFUSED,
                     "%s: rows of tensor \"%.200s\" hold %" PRId64
                     " weights, which is no multiple of the %d of a %s block",
                     c->path, t->name, row, type->block_length, type->name);
  uint64_t blocks = (uint64_t)stored_tensor_count(t) / type->block_length;
  t->size_bytes = (size_t)blocks * type->block_bytes;
  return STATUS_OK;
}

static enum status take_tensor(struct cursor *c, struct tensor_entry *entry) {
  struct gguf_string text;
  enum status status = take_name(c, &text, "tensor name");
  if (status != STATUS_OK) return status;
  entry->name = mem_strndup(text.data, text.length, c->err);
  if (!entry->name) return STATUS_FAILED;
  entry->tensor.name = entry->name;
  status = take_shape(c, &entry->tensor);
  if (status == STATUS_OK) status = take(c, &entry->type, sizeof entry->type);
  if (status == STATUS_OK) status = take(c, &entry->offset, sizeof entry->offset);
  return status == STATUS_OK ? size_tensor(c, entry) : status;
}

/* Once the cursor stands at the header's end, which is where the data's start follows from. */
static enum status place_tensor(const struct cursor *c, const struct gguf *file,
                                struct tensor_entry *entry) {
  struct stored_tensor *t = &entry->tensor;
  uint64_t offset = entry->offset;
  uint64_t header_bytes = (uint64_t)(c->at - file->map.data);
  uint64_t start = (header_bytes + file->alignment - 1) / file->alignment * file->alignment;
  if (offset % file->alignment)
    return error_set(c->err, STATUS_REFUSED,
                     "%s: tensor \"%.200s\" does not begin at a multiple of %" PRIu64 " bytes",
                     c->path, t->name, file->alignment);
  uint64_t size = file->map.size_bytes;
  uint64_t available = start <= size ? size - start : 0;
  if (offset > available || t->size_bytes > available - offset)
    return error_set(c->err, STATUS_REFUSED,
                     "%s: tensor \"%.200s\" lies beyond the end of the file, which is cut short; "
                     "fetch it again",
                     c->path, t->name);
  t->data = file->map.data + (start <= size ? start + offset : size);
  return STATUS_OK;
}

static int by_position(const void *left_item, const void *right_item) {
  const struct stored_tensor *a = *(const struct stored_tensor *const *)left_item;
  const struct stored_tensor *b = *(const struct stored_tensor *const *)right_item;
  if (a->data != b->data) return a->data < b->data ? -1 : 1;
  return (a->size_bytes > b->size_bytes) - (a->size_bytes < b->size_bytes);
}

static enum status check_overlaps(const struct cursor *c, const struct gguf *file) {
  const size_t pointer_bytes = sizeof(const struct stored_tensor *);
  const struct stored_tensor **order = calloc(file->tensor_count + 1, pointer_bytes);
  if (!order) return error_set(c->err, STATUS_FAILED, "%s: out of memory", c->path);
  for (size_t i = 0; i < file->tensor_count; i++) order[i] = &file->tensors[i].tensor;
  qsort(order, file->tensor_count, pointer_bytes, by_position);
  enum status status = STATUS_OK;
  for (size_t i = 1; i < file->tensor_count && status == STATUS_OK; i++)
    if (order[i - 1]->data + order[i - 1]->size_bytes > order[i]->data)
      status = error_set(c->err, STATUS_REFUSED, "%s: tensors \"%.200s\" and \"%.200s\" overlap",
                         c->path, order[i - 1]->name, order[i]->name);
  free(order);
  return status;
}

static enum status take_tensors(struct cursor *c, struct gguf *file, uint64_t count) {
  if (count > GGUF_TENSORS_MAX || count > left(c) / TENSOR_LEAST_BYTES)
    return error_set(c->err, STATUS_REFUSED, "%s claims %" PRIu64 " tensors, more than it can hold",
                     c->path, count);
  file->tensors = calloc(count + 1, sizeof *file->tensors);
  if (!file->tensors) return error_set(c->err, STATUS_FAILED, "%s: out of memory", c->path);
  enum status status = STATUS_OK;
  while (file->tensor_count < count && status == STATUS_OK) {
    struct tensor_entry *entry = &file->tensors[file->tensor_count++];
    status = take_tensor(c, entry);
    if (status == STATUS_OK)
      status = name_index_add(&file->tensor_names, entry->name, strlen(entry->name),
                              file->tensor_count - 1, c->err);
  }
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = place_tensor(c, file, &file->tensors[i]);
  if (status == STATUS_OK) status = name_index_finish(&file->tensor_names, c->path, c->err);
  return status == STATUS_OK ? check_overlaps(c, file) : status;
}

/* ---- open and close ---- */

static enum status take_all(struct cursor *c, struct gguf *file) {
  char magic[4];
  uint32_t version = 0;
  uint64_t tensors = 0, values = 0;
  if (left(c) < sizeof magic || take(c, magic, sizeof magic) != STATUS_OK ||
      memcmp(magic, GGUF_MAGIC, sizeof magic) != 0)
    return error_set(c->err, STATUS_REFUSED, "%s is not a GGUF file", c->path);
  enum status status = take(c, &version, sizeof version);
  if (status != STATUS_OK) return status;
  if (version && (version & 0xffff) == 0)
    return error_set(c->err, STATUS_REFUSED, "%s is a big-endian GGUF file, which is not read",
                     c->path);
  if (version < GGUF_VERSION_OLDEST || version > GGUF_VERSION_NEWEST)
    return error_set(c->err, STATUS_REFUSED, "%s is of GGUF version %u; versions %d to %d are read",
                     c->path, version, GGUF_VERSION_OLDEST, GGUF_VERSION_NEWEST);
  status = take(c, &tensors, sizeof tensors);
  if (status == STATUS_OK) status = take(c, &values, sizeof values);
  if (status == STATUS_OK) status = take_values(c, file, values);
  if (status == STATUS_OK) status = take_alignment(c, file);
  return status == STATUS_OK ? take_tensors(c, file, tensors) : status;
}

enum status gguf_open(struct gguf **out, const char *path, struct error *err) {
  *out = NULL;
  struct gguf *file = calloc(1, sizeof *file);
  if (!file) return error_set(err, STATUS_FAILED, "out of memory");
  enum status status = file_map_open(&file->map, path, err);
  if (status == STATUS_OK && !(file->path = mem_strdup(path, err))) status = STATUS_FAILED;
  if (status == STATUS_OK) {
    const uint8_t *start = file->map.data;
    struct cursor c = {start, start + file->map.size_bytes, path, err};
    status = take_all(&c, file);
  }
  if (status == STATUS_OK)
    *out = file;
  else
    gguf_close(file);
  return status;
}

void gguf_close(struct gguf *file) {
  if (!file) return;
  for (size_t i = 0; i < file->value_count; i++) free(file->offsets[i]);
  for (size_t i = 0; i < file->tensor_count; i++) free(file->tensors[i].name);
  name_index_free(&file->value_names);
  name_index_free(&file->tensor_names);
  free(file->values);
  free(file->offsets);
  free(file->tensors);
  free(file->path);
  file_map_close(&file->map);
  free(file);
}

bool gguf_recognise(const char *path) {
  char magic[sizeof GGUF_MAGIC] = {0};
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return false;
  ssize_t got = read(fd, magic, sizeof magic);
  close(fd);
  return got == (ssize_t)sizeof magic && !memcmp(magic, GGUF_MAGIC, sizeof magic);
}
