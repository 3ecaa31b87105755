/* Reference kernels of softmax masks over long tables: see kernel/select.h. */
#include <math.h>

#include "kernel/ref/ref.h"

static void minus_gumbel(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)log(-log(x[i]));
}

static void exponential(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)exp(x[i]);
}

void ref_fill_gumbel(struct kernel_table *table) {
  table->minus_gumbel = minus_gumbel;
  table->exponential = exponential;
}
