/* The 2:4 logits of one linear and what AdamW keeps for them, in the layout of kernel/mask_ops.h:
 * five differences a group of four weights. 21 fp32 numbers a group, which is 21 bytes a weight; or
 * compact (kernel/mask_compact.h), 8.1 bytes. */
#ifndef TSR_LEARN_GROUPS_H
#define TSR_LEARN_GROUPS_H

#include "kernel/backend.h"
#include "sparse/mask.h"

struct group_logits {
  const struct backend *ops; /* in whose memory they lie */
  int64_t rows, cols;
  bool compact, offload;
  void *logit, *gradient;   /* (rows, blocks, 5, 16) f32; compact: bf16 */
  void *moment1, *moment2;  /* (rows, blocks, 5, 16), (rows, blocks, 6, 16) f32; compact: bytes */
  uint8_t *scale1, *scale2; /* compact: (rows, blocks, 5), (rows, blocks, 6) */
  /* The four above lie here, one after the other; with offload in the host's memory. */
  void *moments;
  size_t moment_bytes;
};

enum status groups_init(struct group_logits *g, const struct backend *ops, int64_t rows,
                        int64_t cols, bool compact, bool offload, struct error *err);
void groups_free(struct group_logits *g);

/* Bytes of the parts of one matrix. */
struct groups_bytes {
  size_t logits, gradients, moments;
};
struct groups_bytes groups_bytes(int64_t rows, int64_t cols, bool compact);

static inline enum dtype groups_dtype(const struct group_logits *g) {
  return g->compact ? DTYPE_BF16 : DTYPE_F32;
}

/* Sets one group of `logit` (rows, blocks, 5, 16), in the host's memory, from six logits. */
void groups_set(float *logit, int64_t cols, int64_t row, int64_t group,
                const float logits[SPARSE_CANDIDATES]);
/* Brings logits made by groups_set to where they lie; `made` may be overwritten. */
enum status groups_load(const struct group_logits *g, float *made, struct error *err);

/* One step of AdamW on the moments that lie at `moments` in the backend's memory, hardening into
 * `codes` (the backend's) and adding to `flips` on the way. */
void groups_step(const struct group_logits *g, const struct mask_adamw *settings,
                 const struct mask_rounding *rounding, void *moments, uint8_t *codes,
                 uint64_t *flips);

#endif
