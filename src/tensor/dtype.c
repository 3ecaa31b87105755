/* Element types: see dtype.h. Sources may be unaligned; elements are little endian, as the machine
 * is. */
#include "tensor/dtype.h"

#include "base/error.h"
#include "base/mem.h"
#include "tensor/blocks.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as they lie in memory");

static const struct dtype_traits all_traits[DTYPE_COUNT] = {
    [DTYPE_F32] = {"f32", "F32", 1, 4},
    [DTYPE_F16] = {"f16", "F16", 1, 2},
    [DTYPE_BF16] = {"bf16", "BF16", 1, 2},
    [DTYPE_F64] = {"f64", "F64", 1, 8},
    [DTYPE_F8_E4M3] = {"f8_e4m3", "F8_E4M3", 1, 1},
    [DTYPE_F8_E5M2] = {"f8_e5m2", "F8_E5M2", 1, 1},
    [DTYPE_I8] = {"i8", "I8", 1, 1},
    [DTYPE_U8] = {"u8", "U8", 1, 1},
    [DTYPE_I16] = {"i16", "I16", 1, 2},
    [DTYPE_U16] = {"u16", "U16", 1, 2},
    [DTYPE_I32] = {"i32", "I32", 1, 4},
    [DTYPE_U32] = {"u32", "U32", 1, 4},
    [DTYPE_I64] = {"i64", "I64", 1, 8},
    [DTYPE_U64] = {"u64", "U64", 1, 8},
    [DTYPE_BOOL] = {"bool", "BOOL", 1, 1},
    [DTYPE_Q4_0] = {"q4_0", NULL, 32, 18},
    [DTYPE_Q4_1] = {"q4_1", NULL, 32, 20},
    [DTYPE_Q5_0] = {"q5_0", NULL, 32, 22},
    [DTYPE_Q5_1] = {"q5_1", NULL, 32, 24},
    [DTYPE_Q8_0] = {"q8_0", NULL, 32, 34},
    [DTYPE_Q2_K] = {"q2_k", NULL, 256, 84},
    [DTYPE_Q3_K] = {"q3_k", NULL, 256, 110},
    [DTYPE_Q4_K] = {"q4_k", NULL, 256, 144},
    [DTYPE_Q5_K] = {"q5_k", NULL, 256, 176},
    [DTYPE_Q6_K] = {"q6_k", NULL, 256, 210},
    [DTYPE_IQ4_NL] = {"iq4_nl", NULL, 32, 18},
};

static block_decode_fn *const block_decoder[DTYPE_COUNT] = {
    [DTYPE_Q4_0] = block_decode_q4_0,     [DTYPE_Q4_1] = block_decode_q4_1,
    [DTYPE_Q5_0] = block_decode_q5_0,     [DTYPE_Q5_1] = block_decode_q5_1,
    [DTYPE_Q8_0] = block_decode_q8_0,     [DTYPE_Q2_K] = block_decode_q2_k,
    [DTYPE_Q3_K] = block_decode_q3_k,     [DTYPE_Q4_K] = block_decode_q4_k,
    [DTYPE_Q5_K] = block_decode_q5_k,     [DTYPE_Q6_K] = block_decode_q6_k,
    [DTYPE_IQ4_NL] = block_decode_iq4_nl,
};

const struct dtype_traits *dtype_traits(enum dtype dtype) {
  INVARIANT((unsigned)dtype < DTYPE_COUNT);
  return &all_traits[dtype];
}

bool dtype_bytes(enum dtype dtype, uint64_t count, size_t *bytes) {
  const struct dtype_traits *t = dtype_traits(dtype);
  uint64_t blocks = count / (uint64_t)t->block_length;
  if (count % (uint64_t)t->block_length) return false;
  return checked_mul(blocks, (size_t)t->block_bytes, bytes);
}

bool dtype_is_float(enum dtype dtype) {
  return dtype <= DTYPE_F8_E5M2 || (dtype >= DTYPE_Q4_0 && dtype < DTYPE_COUNT);
}

