/* The optimizer's step on compact storage: kernel/mask_compact.h, bit for bit. After mask.h.
 *
 * A thread to a group; the 16 lanes that share a plane find its largest moment by shuffles. Sums of
 * products are fused by hand, and no other product meets a sum, so that the compiler has nothing
 * to fuse that the CPU does not. */
#ifndef TSR_KERNEL_CUDA_COMPACT_H
#define TSR_KERNEL_CUDA_COMPACT_H

#include "kernel/cuda/mask.h"

/* The largest of 16 lanes' words. */
DEVICE uint32_t plane_most(uint32_t x) {
  UNROLL for (uint32_t step = 8; step; step /= 2) {
    const uint32_t other = shuffle_xor(x, step);
    x = other > x ? other : x;
  }
  return x;
}

/* compact_scale, compact_code and compact_bits of kernel/mask_compact.h, for the device. */

/* The shared exponent of a plane whose largest value's bits, sign aside, are `most`. */
DEVICE uint32_t shared_exponent(uint32_t most, int mantissa) {
  /* one more where rounding up may carry into the next power of two */
  const uint32_t field = (most + (1u << (23 - mantissa)) - 1) >> 23;
  return most < 1u << 23 ? 0 : field < 254 ? field : 254;
}
/* The bits of a value without sign, at most the plane's largest, to a code; noise of 16 bits. A
 * value that is not 0 becomes `least` at least. */
DEVICE uint32_t moment_code(uint32_t bits, uint32_t scale, int mantissa, int32_t least,
                            uint32_t noise) {
  const int32_t exponent = (int32_t)(bits >> 23) - ((int32_t)scale - COMPACT_EXPONENTS);
  const int32_t rest = (int32_t)(bits & 0x7fffff);
  const int32_t shift = exponent > -23 ? 1 - exponent : 24; /* of what is below the span */
  const int32_t fixed =
      exponent > 0 ? exponent * (1 << 23) + rest : (rest | 1 << 23) >> (shift & 31);
  const int32_t code = (fixed + (int32_t)(noise << (7 - mantissa))) >> (23 - mantissa);
  return !bits || !scale ? 0 : (uint32_t)(code < least ? least : code);
}
DEVICE uint32_t moment_bits(uint32_t code, uint32_t scale, int mantissa) {
  const int32_t base = (int32_t)scale - COMPACT_EXPONENTS;
  const int32_t high = (int32_t)(code << (23 - mantissa)) + base * (1 << 23);
  /* below the span, multiples of a unit: the bits of the leading one and the rest */
  const int32_t lead = code & 16 ? 4 : code & 8 ? 3 : code & 4 ? 2 : code & 2 ? 1 : 0;
  const int32_t low =
      (base + 1 - mantissa + lead) * (1 << 23) + (int32_t)((code << (23 - lead)) & 0x7fffff);
  const int32_t bits = code >> mantissa ? high : low;
  return !code || bits < 1 << 23 ? 0 : (uint32_t)bits;
}

DEVICE float load_moment(const uint8_t *bytes, const uint8_t *scales, uint64_t plane, uint32_t lane,
                         bool is_first) {
  const int mantissa = is_first ? COMPACT_FIRST_MANTISSA : COMPACT_SECOND_MANTISSA;
  const uint32_t scale = global_load_fresh(scales + plane);
  const uint32_t byte = global_load_fresh(bytes + plane * MASK_LANES + lane);
  const uint32_t bits = moment_bits(is_first ? byte & 0x7f : byte, scale, mantissa);
  return float_of_bits(is_first ? bits | byte >> 7 << 31 : bits);
}

/* Stores a first moment, or the root of a second one; all lanes of the warp. Returns the plane's
 * exponent. */
DEVICE uint32_t store_moment(uint8_t *bytes, uint8_t *scales, uint64_t plane, uint32_t lane,
                             float x, bool is_first, uint32_t noise, bool exists) {
  const int mantissa = is_first ? COMPACT_FIRST_MANTISSA : COMPACT_SECOND_MANTISSA;
  const uint32_t bits = bits_of_float(x), size = bits & 0x7fffffffu;
  const uint32_t scale = shared_exponent(plane_most(size), mantissa);
  const uint32_t code =
      moment_code(size, scale, mantissa, is_first ? 0 : COMPACT_LEAST_ROOT, noise);
  if (!exists) return scale;
  global_store(bytes + plane * MASK_LANES + lane,
               (uint8_t)(is_first ? code | bits >> 31 << 7 : code));
  if (lane == 0) global_store(scales + plane, (uint8_t)scale);
  return scale;
}

