/* A step of integers, for product_body.h, whose warps have one row block each.
 *
 * Integers become bf16 in registers, which holds all of them exactly, and are multiplied as they
 * are; the sums of each group of 32 columns are then scaled in fp32. So no weight is ever rounded.
 * A minimum counts once for each kept weight: a second product, by ones under the same codes,
 * brings the sum of the activations that it stands for. */

#include "kernel/cuda/integers_body.h"

/* The eight bytes of a lane's fragment as operand A: bytes 2 r and 2 r + 1 are register r.
 * 2^23 + x is exact in fp32 for a byte x; the sign bit flipped, x is the integer + 128. */
DEVICE uint32_t LOCAL(pair_of_bytes)(uint32_t word, uint32_t selectors) {
  const uint32_t flipped = word ^ 0x80808080, magic = 0x4b000000;
  const float low = float_of_bits(permute_bytes(flipped, magic, selectors & 0xffff));
  const float high = float_of_bits(permute_bytes(flipped, magic, selectors >> 16));
  return bf16_pair(low - 8388736.0f, high - 8388736.0f);
}

DEVICE struct words4 LOCAL(unpack_bytes)(uint32_t first, uint32_t second) {
  const struct words4 a = {
      {LOCAL(pair_of_bytes)(first, 0x76517650), LOCAL(pair_of_bytes)(first, 0x76537652),
       LOCAL(pair_of_bytes)(second, 0x76517650), LOCAL(pair_of_bytes)(second, 0x76537652)}};
  return a;
}

/* The eight nibbles of a lane's fragment: r and r + 4 are register r. 128 + x is exact in bf16 for
 * a nibble x; `zero` is twice the bf16 of 128 + what stands for zero. */
DEVICE struct words4 LOCAL(unpack_nibbles)(uint32_t word, uint32_t zero) {
  struct words4 a;
  UNROLL
  for (int r = 0; r < 4; r++)
    a.w[r] = bf16_pair_subtract((word >> 4 * r & 0x000f000f) | 0x43004300, zero);
  return a;
}

DEVICE struct words4 LOCAL(unpack)(const struct product_args *args, struct words2 raw) {
#if QUANT_BITS == 8
  return LOCAL(unpack_bytes)(raw.w[0], raw.w[1]);
#else
  return LOCAL(unpack_nibbles)(raw.w[0], args->mins ? 0x43004300 : 0x43084308);
#endif
}

/* Of this lane's rows g and g + 8, in one group. */
struct LOCAL(scales) {
  float scale[2], minimum[2];
};

DEVICE struct LOCAL(scales) LOCAL(load_scales)(const struct product_args *args, uint32_t block,
                                               uint32_t block_bytes, int half) {
  const uint32_t at = block + block_bytes - (args->mins ? 2 : 1) * FRAGMENT_SCALE_BYTES +
                      8 * (thread_index() % 32 / 4) + 4 * half;
  struct LOCAL(scales) s = {{1, 1}, {0, 0}};
  if (!args->scales) return s;
  const uint32_t scale = shared_load4(at);
  s.scale[0] = f16_widen((uint16_t)scale);
  s.scale[1] = f16_widen((uint16_t)(scale >> 16));
  if (!args->mins) return s;
  const uint32_t minimum = shared_load4(at + FRAGMENT_SCALE_BYTES);
  s.minimum[0] = f16_widen((uint16_t)minimum);
  s.minimum[1] = f16_widen((uint16_t)(minimum >> 16));
  return s;
}

/* 32 columns: `a` is one fragment where the tile is 2:4, else two. */
DEVICE void LOCAL(multiply_group)(const struct product_args *args, uint32_t stage, int half,
                                  bool sparse, const struct words4 a[2], uint32_t meta,
                                  const struct LOCAL(scales) * scales, float sums[WARP_OCTETS][4]) {
  const struct words4 ones = {{0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80}};
  UNROLL
  for (int n = 0; n < WARP_OCTETS; n++) {
    const struct words4 b = LOCAL(load_octet)(stage, n, half);
    float products[4] = {0}, counts[4] = {0};
    if (sparse && half) {
      mma_sparse_high(products, &a[0], &b, meta);
      if (args->mins) mma_sparse_high(counts, &ones, &b, meta);
    } else if (sparse) {
      mma_sparse_low(products, &a[0], &b, meta);
      if (args->mins) mma_sparse_low(counts, &ones, &b, meta);
    } else {
      mma_dense(products, &a[0], b.w[0], b.w[1]);
      mma_dense(products, &a[1], b.w[2], b.w[3]);
      if (args->mins) {
        mma_dense(counts, &ones, b.w[0], b.w[1]);
        mma_dense(counts, &ones, b.w[2], b.w[3]);
      }
    }
    UNROLL
    for (int r = 0; r < 4; r++)
      sums[n][r] += scales->scale[r / 2] * products[r] + scales->minimum[r / 2] * counts[r];
  }
}

DEVICE void LOCAL(multiply_step)(const struct product_args *args, uint32_t stage, bool sparse,
                                 float sums[1][WARP_OCTETS][4]) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t block_bytes = (sparse ? SPARSE_STEP_BYTES : DENSE_STEP_BYTES) / FRAGMENT_BLOCKS;
  const uint32_t block = stage + LOCAL(warp_block)() * block_bytes;
  const uint32_t values = block + (sparse ? FRAGMENT_META_BYTES : 0);
  const uint32_t meta = sparse ? shared_load4(block + 4 * lane) : 0;
  UNROLL
  for (int half = 0; half < 2; half++) {
    const struct LOCAL(scales) scales = LOCAL(load_scales)(args, block, block_bytes, half);
    const int first = sparse ? half : 2 * half;
    struct words4 a[2];
    a[0] = LOCAL(unpack)(args, LOCAL(load_integers)(values, first));
    if (!sparse) a[1] = LOCAL(unpack)(args, LOCAL(load_integers)(values, first + 1));
    LOCAL(multiply_group)(args, stage, half, sparse, a, meta, &scales, sums[0]);
  }
}

DEVICE void LOCAL(multiply_sparse)(const struct product_args *args, uint32_t stage,
                                   float sums[1][WARP_OCTETS][4]) {
  LOCAL(multiply_step)(args, stage, true, sums);
}
DEVICE void LOCAL(multiply_dense)(const struct product_args *args, uint32_t stage,
                                  float sums[1][WARP_OCTETS][4]) {
  LOCAL(multiply_step)(args, stage, false, sums);
}
