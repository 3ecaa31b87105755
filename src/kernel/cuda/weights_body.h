/* Fragments of weights on their way to the tensor cores, for prefill: included by tall_body.h and
 * cluster_body.h. bf16 (QUANT_BITS 0) are taken as they lie; integers become bf16.
 *
 * Decoding (multiply_quant_body.h) multiplies integers as they are and scales the sums, a group of
 * 32 columns at a time. With many tokens that would be more fp32 work than the tensor cores leave
 * time for; so here each weight is scaled, in fp32, exactly, and rounded to bf16 once. Where a row
 * has one scale, nothing is rounded: the integers are multiplied, and the sums scaled at the end.
 *
 * A float is made of an integer by one permutation of bytes: 2^15 + x in fp32 has the byte x in its
 * bits 8 to 15, 2^7 + x a nibble in bits 16 to 19. One fused multiply-add takes the power of two
 * away and scales. */
#if QUANT_BITS
#include "kernel/cuda/integers_body.h"

#if QUANT_BITS == 8
#define POWER_BITS 0x47000000u
#define POWER 32768.0f
#else
#define POWER_BITS 0x43000000u
#define POWER 128.0f
#endif

/* Of this lane's rows g and g + 8, in one group: weight = scale (POWER + x) + shift. */
struct LOCAL(scaling) {
  float scale[2], shift[2];
};

DEVICE uint32_t LOCAL(block_bytes)(const struct product_args *args, bool sparse) {
  return (sparse ? args->sparse_step_bytes : args->dense_step_bytes) / FRAGMENT_BLOCKS;
}

DEVICE struct LOCAL(scaling)
    LOCAL(load_scaling)(const struct product_args *args, uint32_t block, bool sparse, int half) {
  /* Bytes are stored with their sign, here turned into 128 more, and have no minimums; nibbles are
   * stored without, and stand for 8 less unless there is a minimum. */
  const bool has_mins = QUANT_BITS == 4 && args->mins;
  const float zero = POWER + (QUANT_BITS == 8 ? 128 : has_mins ? 0 : 8);
  struct LOCAL(scaling) s = {{1, 1}, {-zero, -zero}};
  if (!args->scales) return s;
  const uint32_t at = block + LOCAL(block_bytes)(args, sparse) -
                      (has_mins ? 2 : 1) * FRAGMENT_SCALE_BYTES + 8 * (thread_index() % 32 / 4) +
                      4 * half;
  const uint32_t scales = shared_load4(at);
  const uint32_t mins = has_mins ? shared_load4(at + FRAGMENT_SCALE_BYTES) : 0;
  UNROLL
  for (int r = 0; r < 2; r++) {
    s.scale[r] = f16_widen((uint16_t)(scales >> 16 * r));
    s.shift[r] = multiply_add(-zero, s.scale[r], f16_widen((uint16_t)(mins >> 16 * r)));
  }
  return s;
}

/* Two weights of a row, from bytes `low` and `high` of the word. */
DEVICE uint32_t LOCAL(weight_pair)(uint32_t word, uint32_t low, uint32_t high, float scale,
                                   float shift) {
  const uint32_t place = QUANT_BITS == 8 ? 4 : 8;
  const uint32_t around = QUANT_BITS == 8 ? 0x7404 : 0x7044;
  const float a = float_of_bits(permute_bytes(word, POWER_BITS, around | low << place));
  const float b = float_of_bits(permute_bytes(word, POWER_BITS, around | high << place));
  return bf16_pair(multiply_add(a, scale, shift), multiply_add(b, scale, shift));
}

/* A fragment as operand A. int8: its eight bytes, 2 r and 2 r + 1 are register r; int4: `first`
 * alone, whose nibbles r and r + 4 are register r. */
DEVICE struct words4 LOCAL(scale_fragment)(uint32_t first, uint32_t second,
                                           const struct LOCAL(scaling) * s) {
  struct words4 a;
#if QUANT_BITS == 8
  const uint32_t words[2] = {first ^ 0x80808080, second ^ 0x80808080};
  UNROLL
  for (uint32_t r = 0; r < 4; r++)
    a.w[r] = LOCAL(weight_pair)(words[r / 2], r % 2 * 2, r % 2 * 2 + 1, s->scale[r % 2],
                                s->shift[r % 2]);
#else
  const uint32_t words[2] = {first & 0x0f0f0f0f, first >> 4 & 0x0f0f0f0f};
  UNROLL
  for (uint32_t r = 0; r < 4; r++)
    a.w[r] = LOCAL(weight_pair)(words[r % 2], r / 2, r / 2 + 2, s->scale[r % 2], s->shift[r % 2]);
#endif
  return a;
}

/* Fragment `fragment` of a row block whose weights begin at `values`. */
DEVICE struct words4 LOCAL(load_weights)(uint32_t values, int fragment,
                                         const struct LOCAL(scaling) * s) {
  const struct words2 raw = LOCAL(load_integers)(values, fragment);
  return LOCAL(scale_fragment)(raw.w[0], raw.w[1], s);
}

#undef POWER
#undef POWER_BITS
#else
/* The same interface. */
struct LOCAL(scaling) {
  uint8_t none;
};

DEVICE uint32_t LOCAL(block_bytes)(const struct product_args *args, bool sparse) {
  return sparse ? FRAGMENT_SPARSE_BLOCK_BYTES : FRAGMENT_DENSE_BLOCK_BYTES;
}
DEVICE struct LOCAL(scaling)
    LOCAL(load_scaling)(const struct product_args *args, uint32_t block, bool sparse, int half) {
  const struct LOCAL(scaling) s = {0};
  return s;
}
DEVICE struct words4 LOCAL(load_weights)(uint32_t values, int fragment,
                                         const struct LOCAL(scaling) * s) {
  return shared_load16(values + fragment * FRAGMENT_BYTES + 16 * (thread_index() % 32));
}
#endif
