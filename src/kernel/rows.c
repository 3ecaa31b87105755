/* The operations between the products that work row by row or element by element: see ops.h. Each
 * cuts its rows into items by their size alone and calls the table's serial kernel on each. */
#include <math.h>

#include "base/parallel.h"
#include "kernel/ops.h"
#include "kernel/select.h"

enum { ITEM_ELEMENTS = 16384, SUM_PARTS = 256 };

/* Rows per item, so that an item is about ITEM_ELEMENTS. */
static int64_t rows_per_item(int64_t n) { return n >= ITEM_ELEMENTS ? 1 : ITEM_ELEMENTS / n; }

static int64_t item_count(int64_t rows, int64_t per_item) {
  return (rows + per_item - 1) / per_item;
}

/* Range `item` of [0, total) in steps of `per_item`. */
struct range {
  int64_t first, count;
};
static struct range item_range(int64_t item, int64_t per_item, int64_t total) {
  int64_t first = item * per_item, left = total - first;
  return (struct range){first, left < per_item ? left : per_item};
}

struct rmsnorm {
  const float *dy, *x, *weight;
  bool plus_one, accumulate;
  double eps;
  int64_t rows, n, per_item;
  float *y, *inverse;
  const float *stored_inverse;
};

static void rmsnorm_item(void *ctx, int64_t item, int worker) {
  const struct rmsnorm *r = ctx;
  (void)worker;
  struct range range = item_range(item, r->per_item, r->rows);
  int64_t at = range.first * r->n;
  kernel_table()->rmsnorm(r->x + at, r->weight, r->plus_one, r->eps, range.count, r->n, r->y + at,
                          r->inverse ? r->inverse + range.first : NULL);
}

void rmsnorm_forward(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                     int64_t n, float *y, float *inverse) {
  struct rmsnorm r = {.x = x,
                      .weight = weight,
                      .plus_one = plus_one,
                      .eps = eps,
                      .rows = rows,
                      .n = n,
                      .per_item = rows_per_item(n),
                      .y = y,
                      .inverse = inverse};
  parallel_for(item_count(rows, r.per_item), rmsnorm_item, &r);
}

static void rmsnorm_backward_item(void *ctx, int64_t item, int worker) {
  const struct rmsnorm *r = ctx;
  (void)worker;
  struct range range = item_range(item, r->per_item, r->rows);
  int64_t at = range.first * r->n;
  kernel_table()->rmsnorm_backward(r->dy + at, r->x + at, r->weight, r->plus_one,
                                   r->stored_inverse + range.first, range.count, r->n, r->y + at,
                                   r->accumulate);
}

void rmsnorm_backward(const float *dy, const float *x, const float *weight, bool plus_one,
                      const float *inverse, int64_t rows, int64_t n, float *dx, bool accumulate) {
  struct rmsnorm r = {.dy = dy,
                      .x = x,
                      .weight = weight,
                      .plus_one = plus_one,
                      .accumulate = accumulate,
                      .rows = rows,
                      .n = n,
                      .per_item = rows_per_item(n),
                      .y = dx,
                      .stored_inverse = inverse};
  parallel_for(item_count(rows, r.per_item), rmsnorm_backward_item, &r);
}

struct rope {
  float *x;
  int64_t rows, length, heads, head_dim, per_item;
  const int64_t *starts;
  const float *cos, *sin;
  int direction;
};

static void rope_item(void *ctx, int64_t item, int worker) {
  const struct rope *r = ctx;
  (void)worker;
  struct range range = item_range(item, r->per_item, r->rows);
  for (int64_t row = range.first; row < range.first + range.count; row++) {
    int64_t start = r->starts ? r->starts[row / r->length] : 0;
    int64_t at = (start + row % r->length) * (r->head_dim / 2);
    kernel_table()->rope(r->x + row * r->heads * r->head_dim, r->heads, r->head_dim, r->cos + at,
                         r->sin + at, r->direction);
  }
}

void rope_apply(float *x, int64_t rows, int64_t length, const int64_t *starts, int64_t heads,
                int64_t head_dim, const float *cos, const float *sin, int direction) {
  struct rope r = {.x = x,
                   .rows = rows,
                   .length = length,
                   .heads = heads,
                   .head_dim = head_dim,
                   .per_item = rows_per_item(heads * head_dim),
                   .starts = starts,
                   .cos = cos,
                   .sin = sin,
                   .direction = direction};
  parallel_for(item_count(rows, r.per_item), rope_item, &r);
}

struct elementwise {
  bool gelu;
  const float *gate, *up, *dout;
  int64_t n;
  float *out, *dup;
};

static void glu_item(void *ctx, int64_t item, int worker) {
  const struct elementwise *e = ctx;
  (void)worker;
  struct range range = item_range(item, ITEM_ELEMENTS, e->n);
  int64_t at = range.first;
  kernel_table()->glu(e->gelu, e->gate + at, e->up + at, range.count, e->out + at);
}

void glu_forward(bool gelu, const float *gate, const float *up, int64_t n, float *out) {
  struct elementwise e = {.gelu = gelu, .gate = gate, .up = up, .n = n, .out = out};
  parallel_for(item_count(n, ITEM_ELEMENTS), glu_item, &e);
}