bool dtype_is_native(enum dtype dtype) {
  return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

static float float_of_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static uint32_t bits_of_float(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

/* Exponent and mantissa are moved into place as they are and the bias is put right by an exact
 * product with 2^112, which treats subnormals like all others. NaNs come out quiet, as F16C has
 * them. */
float f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
  if (rest >= 0x7c00u << 13) {
    uint32_t quiet = rest > 0x7c00u << 13 ? 0x00400000u : 0;
    return float_of_bits(sign | 0x7f800000u | quiet | (rest & 0x007fffffu));
  }
  return float_of_bits(sign | bits_of_float(float_of_bits(rest) * 0x1p112f));
}

/* Round to nearest even. Below the smallest normal, adding 0.5 makes the FPU round at fp16's
 * fixed step of 2^-24, which is the last bit of numbers in [0.5, 1). */
uint16_t f16_from_f32(float f) {
  uint32_t bits = bits_of_float(f), rest = bits & 0x7fffffffu;
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
  if (rest >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and more round to infinity */
  if (rest < 0x38800000u)
    return (uint16_t)(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000u));
  uint32_t rebiased = rest - (112u << 23);
  return (uint16_t)(sign | (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13);
}

/* 4 exponent bits of bias 7, no infinities: only all ones is NaN. */
static float f8_e4m3_to_f32(uint8_t q) {
  uint32_t sign = (uint32_t)(q & 0x80) << 24, rest = q & 0x7f;
  if (rest == 0x7f) return float_of_bits(sign | 0x7fc00000u);
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 20) * 0x1p120f));
}

#define EXPAND(type, expression)                             \
  for (int64_t i = 0; i < count; i++) {                      \
    type x;                                                  \
    memcpy(&x, bytes + i * (int64_t)sizeof(type), sizeof x); \
    out[i] = (expression);                                   \
  }                                                          \
  break

void dtype_to_f32(enum dtype dtype, const void *source, int64_t count, float *out) {
  INVARIANT(dtype_is_float(dtype));
  const struct dtype_traits *t = dtype_traits(dtype);
  INVARIANT(count >= 0 && count % t->block_length == 0);
  const uint8_t *bytes = source;
  switch (dtype) {
    case DTYPE_F32:
      if (count) memcpy(out, source, (size_t)count * 4);
      break;
    case DTYPE_F16:
      EXPAND(uint16_t, f16_to_f32(x));
    case DTYPE_BF16:
      EXPAND(uint16_t, bf16_to_f32(x));
    case DTYPE_F64:
      EXPAND(double, (float)x);
    case DTYPE_F8_E4M3:
      EXPAND(uint8_t, f8_e4m3_to_f32(x));
    case DTYPE_F8_E5M2:
      EXPAND(uint8_t, f16_to_f32((uint16_t)(x << 8)));
    default:
      for (int64_t i = 0; i < count; i += t->block_length, bytes += t->block_bytes)
        block_decoder[dtype](bytes, out + i);
  }
}

void dtype_from_f32(enum dtype dtype, const float *source, int64_t count, void *out) {
  INVARIANT(count >= 0 && count % dtype_traits(dtype)->block_length == 0);
  uint8_t *bytes = out;
  switch (dtype) {
    case DTYPE_F32:
      if (count) memcpy(out, source, (size_t)count * 4);
      break;
    case DTYPE_F16:
    case DTYPE_BF16:
      for (int64_t i = 0; i < count; i++) {
        uint16_t h = dtype == DTYPE_F16 ? f16_from_f32(source[i]) : bf16_from_f32(source[i]);
        memcpy(bytes + 2 * i, &h, 2);
      }
      break;
    case DTYPE_Q8_0:
      for (int64_t i = 0; i < count; i += 32) block_encode_q8_0(source + i, bytes + i / 32 * 34);
      break;
    case DTYPE_Q4_0:
      for (int64_t i = 0; i < count; i += 32) block_encode_q4_0(source + i, bytes + i / 32 * 18);
      break;
    default:
      INVARIANT(!"dtype_from_f32 writes f32, f16, bf16, q8_0 and q4_0");
  }
}
