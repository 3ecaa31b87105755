/* State files: see state_file.h. No state of its own. */
#include "learn/state_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/log.h"
#include "base/mem.h"

static const char *const current_name = "checkpoint.safetensors";
static const char *const previous_name = "checkpoint.previous.safetensors";

/* --- the tensors --- */

/* A tensor in the backend's memory, where that is not the host's: it comes through `room` in
 * pieces. */
enum { PIECE_BYTES = 16 << 20 };
struct far_tensor {
  const struct backend *ops;
  const uint8_t *data;
  size_t bytes;
  uint8_t *room; /* (PIECE_BYTES) */
};

void state_tensors_free(struct state_tensors *t) {
  for (size_t i = 0; i < t->count; i++) free((char *)t->items[i].name);
  free(t->items);
  free(t->crc);
  mem_free(t->far);
  mem_free(t->room);
  *t = (struct state_tensors){0};
}

enum status state_add(struct state_tensors *t, struct error *err, const char *prefix,
                      const char *name, enum dtype dtype, int64_t a, int64_t b, int64_t c,
                      const void *data) {
  enum status status =
      mem_grow((void **)&t->items, &t->capacity, t->count + 1, sizeof *t->items, err);
  if (status != STATUS_OK) return status;
  struct tensor_source *item = &t->items[t->count];
  *item = (struct tensor_source){.dtype = dtype,
                                 .rank = c   ? 3
                                         : b ? 2
                                             : 1,
                                 .shape = {a, b, c},
                                 .data = data};
  char text[512];
  snprintf(text, sizeof text, "%s%s", prefix, name);
  if (!(item->name = mem_strdup(text, err))) return err->status;
  t->count++;
  return STATUS_OK;
}

/* Calls `take` for one piece after the other. */
static enum status bring_pieces(const struct far_tensor *far,
                                enum status (*take)(void *ctx, const void *piece, size_t bytes,
                                                    struct error *err),
                                void *ctx, struct error *err) {
  enum status status = STATUS_OK;
  for (size_t at = 0; at < far->bytes && status == STATUS_OK; at += PIECE_BYTES) {
    const size_t bytes = far->bytes - at < PIECE_BYTES ? far->bytes - at : PIECE_BYTES;
    status = far->ops->download(far->room, far->data + at, bytes, err);
    if (status == STATUS_OK) status = take(ctx, far->room, bytes, err);
  }
  return status;
}

static enum status put_piece(void *ctx, const void *piece, size_t bytes, struct error *err) {
  return file_writer_put(ctx, piece, bytes, err);
}
static enum status produce_far(void *ctx, struct file_writer *out, struct error *err) {
  return bring_pieces(ctx, put_piece, out, err);
}

static size_t source_bytes(const struct tensor_source *s) {
  size_t bytes = s->dtype == DTYPE_F32 ? 4 : s->dtype == DTYPE_BF16 ? 2 : 1;
  for (int i = 0; i < s->rank; i++) bytes *= (size_t)s->shape[i];
  return bytes;
}

enum status state_expect_far(struct state_tensors *t, const struct backend *ops, size_t most,
                             struct error *err) {
  if (ops->is_host) return STATUS_OK;
  enum status status = ops->wait(err); /* what is still on its way to the host */
  if (status != STATUS_OK) return status;
  t->far = mem_alloc(most, sizeof *t->far, err);
  t->room = mem_alloc(PIECE_BYTES, 1, err);
  return t->far && t->room ? STATUS_OK : STATUS_FAILED;
}

enum status state_add_far(struct state_tensors *t, struct error *err, const struct backend *ops,
                          const char *prefix, const char *name, enum dtype dtype, int64_t a,
                          int64_t b, int64_t c, const void *data) {
  enum status status = state_add(t, err, prefix, name, dtype, a, b, c, data);
  if (status != STATUS_OK || ops->is_host) return status;
  struct tensor_source *item = &t->items[t->count - 1];
  struct far_tensor *far = &t->far[t->far_count++];
  *far = (struct far_tensor){ops, data, source_bytes(item), t->room};
  item->data = NULL;
  item->produce = produce_far;
  item->ctx = far;
  return STATUS_OK;
}

enum { COPY_ALIGN = 256 };

static enum status copy_room(const struct state_tensors *t, const struct backend *ops,
                             struct state_copy *copy, struct error *err) {
  size_t bytes = 0;
  for (size_t i = 0; i < t->count; i++)
    bytes += (source_bytes(&t->items[i]) + COPY_ALIGN - 1) / COPY_ALIGN * COPY_ALIGN;
  if (copy->ops) {
    INVARIANT(copy->ops == ops && copy->bytes == bytes);
    return STATUS_OK;
  }
  enum status status = ops->alloc_host(bytes, (void **)&copy->room, err);
  if (status != STATUS_OK) return status;
  copy->ops = ops;
  copy->bytes = bytes;
  return STATUS_OK;
}

