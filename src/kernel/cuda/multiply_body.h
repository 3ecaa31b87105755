/* A step of bf16 weights, for product_body.h: this warp's part of it, all straight from shared
 * memory to the tensor cores. */

/* This warp's part of a step. sums[block][octet]: operand C of each m16n8. */
DEVICE void LOCAL(multiply_sparse)(const struct product_args *args, uint32_t stage,
                                   float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t a = stage + LOCAL(warp_block)() * FRAGMENT_SPARSE_BLOCK_BYTES;
  uint32_t meta[WARP_BLOCKS];
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++)
    meta[m] = shared_load4(a + m * FRAGMENT_SPARSE_BLOCK_BYTES + 4 * lane);
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 weights[WARP_BLOCKS];
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++)
      weights[m] = shared_load16(a + m * FRAGMENT_SPARSE_BLOCK_BYTES + FRAGMENT_META_BYTES +
                                 half * FRAGMENT_BYTES + 16 * lane);
    UNROLL
    for (int n = 0; n < WARP_OCTETS; n++) {
      const struct words4 b = LOCAL(load_octet)(stage, n, half);
      UNROLL
      for (int m = 0; m < WARP_BLOCKS; m++) {
        if (half)
          mma_sparse_high(sums[m][n], &weights[m], &b, meta[m]);
        else
          mma_sparse_low(sums[m][n], &weights[m], &b, meta[m]);
      }
    }
  }
}

DEVICE void LOCAL(multiply_dense)(const struct product_args *args, uint32_t stage,
                                  float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t a = stage + LOCAL(warp_block)() * FRAGMENT_DENSE_BLOCK_BYTES;
  UNROLL
  for (int half = 0; half < 2; half++) {
    struct words4 weights[WARP_BLOCKS][2];
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) {
      const uint32_t fragment = a + m * FRAGMENT_DENSE_BLOCK_BYTES + 2 * half * FRAGMENT_BYTES;
      weights[m][0] = shared_load16(fragment + 16 * lane);
      weights[m][1] = shared_load16(fragment + FRAGMENT_BYTES + 16 * lane);
    }
    UNROLL
    for (int n = 0; n < WARP_OCTETS; n++) {
      const struct words4 b = LOCAL(load_octet)(stage, n, half);
      UNROLL
      for (int m = 0; m < WARP_BLOCKS; m++) {
        mma_dense(sums[m][n], &weights[m][0], b.w[0], b.w[1]);
        mma_dense(sums[m][n], &weights[m][1], b.w[2], b.w[3]);
      }
    }
  }
}
