/* Sampling of soft masks, their gradient, and the optimizer of 2:4 logits: what learning adds to
 * every linear, each in one pass over memory on all threads.
 *
 * The six logits of a group are only defined up to a shift (softmax), so five are stored: the
 * differences p_k - p_5 to the last candidate. Their gradients sum to zero over the six, so five
 * are stored as well, and the sixth is minus the sum of the others. So it is with the first
 * moments. Second moments are stored for all six.
 *
 * Layout: each row's groups are padded to blocks of 16; a block is 5 (or 6) planes of 16 floats:
 * logits, gradients, first moments (rows, blocks, 5, 16), second moments (rows, blocks, 6, 16).
 * Padding holds zeros. Bytes per weight, fp32: logits 5, gradients 5, first moments 5, second
 * moments 6; 21 in all.
 *
 * Noise is regenerated, never stored: the six uniforms of group `g` of row `r` are
 * rng_six_uniforms of one Philox block with the counter {r * groups + g, 0, tensor, draw}. A matrix
 * may have at most 2^31 groups. */
#ifndef TSR_KERNEL_MASK_OPS_H
#define TSR_KERNEL_MASK_OPS_H

#include "tensor/dtype.h"

enum { MASK_BLOCK = 16, MASK_STORED = 5 };

static inline int64_t mask_row_groups(int64_t cols) { return (cols + 3) / 4; }
static inline int64_t mask_row_blocks(int64_t cols) {
  return (mask_row_groups(cols) + MASK_BLOCK - 1) / MASK_BLOCK;
}
/* Floats of logits, gradients or first moments; of second moments. */
static inline int64_t mask_logit_count(int64_t rows, int64_t cols) {
  return rows * mask_row_blocks(cols) * MASK_BLOCK * MASK_STORED;
}
static inline int64_t mask_second_count(int64_t rows, int64_t cols) {
  return rows * mask_row_blocks(cols) * MASK_BLOCK * (MASK_STORED + 1);
}
/* Where difference k (0 to 4) of a group lies. */
static inline int64_t mask_logit_index(int64_t cols, int64_t row, int64_t group, int k) {
  int64_t block = row * mask_row_blocks(cols) + group / MASK_BLOCK;
  return (block * MASK_STORED + k) * MASK_BLOCK + group % MASK_BLOCK;
}

/* One matrix's soft mask M = T + (1 - T) * M24. M24 is GS(P24) @ S from `logits`, or the fixed mask
 * of `codes` when logits is NULL. T comes from tile_soft, or is 0 everywhere when that is NULL.
 * In a last group of fewer than four columns, only candidates whose positions exist take part. */
struct mask_source {
  int64_t rows, cols, tile_rows, tile_cols; /* tile_cols a multiple of 4 */
  const void *logits;                       /* (rows, blocks, 5, 16) of logit_dtype, or NULL */
  enum dtype logit_dtype;                   /* f32, or bf16 (mask_compact.h) */
  const uint8_t *codes;   /* (rows, ceil(cols / 8)), nibbles as in sparse/mask.h; or NULL */
  const float *tile_soft; /* (tile rows, tile cols) or NULL */
  float kappa, tau;
  bool noise; /* false: the plain softmax of kappa * p / tau */
  uint32_t key[2], tensor, draw;
  uint32_t pass; /* number of the backward pass: of the noise that rounds bf16 gradients */
};

/* out = w * M, (rows, cols) of out_dtype: f32, or bf16 rounded to nearest even, which is what a
 * product of bf16 operands would round it to. w (rows, cols) of a native dtype. Returns the sum of
 * (w M)^2 before rounding. */
double mask_sample(const struct mask_source *source, struct matrix_view w, enum dtype out_dtype,
                   void *out);

/* The gradients of the logits and of T, from dw (rows, cols), the gradient of out:
 * dM = dw * w + decay * w^2 * M, where decay is twice the factor of the sum of (w M)^2 in the loss.
 * dlogits (rows, blocks, 5, 16) of logit_dtype, not touched in fixed-code sources; dtile (tile
 * rows, tile cols) = sum of dM * (1 - M24), not touched when tile_soft is NULL. Overwritten, or
 * added to. out, unless NULL, gets what mask_sample gives, bit for bit: the backward pass makes the
 * noise once for both. */
void mask_backward(const struct mask_source *source, struct matrix_view w, const float *dw,
                   float decay, bool accumulate, void *dlogits, double *dtile, enum dtype out_dtype,
                   void *out);

/* The candidate with the largest logit of each group (the first on ties) as a code: codes (rows,
 * ceil(cols / 8)). Returns how many groups changed. */
int64_t mask_harden(const float *logits, int64_t rows, int64_t cols, uint8_t *codes);

/* Sum over all six gradients of each group, squared, in fp64. */
double mask_gradient_squares(const float *gradient, int64_t rows, int64_t cols);

/* One step of AdamW (Loshchilov & Hutter 2019), exactly as on six logits each with its gradient:
 * with u_k = m^_k / (sqrt(v^_k) + epsilon), p_k - p_5 becomes (1 - rate * weight_decay) * (p_k -
 * p_5)
 * - rate * (u_k - u_5). `step` counts from 1; gradients are multiplied by gradient_scale.
 * Unless codes (rows, ceil(cols / 8)) is NULL, the new logits are hardened into it as by
 * mask_harden while they are at hand. Returns how many groups changed. */
struct mask_adamw {
  float rate, beta1, beta2, epsilon, weight_decay, gradient_scale;
  int64_t step;
};
int64_t mask_adamw_step(const struct mask_adamw *settings, int64_t rows, int64_t cols,
                        const float *gradient, float *logits, float *first, float *second,
                        uint8_t *codes);

#endif
