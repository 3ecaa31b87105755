/* Moments (moments.h) of inputs that lie in a backend's memory. On the CPU these are the moments
 * themselves; elsewhere sums of products are gathered there, as one product a batch, and stay for
 * the factorisation (prune/far_sparsegpt.h): only their diagonal is brought. Squares alone are
 * summed on the host, from inputs that are brought. */
#ifndef TSR_PRUNE_FAR_H
#define TSR_PRUNE_FAR_H

#include "kernel/backend.h"
#include "prune/moments.h"

struct far_moments {
  const struct backend *ops; /* NULL: not made */
  float *products;           /* (cols, cols) in its memory, or NULL */
  float *diagonal;           /* (cols) there */
  float *room;               /* (most tokens, cols), the host's, or NULL */
};

/* Makes *m too: of `cols` features, with their products or without, for batches of at most `most`
 * tokens. */
enum status far_moments_init(struct far_moments *far, const struct backend *ops, struct moments *m,
                             int64_t cols, bool products, int64_t most, struct error *err);
void far_moments_free(struct far_moments *far);
void far_moments_clear(struct far_moments *far, struct moments *m);
/* x (tokens, cols) in the backend's memory. A failure is that of the next far_moments_fetch. */
void far_moments_add(struct far_moments *far, struct moments *m, const float *x, int64_t tokens);
/* What was gathered into *m: where products stay, their diagonal as m->squares. */
enum status far_moments_fetch(struct far_moments *far, struct moments *m, struct error *err);

#endif
