/* Soft-capped logits, in items of fixed size on all threads: see ops.h. */
#include <math.h>

#include "base/parallel.h"
#include "kernel/ops.h"

enum { ITEM_ELEMENTS = 1 << 14 };

struct cap {
  float *x;
  const float *y;
  int64_t n;
  float cap;
};

static int64_t item_end(const struct cap *c, int64_t item) {
  int64_t end = (item + 1) * ITEM_ELEMENTS;
  return end < c->n ? end : c->n;
}

static void forward_item(void *ctx, int64_t item, int worker) {
  const struct cap *c = ctx;
  for (int64_t i = item * ITEM_ELEMENTS; i < item_end(c, item); i++)
    c->x[i] = c->cap * tanhf(c->x[i] / c->cap);
}

static void backward_item(void *ctx, int64_t item, int worker) {
  const struct cap *c = ctx;
  for (int64_t i = item * ITEM_ELEMENTS; i < item_end(c, item); i++) {
    float share = c->y[i] / c->cap;
    c->x[i] *= 1 - share * share;
  }
}

void softcap_forward(float *x, int64_t n, double cap) {
  struct cap c = {.x = x, .n = n, .cap = (float)cap};
  parallel_for((n + ITEM_ELEMENTS - 1) / ITEM_ELEMENTS, forward_item, &c);
}

void softcap_backward(float *dx, const float *y, int64_t n, double cap) {
  struct cap c = {.x = dx, .y = y, .n = n, .cap = (float)cap};
  parallel_for((n + ITEM_ELEMENTS - 1) / ITEM_ELEMENTS, backward_item, &c);
}
