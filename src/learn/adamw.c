/* AdamW: see adamw.h. No state. */
#include "learn/adamw.h"

#include <math.h>

void adamw_step(const struct mask_adamw *a, int64_t count, const float *gradient, float *p,
                float *first, float *second) {
  const float correction1 = (float)(1 - pow(a->beta1, (double)a->step));
  const float correction2 = (float)(1 - pow(a->beta2, (double)a->step));
  for (int64_t i = 0; i < count; i++) {
    const float g = gradient[i] * a->gradient_scale;
    first[i] = a->beta1 * first[i] + (1 - a->beta1) * g;
    second[i] = a->beta2 * second[i] + (1 - a->beta2) * g * g;
    const float update = first[i] / correction1 / (sqrtf(second[i] / correction2) + a->epsilon);
    p[i] = (1 - a->rate * a->weight_decay) * p[i] - a->rate * update;
  }
}
