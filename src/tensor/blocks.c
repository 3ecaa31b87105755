/* ggml's block types. Small blocks hold 32 weights and an fp16 scale; K blocks hold 256 in 8 or 16
 * groups whose scales are integers times one fp16 scale for the block.
 *
 * Surprising: where a block is wider than 32, nibbles and bit pairs are not in order. A byte of
 * quants holds weights that lie 32 apart (16 apart in a block of 32), so each decoder walks runs
 * of output and picks a shift for the run. Every product and sum is fp32 in ggml's own order,
 * which makes the results equal to its bits. */
#include "tensor/blocks.h"

#include <math.h>
#include <string.h>

#include "tensor/dtype.h"

static float load_f16(const uint8_t *p) { return f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

static uint32_t load_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- blocks of 32 ---- */

/* d | 16 bytes: low nibbles are weights 0..15, high ones 16..31, all less 8. */
void block_decode_q4_0(const uint8_t *block, float *out) {
  float d = load_f16(block);
  for (int i = 0; i < 16; i++) {
    uint8_t q = block[2 + i];
    out[i] = (float)((q & 15) - 8) * d;
    out[i + 16] = (float)((q >> 4) - 8) * d;
  }
}

/* d, m | nibbles as in q4_0, unsigned. */
void block_decode_q4_1(const uint8_t *block, float *out) {
  float d = load_f16(block), m = load_f16(block + 2);
  for (int i = 0; i < 16; i++) {
    uint8_t q = block[4 + i];
    out[i] = (float)(q & 15) * d + m;
    out[i + 16] = (float)(q >> 4) * d + m;
  }
}

/* d | 32 fifth bits | nibbles. */
void block_decode_q5_0(const uint8_t *block, float *out) {
  float d = load_f16(block);
  uint32_t high = load_u32(block + 2);
  for (int i = 0; i < 16; i++) {
    uint8_t q = block[6 + i];
    int low_fifth = (int)(high >> i & 1) << 4, high_fifth = (int)(high >> (i + 16) & 1) << 4;
    out[i] = (float)(((q & 15) | low_fifth) - 16) * d;
    out[i + 16] = (float)(((q >> 4) | high_fifth) - 16) * d;
  }
}

/* d, m | 32 fifth bits | nibbles. */
void block_decode_q5_1(const uint8_t *block, float *out) {
  float d = load_f16(block), m = load_f16(block + 2);
  uint32_t high = load_u32(block + 4);
  for (int i = 0; i < 16; i++) {
    uint8_t q = block[8 + i];
    int low_fifth = (int)(high >> i & 1) << 4, high_fifth = (int)(high >> (i + 16) & 1) << 4;
    out[i] = (float)((q & 15) | low_fifth) * d + m;
    out[i + 16] = (float)((q >> 4) | high_fifth) * d + m;
  }
}

/* d | 32 signed bytes. */
void block_decode_q8_0(const uint8_t *block, float *out) {
  float d = load_f16(block);
  for (int i = 0; i < 32; i++) out[i] = (float)(int8_t)block[2 + i] * d;
}

/* d | nibbles that index a fixed table of levels, denser near zero. */
void block_decode_iq4_nl(const uint8_t *block, float *out) {
  static const int8_t level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
  float d = load_f16(block);
  for (int i = 0; i < 16; i++) {
    uint8_t q = block[2 + i];
    out[i] = d * (float)level[q & 15];
    out[i + 16] = d * (float)level[q >> 4];
  }
}

void block_encode_q8_0(const float *in, uint8_t *block) {
  float most = 0;
  for (int i = 0; i < 32; i++)
    if (fabsf(in[i]) > most) most = fabsf(in[i]);
  float d = most / 127.0f;
  float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  uint16_t half = f16_from_f32(d);
  block[0] = (uint8_t)half;
  block[1] = (uint8_t)(half >> 8);
  for (int i = 0; i < 32; i++) {
    float q = roundf(in[i] * inverse);
    /* In the range by construction, but for NaN and for a scale whose inverse overflows. */
    block[2 + i] = (uint8_t)(int8_t)(q >= -127.0f && q <= 127.0f ? q : 0.0f);
  }
}

/* The largest weight becomes -8, whatever its sign. */
void block_encode_q4_0(const float *in, uint8_t *block) {
  float most = 0;
  for (int i = 0; i < 32; i++)
    if (fabsf(in[i]) > fabsf(most)) most = in[i];
  const float d = most / -8.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
  const uint16_t half = f16_from_f32(d);
  memcpy(block, &half, 2);
  uint8_t q[32];
  for (int i = 0; i < 32; i++) {
    const float x = in[i] * inverse + 8.5f;
    q[i] = x >= 0.0f && x < 16.0f ? (uint8_t)x : x >= 16.0f ? 15 : 8;
  }
  for (int i = 0; i < 16; i++) block[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}

/* ---- blocks of 256 ---- */

/* 16 x (4-bit scale, 4-bit minimum) | 64 bytes of 2-bit quants | d, dmin. */
void block_decode_q2_k(const uint8_t *block, float *out) {
  const uint8_t *scales = block, *quants = block + 16;
  float d = load_f16(block + 80), dmin = load_f16(block + 82);
  for (int group = 0; group < 16; group++) {
    const uint8_t *q = quants + group / 8 * 32 + group % 2 * 16;
    int shift = group % 8 / 2 * 2;
    float scale = d * (float)(scales[group] & 15), least = dmin * (float)(scales[group] >> 4);
    for (int i = 0; i < 16; i++) *out++ = scale * (float)(q[i] >> shift & 3) - least;
  }
}

/* 256 third bits (set: nothing is subtracted) | 64 bytes of 2-bit quants | 16 6-bit scales in 12
 * bytes: 4 low bits first, then the upper pairs | d. */
void block_decode_q3_k(const uint8_t *block, float *out) {
  const uint8_t *third = block, *quants = block + 32, *scales = block + 96;
  float d = load_f16(block + 108);
  for (int group = 0; group < 16; group++) {
    const uint8_t *q = quants + group / 8 * 32 + group % 2 * 16, *h = third + group % 2 * 16;
    int shift = group % 8 / 2 * 2, bit = group / 2;
    int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    int upper = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    float scale = d * (float)((low | upper << 4) - 32);
    for (int i = 0; i < 16; i++)
      *out++ = scale * (float)((q[i] >> shift & 3) - (h[i] >> bit & 1 ? 0 : 4));
  }
}

/* The 8 6-bit scales and 8 6-bit minima that q4_k and q5_k pack into 12 bytes. */
static void unpack_scales_k4(const uint8_t packed[12], uint8_t scale[8], uint8_t least[8]) {
  for (int i = 0; i < 4; i++) {
    scale[i] = packed[i] & 63;
    least[i] = packed[i + 4] & 63;
    scale[i + 4] = (uint8_t)((packed[i + 8] & 15) | packed[i] >> 6 << 4);
    least[i + 4] = (uint8_t)(packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4);
  }
}

/* d, dmin | packed scales and minima | 128 bytes of nibbles. */
void block_decode_q4_k(const uint8_t *block, float *out) {
  float d = load_f16(block), dmin = load_f16(block + 2);
  uint8_t scales[8], minima[8];
  unpack_scales_k4(block + 4, scales, minima);
  for (int group = 0; group < 8; group++) {
    const uint8_t *q = block + 16 + group / 2 * 32;
    int shift = group % 2 * 4;
    float scale = d * (float)scales[group], least = dmin * (float)minima[group];
    for (int i = 0; i < 32; i++) *out++ = scale * (float)(q[i] >> shift & 15) - least;
  }
}

/* As q4_k, with 32 bytes of fifth bits before the nibbles: bit g of byte i belongs to group g. */
void block_decode_q5_k(const uint8_t *block, float *out) {
  float d = load_f16(block), dmin = load_f16(block + 2);
  uint8_t scales[8], minima[8];
  unpack_scales_k4(block + 4, scales, minima);
  const uint8_t *fifth = block + 16;
  for (int group = 0; group < 8; group++) {
    const uint8_t *q = block + 48 + group / 2 * 32;
    int shift = group % 2 * 4;
    float scale = d * (float)scales[group], least = dmin * (float)minima[group];
    for (int i = 0; i < 32; i++)
      *out++ = scale * (float)((q[i] >> shift & 15) + (fifth[i] >> group & 1) * 16) - least;
  }
}

/* 128 bytes of low nibbles | 64 bytes of upper bit pairs | 16 signed byte scales | d. */
void block_decode_q6_k(const uint8_t *block, float *out) {
  const uint8_t *low = block, *upper = block + 128, *scales = block + 192;
  float d = load_f16(block + 208);
  for (int run = 0; run < 8; run++) { /* 32 weights each, two scales */
    const uint8_t *q = low + run / 4 * 64 + run % 2 * 32, *u = upper + run / 4 * 32;
    int nibble = run % 4 / 2 * 4, pair = run % 4 * 2;
    for (int i = 0; i < 32; i++) {
      int value = (q[i] >> nibble & 15) | (u[i] >> pair & 3) << 4;
      *out++ = d * (float)(int8_t)scales[run * 2 + i / 16] * (float)(value - 32);
    }
  }
}
