/* The serial kernels behind products of bf16 operands (product_bf16.c), and their packed forms.
 *
 * op(A) (m, k) is packed into panels of 16 rows: (panels, k / 32, 16, 32) bf16; op(B) (k, n) into
 * strips of 16 columns: (strips, k / 2, 16) pairs, a pair holding elements 2p and 2p + 1 of its
 * column, the first in the low half. k is padded with zeros to a multiple of 32, rows and columns
 * to 16. So a panel's 16 x 32 and a strip's 32 x 16 are each one contiguous KiB: one AMX tile. */
#ifndef TSR_KERNEL_BF16_KERNELS_H
#define TSR_KERNEL_BF16_KERNELS_H

#include "tensor/dtype.h"

enum { BF16_SIDE = 16, BF16_STEP = 32, BF16_CHUNK = BF16_SIDE * BF16_STEP };

/* C (rows, cols) = alpha * A B, or += . k is a multiple of 32. Sums are fp32, over k in an order
 * that depends on k alone; denormal operands may count as zero. */
struct bf16_block {
  int64_t rows, cols, k;
  const uint16_t *a; /* first chunk of the first panel; panels lie panel_step elements apart */
  int64_t panel_step;
  const uint32_t *b; /* first pair of the first strip; strips lie strip_step pairs apart */
  int64_t strip_step;
  float alpha;
  bool add;
  bool stream; /* C will not be read soon: better not kept in caches */
  float *c;
  int64_t ldc;
};

struct bf16_kernels {
  bool in_hardware; /* the products are faster than those of fp32 */
  void (*block)(const struct bf16_block *block);
  /* Packing from elements of a native dtype, rounded to nearest even. source: row-major, leading
   * dimension ld. `along`: stored rows run along k, `count` <= 16 of them become one panel or
   * strip. `across`: k stored rows of `count` elements become ceil(count / 16) panels or strips,
   * `step` elements (pairs) apart. */
  void (*panel_along)(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                      uint16_t *out);
  void (*panels_across)(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        int64_t step, uint16_t *out);
  void (*strip_along)(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                      uint32_t *out);
  void (*strips_across)(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        int64_t step, uint32_t *out);
  /* out = source (n), rounded. */
  void (*round)(const float *source, int64_t n, uint16_t *out);
  /* attention_row of select.h, with the exponentials rounded and packed as a row of a panel:
   * element j < n goes to out[j / 32 * BF16_CHUNK + j % 32]. n is a multiple of 32, and scores,
   * which may be changed, has as many. Where nothing is visible (low >= high) *max and *sum stay,
   * and 1 is returned. scale > 0. */
  float (*softmax_row)(float *scores, int64_t low, int64_t high, int64_t n, float scale,
                       float softcap, float *max, float *sum, uint16_t *out);
};

#endif
