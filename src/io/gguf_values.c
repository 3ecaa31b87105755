/* Values and tensors of an open GGUF file, asked for by key and name: see gguf.h. */
#include <string.h>

#include "io/gguf_format.h"
#include "io/gguf_internal.h"

/* ---- values, asked for ---- */

size_t gguf_value_count(const struct gguf *file) { return file->value_count; }

const struct gguf_value *gguf_value_at(const struct gguf *file, size_t index) {
  INVARIANT(index < file->value_count);
  return &file->values[index];
}

const struct gguf_value *gguf_find(const struct gguf *file, const char *key) {
  size_t index = name_index_find(&file->value_names, key, SIZE_MAX);
  return index == SIZE_MAX ? NULL : &file->values[index];
}

/* An integer or bool element at `p`; u64 beyond int64 comes out negative. */
static int64_t element_int(enum gguf_type type, const uint8_t *p) {
  uint64_t bits = 0;
  memcpy(&bits, p, gguf_scalar_bytes(type));
  switch (type) {
    case GGUF_I8:
      return (int8_t)bits;
    case GGUF_I16:
      return (int16_t)bits;
    case GGUF_I32:
      return (int32_t)bits;
    default:
      return (int64_t)bits;
  }
}

static double element_real(enum gguf_type type, const uint8_t *p) {
  float single;
  double real;
  if (type == GGUF_F32) return memcpy(&single, p, sizeof single), (double)single;
  if (type == GGUF_F64) return memcpy(&real, p, sizeof real), real;
  int64_t value = element_int(type, p);
  return type == GGUF_U64 ? (double)(uint64_t)value : (double)value;
}

static bool is_integer(enum gguf_type type) {
  return type <= GGUF_I32 || type == GGUF_U64 || type == GGUF_I64;
}

static bool is_number(enum gguf_type type) {
  return is_integer(type) || type == GGUF_F32 || type == GGUF_F64;
}

bool gguf_get_int(const struct gguf *file, const char *key, int64_t *out) {
  const struct gguf_value *v = gguf_find(file, key);
  if (!v || !is_integer(v->type)) return false;
  int64_t value = element_int(v->type, v->data);
  if (v->type == GGUF_U64 && value < 0) return false;
  *out = value;
  return true;
}

bool gguf_get_real(const struct gguf *file, const char *key, double *out) {
  const struct gguf_value *v = gguf_find(file, key);
  if (!v || !is_number(v->type)) return false;
  *out = element_real(v->type, v->data);
  return true;
}

bool gguf_get_bool(const struct gguf *file, const char *key, bool *out) {
  const struct gguf_value *v = gguf_find(file, key);
  if (!v || v->type != GGUF_BOOL) return false;
  *out = *v->data != 0;
  return true;
}

static struct gguf_string string_at(const uint8_t *p) {
  uint64_t length;
  memcpy(&length, p, sizeof length);
  return (struct gguf_string){(const char *)p + sizeof length, (size_t)length};
}

bool gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *out) {
  const struct gguf_value *v = gguf_find(file, key);
  if (!v || v->type != GGUF_STRING) return false;
  *out = string_at(v->data);
  return true;
}

struct gguf_string gguf_array_string(const struct gguf_value *v, uint64_t index) {
  INVARIANT(v->type == GGUF_ARRAY && v->element_type == GGUF_STRING && index < v->count);
  return string_at(v->data + v->string_offsets[index]);
}

double gguf_array_real(const struct gguf_value *v, uint64_t index) {
  INVARIANT(v->type == GGUF_ARRAY && is_number(v->element_type) && index < v->count);
  return element_real(v->element_type, v->data + index * gguf_scalar_bytes(v->element_type));
}

int64_t gguf_array_int(const struct gguf_value *v, uint64_t index) {
  INVARIANT(v->type == GGUF_ARRAY && index < v->count);
  INVARIANT(is_integer(v->element_type) || v->element_type == GGUF_BOOL);
  return element_int(v->element_type, v->data + index * gguf_scalar_bytes(v->element_type));
}

/* ---- tensors, asked for ---- */

size_t gguf_tensor_count(const struct gguf *file) { return file->tensor_count; }

const struct stored_tensor *gguf_tensor_at(const struct gguf *file, size_t index) {
  INVARIANT(index < file->tensor_count);
  return &file->tensors[index].tensor;
}

const struct stored_tensor *gguf_tensor_find(const struct gguf *file, const char *name) {
  size_t index = name_index_find(&file->tensor_names, name, SIZE_MAX);
  return index == SIZE_MAX ? NULL : &file->tensors[index].tensor;
}

enum status gguf_tensor_get(const struct gguf *file, const char *name,
                            const struct stored_tensor **out, struct error *err) {
  size_t index = name_index_find(&file->tensor_names, name, SIZE_MAX);
  *out = NULL;
  if (index == SIZE_MAX)
    return error_set(err, STATUS_REFUSED, "%s holds no tensor \"%s\"", file->path, name);
  const struct tensor_entry *entry = &file->tensors[index];
  const struct gguf_tensor_type *type = gguf_tensor_type(entry->type);
  if (!type)
    return error_set(err, STATUS_REFUSED, "%s: tensor \"%s\" has type %u, which is not known",
                     file->path, name, entry->type);
  if (entry->tensor.dtype == DTYPE_COUNT)
    return error_set(err, STATUS_REFUSED,
                     "%s: tensor \"%s\" is stored as %s, which tessera does not read; convert the "
                     "model to another type, for instance Q8_0 or Q4_K",
                     file->path, name, type->name);
  *out = &entry->tensor;
  return STATUS_OK;
}
