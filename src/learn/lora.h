/* Low-rank adapters under a mask (LoRA, Hu et al., arXiv 2106.09685), for recovery.
 *
 *   W = (W0 + s B A) o M      A (rank, cols), B (rows, rank), s = LORA_SCALE
 *
 * W0, the masked weight as it came, is frozen; A and B are tuned. The product is masked, so that W
 * keeps the pattern of M at every step and merging it is nothing but taking W. With G = dL/dW o M:
 * dB = s G A^T, dA = s B^T G. A begins as normal noise of variance 1 / cols, B as zero: W begins as
 * W0. All fp32. */
#ifndef TSR_LEARN_LORA_H
#define TSR_LEARN_LORA_H

#include "base/error.h"
#include "kernel/mask_ops.h"
#include "sparse/mask.h"

#define LORA_SCALE 2.0f /* the usual alpha over rank */

struct lora_factor { /* A or B, (rows, cols), with its gradient and AdamW's moments */
  int64_t rows, cols;
  float *value, *gradient, *first, *second;
};
struct lora {
  float *frozen; /* (rows, cols): W0 */
  struct lora_factor a, b;
};

/* For a weight (rows, cols), copied; `stream` tells linears apart. */
enum status lora_init(struct lora *l, const float *weight, int64_t rows, int64_t cols, int64_t rank,
                      uint64_t seed, uint32_t stream, struct error *err);
void lora_free(struct lora *l);

/* W into weight (rows, cols), +0 where the mask drops. keeps: (threads, cols), scratch. */
void lora_merge(const struct lora *l, const struct mask_matrix *mask, float *keeps, float *weight);
/* The factors' gradients from G (rows, cols), which is masked. */
void lora_gradient(struct lora *l, const float *g);
/* Sum of the squares of both gradients. */
double lora_squares(const struct lora *l);
/* One step of AdamW on both factors. */
void lora_update(struct lora *l, const struct mask_adamw *settings);
/* What is tuned, in numbers. */
int64_t lora_parameters(const struct lora *l);

#endif