enum status state_detach(struct state_tensors *t, const struct backend *ops,
                         struct state_copy *copy, struct error *err) {
  enum status status = copy_room(t, ops, copy, err);
  size_t at = 0;
  for (size_t i = 0; i < t->count && status == STATUS_OK; i++) {
    struct tensor_source *item = &t->items[i];
    const struct far_tensor *far = item->ctx;
    const size_t bytes = source_bytes(item);
    if (far)
      ops->copy_aside(copy->room + at, far->data, bytes);
    else
      memcpy(copy->room + at, item->data, bytes);
    item->data = copy->room + at;
    item->produce = NULL;
    item->ctx = NULL;
    at += (bytes + COPY_ALIGN - 1) / COPY_ALIGN * COPY_ALIGN;
  }
  return status;
}

void state_copy_free(struct state_copy *copy) {
  if (copy->ops) copy->ops->free_host(copy->room);
  *copy = (struct state_copy){0};
}

static uint32_t checksum(const void *data, size_t bytes) {
  return (uint32_t)crc32_z(0, data, bytes);
}

static enum status sum_piece(void *ctx, const void *piece, size_t bytes, struct error *err) {
  uint32_t *crc = ctx;
  (void)err;
  *crc = (uint32_t)crc32_z(*crc, piece, bytes);
  return STATUS_OK;
}

static enum status sum_item(const struct tensor_source *item, uint32_t *crc, struct error *err) {
  *crc = 0;
  if (item->ctx) return bring_pieces(item->ctx, sum_piece, crc, err);
  *crc = checksum(item->data, source_bytes(item));
  return STATUS_OK;
}

/* The bytes of a file's tensor to where they belong. */
static enum status fill_item(const struct tensor_source *item, const struct stored_tensor *t,
                             struct error *err) {
  const struct far_tensor *far = item->ctx;
  if (far) return far->ops->upload((void *)far->data, t->data, t->size_bytes, err);
  memcpy((void *)item->data, t->data, t->size_bytes);
  return STATUS_OK;
}

/* --- saving --- */

static json_t *make_metadata(const struct state *s) {
  json_t *meta = json_object();
  json_object_set_new(meta, "format", json_string(s->format));
  json_object_set_new(meta, "settings", json_string(s->settings));
  for (int i = 0; i < s->number_count; i++) {
    char text[64];
    if (s->numbers[i].real)
      snprintf(text, sizeof text, "%a", *s->numbers[i].real);
    else
      snprintf(text, sizeof text, "%lld", (long long)*s->numbers[i].integer);
    json_object_set_new(meta, s->numbers[i].key, json_string(text));
  }
  return meta;
}

/* The checkpoint that is there becomes the previous one, without ever being without a name. */
static enum status keep_previous(const char *current, const char *previous, struct error *err) {
  if (!file_exists(current)) return STATUS_OK;
  if (unlink(previous) && errno != ENOENT)
    return error_set(err, STATUS_FAILED, "cannot remove %s: %s", previous, strerror(errno));
  if (link(current, previous) && rename(current, previous)) /* no links on this file system */
    return error_set(err, STATUS_FAILED, "cannot keep %s as %s: %s", current, previous,
                     strerror(errno));
  return STATUS_OK;
}

static enum status make_room(struct state_tensors *t, struct error *err) {
  free(t->crc);
  t->crc = calloc(t->count + 1, sizeof *t->crc);
  return t->crc ? STATUS_OK : error_set(err, STATUS_FAILED, "out of memory for a checkpoint");
}

enum status state_save(struct state *s, const char *dir, struct error *err) {
  struct state_tensors *t = &s->tensors;
  char *current = path_join(dir, current_name), *previous = path_join(dir, previous_name);
  json_t *meta = make_metadata(s);
  const size_t count = t->count;
  enum status status = make_room(t, err);
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = sum_item(&t->items[i], &t->crc[i], err);
  if (status == STATUS_OK)
    status = state_add(t, err, "", "crc32", DTYPE_U32, (int64_t)count, 0, 0, t->crc);
  if (status == STATUS_OK) status = keep_previous(current, previous, err);
  if (status == STATUS_OK) status = safetensors_write(current, t->items, t->count, meta, err);
  if (status != STATUS_OK) error_prefix(err, "the checkpoint could not be saved");
  while (t->count > count) free((char *)t->items[--t->count].name); /* the sums' own */
  json_decref(meta);
  free(current);
  free(previous);
  return status;
}

/* --- loading --- */

static enum status damaged(const char *path, const char *what, const char *name,
                           struct error *err) {
  return error_set(err, STATUS_REFUSED, "%s is damaged: %s %s", path, what, name);
}

static enum status check_tensor(const struct stored_tensor *t, const struct tensor_source *want,
                                uint32_t crc, const char *path, struct error *err) {
  if (!t) return damaged(path, "there is no tensor", want->name, err);
  bool same = t->dtype == want->dtype && t->rank == want->rank;
  for (int i = 0; same && i < t->rank; i++) same = t->shape[i] == want->shape[i];
  if (!same) return damaged(path, "another shape or type than this run's in", want->name, err);
  if (checksum(t->data, t->size_bytes) != crc)
    return damaged(path, "the checksum does not match in", want->name, err);
  return STATUS_OK;
}

