/* SparseGPT (sparsegpt.h) where a card has the Hessian's sums (far.h): the factor, the walk over
 * columns and the products between blocks run there, and what was chosen comes back once a matrix.
 * Unstructured masks are chosen over all rows of a block, on the host, from scores that are
 * brought. The same masks as on the CPU but for rounding, the same bits each time. */
#ifndef TSR_PRUNE_FAR_SPARSEGPT_H
#define TSR_PRUNE_FAR_SPARSEGPT_H

#include "prune/far.h"
#include "prune/rule.h"

struct far_sparsegpt {
  const struct backend *ops; /* NULL: not made */
  float *factor;             /* in its memory, (n, n) of the widest input */
  uint32_t *failed;          /* there too */
};

/* For inputs of at most `widest` features. */
enum status far_sparsegpt_init(struct far_sparsegpt *s, const struct backend *ops, int64_t widest,
                               struct error *err);
void far_sparsegpt_free(struct far_sparsegpt *s);
/* As moments_factor, into s->factor; m is what far_moments_fetch brought. */
enum status far_sparsegpt_factor(struct far_sparsegpt *s, const struct far_moments *far,
                                 const struct moments *m, double damping,
                                 struct factor_report *report, struct error *err);
/* As prune_sparsegpt, with that factor; w is the host's. Takes the matrix and some 12 bytes for
 * each 8 of its weights from the card for the time of the call. Blocks of more than
 * SPARSEGPT_WALK_MAX columns are cut to that; for unstructured masks, which would be others,
 * STATUS_USAGE. */
enum status far_sparsegpt_prune(struct far_sparsegpt *s, const struct prune_rule *rule,
                                const char *name, float *w, int64_t rows, int64_t cols,
                                int64_t block, struct mask_matrix *out, struct error *err);

#endif
