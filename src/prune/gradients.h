/* Scores from the gradient of the model's loss on text, end to end: what the loss would rise by if
 * one weight alone were dropped, by a Taylor expansion about the weights as they are.
 *
 *   first order    |w g|,      g = mean over windows of dL/dw (Molchanov et al., "Importance
 *                  estimation for neural network pruning", CVPR 2019)
 *   second order   w^2 F / 2,  F = mean over windows of (dL/dw)^2: the diagonal of the empirical
 *                  Fisher matrix in place of the Hessian's (Theis et al., 2018; Optimal Brain
 *                  Damage, LeCun et al., 1989); the first-order term is taken to vanish
 *
 * L: a window's mean loss per prediction, in nats. All scores are in nats, so that those of
 * different matrices may be compared. They are of the dense model: unlike the layer loop's, they do
 * not see what was pruned before. */
#ifndef TSR_PRUNE_GRADIENTS_H
#define TSR_PRUNE_GRADIENTS_H

#include "base/log.h"
#include "prune/calibration.h"

enum gradient_order { GRADIENT_FIRST, GRADIENT_SECOND };

struct gradient_scores {
  int sites;
  float **items; /* (sites) of (rows, cols), >= 0; NULL where none were asked for */
};

/* `wanted` says of each site whether it is scored. Windows are run one at a time, on the CPU, with
 * recomputed activations. 4 bytes a scored weight. STATUS_REFUSED when a loss or a gradient is no
 * number. On failure nothing is left in *out. */
enum status gradient_scores_make(struct gradient_scores *out, const struct model *model,
                                 const struct calibration *calibration, enum gradient_order order,
                                 bool (*wanted)(void *ctx, const struct linear_site *site),
                                 void *ctx, struct progress *progress, struct error *err);
void gradient_scores_free(struct gradient_scores *scores);

#endif
