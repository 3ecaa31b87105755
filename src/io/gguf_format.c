/* The numbers of GGUF: see gguf_format.h. */
#include "io/gguf_format.h"

static const struct gguf_tensor_type tensor_types[] = {
    [0] = {"F32", DTYPE_F32, 1, 4},
    [1] = {"F16", DTYPE_F16, 1, 2},
    [2] = {"Q4_0", DTYPE_Q4_0, 32, 18},
    [3] = {"Q4_1", DTYPE_Q4_1, 32, 20},
    [6] = {"Q5_0", DTYPE_Q5_0, 32, 22},
    [7] = {"Q5_1", DTYPE_Q5_1, 32, 24},
    [8] = {"Q8_0", DTYPE_Q8_0, 32, 34},
    [9] = {"Q8_1", DTYPE_COUNT, 32, 36},
    [10] = {"Q2_K", DTYPE_Q2_K, 256, 84},
    [11] = {"Q3_K", DTYPE_Q3_K, 256, 110},
    [12] = {"Q4_K", DTYPE_Q4_K, 256, 144},
    [13] = {"Q5_K", DTYPE_Q5_K, 256, 176},
    [14] = {"Q6_K", DTYPE_Q6_K, 256, 210},
    [15] = {"Q8_K", DTYPE_COUNT, 256, 292},
    [16] = {"IQ2_XXS", DTYPE_COUNT, 256, 66},
    [17] = {"IQ2_XS", DTYPE_COUNT, 256, 74},
    [18] = {"IQ3_XXS", DTYPE_COUNT, 256, 98},
    [19] = {"IQ1_S", DTYPE_COUNT, 256, 50},
    [20] = {"IQ4_NL", DTYPE_IQ4_NL, 32, 18},
    [21] = {"IQ3_S", DTYPE_COUNT, 256, 110},
    [22] = {"IQ2_S", DTYPE_COUNT, 256, 82},
    [23] = {"IQ4_XS", DTYPE_COUNT, 256, 136},
    [24] = {"I8", DTYPE_I8, 1, 1},
    [25] = {"I16", DTYPE_I16, 1, 2},
    [26] = {"I32", DTYPE_I32, 1, 4},
    [27] = {"I64", DTYPE_I64, 1, 8},
    [28] = {"F64", DTYPE_F64, 1, 8},
    [29] = {"IQ1_M", DTYPE_COUNT, 256, 56},
    [30] = {"BF16", DTYPE_BF16, 1, 2},
    [34] = {"TQ1_0", DTYPE_COUNT, 256, 54},
    [35] = {"TQ2_0", DTYPE_COUNT, 256, 66},
    [39] = {"MXFP4", DTYPE_COUNT, 32, 17},
};

const struct gguf_tensor_type *gguf_tensor_type(uint32_t number) {
  if (number >= sizeof tensor_types / sizeof *tensor_types) return NULL;
  return tensor_types[number].name ? &tensor_types[number] : NULL;
}

int gguf_tensor_type_number(enum dtype dtype) {
  switch (dtype) {
    case DTYPE_F32:
      return 0;
    case DTYPE_F16:
      return 1;
    case DTYPE_Q4_0:
      return 2;
    case DTYPE_Q4_1:
      return 3;
    case DTYPE_Q5_0:
      return 6;
    case DTYPE_Q8_0:
      return 8;
    case DTYPE_Q4_K:
      return 12;
    case DTYPE_Q6_K:
      return 14;
    case DTYPE_BF16:
      return 30;
    default:
      return -1;
  }
}

size_t gguf_scalar_bytes(enum gguf_type type) {
  static const uint8_t bytes[] = {
      [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
      [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
      [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
  };
  return (unsigned)type < sizeof bytes ? bytes[type] : 0;
}
