/* What the kernels of learning and of decoding share: sums over lanes and blocks, elements of any
 * type, activations. After a vocabulary.
 *
 * Sums of a row are taken by one warp: each lane every 32nd element, then a butterfly, so that all
 * lanes hold the same bits. */
#ifndef TSR_KERNEL_CUDA_COMMON_H
#define TSR_KERNEL_CUDA_COMMON_H

#include "kernel/cuda/learn.h"

/* --- sums --- */

DEVICE float warp_sum(float x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) x +=
      float_of_bits(shuffle_xor(bits_of_float(x), step));
  return x;
}
DEVICE float warp_max(float x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const float other = float_of_bits(shuffle_xor(bits_of_float(x), step));
    x = other > x ? other : x;
  }
  return x;
}
DEVICE double warp_sum_double(double x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const uint64_t bits = bits_of_double(x);
    const uint32_t low = shuffle_xor((uint32_t)bits, step);
    const uint32_t high = shuffle_xor((uint32_t)(bits >> 32), step);
    x += double_of_bits((uint64_t)high << 32 | low);
  }
  return x;
}
/* The sum over the block, for all its threads. Uses the first 64 bytes of shared memory, which
 * nobody may be using; barriers on both sides. */
DEVICE double block_sum(double x) {
  const uint32_t at = shared_base();
  x = warp_sum_double(x);
  block_barrier();
  if (thread_index() % 32 == 0) {
    const uint64_t bits = bits_of_double(x);
    shared_store4(at + thread_index() / 32 * 8, (uint32_t)bits);
    shared_store4(at + thread_index() / 32 * 8 + 4, (uint32_t)(bits >> 32));
  }
  block_barrier();
  double sum = 0;
  for (uint32_t w = 0; w < LEARN_WARPS; w++) {
    const uint32_t low = shared_load4(at + 8 * w), high = shared_load4(at + 8 * w + 4);
    sum += double_of_bits((uint64_t)high << 32 | low);
  }
  return sum;
}

/* For the last block of `expected` that calls this with the counter: true, for all its threads, and
 * what the others wrote before is visible. The counter is left at zero. Uses shared memory as
 * block_sum. */
DEVICE bool last_to_arrive(uint32_t *counter, uint32_t expected) {
  const uint32_t at = shared_base();
  memory_fence();
  block_barrier();
  if (thread_index() == 0) {
    const uint32_t last = global_add(counter, 1) + 1 == expected;
    if (last) global_store(counter, 0);
    shared_store4(at, last);
  }
  block_barrier();
  const bool last = shared_load4(at);
  memory_fence();
  block_barrier();
  return last;
}

/* parts[0] + parts[1] + ..., the same order for every count: for the last block. */
DEVICE double sum_parts(const double *parts, uint32_t count) {
  double sum = 0;
  for (uint32_t i = thread_index(); i < count; i += LEARN_THREADS)
    sum += global_load_fresh(parts + i);
  return block_sum(sum);
}

DEVICE uint64_t first_element(void) {
  return (uint64_t)block_index() * LEARN_THREADS + thread_index();
}

DEVICE float load_element(const void *from, uint64_t i, uint32_t type) {
  if (type == ELEMENT_F32) return global_load((const float *)from + i);
  const uint16_t half = global_load((const uint16_t *)from + i);
  return type == ELEMENT_BF16 ? bf16_widen(half) : f16_widen(half);
}

DEVICE float activation(bool gelu, float x, float *slope) {
  if (!gelu) {
    const float s = 1 / (1 + expf(-x));
    *slope = s * (1 + x * (1 - s));
    return x * s;
  }
  const float scale = 0.7978845608f /* sqrt(2/pi) */, cubic = 0.044715f;
  const float t = tanhf(scale * (x + cubic * x * x * x));
  *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x);
  return 0.5f * x * (1 + t);
}

#endif
