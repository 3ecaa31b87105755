/* Distillation's losses over all threads, a row an item: see distill.h. */
#include "kernel/distill.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/parallel.h"
#include "kernel/select.h"

const char *const distill_kind_name[DISTILL_KINDS] = {"forward", "reverse", "top-k"};

/* --- the teacher's most likely tokens --- */

/* heap[0] is the least; it goes, and x takes its place. */
static void heap_replace(float *heap, int64_t count, float x) {
  int64_t at = 0;
  for (int64_t child = 1; child < count; child = 2 * at + 1) {
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (x <= heap[child]) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = x;
}

static bool any_above(const float *x, int64_t n, float least) {
  int above = 0;
  for (int64_t i = 0; i < n; i++) above |= x[i] > least;
  return above;
}

/* Most of a row lies below the heap, and is passed over a chunk at a time. */
float distill_threshold(const float *x, int64_t n, int64_t top) {
  enum { CHUNK = 64 };
  float heap[DISTILL_TOP_MOST];
  INVARIANT(top >= 1 && top <= DISTILL_TOP_MOST);
  if (top >= n) return -INFINITY;
  for (int64_t i = 0; i < top; i++) heap[i] = -INFINITY;
  for (int64_t i = 0; i < n; i += CHUNK) {
    const int64_t end = n - i < CHUNK ? n : i + CHUNK;
    if (!any_above(x + i, end - i, heap[0])) continue;
    for (int64_t k = i; k < end; k++)
      if (x[k] > heap[0]) heap_replace(heap, top, x[k]);
  }
  return heap[0];
}

/* --- the divergence --- */

struct distillation {
  const float *logits, *teacher;
  const int32_t *targets;
  int64_t vocab;
  struct distill_rule rule;
  float scale;
  float *nll, *kl, *dlogits;
};

static void distill_item(void *ctx, int64_t row, int worker) {
  const struct distillation *d = ctx;
  const struct kernel_table *table = kernel_table();
  const int64_t at = row * d->vocab;
  const float *logits = d->logits + at, *teacher = d->teacher + at;
  const float weight = (float)d->rule.weight;
  float *nll = d->nll + row, *kl = d->kl + row, *dlogits = d->dlogits + at;
  const int32_t target = d->targets[row];
  (void)worker;
  if (target < 0) {
    *nll = *kl = 0;
    memset(dlogits, 0, (size_t)d->vocab * sizeof(float));
  } else if (d->rule.kind == DISTILL_TOP) {
    const float least = distill_threshold(teacher, d->vocab, d->rule.top);
    table->distill_top(logits, teacher, d->vocab, target, least, weight, d->scale, nll, kl,
                       dlogits);
  } else {
    (d->rule.kind == DISTILL_REVERSE ? table->distill_reverse : table->distill)(
        logits, teacher, d->vocab, target, weight, d->scale, nll, kl, dlogits);
  }
}

void distill_loss(const float *logits, const float *teacher, const int32_t *targets, int64_t rows,
                  int64_t vocab, struct distill_rule rule, float scale, float *nll, float *kl,
                  float *dlogits) {
  struct distillation d = {logits, teacher, targets, vocab, rule, scale, nll, kl, dlogits};
  parallel_for(rows, distill_item, &d);
}

/* --- states --- */

struct matching {
  const float *x;
  float *d;
  const int32_t *targets;
  int64_t width;
  float share, scale;
  float *distance;
};

/* Plain C, for it is a few operations on each number that a block made by thousands. */
static void match_item(void *ctx, int64_t row, int worker) {
  const struct matching *m = ctx;
  const float *x = m->x + row * m->width;
  float *d = m->d + row * m->width;
  double energy = 0, squares = 0;
  (void)worker;
  for (int64_t i = 0; i < m->width; i++) {
    const double away = (double)x[i] - d[i];
    energy += (double)d[i] * d[i];
    squares += away * away;
  }
  const bool counts = m->targets[row] >= 0 && energy != 0;
  const double slope = counts ? 2.0 * m->scale * m->share / energy : 0;
  if (counts) m->distance[row] += (float)(m->share * squares / energy);
  for (int64_t i = 0; i < m->width; i++) d[i] = counts ? (float)(slope * ((double)x[i] - d[i])) : 0;
}

void match_rows(const float *x, float *d, const int32_t *targets, int64_t rows, int64_t width,
                float share, float scale, float *distance) {
  struct matching m = {x, d, targets, width, share, scale, distance};
  parallel_for(rows, match_item, &m);
}
