/* Compact storage of 2:4 logits, their gradients and moments: 8.1 bytes a weight where fp32 takes
 * 21. What kernel/mask_ops.h says of layouts holds: planes of 16.
 *
 * Logits and gradients are bf16. A moment is a byte, a small float whose exponent of 3 bits counts
 * down from one that its plane of 16 shares: first moments have a sign and 4 bits of mantissa,
 * second moments are stored by their roots, with 5. Exponent 0 is linear down to 0, as in IEEE 754.
 * The shared exponent is a byte too, that of fp32 for the largest of the plane.
 *
 * Arithmetic is fp32; what is stored is rounded up or down by counter-based noise so that its mean
 * is what would have been stored: a step far below a unit of the last place still moves logits, as
 * often as its size says. A root that is not zero is
 * at least the 64th of the shared power of two: a step is divided by it, and smaller ones would
 * turn the rounding of small first moments into leaps (docs/LEARNING.md has what was tried). The
 * same arguments give the same bits on every machine, GPUs included: each operation is one that
 * IEEE 754 rounds in one way, and none is fused but where it is said. */
#ifndef TSR_KERNEL_MASK_COMPACT_H
#define TSR_KERNEL_MASK_COMPACT_H

#include "kernel/mask_ops.h"

enum {
  COMPACT_EXPONENTS = 7,      /* of a plane, above 0 */
  COMPACT_FIRST_MANTISSA = 4, /* bits */
  COMPACT_SECOND_MANTISSA = 5,
  COMPACT_LEAST_ROOT = 1 << COMPACT_SECOND_MANTISSA, /* the code of the least root but 0 */
  /* Second words of the counters of the noise: those of masks are 0. */
  COMPACT_STEP_STREAM = 0x53544f00,
  COMPACT_GRADIENT_STREAM = 0x47524100
};

/* All of one matrix; the same memory as its backend's. */
struct mask_compact {
  uint16_t *gradient, *logits;         /* (rows, blocks, 5, 16) */
  uint8_t *first, *second;             /* (rows, blocks, 5, 16), (rows, blocks, 6, 16) */
  uint8_t *first_scale, *second_scale; /* (rows, blocks, 5), (rows, blocks, 6) */
};
/* What the rounding's noise is made from, with the step's number. */
struct mask_rounding {
  uint32_t key[2], tensor;
};

/* As mask_adamw_step, on compact storage. */
int64_t mask_compact_step(const struct mask_adamw *settings, const struct mask_rounding *rounding,
                          int64_t rows, int64_t cols, const struct mask_compact *state,
                          uint8_t *codes);
/* As mask_harden and mask_gradient_squares. */
int64_t mask_compact_harden(const uint16_t *logits, int64_t rows, int64_t cols, uint8_t *codes);
double mask_compact_squares(const uint16_t *gradient, int64_t rows, int64_t cols);

/* --- one value: what tests and documents hold on to --- */

/* The shared exponent of a plane whose largest value's bits, sign aside, are `most`. */
static inline uint32_t compact_scale(uint32_t most, int mantissa) {
  /* one more where rounding up may carry into the next power of two */
  const uint32_t field = (most + (1u << (23 - mantissa)) - 1) >> 23;
  return most < 1u << 23 ? 0 : field < 254 ? field : 254;
}
/* The bits of a value without sign, at most the plane's largest, to a code; noise of 16 bits. A
 * value that is not 0 becomes `least` at least. */
static inline uint32_t compact_code(uint32_t bits, uint32_t scale, int mantissa, int32_t least,
                                    uint32_t noise) {
  const int32_t exponent = (int32_t)(bits >> 23) - ((int32_t)scale - COMPACT_EXPONENTS);
  const int32_t rest = (int32_t)(bits & 0x7fffff);
  const int32_t shift = exponent > -23 ? 1 - exponent : 24; /* of what is below the span */
  const int32_t fixed =
      exponent > 0 ? exponent * (1 << 23) + rest : (rest | 1 << 23) >> (shift & 31);
  const int32_t code = (fixed + (int32_t)(noise << (7 - mantissa))) >> (23 - mantissa);
  return !bits || !scale ? 0 : (uint32_t)(code < least ? least : code);
}
static inline uint32_t compact_bits(uint32_t code, uint32_t scale, int mantissa) {
  const int32_t base = (int32_t)scale - COMPACT_EXPONENTS;
  const int32_t high = (int32_t)(code << (23 - mantissa)) + base * (1 << 23);
  /* below the span, multiples of a unit: the bits of the leading one and the rest */
  const int32_t lead = code & 16 ? 4 : code & 8 ? 3 : code & 4 ? 2 : code & 2 ? 1 : 0;
  const int32_t low =
      (base + 1 - mantissa + lead) * (1 << 23) + (int32_t)((code << (23 - lead)) & 0x7fffff);
  const int32_t bits = code >> mantissa ? high : low;
  return !code || bits < 1 << 23 ? 0 : (uint32_t)bits;
}

#endif
