/* The kernels of bf16 products for AVX-512 BF16. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"
#include "kernel/cpu/vec_math.h"

#define BF16_ROUNDS
INLINE void bf16_store(uint16_t *out, vf x) {
  _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(x));
}
INLINE vi bf16_pairs(vf first, vf second) {
  static const uint16_t deal[32]
      __attribute__((aligned(64))) = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(deal),
                                  (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* needs the above */
#include "kernel/cpu/bf16_pack_body.h"

#include "kernel/cpu/bf16_softmax_body.h"

enum { ROWS = 8, STRIPS = 2 };

INLINE __m512bh pairs_at(const uint32_t *b) { return (__m512bh)_mm512_loadu_si512(b); }

/* ROWS rows of a panel times `strips` strips, a constant at every call. */
INLINE void block_of(const int strips, const struct bf16_block *x, int64_t i, int64_t j) {
  const uint16_t *a = x->a + i / BF16_SIDE * x->panel_step + i % BF16_SIDE * BF16_STEP;
  const uint32_t *b0 = x->b + j / BF16_SIDE * x->strip_step;
  const uint32_t *b1 = strips == 2 ? b0 + x->strip_step : b0;
  vf sum[ROWS][STRIPS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = vf_zero();
  for (int64_t p = 0; p < x->k; p += BF16_STEP, a += BF16_CHUNK)
    for (int q = 0; q < BF16_STEP; q += 2, b0 += BF16_SIDE, b1 += BF16_SIDE) {
      __m512bh w0 = pairs_at(b0), w1 = pairs_at(b1);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        int32_t word;
        memcpy(&word, a + r * BF16_STEP + q, sizeof word);
        __m512bh pair = (__m512bh)_mm512_set1_epi32(word);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, w0);
        if (strips == 2) sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, w1);
      }
    }
  const vf alpha = vf_set(x->alpha);
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
    for (int s = 0; s < strips && i + r < x->rows; s++) {
      float *c = x->c + (i + r) * x->ldc + j + s * BF16_SIDE;
      int64_t n = at_most(x->cols - j - s * BF16_SIDE, BF16_SIDE);
      vf y = vf_mul(alpha, sum[r][s]);
      vf_store_part(c, n, x->add ? vf_add(vf_load_part(c, n), y) : y);
    }
}

static void block(const struct bf16_block *x) {
  for (int64_t j = 0; j < x->cols; j += STRIPS * BF16_SIDE)
    for (int64_t i = 0; i < x->rows; i += ROWS)
      if (x->cols - j > BF16_SIDE)
        block_of(2, x, i, j);
      else
        block_of(1, x, i, j);
}

void bf16_fill_avx512bf16(struct kernel_table *table) {
  fill_bf16_packing(&table->bf16);
  table->bf16.block = block;
  table->bf16.softmax_row = softmax_row;
  table->bf16.in_hardware = true;
}
#endif