/* A number of the file's metadata: *real or *integer gets it. */
static enum status read_number(const struct safetensors *file, const struct state_number *n,
                               double *real, int64_t *integer, const char *path,
                               struct error *err) {
  const char *text = safetensors_metadata(file, n->key);
  char *end = NULL;
  if (!text) return damaged(path, "its metadata lack", n->key, err);
  if (n->real)
    *real = strtod(text, &end);
  else
    *integer = strtoll(text, &end, 10);
  if (end == text || *end) return damaged(path, "its metadata have no number in", n->key, err);
  if (n->integer && (n->least || n->most) && (*integer < n->least || *integer > n->most))
    return damaged(path, "an impossible number in", n->key, err);
  return STATUS_OK;
}

/* Into the state with `take`, else only looked at. */
static enum status read_numbers(const struct safetensors *file, const struct state *s, bool take,
                                const char *path, struct error *err) {
  for (int i = 0; i < s->number_count; i++) {
    const struct state_number *n = &s->numbers[i];
    double real = 0;
    int64_t integer = 0;
    enum status status = read_number(file, n, &real, &integer, path, err);
    if (status != STATUS_OK) return status;
    if (take && n->real) *n->real = real;
    if (take && n->integer) *n->integer = integer;
  }
  return STATUS_OK;
}

static enum status check_file(const struct safetensors *file, const struct state *s,
                              const char *path, struct error *err) {
  const char *format = safetensors_metadata(file, "format");
  const char *saved = safetensors_metadata(file, "settings");
  const struct state_tensors *t = &s->tensors;
  if (!format || strcmp(format, s->format) != 0) return damaged(path, "it is no", s->format, err);
  if (!saved || strcmp(saved, s->settings) != 0)
    return damaged(path, "it belongs to other settings than", "config.json", err);
  enum status status = read_numbers(file, s, false, path, err);
  if (status != STATUS_OK) return status;
  const struct stored_tensor *crc = safetensors_find(file, "crc32");
  if (!crc || crc->dtype != DTYPE_U32 || crc->size_bytes != t->count * sizeof(uint32_t))
    return damaged(path, "no checksums in", "its header", err);
  memcpy(t->crc, crc->data, crc->size_bytes);
  for (size_t i = 0; i < t->count && status == STATUS_OK; i++)
    status =
        check_tensor(safetensors_find(file, t->items[i].name), &t->items[i], t->crc[i], path, err);
  return status;
}

/* Checks everything before the state is touched. */
static enum status load_file(struct state *s, const char *path, struct error *err) {
  struct safetensors *file = NULL;
  const struct state_tensors *t = &s->tensors;
  enum status status = safetensors_open(&file, path, err);
  if (status != STATUS_OK) return status;
  status = check_file(file, s, path, err);
  for (size_t i = 0; i < t->count && status == STATUS_OK; i++)
    status = fill_item(&t->items[i], safetensors_find(file, t->items[i].name), err);
  if (status == STATUS_OK) status = read_numbers(file, s, true, path, err);
  safetensors_close(file);
  return status;
}

static int64_t step_of(const struct state *s) {
  for (int i = 0; i < s->number_count; i++)
    if (!strcmp(s->numbers[i].key, "step")) return *s->numbers[i].integer;
  return 0;
}

enum status state_load(struct state *s, const char *dir, bool *found, struct error *err) {
  char *current = path_join(dir, current_name), *previous = path_join(dir, previous_name);
  enum status status = make_room(&s->tensors, err);
  const bool has_current = file_exists(current), has_previous = file_exists(previous);
  *found = has_current || has_previous;
  if (status == STATUS_OK && has_current) status = load_file(s, current, err);
  if (*found && s->tensors.crc && (status != STATUS_OK || !has_current)) {
    struct error second;
    if (has_previous && load_file(s, previous, &second) == STATUS_OK) {
      log_warn("%s; going on from the checkpoint before it, of step %lld",
               status != STATUS_OK ? err->text : "the last checkpoint is missing",
               (long long)step_of(s));
      status = STATUS_OK;
    } else if (status == STATUS_OK) {
      *err = second;
      status = second.status;
    }
  }
  free(current);
  free(previous);
  return status;
}

bool state_exists(const char *dir) {
  const char *const names[] = {current_name, previous_name};
  bool found = false;
  for (int i = 0; i < 2; i++) {
    char *path = path_join(dir, names[i]);
    found |= file_exists(path);
    free(path);
  }
  return found;
}

void state_remove(const char *dir) {
  const char *const names[] = {current_name, previous_name};
  for (int i = 0; i < 2; i++) {
    char *path = path_join(dir, names[i]);
    unlink(path);
    free(path);
  }
  rmdir(dir);
}
