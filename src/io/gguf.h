/* GGUF v2 and v3: typed key-value pairs and tensors. Reading maps the file, checks everything
 * against named limits, and copies nothing. Big-endian files are refused. */
#ifndef TSR_IO_GGUF_H
#define TSR_IO_GGUF_H

#include "io/safetensors.h"

enum gguf_type {
  GGUF_U8,
  GGUF_I8,
  GGUF_U16,
  GGUF_I16,
  GGUF_U32,
  GGUF_I32,
  GGUF_F32,
  GGUF_BOOL,
  GGUF_STRING,
  GGUF_ARRAY,
  GGUF_U64,
  GGUF_I64,
  GGUF_F64
}; /* the numbers of the format itself */

struct gguf_string {
  const char *data; /* not NUL-terminated */
  size_t length;
};

struct gguf_value {
  struct gguf_string key;
  enum gguf_type type;
  enum gguf_type element_type;    /* for GGUF_ARRAY (arrays of arrays are refused) */
  uint64_t count;                 /* elements of an array, else 1 */
  const uint8_t *data;            /* first element, unaligned little endian */
  const uint64_t *string_offsets; /* of an array of strings: where each begins, from `data` */
};

struct gguf;
enum status gguf_open(struct gguf **out, const char *path, struct error *err);
void gguf_close(struct gguf *file);
/* True when the file starts with GGUF's magic. */
bool gguf_recognise(const char *path);

size_t gguf_value_count(const struct gguf *file);
const struct gguf_value *gguf_value_at(const struct gguf *file, size_t index);
const struct gguf_value *gguf_find(const struct gguf *file, const char *key);
/* Typed scalars: false when absent or of another kind (integers of any width convert). */
bool gguf_get_int(const struct gguf *file, const char *key, int64_t *out);
bool gguf_get_real(const struct gguf *file, const char *key, double *out);
bool gguf_get_bool(const struct gguf *file, const char *key, bool *out);
bool gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *out);
/* Element `index` of an array value: the caller has checked element_type and count. Reals from any
 * number, integers from integers and bools. String access is O(1): offsets are noted at open. */
struct gguf_string gguf_array_string(const struct gguf_value *v, uint64_t index);
double gguf_array_real(const struct gguf_value *v, uint64_t index);
int64_t gguf_array_int(const struct gguf_value *v, uint64_t index);

/* Tensors: shapes are turned to PyTorch order (outermost first). A type that tessera cannot read
 * is refused by gguf_tensor_get, with its name, not at open; at and find show such a tensor with
 * dtype DTYPE_COUNT. */
size_t gguf_tensor_count(const struct gguf *file);
const struct stored_tensor *gguf_tensor_at(const struct gguf *file, size_t index);
const struct stored_tensor *gguf_tensor_find(const struct gguf *file, const char *name);
enum status gguf_tensor_get(const struct gguf *file, const char *name,
                            const struct stored_tensor **out, struct error *err);

/* Writing: set the values in order, then write the tensors, atomically. Setting a key again
 * replaces its value. Setters abort when memory runs out, as strbuf does. */
struct gguf_builder;
struct gguf_builder *gguf_builder_new(void);
void gguf_builder_free(struct gguf_builder *b);
void gguf_set_u32(struct gguf_builder *b, const char *key, uint32_t value);
void gguf_set_u64(struct gguf_builder *b, const char *key, uint64_t value);
void gguf_set_f32(struct gguf_builder *b, const char *key, float value);
void gguf_set_bool(struct gguf_builder *b, const char *key, bool value);
void gguf_set_string(struct gguf_builder *b, const char *key, const char *data, size_t length);
void gguf_set_strings(struct gguf_builder *b, const char *key, const struct gguf_string *items,
                      size_t count);
void gguf_set_i32s(struct gguf_builder *b, const char *key, const int32_t *items, size_t count);
void gguf_set_f32s(struct gguf_builder *b, const char *key, const float *items, size_t count);
/* Copies a value of another file as it is; general.alignment is left out, for it speaks of that
 * file's layout. */
void gguf_set_copy(struct gguf_builder *b, const struct gguf_value *value);
/* dtype: f32, f16, bf16, q8_0, q5_0, q4_0, q4_1, q4_k, q6_k. Shapes in PyTorch order. */
enum status gguf_write(struct gguf_builder *b, const char *path,
                       const struct tensor_source *tensors, size_t count, struct error *err);

#endif
