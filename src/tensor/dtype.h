/* Element types: plain ones, and ggml's block types, which are only read (expanded to fp32). */
#ifndef TSR_TENSOR_DTYPE_H
#define TSR_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype {
  DTYPE_F32,
  DTYPE_F16,
  DTYPE_BF16,
  DTYPE_F64,
  DTYPE_F8_E4M3,
  DTYPE_F8_E5M2,
  DTYPE_I8,
  DTYPE_U8,
  DTYPE_I16,
  DTYPE_U16,
  DTYPE_I32,
  DTYPE_U32,
  DTYPE_I64,
  DTYPE_U64,
  DTYPE_BOOL,
  DTYPE_Q4_0,
  DTYPE_Q4_1,
  DTYPE_Q5_0,
  DTYPE_Q5_1,
  DTYPE_Q8_0,
  DTYPE_Q2_K,
  DTYPE_Q3_K,
  DTYPE_Q4_K,
  DTYPE_Q5_K,
  DTYPE_Q6_K,
  DTYPE_IQ4_NL,
  DTYPE_COUNT
};

struct dtype_traits {
  const char *name;        /* "f32", "q4_1": lower case, as tessera prints it */
  const char *safetensors; /* "F32"; NULL where safetensors has no such type */
  int block_length;        /* elements per block: 1 for plain types */
  int block_bytes;
};
const struct dtype_traits *dtype_traits(enum dtype dtype);

/* Bytes of `count` elements; false when count is no multiple of the block or on overflow. */
bool dtype_bytes(enum dtype dtype, uint64_t count, size_t *bytes);

/* True for the types that dtype_to_f32 expands: all floating and all block types. */
bool dtype_is_float(enum dtype dtype);
/* True for f32, f16 and bf16: the types the kernels multiply without expanding them first. */
bool dtype_is_native(enum dtype dtype);

/* Expands `count` elements (a multiple of block_length) to fp32, exactly as ggml defines each
 * block type (fp32 arithmetic, the same order of operations). */
void dtype_to_f32(enum dtype dtype, const void *source, int64_t count, float *out);
/* The other way, for f32, f16, bf16 (round to nearest even; NaN stays NaN), q8_0 and q4_0 (as
 * ggml's reference quantizers). `count` a multiple of block_length. */
void dtype_from_f32(enum dtype dtype, const float *source, int64_t count, void *out);

static inline float bf16_to_f32(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t bf16_from_f32(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f16_from_f32(float f);

/* A matrix somewhere in memory, row-major, not owned. */
struct matrix_view {
  const void *data; /* (rows, cols) of dtype */
  enum dtype dtype;
  int64_t rows, cols;
};

#endif
