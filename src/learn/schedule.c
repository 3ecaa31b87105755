/* Schedules: see schedule.h. No state. */
#include "learn/schedule.h"

#include <math.h>

struct relaxation schedule_relaxation(const struct learn_anneal *a, int64_t step, int64_t steps) {
  double share = steps > 1 ? (double)step / (double)(steps - 1) : 1;
  return (struct relaxation){a->kappa_first + share * (a->kappa_last - a->kappa_first),
                             a->tau_first + share * (a->tau_last - a->tau_first)};
}

double schedule_rate(const struct learn_settings *s, int64_t step) {
  if (step < s->warmup_steps) return (double)(step + 1) / (double)s->warmup_steps;
  double done = (double)(step - s->warmup_steps) / (double)(s->steps - s->warmup_steps);
  return s->lr_floor + (1 - s->lr_floor) * 0.5 * (1 + cos(M_PI * done));
}

double schedule_regularizer(const struct learn_settings *s, int64_t step) {
  if (s->regularizer == REGULARIZER_NONE) return 0;
  if (s->regularizer == REGULARIZER_MASKLLM) return s->l2;
  return s->l2 * (1 - (double)step / (double)s->steps);
}
