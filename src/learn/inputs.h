/* What a run learns from: the model, the text cut into windows, and what tells them apart.
 *
 * Windows set aside for the held-out loss are spread evenly over the corpus; learning and the
 * calibration of a prior that is made here draw from the rest. */
#ifndef TSR_LEARN_INPUTS_H
#define TSR_LEARN_INPUTS_H

#include "data/windows.h"
#include "learn/budget.h"
#include "learn/cost.h"
#include "learn/run.h"

struct run_inputs {
  const struct learn_request *request;
  struct learn_settings settings; /* resolved */
  struct model *model;
  bool *skip; /* (model_site_count) linears that stay dense */
  struct prune_settings prune;
  struct corpus corpus;
  struct windows windows;
  int64_t *train, *heldout; /* window indices */
  int64_t train_count, heldout_count;
  int64_t calibration_tokens;
  struct calibration calibration;
  struct cost_table costs;    /* of settings.speedup */
  struct learn_budget budget; /* zero unless it was measured now */
};

/* Opens the model and resolves the settings; a budget of time becomes tokens: those of the run that
 * is continued, or what the machine does now. Release after either outcome. */
enum status run_inputs_open_model(struct run_inputs *in, const struct learn_request *request,
                                  struct error *err);
/* Reads, cuts and splits the text. */
enum status run_inputs_open_data(struct run_inputs *in, struct error *err);
void run_inputs_release(struct run_inputs *in);

/* What must agree for a run to be continued: settings, skips, and CRCs of weights, tokens and
 * priors. New reference. */
enum status run_inputs_identity(const struct run_inputs *in, json_t **out, struct error *err);
/* For prior_calibration: ctx is the inputs. */
enum status run_inputs_calibrate(void *in, const struct calibration **out, struct error *err);

#endif