DEVICE void compact_gradients(const struct mask_update_args *a, uint64_t at, bool exists,
                              float g[MASK_SIX]) {
  g[MASK_FIVE] = 0;
  UNROLL for (int k = 0; k < MASK_FIVE; k++) {
    const float x = exists ? load_logit(a->gradient, true, at + (uint32_t)k * MASK_LANES) : 0;
    g[k] = a->gradient_scale * x;
    g[MASK_FIVE] = fmaf(-a->gradient_scale, x, g[MASK_FIVE]);
  }
}

/* Moves a group's moments; u as group_moments gives it. `words`: of the slot, 16 halves. */
DEVICE void compact_moments(const struct mask_compact_args *c, uint64_t block, uint32_t lane,
                            const float g[MASK_SIX], const uint32_t *words, bool exists,
                            float u[MASK_SIX]) {
  const struct mask_update_args *a = &c->update;
  float last = 0;
  UNROLL for (int k = 0; k < MASK_SIX; k++) {
    const uint64_t five = block * MASK_FIVE + (uint32_t)k, six = block * MASK_SIX + (uint32_t)k;
    float m = last;
    if (k < MASK_FIVE) {
      const float old = exists ? load_moment(c->first, c->first_scale, five, lane, true) : 0;
      m = fmaf(a->beta1, old, (1 - a->beta1) * g[k]);
      store_moment(c->first, c->first_scale, five, lane, m, true, noise_half(words, MASK_FIVE + k),
                   exists);
      last -= m;
    }
    const float root = exists ? load_moment(c->second, c->second_scale, six, lane, false) : 0;
    const float v = sqrtf(fmaf(a->beta2 * root, root, (1 - a->beta2) * g[k] * g[k]));
    const uint32_t shared = store_moment(c->second, c->second_scale, six, lane, v, false,
                                         noise_half(words, 2 * MASK_FIVE + k), exists);
    const float least =
        float_of_bits(moment_bits(COMPACT_LEAST_ROOT, shared, COMPACT_SECOND_MANTISSA));
    const float used = v > least ? v : least;
    u[k] = used > 0 ? a->rate * m / fmaf(used, c->root_scale, a->epsilon) : 0;
  }
}

DEVICE void compact_body(const struct mask_compact_args *c) {
  const struct mask_update_args *a = &c->update;
  const uint64_t step = (uint64_t)a->blocks * LEARN_THREADS, slots = slot_count(a);
  uint32_t flips = 0;
  for (uint64_t base = first_element() / 32 * 32; base < slots; base += step) {
    const uint64_t slot = base + thread_index() % 32, row_slots = a->row_blocks * MASK_LANES;
    const uint64_t block = slot / MASK_LANES;
    const uint32_t lane = (uint32_t)(slot % MASK_LANES), row = (uint32_t)(slot / row_slots);
    const uint32_t group = slot < slots ? (uint32_t)(slot % row_slots) : a->groups;
    const uint64_t at = block * (MASK_FIVE * MASK_LANES) + lane;
    const bool exists = slot < slots;
    float g[MASK_SIX], u[MASK_SIX], logits[MASK_SIX];
    uint32_t words[8];
    UNROLL for (uint32_t half = 0; half < 2; half++) storage_words(
        c->key, slot, COMPACT_STEP_STREAM | half, c->tensor, c->step, words + 4 * half);
    compact_gradients(a, at, exists, g);
    compact_moments(c, block, lane, g, words, exists, u);
    logits[MASK_FIVE] = 0;
    UNROLL for (int k = 0; k < MASK_FIVE; k++) {
      uint16_t *logit = (uint16_t *)a->logits + at + (uint32_t)k * MASK_LANES;
      uint16_t stored = 0;
      if (exists) {
        const float before = bf16_widen(global_load_fresh(logit));
        stored =
            bf16_at_random(fmaf(a->keep, before, -(u[k] - u[MASK_FIVE])), noise_half(words, k));
        global_store(logit, stored);
      }
      logits[k] = bf16_widen(stored);
    }
    if (a->codes) flips += put_code(a, row, group, best_code(logits, group_width(a->cols, group)));
  }
  if (a->codes) add_flips(a, flips);
}
KERNEL(mask_compact, compact_body, LEARN_THREADS, struct mask_compact_args)

#endif
