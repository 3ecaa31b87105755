/* A step in prefill by mma, for tall_body.h: this warp's part of it. Activations stay in registers
 * while the fragments of weights go by, one at a time: what is made of integers are more bytes than
 * they were, and there are few registers beside the sums. The warps across each make the same
 * weights anew, which costs fewer cycles of shared memory than to leave them there for each other.
 */
#include "kernel/cuda/weights_body.h"

/* The warp's row block `m` in the stage where its strip begins; of a pair the last two lie in the
 * strip behind. */
DEVICE uint32_t LOCAL(block_at)(uint32_t stage, int m, uint32_t block_bytes) {
  const int up = PRODUCT_PAIR ? m / (WARP_BLOCKS / 2) : 0;
  return stage + up * STRIP_BYTES +
         (LOCAL(warp_block)() + m - up * (WARP_BLOCKS / 2)) * block_bytes;
}

/* 32 columns: row block `m`, 2:4, with activations b. */
DEVICE void LOCAL(add_sparse)(const struct product_args *args, uint32_t block, uint32_t meta,
                              int half, const struct words4 b[WARP_OCTETS],
                              float sums[WARP_OCTETS][4]) {
  const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, block, true, half);
  const struct words4 weights = LOCAL(load_weights)(block + FRAGMENT_META_BYTES, half, &scaling);
  UNROLL
  for (int n = 0; n < WARP_OCTETS; n++) {
    if (half)
      mma_sparse_high(sums[n], &weights, &b[n], meta);
    else
      mma_sparse_low(sums[n], &weights, &b[n], meta);
  }
}
DEVICE void LOCAL(add_dense)(const struct product_args *args, uint32_t block, int half,
                             const struct words4 b[WARP_OCTETS], float sums[WARP_OCTETS][4]) {
  const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, block, false, half);
  UNROLL
  for (int f = 0; f < 2; f++) {
    const struct words4 weights = LOCAL(load_weights)(block, 2 * half + f, &scaling);
    UNROLL
    for (int n = 0; n < WARP_OCTETS; n++)
      mma_dense(sums[n], &weights, b[n].w[2 * f], b[n].w[2 * f + 1]);
  }
}

DEVICE void LOCAL(load_half)(uint32_t stage, int half, struct words4 b[WARP_OCTETS]) {
  UNROLL
  for (int n = 0; n < WARP_OCTETS; n++) b[n] = LOCAL(load_octet)(stage, n, half);
}

DEVICE void LOCAL(multiply_sparse)(const struct product_args *args, uint32_t stage,
                                   float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32, block_bytes = LOCAL(block_bytes)(args, true);
  uint32_t meta[WARP_BLOCKS];
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++)
    meta[m] = shared_load4(LOCAL(block_at)(stage, m, block_bytes) + 4 * lane);
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 b[WARP_OCTETS];
    LOCAL(load_half)(stage, half, b);
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(add_sparse)
    (args, LOCAL(block_at)(stage, m, block_bytes), meta[m], half, b, sums[m]);
  }
}

DEVICE void LOCAL(multiply_dense)(const struct product_args *args, uint32_t stage,
                                  float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t block_bytes = LOCAL(block_bytes)(args, false);
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 b[WARP_OCTETS];
    LOCAL(load_half)(stage, half, b);
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(add_dense)
    (args, LOCAL(block_at)(stage, m, block_bytes), half, b, sums[m]);
  }
}

#if PRODUCT_PAIR
/* The tile of the gate is 2:4 and that of up is not, or the other way. */
DEVICE void LOCAL(multiply_mixed)(const struct product_args *args, uint32_t stage, bool gate_sparse,
                                  float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32;
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 b[WARP_OCTETS];
    LOCAL(load_half)(stage, half, b);
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) {
      const bool sparse = gate_sparse == (m < WARP_BLOCKS / 2);
      const uint32_t block = LOCAL(block_at)(stage, m, LOCAL(block_bytes)(args, sparse));
      if (sparse)
        LOCAL(add_sparse)(args, block, shared_load4(block + 4 * lane), half, b, sums[m]);
      else
        LOCAL(add_dense)(args, block, half, b, sums[m]);
    }
  }
}
#endif
