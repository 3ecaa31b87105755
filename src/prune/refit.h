/* Refit: after a mask is fixed, the weights that it keeps are fitted anew, linear by linear, so
 * that each gives on the pruned model's activations what the dense one gives on the dense model's.
 *
 * Two streams of hidden states go through the blocks in order: the dense model's, and that of the
 * pruned one with everything before already refit. Within a block the four inputs follow one
 * another too: o is fitted on what the refit q, k and v give. A change is taken as far as it helps
 * on windows that it was not fitted on (a line search between the old weights and the new), so a
 * linear about which the text says too little stays as it was.
 *
 * The result is another model than the masked one: figures of refit weights are not to be compared
 * with those of frozen ones without saying so. */
#ifndef TSR_PRUNE_REFIT_H
#define TSR_PRUNE_REFIT_H

#include "model/model.h"
#include "prune/calibration.h"

struct refit_settings {
  double ridge;       /* share of the mean diagonal of the inputs' moments that holds the weights to
                         what they were */
  int64_t iterations; /* of conjugate gradients, for each linear */
  enum precision precision; /* of the blocks that make the inputs */
};
struct refit_settings refit_defaults(void);

struct refit_report {
  int64_t linears, kept; /* linears with a mask; those that stayed as they were */
  int64_t weights;       /* kept weights of the others */
  /* Means over the linears, on windows that nothing was fitted on: the squared difference to the
   * dense linear's outputs as a share of their squares, before and after. */
  double error_before, error_after;
  double seconds;
};

/* Refits the linears that `masks` name in `model`, which afterwards holds them in fp32, with zeros
 * where the masks drop; all else stays. Every eighth window of the calibration is set aside for the
 * line search. Memory: two buffers of hidden states and the inputs of one block's linears for all
 * tokens, two matrices of the widest input squared, and the weights of one block in fp32.
 * STATUS_REFUSED for a packed model, masks that do not fit, or fewer than two windows. */
enum status refit_run(struct model *model, const struct mask_set *masks,
                      const struct calibration *calibration, const struct refit_settings *settings,
                      struct refit_report *report, struct error *err);

#endif
