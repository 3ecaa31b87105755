/* Compact storage, a row at a time: see kernel/mask_compact.h. Plain C whose loops over the 16
 * lanes of a plane the compiler turns into vectors: included by the reference and by every
 * instruction set's masks, which therefore give the same bits.
 *
 * fmaf where a product is added, because a GPU's compiler would fuse it too. */
#include <math.h>

#include "base/rng.h"
#include "kernel/mask_kernels.h"

enum { COMPACT_LANES = MASK_BLOCK, COMPACT_SIX = MASK_STORED + 1, COMPACT_HALVES = 8 };

static inline uint32_t compact_bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float compact_float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Philox blocks of 16 slots that follow each other: out (4, 16). */
static inline void compact_words(const struct mask_rounding *r, uint64_t slot, uint32_t stream,
                                 uint32_t draw, uint32_t out[4][COMPACT_LANES]) {
  uint32_t key[2] = {r->key[0], r->key[1]};
  uint32_t *const c0 = out[0], *const c1 = out[1], *const c2 = out[2], *const c3 = out[3];
  for (uint32_t i = 0; i < COMPACT_LANES; i++) {
    c0[i] = (uint32_t)slot + i;
    c1[i] = stream | (uint32_t)(slot >> 32) << 8;
    c2[i] = r->tensor;
    c3[i] = draw;
  }
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    for (int i = 0; i < COMPACT_LANES; i++) {
      const uint64_t p0 = (uint64_t)PHILOX_MULTIPLIER[0] * c0[i];
      const uint64_t p1 = (uint64_t)PHILOX_MULTIPLIER[1] * c2[i];
      c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ key[0];
      c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ key[1];
      c1[i] = (uint32_t)p1;
      c3[i] = (uint32_t)p0;
    }
    key[0] += PHILOX_STEP[0];
    key[1] += PHILOX_STEP[1];
  }
}

/* 16 bits of noise: number k of a block's words. */
static inline uint32_t compact_half(uint32_t words[][COMPACT_LANES], int k, int lane) {
  return words[k / 2][lane] >> (16 * (k % 2)) & 0xffff;
}

/* To bf16: its neighbours with probabilities that make the mean x. */
static inline uint16_t compact_bf16(float x, uint32_t noise) {
  const uint32_t bits = compact_bits_of(x);
  return (uint16_t)(((bits & 0x7f800000u) == 0x7f800000u ? bits : bits + noise) >> 16);
}

/* A plane of moments to bytes: `x` are first moments, or the roots of second ones. Returns the
 * plane's exponent. */
