/* A step in prefill by mma, for tall_body.h: this warp's part of it. Activations stay in registers
 * while the fragments of weights go by, one at a time: what is made of integers are more bytes than
 * they were, and there are few registers beside the sums. The warps across each make the same
 * weights anew, which costs fewer cycles of shared memory than to leave them there for each other.
 */
#include "kernel/cuda/weights_body.h"

DEVICE void LOCAL(multiply_sparse)(const struct product_args *args, uint32_t stage,
                                   float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32, block_bytes = LOCAL(block_bytes)(args, true);
  const uint32_t a = stage + LOCAL(warp_block)() * block_bytes;
  uint32_t meta[WARP_BLOCKS];
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++) meta[m] = shared_load4(a + m * block_bytes + 4 * lane);
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 b[WARP_OCTETS];
    UNROLL
    for (int n = 0; n < WARP_OCTETS; n++) b[n] = LOCAL(load_octet)(stage, n, half);
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) {
      const uint32_t block = a + m * block_bytes;
      const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, block, true, half);
      const struct words4 weights =
          LOCAL(load_weights)(block + FRAGMENT_META_BYTES, half, &scaling);
      UNROLL
      for (int n = 0; n < WARP_OCTETS; n++) {
        if (half)
          mma_sparse_high(sums[m][n], &weights, &b[n], meta[m]);
        else
          mma_sparse_low(sums[m][n], &weights, &b[n], meta[m]);
      }
    }
  }
}

DEVICE void LOCAL(multiply_dense)(const struct product_args *args, uint32_t stage,
                                  float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t block_bytes = LOCAL(block_bytes)(args, false);
  const uint32_t a = stage + LOCAL(warp_block)() * block_bytes;
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 b[WARP_OCTETS];
    UNROLL
    for (int n = 0; n < WARP_OCTETS; n++) b[n] = LOCAL(load_octet)(stage, n, half);
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) {
      const uint32_t block = a + m * block_bytes;
      const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, block, false, half);
      UNROLL
      for (int f = 0; f < 2; f++) {
        const struct words4 weights = LOCAL(load_weights)(block, 2 * half + f, &scaling);
        UNROLL
        for (int n = 0; n < WARP_OCTETS; n++)
          mma_dense(sums[m][n], &weights, b[n].w[2 * f], b[n].w[2 * f + 1]);
      }
    }
  }
}
