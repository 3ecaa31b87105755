/* What changes from step to step: the learning rate's share, kappa and tau, the regularizer. */
#ifndef TSR_LEARN_SCHEDULE_H
#define TSR_LEARN_SCHEDULE_H

#include "learn/settings.h"

struct relaxation {
  double kappa, tau;
};

/* Linear from first (step 0) to last (step steps - 1). */
struct relaxation schedule_relaxation(const struct learn_anneal *anneal, int64_t step,
                                      int64_t steps);
/* What the learning rates are multiplied with: a linear rise over the warm-up steps, reaching 1 in
 * the last of them, then half a cosine down to lr_floor. */
double schedule_rate(const struct learn_settings *settings, int64_t step);
/* The weight of the regularizer: l2, annealed where its source does so. */
double schedule_regularizer(const struct learn_settings *settings, int64_t step);

#endif
