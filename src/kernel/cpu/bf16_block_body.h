/* Products of bf16 operands where nothing multiplies bf16: included after a vec_*.h and
 * bf16_pack_body.h. A bf16 is the upper half of a float, so two shifts or masks make two floats of
 * a pair. Half as fast as the fp32 product, but the same rounding as on other machines. */

enum { BLOCK_ROWS = VL == 16 ? 16 : 4, BLOCK_VECTORS = BF16_SIDE / VL };

/* BLOCK_ROWS rows of a panel times one strip: sum[row][vector]. */
INLINE void block_sums(const uint16_t *a, const uint32_t *b, int64_t k,
                       vf sum[BLOCK_ROWS][BLOCK_VECTORS]) {
  const vi high = vi_set((int32_t)0xffff0000);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK_ROWS; i++)
    for (int v = 0; v < BLOCK_VECTORS; v++) sum[i][v] = vf_zero();
  for (int64_t p = 0; p < k; p += 2, b += BF16_SIDE, a += 2) {
    if (p && p % BF16_STEP == 0) a += BF16_CHUNK - BF16_STEP;
    vf first[BLOCK_VECTORS], second[BLOCK_VECTORS];
    for (int v = 0; v < BLOCK_VECTORS; v++) {
      vi pair = vi_load((const int32_t *)b + v * VL);
      first[v] = vf_of_bits(vi_shl(pair, 16));
      second[v] = vf_of_bits(vi_and(pair, high));
    }
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK_ROWS; i++) {
      int32_t word;
      memcpy(&word, a + i * BF16_STEP, sizeof word);
      vi pair = vi_set(word);
      vf x = vf_of_bits(vi_shl(pair, 16)), y = vf_of_bits(vi_and(pair, high));
      for (int v = 0; v < BLOCK_VECTORS; v++)
        sum[i][v] = vf_fma(y, second[v], vf_fma(x, first[v], sum[i][v]));
    }
  }
}

static void block(const struct bf16_block *x) {
  const vf alpha = vf_set(x->alpha);
  for (int64_t j = 0; j < x->cols; j += BF16_SIDE)
    for (int64_t i = 0; i < x->rows; i += BLOCK_ROWS) {
      vf sum[BLOCK_ROWS][BLOCK_VECTORS];
      const uint16_t *a = x->a + i / BF16_SIDE * x->panel_step + i % BF16_SIDE * BF16_STEP;
      block_sums(a, x->b + j / BF16_SIDE * x->strip_step, x->k, sum);
      for (int r = 0; r < BLOCK_ROWS && i + r < x->rows; r++)
        for (int v = 0; v < BLOCK_VECTORS && j + v * VL < x->cols; v++) {
          float *c = x->c + (i + r) * x->ldc + j + v * VL;
          int64_t n = at_most(x->cols - j - v * VL, VL);
          vf y = vf_mul(alpha, sum[r][v]);
          vf_store_part(c, n, x->add ? vf_add(vf_load_part(c, n), y) : y);
        }
    }
}

static void fill_bf16(struct kernel_table *table) {
  fill_bf16_packing(&table->bf16);
  table->bf16.block = block;
}
