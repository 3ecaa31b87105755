/* Compact storage of 2:4 logits and moments, and the optimizer's step on it. After mask.h.
 *
 * Logits and gradients are bf16. A plane of 16 moments is 16 bytes and one bf16 scale: first
 * moments as signed bytes, second moments by their roots as unsigned ones. Arithmetic is fp32 in
 * registers; what is stored again is rounded up or down at random, by counter-based noise, so that
 * its mean is what would have been stored: a step far below a unit of the last place still moves
 * logits, as often as its size says. The root of a second moment that is not zero never becomes
 * zero, for a step is divided by it. 8.1 bytes a weight, where fp32 takes 21. */
#ifndef TSR_KERNEL_CUDA_COMPACT_H
#define TSR_KERNEL_CUDA_COMPACT_H

#include "kernel/cuda/mask.h"

/* --- rounding --- */

/* 22 words of noise for a slot: 16 bits for each logit, 8 for each moment. Their counters' second
 * word is never 0, as that of masks is. */
struct slot_noise {
  uint32_t words[8];
};
DEVICE struct slot_noise storage_noise(const struct mask_compact_args *a, uint64_t slot) {
  struct slot_noise n;
  UNROLL for (uint32_t half = 0; half < 2; half++)
      philox(a->key, (uint32_t)slot, 0x53544f00u | half | (uint32_t)(slot >> 32) << 8, a->tensor,
             a->step, n.words + 4 * half);
  return n;
}
/* In [0, 1): 16 bits of it, k below 5; 8 bits of it, k below 11. */
DEVICE uint32_t noise_bits16(const struct slot_noise *n, int k) {
  return n->words[k / 2] >> (16 * (k % 2)) & 0xffff;
}
DEVICE float noise_share(const struct slot_noise *n, int k) {
  const uint32_t byte = n->words[3 + k / 4] >> (8 * (k % 4)) & 0xff;
  return ((float)byte + 0.5f) * (1.0f / 256);
}

/* x, finite, to bf16: its neighbours with probabilities that make the mean x. */
DEVICE uint16_t bf16_at_random(float x, uint32_t noise) {
  return (uint16_t)((bits_of_float(x) + noise) >> 16);
}

/* The largest of 16 lanes' values that are not negative. */
DEVICE float plane_max(float x) {
  UNROLL for (uint32_t step = 8; step; step /= 2) {
    const float other = float_of_bits(shuffle_xor(bits_of_float(x), step));
    x = other > x ? other : x;
  }
  return x;
}
/* A scale by which `most` becomes `units` or a little less; bf16 rounds it by up to 1 / 256. */
DEVICE uint16_t plane_scale(float most, float units) { return bf16_round(most * (1.01f / units)); }

/* --- the step --- */

DEVICE float load_moment(const void *bytes, const uint16_t *scales, uint64_t plane, uint32_t lane,
                         bool is_signed) {
  const float scale = bf16_widen(global_load_fresh(scales + plane));
  const uint8_t byte = global_load_fresh((const uint8_t *)bytes + plane * MASK_LANES + lane);
  return scale * (is_signed ? (float)(int8_t)byte : (float)byte);
}

/* Stores a first moment, or the root of a second one; all lanes of the warp. */
DEVICE void store_moment(void *bytes, uint16_t *scales, uint64_t plane, uint32_t lane, float x,
                         bool is_signed, float noise, bool exists) {
  const uint16_t scale = plane_scale(plane_max(x < 0 ? -x : x), is_signed ? 127.0f : 255.0f);
  const float units = bf16_widen(scale) > 0 ? x / bf16_widen(scale) : 0;
  float rounded = floorf(units + noise);
  if (!is_signed && rounded < 1 && x > 0) rounded = 1;
  if (!exists) return;
  global_store((uint8_t *)bytes + plane * MASK_LANES + lane, (uint8_t)(int32_t)rounded);
  if (lane == 0) global_store(scales + plane, scale);
}

DEVICE void compact_gradients(const struct mask_compact_args *a, uint64_t at, bool exists,
                              float g[MASK_SIX]) {
  g[MASK_FIVE] = 0;
  UNROLL for (int k = 0; k < MASK_FIVE; k++) {
    g[k] = 0;
    if (exists)
      g[k] =
          a->gradient_scale * bf16_widen(global_load(a->gradient + at + (uint32_t)k * MASK_LANES));
    g[MASK_FIVE] -= g[k];
  }
}

/* Moves a group's moments; u as group_moments gives it. */
DEVICE void compact_moments(const struct mask_compact_args *a, uint64_t block, uint32_t lane,
                            const float g[MASK_SIX], const struct slot_noise *n, bool exists,
                            float u[MASK_SIX]) {
  float last = 0;
  UNROLL for (int k = 0; k < MASK_SIX; k++) {
    const uint64_t five = block * MASK_FIVE + (uint32_t)k, six = block * MASK_SIX + (uint32_t)k;
    float m = last;
    if (k < MASK_FIVE) {
      m = (1 - a->beta1) * g[k];
      if (exists) m = fmaf(a->beta1, load_moment(a->first, a->first_scale, five, lane, true), m);
      store_moment(a->first, a->first_scale, five, lane, m, true, noise_share(n, k), exists);
      last -= m;
    }
    const float root = exists ? load_moment(a->second, a->second_scale, six, lane, false) : 0;
    const float v = sqrtf(fmaf(a->beta2, root * root, (1 - a->beta2) * g[k] * g[k]));
    store_moment(a->second, a->second_scale, six, lane, v, false, noise_share(n, MASK_FIVE + k),
                 exists);
    u[k] = a->rate * m / (v * a->root_scale + a->epsilon);
  }
}

DEVICE void compact_body(const struct mask_compact_args *a) {
  const uint64_t step = (uint64_t)a->blocks * LEARN_THREADS, slots = a->slots;
  for (uint64_t base = first_element() / 32 * 32; base < slots; base += step) {
    const uint64_t slot = base + thread_index() % 32, block = slot / MASK_LANES;
    const uint32_t lane = (uint32_t)(slot % MASK_LANES);
    const uint64_t at = block * (MASK_FIVE * MASK_LANES) + lane;
    const bool exists = slot < slots;
    const struct slot_noise noise = storage_noise(a, slot);
    float g[MASK_SIX], u[MASK_SIX];
    compact_gradients(a, at, exists, g);
    compact_moments(a, block, lane, g, &noise, exists, u);
    UNROLL for (int k = 0; k < MASK_FIVE; k++) {
      if (!exists) continue;
      uint16_t *logit = a->logits + at + (uint32_t)k * MASK_LANES;
      const float x = a->keep * bf16_widen(global_load_fresh(logit)) - (u[k] - u[MASK_FIVE]);
      global_store(logit, bf16_at_random(x, noise_bits16(&noise, k)));
    }
  }
}
KERNEL(mask_compact, compact_body, LEARN_THREADS, struct mask_compact_args)

#endif