static void glu_backward_item(void *ctx, int64_t item, int worker) {
  const struct elementwise *e = ctx;
  (void)worker;
  struct range range = item_range(item, ITEM_ELEMENTS, e->n);
  int64_t at = range.first;
  kernel_table()->glu_backward(e->gelu, e->gate + at, e->up + at, e->dout + at, range.count,
                               e->out + at, e->dup + at);
}

void glu_backward(bool gelu, const float *gate, const float *up, const float *dout, int64_t n,
                  float *dgate, float *dup) {
  struct elementwise e = {gelu, gate, up, dout, n, dgate, dup};
  parallel_for(item_count(n, ITEM_ELEMENTS), glu_backward_item, &e);
}

static void add_item(void *ctx, int64_t item, int worker) {
  const struct elementwise *e = ctx;
  (void)worker;
  struct range range = item_range(item, ITEM_ELEMENTS, e->n);
  kernel_table()->add(e->out + range.first, e->up + range.first, range.count);
}

void add_inplace(float *x, const float *y, int64_t n) {
  struct elementwise e = {.up = y, .n = n, .out = x};
  parallel_for(item_count(n, ITEM_ELEMENTS), add_item, &e);
}

static void copy_item(void *ctx, int64_t item, int worker) {
  const struct elementwise *e = ctx;
  (void)worker;
  struct range range = item_range(item, ITEM_ELEMENTS, e->n);
  memcpy(e->out + range.first, e->up + range.first, (size_t)range.count * sizeof(float));
}

void copy_floats(float *to, const float *from, int64_t n) {
  struct elementwise e = {.up = from, .n = n, .out = to};
  parallel_for(item_count(n, ITEM_ELEMENTS), copy_item, &e);
}

struct summation {
  const float *x;
  int64_t n, per_part;
  double part[SUM_PARTS];
};

static void sum_item(void *ctx, int64_t item, int worker) {
  struct summation *s = ctx;
  (void)worker;
  struct range range = item_range(item, s->per_part, s->n);
  s->part[item] = kernel_table()->sum_squares(s->x + range.first, range.count);
}

double sum_squares(const float *x, int64_t n) {
  if (n <= 0) return 0;
  struct summation s = {.x = x, .n = n, .per_part = (n + SUM_PARTS - 1) / SUM_PARTS};
  if (s.per_part < ITEM_ELEMENTS) s.per_part = ITEM_ELEMENTS;
  int64_t parts = item_count(n, s.per_part);
  parallel_for(parts, sum_item, &s);
  double sum = 0;
  for (int64_t i = 0; i < parts; i++) sum += s.part[i];
  return sum;
}

struct loss {
  const float *logits, *reference;
  const int32_t *targets;
  int64_t vocab;
  float scale;
  float *out, *dlogits;
  uint8_t *agree;
};

static void cross_entropy_item(void *ctx, int64_t row, int worker) {
  const struct loss *l = ctx;
  (void)worker;
  float *dlogits = l->dlogits ? l->dlogits + row * l->vocab : NULL;
  if (l->targets[row] < 0) {
    l->out[row] = 0;
    if (dlogits) memset(dlogits, 0, (size_t)l->vocab * sizeof(float));
    return;
  }
  l->out[row] = kernel_table()->cross_entropy(l->logits + row * l->vocab, l->vocab, l->targets[row],
                                              l->scale, dlogits);
}

void cross_entropy(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                   float scale, float *nll, float *dlogits) {
  struct loss l = {.logits = logits,
                   .targets = targets,
                   .vocab = vocab,
                   .scale = scale,
                   .out = nll,
                   .dlogits = dlogits};
  parallel_for(rows, cross_entropy_item, &l);
}

static void find_likeliest(void *ctx, int64_t row, int worker) {
  const struct loss *l = ctx;
  const float *logits = l->logits + row * l->vocab;
  const int32_t target = l->targets[row];
  const float own = logits[target];
  bool likeliest = true;
  (void)worker;
  for (int32_t i = 0; i < target; i++) likeliest &= logits[i] < own;
  for (int64_t i = target; i < l->vocab; i++) likeliest &= logits[i] <= own;
  l->agree[row] = likeliest;
}

void score_targets(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                   float *nll, uint8_t *likeliest) {
  struct loss l = {.logits = logits, .targets = targets, .vocab = vocab, .agree = likeliest};
  cross_entropy(logits, targets, rows, vocab, 1, nll, NULL);
  parallel_for(rows, find_likeliest, &l);
}

static void softmax_kl_item(void *ctx, int64_t row, int worker) {
  const struct loss *l = ctx;
  (void)worker;
  uint8_t agree;
  l->out[row] = kernel_table()->softmax_kl(l->reference + row * l->vocab,
                                           l->logits + row * l->vocab, l->vocab, &agree);
  if (l->agree) l->agree[row] = agree;
}

void softmax_kl(const float *reference, const float *model, int64_t rows, int64_t vocab, float *kl,
                uint8_t *agree) {
  struct loss l = {
      .logits = model, .reference = reference, .vocab = vocab, .out = kl, .agree = agree};
  parallel_for(rows, softmax_kl_item, &l);
}
