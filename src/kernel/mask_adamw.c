/* What AdamW's settings become for the kernels of one step: see mask_kernels.h. No state. */
#include <float.h>
#include <math.h>

#include "kernel/mask_kernels.h"

/* The most that |m^| / sqrt(v^) can be, whatever the gradients were. With their weights in the two
 * means, a_i = beta1^i (1 - beta1) / (1 - beta1^step) for the one of i steps ago and b_i likewise,
 * it is the root of the sum of a_i^2 / b_i (Cauchy and Schwarz): 1 in the first step, 1.17 in the
 * long run for 0.9 and 0.95. */
static double most_ratio(const struct mask_adamw *o) {
  const double steps = (double)o->step, beta1 = o->beta1, beta2 = o->beta2;
  if (!(beta2 > 0)) return FLT_MAX;
  const double ratio = beta1 * beta1 / beta2;
  const double sum = ratio == 1 ? steps : (1 - pow(ratio, steps)) / (1 - ratio);
  return (1 - beta1) / (1 - pow(beta1, steps)) * sqrt(sum * (1 - pow(beta2, steps)) / (1 - beta2));
}

struct mask_adamw_factors mask_adamw_factors_of(const struct mask_adamw *o) {
  const double second = 1 - pow(o->beta2, (double)o->step);
  return (struct mask_adamw_factors){
      .keep = (float)(1 - (double)o->rate * o->weight_decay),
      .rate = (float)(o->rate / (1 - pow(o->beta1, (double)o->step))),
      .beta1 = o->beta1,
      .beta2 = o->beta2,
      .gradient_scale = o->gradient_scale,
      .epsilon = o->epsilon,
      .second_scale = (float)(1 / second),
      .root_scale = (float)(1 / sqrt(second)),
      .most = (float)fmin(o->rate * most_ratio(o) * (1 + 0x1p-10), FLT_MAX)};
}