static inline uint32_t compact_store(const float x[COMPACT_LANES], bool is_first,
                                     uint32_t words[][COMPACT_LANES], int half, uint8_t *bytes,
                                     uint8_t *scale) {
  const int mantissa = is_first ? COMPACT_FIRST_MANTISSA : COMPACT_SECOND_MANTISSA;
  uint32_t most = 0;
  for (int i = 0; i < COMPACT_LANES; i++) {
    const uint32_t size = compact_bits_of(x[i]) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  const uint32_t shared = compact_scale(most, mantissa);
  for (int i = 0; i < COMPACT_LANES; i++) {
    const uint32_t bits = compact_bits_of(x[i]);
    const uint32_t code =
        compact_code(bits & 0x7fffffffu, shared, mantissa, is_first ? 0 : COMPACT_LEAST_ROOT,
                     compact_half(words, half, i));
    bytes[i] = (uint8_t)(is_first ? code | bits >> 31 << 7 : code);
  }
  *scale = (uint8_t)shared;
  return shared;
}

static inline void compact_load(const uint8_t *bytes, uint8_t scale, bool is_first,
                                float x[COMPACT_LANES]) {
  const int mantissa = is_first ? COMPACT_FIRST_MANTISSA : COMPACT_SECOND_MANTISSA;
  for (int i = 0; i < COMPACT_LANES; i++) {
    const uint32_t code = is_first ? bytes[i] & 0x7fu : bytes[i];
    const uint32_t sign = is_first ? (uint32_t)bytes[i] >> 7 << 31 : 0;
    x[i] = compact_float_of(compact_bits(code, scale, mantissa) | sign);
  }
}

/* One block of 16 groups. */
static inline void compact_block(const struct mask_adamw_factors *f, uint32_t step,
                                 const struct mask_compact_row *row, int64_t b) {
  uint32_t words[COMPACT_HALVES][COMPACT_LANES];
  float g[COMPACT_SIX][COMPACT_LANES], u[COMPACT_SIX][COMPACT_LANES];
  float m[COMPACT_LANES], v[COMPACT_LANES], last[COMPACT_LANES] = {0};
  const int64_t five = b * MASK_STORED, six = b * COMPACT_SIX;
  const uint64_t slot = row->slot + (uint64_t)(b * COMPACT_LANES);
  for (uint32_t half = 0; half < 2; half++)
    compact_words(&row->rounding, slot, COMPACT_STEP_STREAM | half, step, words + 4 * half);
  memset(g[MASK_STORED], 0, sizeof g[MASK_STORED]);
  for (int k = 0; k < MASK_STORED; k++)
    for (int i = 0; i < COMPACT_LANES; i++) {
      const float x =
          compact_float_of((uint32_t)row->state.gradient[(five + k) * COMPACT_LANES + i] << 16);
      g[k][i] = f->gradient_scale * x;
      g[MASK_STORED][i] = fmaf(-f->gradient_scale, x, g[MASK_STORED][i]);
    }
  for (int k = 0; k < COMPACT_SIX; k++) {
    uint8_t *first = row->state.first + (five + k) * COMPACT_LANES;
    uint8_t *second = row->state.second + (six + k) * COMPACT_LANES;
    if (k < MASK_STORED) {
      compact_load(first, row->state.first_scale[five + k], true, m);
      for (int i = 0; i < COMPACT_LANES; i++) {
        m[i] = fmaf(f->beta1, m[i], (1 - f->beta1) * g[k][i]);
        last[i] -= m[i];
      }
      compact_store(m, true, words, MASK_STORED + k, first, &row->state.first_scale[five + k]);
    } else {
      memcpy(m, last, sizeof m);
    }
    compact_load(second, row->state.second_scale[six + k], false, v);
    for (int i = 0; i < COMPACT_LANES; i++)
      v[i] = sqrtf(fmaf(f->beta2 * v[i], v[i], (1 - f->beta2) * g[k][i] * g[k][i]));
    const uint32_t shared = compact_store(v, false, words, 2 * MASK_STORED + k, second,
                                          &row->state.second_scale[six + k]);
    const float least =
        compact_float_of(compact_bits(COMPACT_LEAST_ROOT, shared, COMPACT_SECOND_MANTISSA));
    for (int i = 0; i < COMPACT_LANES; i++) {
      const float root = v[i] > least ? v[i] : least;
      const float step_k = f->rate * m[i] / fmaf(root, f->root_scale, f->epsilon);
      u[k][i] = root > 0 ? step_k : 0;
    }
  }
  for (int k = 0; k < MASK_STORED; k++)
    for (int i = 0; i < COMPACT_LANES; i++) {
      uint16_t *at = row->state.logits + (five + k) * COMPACT_LANES + i;
      const float x = compact_float_of((uint32_t)*at << 16);
      const float moved = fmaf(f->keep, x, -(u[k][i] - u[MASK_STORED][i]));
      *at = compact_bf16(moved, compact_half(words, k, i));
    }
}

static void compact_step(const struct mask_adamw_factors *f, uint32_t step,
                         const struct mask_compact_row *row) {
  for (int64_t b = 0; b < row->blocks; b++) compact_block(f, step, row, b);
}

static void compact_round(const struct mask_compact_row *row, uint32_t pass, bool accumulate,
                          const float *made) {
  for (int64_t b = 0; b < row->blocks; b++) {
    uint32_t words[4][COMPACT_LANES];
    compact_words(&row->rounding, row->slot + (uint64_t)(b * COMPACT_LANES),
                  COMPACT_GRADIENT_STREAM, pass, words);
    for (int k = 0; k < MASK_STORED; k++)
      for (int i = 0; i < COMPACT_LANES; i++) {
        const int64_t at = (b * MASK_STORED + k) * COMPACT_LANES + i;
        const float before = compact_float_of((uint32_t)row->state.gradient[at] << 16);
        const float x = accumulate ? before + made[at] : made[at];
        row->state.gradient[at] = compact_bf16(x, compact_half(words, k, i));
      }
  }
}
