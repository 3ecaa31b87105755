/* Soft masks of any n:m: what mask_ops.h does for 2:4, for tables of up to 70 candidates. A path of
 * its own beside that one, on all threads, plain C but for logarithms and exponentials: 2:4 is what
 * kernels multiply fast, and its path is the one that is made fast.
 *
 * A group of m columns has C(m, n) candidates, in lexicographic order of what they keep: for 2:4
 * 1100, 1010, 1001, 0110, 0101, 0011. Each has a logit of its own: (rows, groups, candidates), and
 * so have gradients and both moments. Bytes for each weight, fp32: 16 C(m, n) / m.
 *
 * Noise is regenerated, never stored: candidate k of group g of row r has uniform k % 6 of
 * rng_six_uniforms of the Philox block with the counter {e + k / 6 * E, 0, tensor, draw}, where
 * e = r * groups + g and E is the matrix's number of groups. With 2:4 that is mask_ops.h's noise.
 */
#ifndef TSR_KERNEL_PATTERN_OPS_H
#define TSR_KERNEL_PATTERN_OPS_H

#include "kernel/mask_ops.h"
#include "sparse/mask.h"

enum { PATTERN_CANDIDATES_MAX = 70, PATTERN_GROUP_MAX = 16 };

struct mask_pattern {
  int keep, of, count;
  uint32_t kept[PATTERN_CANDIDATES_MAX]; /* bit c: whether the candidate keeps column c */
};

/* False where m is above PATTERN_GROUP_MAX or the table would be larger than
 * PATTERN_CANDIDATES_MAX. */
bool mask_pattern_make(struct mask_pattern *pattern, int keep, int of);
/* Whether candidate k takes part in a group of `width` existing columns: all that it keeps exist,
 * or it is the first and the group is narrower than n. */
bool mask_pattern_fits(const struct mask_pattern *pattern, int k, int64_t width);

static inline int64_t pattern_groups(const struct mask_pattern *p, int64_t cols) {
  return (cols + p->of - 1) / p->of;
}
/* Logits of a matrix; gradients and moments are as many each. */
static inline int64_t pattern_logit_count(const struct mask_pattern *p, int64_t rows,
                                          int64_t cols) {
  return rows * pattern_groups(p, cols) * p->count;
}

/* One matrix's soft mask M = T + (1 - T) * Mnm, as in mask_source. */
struct pattern_source {
  const struct mask_pattern *pattern;
  int64_t rows, cols, tile_rows, tile_cols; /* tile_cols a multiple of m */
  const float *logits;                      /* (rows, groups, candidates) or NULL */
  const uint8_t *bits;    /* (rows, ceil(cols / 8)): the fixed Mnm where logits is NULL */
  const float *tile_soft; /* (tile rows, tile cols) or NULL: T is 0 */
  float kappa, tau;
  bool noise;
  uint32_t key[2], tensor, draw;
};

/* As mask_sample and mask_backward. */
double pattern_sample(const struct pattern_source *source, struct matrix_view w,
                      enum dtype out_dtype, void *out);
void pattern_backward(const struct pattern_source *source, struct matrix_view w, const float *dw,
                      float decay, bool accumulate, float *dlogits, double *dtile,
                      enum dtype out_dtype, void *out);

/* The candidate with the largest logit of each group (the first on ties) as bits: (rows, ceil(cols
 * / 8)). Returns how many groups changed. */
int64_t pattern_harden(const struct mask_pattern *pattern, const float *logits, int64_t rows,
                       int64_t cols, uint8_t *bits);

/* One step of AdamW on every logit, and hardening as above. */
int64_t pattern_adamw_step(const struct mask_pattern *pattern, const struct mask_adamw *settings,
                           int64_t rows, int64_t cols, const float *gradient, float *logits,
                           float *first, float *second, uint8_t *bits);

/* out (rows, cols) = w where a tiled mask keeps it, else 0. */
void pattern_keep(const struct mask_matrix *mask, struct matrix_view w, float *out);

#endif
