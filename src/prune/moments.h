/* What calibration remembers of a linear's inputs: how large each feature is (Wanda), or how all
 * of them go together (SparseGPT's Hessian), and the factor that SparseGPT works with. */
#ifndef TSR_PRUNE_MOMENTS_H
#define TSR_PRUNE_MOMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct moments {
  int64_t cols, tokens;
  double *squares; /* (cols): sum over tokens of x_j^2; NULL when products are kept here */
  float *products; /* (cols, cols): sum over tokens of x x^T, lower triangle; or NULL */
};

enum status moments_init(struct moments *m, int64_t cols, bool products, struct error *err);
void moments_clear(struct moments *m); /* back to no tokens */
void moments_free(struct moments *m);
/* x (tokens, cols). The same bits at any number of threads. */
void moments_add(struct moments *m, const float *x, int64_t tokens);
/* out (cols) = sqrt(mean over tokens of x_j^2). */
void moments_norms(const struct moments *m, float *out);

struct factor_report {
  double damping; /* what it took, as a share of the mean of the diagonal */
  int retries;
  bool diagonal_only; /* no damping helped: features are treated as independent */
};
/* A factor that is made somewhere: of H below with `scale` and what is added to its diagonal.
 * *positive is false where it has none. */
struct factor_way {
  void *ctx;
  enum status (*factor)(void *ctx, double scale, double added, bool *positive, struct error *err);
  enum status (*diagonal)(void *ctx, double scale, double added, struct error *err);
};
/* The damping that moments_factor describes, by another way than its own. */
enum status moments_damp(const struct moments *m, double damping, const struct factor_way *way,
                         struct factor_report *report, struct error *err);

/* out (cols) = the diagonal of the factor when features are treated as independent. */
void moments_fill_diagonal(const struct moments *m, double scale, double added, float *out);

/* u (cols, cols) = upper Cholesky factor of the inverse of H = 2 / tokens * sum x x^T + damping *
 * mean(diag H) * I. Features that never occur get 1 on the diagonal: their weights must be set to
 * zero (moments_dead). When H is not positive definite, ten times the damping is tried, and so on;
 * STATUS_REFUSED only when the activations were not finite. */
enum status moments_factor(const struct moments *m, double damping, float *u,
                           struct factor_report *report, struct error *err);
/* The sum of x_j^2, whatever is kept. */
static inline double moments_square(const struct moments *m, int64_t col) {
  return m->products ? (double)m->products[col * m->cols + col] : m->squares[col];
}
static inline bool moments_dead(const struct moments *m, int64_t col) {
  return moments_square(m, col) == 0;
}

#endif
