/* What recovery tunes: see tuning.h. */
#include "learn/tuning.h"

#include <math.h>
#include <zlib.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"
#include "learn/adamw.h"

enum status tuning_check(const struct model *m, const struct mask_set *masks, struct error *err) {
  size_t found = 0;
  for (int i = 0; i < model_site_count(m); i++) {
    const struct linear_site *site = model_site(m, i);
    const struct mask_matrix *mask = mask_set_find(masks, site->name);
    if (!mask) continue;
    found++;
    if (site->weight.hybrid || site->weight.integers)
      return error_set(err, STATUS_REFUSED,
                       "%s is packed already: recover the dense model that it was made from",
                       model_path(m));
    if (mask->rows != linear_rows(&site->weight) || mask->cols != linear_cols(&site->weight))
      return error_set(err, STATUS_REFUSED, "the mask of %s does not have the shape of the weight",
                       site->name);
  }
  if (found && found == masks->count) return STATUS_OK;
  return error_set(
      err, STATUS_REFUSED,
      "the mask is for %zu weights, of which %s has %zu: it was made for another model",
      masks->count, model_path(m), found);
}

static enum status tune_linear(struct tuning *t, int index, const struct mask_matrix *mask,
                               uint64_t seed, struct error *err) {
  struct tuned_linear *l = &t->linears[index];
  const size_t count = (size_t)(mask->rows * mask->cols);
  float *weight = mem_alloc(count, sizeof *weight, err);
  if (!weight) return STATUS_FAILED;
  model_site_expand(t->model, index, weight);
  mask_apply(mask, weight, weight);
  model_site_replace(t->model, index, weight); /* it owns the weight from now on */
  *l = (struct tuned_linear){.mask = mask, .weight = weight};
  if (mask->cols > t->most_cols) t->most_cols = mask->cols;
  if (t->rank)
    return lora_init(&l->lora, weight, mask->rows, mask->cols, t->rank, seed, (uint32_t)index, err);
  l->gradient = mem_alloc(count, sizeof(float), err);
  l->first = mem_alloc(count, sizeof(float), err);
  l->second = mem_alloc(count, sizeof(float), err);
  return l->gradient && l->first && l->second ? STATUS_OK : STATUS_FAILED;
}

enum status tuning_init(struct tuning *t, struct model *model, const struct mask_set *masks,
                        int64_t rank, uint64_t seed, enum precision precision, struct error *err) {
  size_t largest = 0;
  enum status status = STATUS_OK;
  *t = (struct tuning){.model = model, .precision = precision, .rank = rank};
  t->linears = mem_alloc((size_t)model_site_count(model), sizeof *t->linears, err);
  if (!t->linears) return STATUS_FAILED;
  for (int i = 0; i < model_site_count(model) && status == STATUS_OK; i++) {
    const struct mask_matrix *mask = mask_set_find(masks, model_site(model, i)->name);
    if (!mask) continue;
    status = tune_linear(t, i, mask, seed, err);
    const size_t count = (size_t)(mask->rows * mask->cols);
    if (count > largest) largest = count;
  }
  if (status != STATUS_OK) return status;
  t->keeps = mem_alloc((size_t)(t->most_cols * parallel_threads()), sizeof *t->keeps, err);
  if (rank) t->gradient = mem_alloc(largest, sizeof *t->gradient, err);
  return t->keeps && (t->gradient || !rank) ? STATUS_OK : STATUS_FAILED;
}

void tuning_free(struct tuning *t) {
  for (int i = 0; t->linears && i < model_site_count(t->model); i++) {
    struct tuned_linear *l = &t->linears[i];
    mem_free(l->gradient);
    mem_free(l->first);
    mem_free(l->second);
    lora_free(&l->lora);
  }
  mem_free(t->linears);
  mem_free(t->gradient);
  mem_free(t->keeps);
}

/* --- a step --- */

struct row_job {
  struct tuning *tuning;
  struct tuned_linear *linear;
  float *gradient;
  const struct mask_adamw *adamw;
};

static void mask_row_gradient(void *ctx, int64_t row, int worker) {
  const struct row_job *job = ctx;
  const struct mask_matrix *m = job->linear->mask;
  float *keep = job->tuning->keeps + worker * m->cols, *g = job->gradient + row * m->cols;
  mask_row(m, row, keep);
  for (int64_t c = 0; c < m->cols; c++) g[c] = keep[c] != 0 ? g[c] : 0;
}

void tuning_take(struct tuning *t, const struct linear_site *site, const float *x, const float *dy,
                 int64_t tokens) {
  struct tuned_linear *l = &t->linears[site->index];
  if (!l->mask) return;
  struct row_job job = {.tuning = t, .linear = l, .gradient = t->rank ? t->gradient : l->gradient};
  linear_backward_weight(dy, x, tokens, l->mask->rows, l->mask->cols, t->precision, job.gradient,
                         false);
  parallel_for(l->mask->rows, mask_row_gradient, &job);
  if (t->rank) lora_gradient(&l->lora, job.gradient);
}

