/* Writing GGUF version 3: see gguf.h. Values are kept as the bytes they become, in the order in
 * which their keys were first set. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "io/gguf.h"
#include "io/gguf_format.h"
#include "io/name_index.h"

static const char ALIGNMENT_KEY[] = "general.alignment";

struct entry {
  struct strbuf key, bytes; /* `bytes`: the type and what follows it */
};

struct gguf_builder {
  struct entry *entries;
  size_t count, capacity;
};

struct gguf_builder *gguf_builder_new(void) {
  struct gguf_builder *b = calloc(1, sizeof *b);
  INVARIANT(b != NULL);
  return b;
}

void gguf_builder_free(struct gguf_builder *b) {
  if (!b) return;
  for (size_t i = 0; i < b->count; i++) {
    strbuf_free(&b->entries[i].key);
    strbuf_free(&b->entries[i].bytes);
  }
  free(b->entries);
  free(b);
}

/* ---- values ---- */

static void put_u32(struct strbuf *out, uint32_t value) {
  strbuf_append(out, (const char *)&value, sizeof value);
}

static void put_u64(struct strbuf *out, uint64_t value) {
  strbuf_append(out, (const char *)&value, sizeof value);
}

static void put_string(struct strbuf *out, const char *data, size_t length) {
  put_u64(out, length);
  strbuf_append(out, data, length);
}

static struct strbuf *find_bytes(struct gguf_builder *b, const char *key, size_t length) {
  for (size_t i = 0; i < b->count; i++)
    if (b->entries[i].key.length == length && !memcmp(b->entries[i].key.data, key, length))
      return &b->entries[i].bytes;
  return NULL;
}

/* The emptied bytes of `key`, made if it is new, beginning with the type. */
static struct strbuf *begin(struct gguf_builder *b, const char *key, size_t length,
                            enum gguf_type type) {
  INVARIANT(length > 0);
  struct strbuf *bytes = find_bytes(b, key, length);
  if (!bytes) {
    void *entries = b->entries;
    INVARIANT(mem_grow(&entries, &b->capacity, b->count + 1, sizeof *b->entries, NULL) ==
              STATUS_OK);
    b->entries = entries;
    struct entry *e = &b->entries[b->count++];
    *e = (struct entry){0};
    strbuf_append(&e->key, key, length);
    bytes = &e->bytes;
  }
  strbuf_clear(bytes);
  put_u32(bytes, type);
  return bytes;
}

static void set_scalar(struct gguf_builder *b, const char *key, enum gguf_type type,
                       const void *value) {
  strbuf_append(begin(b, key, strlen(key), type), value, gguf_scalar_bytes(type));
}

void gguf_set_u32(struct gguf_builder *b, const char *key, uint32_t value) {
  set_scalar(b, key, GGUF_U32, &value);
}

void gguf_set_u64(struct gguf_builder *b, const char *key, uint64_t value) {
  set_scalar(b, key, GGUF_U64, &value);
}

void gguf_set_f32(struct gguf_builder *b, const char *key, float value) {
  set_scalar(b, key, GGUF_F32, &value);
}

void gguf_set_bool(struct gguf_builder *b, const char *key, bool value) {
  uint8_t byte = value;
  set_scalar(b, key, GGUF_BOOL, &byte);
}

void gguf_set_string(struct gguf_builder *b, const char *key, const char *data, size_t length) {
  put_string(begin(b, key, strlen(key), GGUF_STRING), data, length);
}

static struct strbuf *begin_array(struct gguf_builder *b, const char *key, enum gguf_type element,
                                  size_t count) {
  struct strbuf *bytes = begin(b, key, strlen(key), GGUF_ARRAY);
  put_u32(bytes, element);
  put_u64(bytes, count);
  return bytes;
}

void gguf_set_strings(struct gguf_builder *b, const char *key, const struct gguf_string *items,
                      size_t count) {
  struct strbuf *bytes = begin_array(b, key, GGUF_STRING, count);
  for (size_t i = 0; i < count; i++) put_string(bytes, items[i].data, items[i].length);
}

void gguf_set_i32s(struct gguf_builder *b, const char *key, const int32_t *items, size_t count) {
  strbuf_append(begin_array(b, key, GGUF_I32, count), (const char *)items, count * sizeof *items);
}

void gguf_set_f32s(struct gguf_builder *b, const char *key, const float *items, size_t count) {
  strbuf_append(begin_array(b, key, GGUF_F32, count), (const char *)items, count * sizeof *items);
}

/* Bytes of a value behind its type; for an array, behind its count. */
static size_t value_bytes(const struct gguf_value *v) {
  if (v->type == GGUF_ARRAY && v->element_type != GGUF_STRING)
    return (size_t)v->count * gguf_scalar_bytes(v->element_type);
  if (v->type == GGUF_ARRAY) {
    if (v->count == 0) return 0;
    struct gguf_string last = gguf_array_string(v, v->count - 1);
    return (size_t)((const uint8_t *)last.data + last.length - v->data);
  }
  if (v->type != GGUF_STRING) return gguf_scalar_bytes(v->type);
  uint64_t length;
  memcpy(&length, v->data, sizeof length);
  return sizeof length + (size_t)length;
}

