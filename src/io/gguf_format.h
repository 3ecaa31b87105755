/* What the GGUF reader and writer share: the numbers of the format. */
#ifndef TSR_IO_GGUF_FORMAT_H
#define TSR_IO_GGUF_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "io/gguf.h"

enum {
  GGUF_VERSION_OLDEST = 2,
  GGUF_VERSION_NEWEST = 3,
  GGUF_ALIGNMENT_DEFAULT = 32,
  GGUF_RANK_MAX = 4, /* ggml's own */
  GGUF_ALIGNMENT_MAX = 1 << 16,
  GGUF_NAME_LIMIT_BYTES = 1 << 16,
  GGUF_VALUES_MAX = 1 << 16,
  GGUF_STRINGS_MAX = 1 << 24, /* of one array */
  GGUF_TENSORS_MAX = 1 << 20
};
static const char GGUF_MAGIC[4] = {'G', 'G', 'U', 'F'};

/* A tensor type of the format. Types that tessera does not expand have dtype DTYPE_COUNT; their
 * sizes are known all the same, so that the file around them can be checked. */
struct gguf_tensor_type {
  const char *name; /* as llama.cpp prints it; NULL for numbers that are not in use */
  uint8_t dtype;
  uint16_t block_length, block_bytes;
};
/* NULL for a number that is not known. */
const struct gguf_tensor_type *gguf_tensor_type(uint32_t number);
/* The number of a dtype that may be written: f32, f16, bf16, q8_0; -1 for others. */
int gguf_tensor_type_number(enum dtype dtype);

/* Bytes of one element of a value; 0 for strings, arrays and unknown types. */
size_t gguf_scalar_bytes(enum gguf_type type);

#endif
