/* Distillation's loss over all threads, a row an item: see ops.h. */
#include <string.h>

#include "base/parallel.h"
#include "kernel/ops.h"
#include "kernel/select.h"

struct distillation {
  const float *logits, *teacher;
  const int32_t *targets;
  int64_t vocab;
  float weight, scale;
  float *nll, *kl, *dlogits;
};

static void distill_item(void *ctx, int64_t row, int worker) {
  const struct distillation *d = ctx;
  const int64_t at = row * d->vocab;
  (void)worker;
  if (d->targets[row] >= 0) {
    kernel_table()->distill(d->logits + at, d->teacher + at, d->vocab, d->targets[row], d->weight,
                            d->scale, d->nll + row, d->kl + row, d->dlogits + at);
    return;
  }
  d->nll[row] = d->kl[row] = 0;
  memset(d->dlogits + at, 0, (size_t)d->vocab * sizeof(float));
}

void distill_loss(const float *logits, const float *teacher, const int32_t *targets, int64_t rows,
                  int64_t vocab, float weight, float scale, float *nll, float *kl, float *dlogits) {
  struct distillation d = {logits, teacher, targets, vocab, weight, scale, nll, kl, dlogits};
  parallel_for(rows, distill_item, &d);
}
