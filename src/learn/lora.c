/* Low-rank adapters: see lora.h. */
#include "learn/lora.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/linear.h"
#include "kernel/ops.h"
#include "learn/adamw.h"

static enum status factor_init(struct lora_factor *f, int64_t rows, int64_t cols,
                               struct error *err) {
  const size_t count = (size_t)(rows * cols);
  *f = (struct lora_factor){.rows = rows, .cols = cols};
  f->value = mem_alloc(count, sizeof(float), err);
  f->gradient = mem_alloc(count, sizeof(float), err);
  f->first = mem_alloc(count, sizeof(float), err);
  f->second = mem_alloc(count, sizeof(float), err);
  return f->value && f->gradient && f->first && f->second ? STATUS_OK : STATUS_FAILED;
}

static void factor_free(struct lora_factor *f) {
  mem_free(f->value);
  mem_free(f->gradient);
  mem_free(f->first);
  mem_free(f->second);
}

enum status lora_init(struct lora *l, const float *weight, int64_t rows, int64_t cols, int64_t rank,
                      uint64_t seed, uint32_t stream, struct error *err) {
  const size_t count = (size_t)(rows * cols);
  struct rng rng = rng_make(seed, stream);
  *l = (struct lora){0};
  enum status status = factor_init(&l->a, rank, cols, err);
  if (status == STATUS_OK) status = factor_init(&l->b, rows, rank, err);
  if (status != STATUS_OK) return status;
  l->frozen = mem_alloc(count, sizeof(float), err);
  if (!l->frozen) return STATUS_FAILED;
  memcpy(l->frozen, weight, count * sizeof(float));
  for (int64_t i = 0; i < rank * cols; i++)
    l->a.value[i] = (float)(rng_normal(&rng) / sqrt((double)cols));
  return STATUS_OK;
}

void lora_free(struct lora *l) {
  factor_free(&l->a);
  factor_free(&l->b);
  mem_free(l->frozen);
  *l = (struct lora){0};
}

static struct linear_weight view(const struct lora_factor *f) {
  return (struct linear_weight){.dense = {f->value, DTYPE_F32, f->rows, f->cols}};
}

struct merging {
  const struct lora *lora;
  const struct mask_matrix *mask;
  float *keeps, *weight;
};

static void merge_row(void *ctx, int64_t row, int worker) {
  const struct merging *m = ctx;
  const int64_t cols = m->mask->cols;
  float *keep = m->keeps + worker * cols, *w = m->weight + row * cols;
  const float *frozen = m->lora->frozen + row * cols;
  mask_row(m->mask, row, keep);
  for (int64_t c = 0; c < cols; c++) w[c] = keep[c] != 0 ? frozen[c] + LORA_SCALE * w[c] : 0;
}

void lora_merge(const struct lora *l, const struct mask_matrix *mask, float *keeps, float *weight) {
  const struct linear_weight a = view(&l->a);
  struct merging merging = {l, mask, keeps, weight};
  linear_backward_input(&a, l->b.value, mask->rows, PRECISION_FP32, weight, false); /* B A */
  parallel_for(mask->rows, merge_row, &merging);
}

static void scale(struct lora_factor *f) {
  for (int64_t i = 0; i < f->rows * f->cols; i++) f->gradient[i] *= LORA_SCALE;
}

void lora_gradient(struct lora *l, const float *g) {
  const struct linear_weight a = view(&l->a);
  linear_forward(&a, NULL, g, l->b.rows, PRECISION_FP32, l->b.gradient);
  linear_backward_weight(l->b.value, g, l->b.rows, l->a.rows, l->a.cols, PRECISION_FP32,
                         l->a.gradient, false);
  scale(&l->a);
  scale(&l->b);
}

double lora_squares(const struct lora *l) {
  return sum_squares(l->a.gradient, l->a.rows * l->a.cols) +
         sum_squares(l->b.gradient, l->b.rows * l->b.cols);
}

void lora_update(struct lora *l, const struct mask_adamw *settings) {
  struct lora_factor *factors[] = {&l->a, &l->b};
  for (int i = 0; i < 2; i++) {
    struct lora_factor *f = factors[i];
    adamw_step(settings, f->rows * f->cols, f->gradient, f->value, f->first, f->second);
  }
}

int64_t lora_parameters(const struct lora *l) {
  return l->a.rows * l->a.cols + l->b.rows * l->b.cols;
}
