/* The 2:4 logits of one linear and what AdamW keeps for them, in the layout of kernel/mask_ops.h:
 * five differences a group of four weights. 21 fp32 numbers a group, which is 21 bytes a weight. */
#ifndef TSR_LEARN_GROUPS_H
#define TSR_LEARN_GROUPS_H

#include "kernel/backend.h"
#include "sparse/mask.h"

struct group_logits {
  const struct backend *ops; /* in whose memory they lie */
  int64_t rows, cols;
  float *logit, *gradient, *moment1; /* (rows, blocks, 5, 16) */
  float *moment2;                    /* (rows, blocks, 6, 16) */
};

enum status groups_init(struct group_logits *g, const struct backend *ops, int64_t rows,
                        int64_t cols, struct error *err);
void groups_free(struct group_logits *g);
/* Bytes that groups_init takes. */
size_t groups_bytes(int64_t rows, int64_t cols);
/* Sets one group of `logit` (rows, blocks, 5, 16), in the host's memory, from six logits. */
void groups_set(float *logit, int64_t cols, int64_t row, int64_t group,
                const float logits[SPARSE_CANDIDATES]);

#endif