double tuning_norm(struct tuning *t) {
  double squares = 0;
  for (int i = 0; i < model_site_count(t->model); i++) {
    const struct tuned_linear *l = &t->linears[i];
    if (!l->mask) continue;
    squares +=
        t->rank ? lora_squares(&l->lora) : sum_squares(l->gradient, l->mask->rows * l->mask->cols);
  }
  return sqrt(squares);
}

/* A dropped weight is 0 with zero moments, and stays so: 0 - rate * 0 / (0 + epsilon). */
static void update_row(void *ctx, int64_t row, int worker) {
  const struct row_job *job = ctx;
  struct tuned_linear *l = job->linear;
  const int64_t cols = l->mask->cols, at = row * cols;
  (void)worker;
  adamw_step(job->adamw, cols, l->gradient + at, l->weight + at, l->first + at, l->second + at);
}

void tuning_update(struct tuning *t, const struct mask_adamw *settings) {
  for (int i = 0; i < model_site_count(t->model); i++) {
    struct tuned_linear *l = &t->linears[i];
    struct row_job job = {.linear = l, .adamw = settings};
    if (!l->mask) continue;
    if (t->rank) {
      lora_update(&l->lora, settings);
      lora_merge(&l->lora, l->mask, t->keeps, l->weight);
    } else {
      parallel_for(l->mask->rows, update_row, &job);
    }
  }
}

/* --- the state --- */

uint32_t tuning_sum(struct tuning *t) {
  uLong crc = 0;
  for (int i = 0; i < model_site_count(t->model); i++) {
    const struct tuned_linear *l = &t->linears[i];
    if (!l->mask) continue;
    const size_t row_bytes = (size_t)l->mask->cols * sizeof(float);
    crc = crc32_z(crc, (const void *)l->weight, (size_t)l->mask->rows * row_bytes);
    for (int64_t row = 0; row < l->mask->rows; row++) {
      mask_row(l->mask, row, t->keeps);
      crc = crc32_z(crc, (const void *)t->keeps, row_bytes);
    }
  }
  return (uint32_t)crc;
}

struct kept {
  const char *prefix;
  const float *data;
  int64_t rows, cols;
};

static enum status add_all(struct state_tensors *tensors, const struct tuned_linear *l,
                           const struct kept *kept, int count, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < count && !status; i++)
    status = state_add(tensors, err, kept[i].prefix, l->mask->name, DTYPE_F32, kept[i].rows,
                       kept[i].cols, 0, kept[i].data);
  return status;
}

enum status tuning_add_state(struct tuning *t, struct state_tensors *tensors, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < model_site_count(t->model) && !status; i++) {
    const struct tuned_linear *l = &t->linears[i];
    const struct lora_factor *a = &l->lora.a, *b = &l->lora.b;
    if (!l->mask) continue;
    const int64_t rows = l->mask->rows, cols = l->mask->cols;
    const struct kept weights[] = {{"weight.", l->weight, rows, cols},
                                   {"moment1.", l->first, rows, cols},
                                   {"moment2.", l->second, rows, cols}};
    const struct kept factors[] = {{"lora_a.", a->value, a->rows, a->cols},
                                   {"lora_b.", b->value, b->rows, b->cols},
                                   {"lora_a.moment1.", a->first, a->rows, a->cols},
                                   {"lora_b.moment1.", b->first, b->rows, b->cols},
                                   {"lora_a.moment2.", a->second, a->rows, a->cols},
                                   {"lora_b.moment2.", b->second, b->rows, b->cols}};
    status = t->rank ? add_all(tensors, l, factors, 6, err) : add_all(tensors, l, weights, 3, err);
  }
  return status;
}

void tuning_restored(struct tuning *t) {
  for (int i = 0; t->rank && i < model_site_count(t->model); i++) {
    struct tuned_linear *l = &t->linears[i];
    if (l->mask) lora_merge(&l->lora, l->mask, t->keeps, l->weight);
  }
}

/* --- the end --- */

enum status tuning_count(const struct tuning *t, int64_t *count, struct error *err) {
  *count = 0;
  for (int i = 0; i < model_site_count(t->model); i++) {
    const struct tuned_linear *l = &t->linears[i];
    if (!l->mask) continue;
    *count += t->rank ? lora_parameters(&l->lora) : mask_kept(l->mask);
    for (int64_t row = 0; row < l->mask->rows; row++) {
      mask_row(l->mask, row, t->keeps);
      for (int64_t c = 0; c < l->mask->cols; c++)
        if (t->keeps[c] == 0 && l->weight[row * l->mask->cols + c] != 0)
          return error_set(err, STATUS_FAILED, "a weight that the mask drops was changed in %s",
                           l->mask->name);
    }
  }
  return STATUS_OK;
}
