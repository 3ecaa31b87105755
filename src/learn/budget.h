/* How many tokens a given time buys on this machine: what `learn --budget` does before it starts.
 *
 * A few real steps are timed, forward, backward and update, with the settings that such a budget
 * would get; a prior that has to be made and the held-out losses are taken off the time by their
 * share of the plan (plan.h). From then on the number of tokens stands for the budget: it is what
 * config.json holds, so that a run that is continued elsewhere does the same. */
#ifndef TSR_LEARN_BUDGET_H
#define TSR_LEARN_BUDGET_H

#include "learn/plan.h"

struct learn_budget {
  double seconds;           /* asked for */
  double tokens_per_second; /* measured in `steps` steps of `step_tokens` */
  int steps;
  int64_t step_tokens;
  double prior_seconds, heldout_seconds; /* taken off */
  int64_t tokens;                        /* what is left buys */
};

/* What a prior would be calibrated on for a number of tokens; `tokens` NULL: the prior is given. */
struct learn_request;
struct budget_prior {
  const struct learn_request *request;
  int64_t (*tokens)(const struct learn_request *request, int64_t tokens);
};

/* `settings` is as the user gave it, without tokens; `skip` as in learner_init.
 * STATUS_USAGE when the time is too short for a few steps. */
enum status learn_budget_measure(struct learn_budget *budget, double seconds,
                                 const struct model *model, const struct learn_settings *settings,
                                 const bool *skip, const struct budget_prior *prior,
                                 struct error *err);

#endif
