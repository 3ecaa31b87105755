/* A whole learning run: from a model and a text to a mask.
 *
 *   model, text, prior --> logits --(steps, checkpoints, held-out loss)--> best hard mask
 *
 * The result depends on the inputs, the settings and the seed alone: not on threads, on time, or on
 * where the run was stopped and resumed. */
#ifndef TSR_LEARN_RUN_H
#define TSR_LEARN_RUN_H

#include "io/json.h"
#include "learn/budget.h"
#include "learn/cost.h"
#include "learn/prior.h"

struct learn_request {
  const char *model, *data, *out;
  struct learn_settings settings; /* what was not given is unset */
  const char *priors[PRIOR_FILES_MAX];
  int prior_count;
  const char *skip[PRUNE_SKIP_MAX];
  int skip_count;
  double budget_seconds;      /* above 0 in place of settings.tokens: learn/budget.h */
  int64_t calibration_tokens; /* 0 = by the budget */
  double checkpoint_seconds;
  bool resume, force, dry_run, tfevents;
};

struct learn_report {
  struct learn_settings settings; /* resolved */
  struct cost_table costs; /* what settings.costs points at, where a speed-up was asked for */
  struct learn_plan plan;
  struct learn_budget budget; /* zero unless a time was given and measured */
  bool dry_run, finished_before;
  int64_t step, best_step;
  double dense_loss, prior_loss, best_loss; /* held-out, nats per token */
  double last_loss;                         /* of the last mask, projected */
  double last_loss_before;                  /* and as the logits hardened */
  double density, density_before;           /* of the kept mask; of the last before projection */
  double speedup; /* of the kept mask, as the costs foretell it; NAN without them */
  int64_t moved_tiles;
  double seconds, prior_seconds, tokens_per_second;
  size_t peak_bytes;
};

/* STATUS_INTERRUPTED after a signal, with a checkpoint saved. With dry_run only settings and plan
 * are filled, and nothing is written. */
enum status learn_run(const struct learn_request *request, struct learn_report *report,
                      struct error *err);

/* The report's figures as one JSON object, new reference: what the record's last line and --json
 * hold. */
json_t *learn_report_figures(const struct learn_report *report);

#endif