void gguf_set_copy(struct gguf_builder *b, const struct gguf_value *v) {
  /* How the other file was laid out says nothing about this one. */
  if (v->key.length == strlen(ALIGNMENT_KEY) && !memcmp(v->key.data, ALIGNMENT_KEY, v->key.length))
    return;
  struct strbuf *bytes = begin(b, v->key.data, v->key.length, v->type);
  if (v->type == GGUF_ARRAY) {
    put_u32(bytes, v->element_type);
    put_u64(bytes, v->count);
  }
  strbuf_append(bytes, (const char *)v->data, value_bytes(v));
}

/* ---- the file ---- */

static size_t padding(uint64_t bytes) {
  return (size_t)(-bytes & (uint64_t)(GGUF_ALIGNMENT_DEFAULT - 1));
}

static enum status check_source(const struct tensor_source *t, struct error *err) {
  if (gguf_tensor_type_number(t->dtype) < 0 || t->rank > GGUF_RANK_MAX ||
      strlen(t->name) > GGUF_NAME_LIMIT_BYTES || !*t->name)
    return error_set(err, STATUS_USAGE,
                     "tensor \"%.200s\" (%s, %d dimensions) cannot be written to a GGUF file",
                     t->name, dtype_traits(t->dtype)->name, t->rank);
  int64_t row = t->rank ? t->shape[t->rank - 1] : 1;
  if (row % dtype_traits(t->dtype)->block_length)
    return error_set(err, STATUS_USAGE,
                     "rows of tensor \"%.200s\" hold %lld weights, which is no multiple of the %d "
                     "of a %s block",
                     t->name, (long long)row, dtype_traits(t->dtype)->block_length,
                     dtype_traits(t->dtype)->name);
  return STATUS_OK;
}

static enum status check_names(const struct tensor_source *tensors, size_t count,
                               struct error *err) {
  struct name_index names = {0};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = name_index_add(&names, tensors[i].name, strlen(tensors[i].name), i, err);
  if (status == STATUS_OK && name_index_finish(&names, "a tensor to be written", err) != STATUS_OK)
    status = err ? err->status = STATUS_USAGE : STATUS_USAGE;
  name_index_free(&names);
  return status;
}

/* Appends a tensor's info; *offset moves on to where the next one begins. */
static enum status describe(struct strbuf *out, const struct tensor_source *t, uint64_t *offset,
                            struct error *err) {
  size_t bytes;
  enum status status = check_source(t, err);
  if (status == STATUS_OK) status = tensor_source_bytes(t, &bytes, err);
  if (status != STATUS_OK) return status;
  put_string(out, t->name, strlen(t->name));
  put_u32(out, (uint32_t)t->rank);
  for (int i = t->rank - 1; i >= 0; i--) put_u64(out, (uint64_t)t->shape[i]);
  put_u32(out, (uint32_t)gguf_tensor_type_number(t->dtype));
  put_u64(out, *offset);
  *offset += bytes + padding(bytes);
  return STATUS_OK;
}

static void build_values(const struct gguf_builder *b, struct strbuf *out) {
  for (size_t i = 0; i < b->count; i++) {
    put_string(out, b->entries[i].key.data, b->entries[i].key.length);
    strbuf_append(out, b->entries[i].bytes.data, b->entries[i].bytes.length);
  }
}

static enum status put_padding(struct file_writer *w, struct error *err) {
  static const uint8_t zeros[GGUF_ALIGNMENT_DEFAULT];
  return file_writer_put(w, zeros, padding(w->written_bytes), err);
}

enum status gguf_write(struct gguf_builder *b, const char *path,
                       const struct tensor_source *tensors, size_t count, struct error *err) {
  struct strbuf header = {0};
  struct file_writer w = {.fd = -1};
  uint64_t offset = 0;
  enum status status = check_names(tensors, count, err);
  strbuf_append(&header, GGUF_MAGIC, sizeof GGUF_MAGIC);
  put_u32(&header, GGUF_VERSION_NEWEST);
  put_u64(&header, count);
  put_u64(&header, b->count);
  build_values(b, &header);
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = describe(&header, &tensors[i], &offset, err);
  if (status == STATUS_OK) status = file_writer_open(&w, path, err);
  if (status == STATUS_OK) status = file_writer_put(&w, header.data, header.length, err);
  if (status == STATUS_OK) status = put_padding(&w, err);
  for (size_t i = 0; i < count && status == STATUS_OK; i++) {
    status = tensor_source_put(&tensors[i], &w, err);
    if (status == STATUS_OK) status = put_padding(&w, err);
  }
  if (status == STATUS_OK) status = file_writer_commit(&w, err);
  file_writer_abort(&w);
  strbuf_free(&header);
  return status;
}
