/* The kernels of bf16 products for AArch64 with BF16. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

#define BF16_ROUNDS
INLINE uint16x8_t rounded(vf x) {
  return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.low), x.high));
}
INLINE void bf16_store(uint16_t *out, vf x) { vst1q_u16(out, rounded(x)); }
INLINE vi bf16_pairs(vf first, vf second) {
  uint16x8_t a = rounded(first), b = rounded(second);
  return (vi){vreinterpretq_s32_u16(vzip1q_u16(a, b)), vreinterpretq_s32_u16(vzip2q_u16(a, b))};
}

/* need the above, in this order */
#include "kernel/cpu/vec_math.h"

#include "kernel/cpu/bf16_pack_body.h"

#include "kernel/cpu/bf16_softmax_body.h"

/* BFMMLA adds to a 2 x 2 of C the product of 2 x 4 of A and 4 x 2 of B, the latter as two columns
 * of four. 8 x 8 of C are sixteen registers, eight of k of A are eight more. */
enum { ROWS = 8, COLS = 8, K_STEP = 8 };

/* K_STEP of k of rows 2r and 2r + 1: the first four of both, then the others. */
INLINE void load_row_pairs(const uint16_t *a, bfloat16x8_t rows[ROWS / 2][2]) {
#pragma GCC unroll 4
  for (int r = 0; r < ROWS / 2; r++) {
    uint64x2_t x = vreinterpretq_u64_u16(vld1q_u16(a + 2 * r * BF16_STEP));
    uint64x2_t y = vreinterpretq_u64_u16(vld1q_u16(a + (2 * r + 1) * BF16_STEP));
    rows[r][0] = vreinterpretq_bf16_u64(vtrn1q_u64(x, y));
    rows[r][1] = vreinterpretq_bf16_u64(vtrn2q_u64(x, y));
  }
}

/* Two lines of a strip hold four of k; interleaved they are columns of four. */
INLINE void add_four(const bfloat16x8_t rows[ROWS / 2][2], const int half, const uint32_t *b,
                     float32x4_t sum[ROWS / 2][COLS / 2]) {
#pragma GCC unroll 2
  for (int c = 0; c < COLS / 4; c++) {
    uint32x4_t first = vld1q_u32(b + 4 * c), second = vld1q_u32(b + BF16_SIDE + 4 * c);
    bfloat16x8_t left = vreinterpretq_bf16_u32(vzip1q_u32(first, second));
    bfloat16x8_t right = vreinterpretq_bf16_u32(vzip2q_u32(first, second));
#pragma GCC unroll 4
    for (int r = 0; r < ROWS / 2; r++) {
      sum[r][2 * c] = vbfmmlaq_f32(sum[r][2 * c], rows[r][half], left);
      sum[r][2 * c + 1] = vbfmmlaq_f32(sum[r][2 * c + 1], rows[r][half], right);
    }
  }
}

INLINE void store_row(const struct bf16_block *x, int64_t i, int64_t j, vf y) {
  float *c = x->c + i * x->ldc + j;
  const int64_t n = at_most(x->cols - j, COLS);
  y = vf_mul(vf_set(x->alpha), y);
  vf_store_part(c, n, x->add ? vf_add(vf_load_part(c, n), y) : y);
}

static void block_of(const struct bf16_block *x, int64_t i, int64_t j) {
  const uint16_t *a = x->a + i / BF16_SIDE * x->panel_step + i % BF16_SIDE * BF16_STEP;
  const uint32_t *b = x->b + j / BF16_SIDE * x->strip_step + j % BF16_SIDE;
  float32x4_t sum[ROWS / 2][COLS / 2];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS / 2; r++)
    for (int c = 0; c < COLS / 2; c++) sum[r][c] = vdupq_n_f32(0);
  for (int64_t p = 0; p < x->k; p += BF16_STEP, a += BF16_CHUNK)
#pragma GCC unroll 1 /* a step fills the registers: two would spill */
    for (int q = 0; q < BF16_STEP; q += K_STEP, b += K_STEP / 2 * BF16_SIDE) {
      bfloat16x8_t rows[ROWS / 2][2];
      load_row_pairs(a + q, rows);
      add_four(rows, 0, b, sum);
      add_four(rows, 1, b + 2 * BF16_SIDE, sum);
    }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS / 2; r++) {
    const float32x4_t *s = sum[r];
    if (i + 2 * r < x->rows)
      store_row(x, i + 2 * r, j, (vf){lower_halves(s[0], s[1]), lower_halves(s[2], s[3])});
    if (i + 2 * r + 1 < x->rows)
      store_row(x, i + 2 * r + 1, j, (vf){upper_halves(s[0], s[1]), upper_halves(s[2], s[3])});
  }
}

static void block(const struct bf16_block *x) {
  for (int64_t j = 0; j < x->cols; j += COLS)
    for (int64_t i = 0; i < x->rows; i += ROWS) block_of(x, i, j);
}

void bf16_fill_neonbf16(struct kernel_table *table) {
  fill_bf16_packing(&table->bf16);
  table->bf16.block = block;
  table->bf16.softmax_row = softmax_row;
  table->bf16.in_hardware = true;
}
#endif
