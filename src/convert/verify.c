/* See verify.h. Weights are compared row by row on all threads; the first row that differs, in the
 * order of the file, is the one reported. */
#include "convert/verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/parallel.h"
#include "convert/inspect.h"
#include "convert/weights.h"

enum { DENSITY_DIGITS_APART = 1000000 };

/* --- masks --- */

static void count_tiles(const struct mask_matrix *m, struct verification *out) {
  for (int64_t t = 0; mask_has_tiles(m) && t < mask_tile_count(m); t++) {
    out->tiles_dense += m->tiles[t] != 0;
    out->tiles_sparse += m->tiles[t] == 0;
  }
}

static enum status check_pattern(const struct mask_set *masks, struct error *err) {
  const char *pattern = mask_set_meta_get(masks, "pattern");
  int64_t keep, of;
  enum status status = STATUS_OK;
  if (!pattern || !number_take(&pattern, 9999, &keep) || *pattern++ != ':' ||
      !number_take(&pattern, 9999, &of) || keep < 1 || of <= keep)
    return STATUS_OK;
  for (size_t i = 0; i < masks->count && !status; i++)
    if (masks->items[i].kind == MASK_BITS)
      status = mask_check_groups(&masks->items[i], (int)keep, (int)of, err);
  return status;
}

static enum status check_density(const char *what, double named, double counted,
                                 struct error *err) {
  if (fabs(named - counted) * DENSITY_DIGITS_APART <= 1) return STATUS_OK;
  return error_set(err, STATUS_REFUSED, "%s names a density of %.6f, but %.6f is counted", what,
                   named, counted);
}

enum status verify_masks(const struct mask_set *masks, const struct model *against,
                         struct verification *out, struct error *err) {
  const char *named = mask_set_meta_get(masks, "density");
  *out = (struct verification){.matrices = (int64_t)masks->count, .nonzero = -1};
  mask_set_count(masks, &out->kept, &out->positions);
  for (size_t i = 0; i < masks->count; i++) count_tiles(&masks->items[i], out);
  enum status status = check_pattern(masks, err);
  if (status || !against) return status;
  status = weights_check_masks(against, masks, err);
  if (status) return status;
  const double density = weights_density(against, masks);
  int64_t total = 0;
  for (int i = 0; i < model_site_count(against); i++) {
    const struct linear_weight *w = &model_site(against, i)->weight;
    total += linear_rows(w) * linear_cols(w);
  }
  out->kept += total - out->positions;
  out->positions = total;
  return named ? check_density("the mask", strtod(named, NULL), density, err) : STATUS_OK;
}

/* --- weights against weights --- */

struct comparison {
  const struct model *model, *against;
  int tensor, other;
  const struct mask_matrix *mask; /* which weights count; NULL: the nonzero ones */
  bool pruned;                    /* else every element counts */
  int64_t cols;
  float *rows;      /* (threads, 3, cols) */
  int64_t *matched; /* (rows): how many were compared; -1 when one differs or is NaN */
};

/* The other model's values as they would be stored here. */
static void round_like(enum dtype dtype, float *w, int64_t cols, float *scratch) {
  const bool writable = dtype_is_native(dtype) || dtype == DTYPE_Q8_0;
  if (!writable || dtype == DTYPE_F32) return;
  dtype_from_f32(dtype, w, cols, scratch);
  dtype_to_f32(dtype, scratch, cols, w);
}

static void compare_row(void *ctx, int64_t row, int worker) {
  const struct comparison *c = ctx;
  float *own = c->rows + worker * 3 * c->cols, *other = own + c->cols, *keep = other + c->cols;
  model_tensor_expand(c->model, c->tensor, row, 1, own);
  model_tensor_expand(c->against, c->other, row, 1, other);
  if (c->mask) mask_row(c->mask, row, keep);
  int64_t matched = 0;
  for (int64_t i = 0; i < c->cols; i++) {
    const bool counts = !c->pruned || (c->mask ? keep[i] != 0 : own[i] != 0);
    if (!counts) other[i] = 0;
    matched += counts;
  }
  round_like(model_tensor(c->model, c->tensor)->dtype, other, c->cols, keep);
  for (int64_t i = 0; i < c->cols; i++)
    if (own[i] != other[i]) matched = -1;
  c->matched[row] = matched;
}

static int tensor_named(const struct model *model, const char *name) {
  for (int i = 0; i < model_tensor_count(model); i++)
    if (!strcmp(model_tensor(model, i)->name, name)) return i;
  return -1;
}

static enum status compare_tensor(struct comparison *c, struct verification *out,
                                  struct error *err) {
  const struct model_tensor *t = model_tensor(c->model, c->tensor);
  const int64_t rows = t->shape[0];
  c->cols = t->shape[1];
  c->rows = mem_alloc((size_t)parallel_threads() * 3, (size_t)c->cols * sizeof *c->rows, err);
  c->matched = mem_alloc((size_t)rows, sizeof *c->matched, err);
  enum status status = c->rows && c->matched ? STATUS_OK : STATUS_FAILED;
  if (!status) parallel_for(rows, compare_row, c);
  for (int64_t r = 0; r < rows && !status; r++) {
    if (c->matched[r] < 0)
      status = error_set(err, STATUS_REFUSED, "%s: row %lld differs from that of %s", t->name,
                         (long long)r, model_path(c->against));
    out->compared += c->matched[r];
  }
  mem_free(c->rows);
  mem_free(c->matched);
  return status;
}

/* A quantized matrix against one that is not: quantized in the same way it has the same weights. */
static enum status compare_quantized(const struct comparison *c, const struct quant_matrix *q,
                                     struct verification *out, struct error *err) {
  const struct quant_form form = {q->type, q->group, q->mins != NULL};
  struct quant_owned made;
  float *rows = mem_alloc((size_t)q->cols, 2 * sizeof *rows, err);
  enum status status = rows ? STATUS_OK : STATUS_FAILED;
  if (!status) status = weights_quantize(&made, c->against, c->other, &form, c->mask, err);
  for (int64_t r = 0; r < q->rows && !status; r++) {
    quant_row(q, r, rows);
    quant_row(&made.matrix, r, rows + q->cols);
    if (memcmp(rows, rows + q->cols, (size_t)q->cols * sizeof *rows) != 0)
      status =
          error_set(err, STATUS_REFUSED, "%s: row %lld is not what quantizing that of %s gives",
                    model_tensor(c->model, c->tensor)->name, (long long)r, model_path(c->against));
  }
  if (rows && !status) out->compared += c->mask ? mask_kept(c->mask) : q->rows * q->cols;
  if (rows) quant_owned_free(&made);
  mem_free(rows);
  return status;
}

static enum status compare_models(const struct model *model, const struct model *against,
                                  struct verification *out, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < model_tensor_count(model) && !status; i++) {
    const struct model_tensor *t = model_tensor(model, i);
    const struct hybrid_matrix *h = t->site < 0 ? NULL : model_site(model, t->site)->weight.hybrid;
    const struct hybrid_matrix tiles = t->quant ? quant_tiles(t->quant) : (struct hybrid_matrix){0};
    if (tiles.tile_map) h = &tiles;
    struct mask_matrix mask = {0};
    struct comparison c = {.model = model,
                           .against = against,
                           .tensor = i,
                           .other = tensor_named(against, t->name),
                           .pruned = t->site >= 0};
    const struct model_tensor *o = c.other < 0 ? NULL : model_tensor(against, c.other);
    if (!o || o->shape[0] != t->shape[0] || o->shape[1] != t->shape[1])
      return error_set(err, STATUS_REFUSED, "%s has no %s of that shape", model_path(against),
                       t->name);
    status = interrupt_check(err);
    if (!status && h) status = hybrid_mask(h, t->name, &mask, err);
    if (h) c.mask = &mask;
    if (!status && t->quant && !o->quant)
      status = compare_quantized(&c, t->quant, out, err);
    else if (!status)
      status = compare_tensor(&c, out, err);
    mask_matrix_free(&mask);
  }
  return status;
}

/* --- a model by itself --- */

struct nan_search {
  const struct model *model;
  int tensor;
  int64_t cols;
  float *rows;    /* (threads, cols) */
  uint8_t *found; /* (rows) */
};

static void search_row(void *ctx, int64_t row, int worker) {
  const struct nan_search *s = ctx;
  float *w = s->rows + worker * s->cols;
  model_tensor_expand(s->model, s->tensor, row, 1, w);
  for (int64_t i = 0; i < s->cols; i++) s->found[row] |= isnan(w[i]) || isinf(w[i]);
}

static enum status check_finite(const struct model *model, int tensor, struct error *err) {
  const struct model_tensor *t = model_tensor(model, tensor);
  struct nan_search s = {.model = model, .tensor = tensor, .cols = t->shape[1]};
  s.rows = mem_alloc((size_t)parallel_threads(), (size_t)s.cols * sizeof *s.rows, err);
  s.found = mem_alloc((size_t)t->shape[0], 1, err);
  enum status status = s.rows && s.found ? STATUS_OK : STATUS_FAILED;
  if (!status) parallel_for(t->shape[0], search_row, &s);
  for (int64_t r = 0; r < t->shape[0] && !status; r++)
    if (s.found[r])
      status = error_set(err, STATUS_REFUSED, "%s: row %lld holds a weight that is not finite",
                         t->name, (long long)r);
  mem_free(s.rows);
  mem_free(s.found);
  return status;
}

static enum status check_packed(const struct model *model, struct verification *out,
                                struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < model_site_count(model) && !status; i++) {
    const struct linear_site *site = model_site(model, i);
    if (!site->weight.hybrid) continue;
    out->matrices++;
    status = hybrid_check(site->weight.hybrid, site->name, err);
  }
  for (int i = 0; i < model_tensor_count(model) && !status; i++) {
    const struct model_tensor *t = model_tensor(model, i);
    if (!t->quant) continue;
    out->matrices++;
    status = quant_check(t->quant, t->name, err);
  }
  return status;
}

/* What config.json says of a packed model. */
static enum status check_config(const struct model *model, const struct verification *out,
                                struct error *err) {
  const json_t *sparsity = json_object_get(model_json(model), "sparsity_config");
  double density;
  int64_t matrices;
  if (!sparsity) return STATUS_OK;
  if (json_get_int(sparsity, "matrices", &matrices, NULL) && matrices != out->matrices)
    return error_set(err, STATUS_REFUSED,
                     "config.json names %lld packed matrices, but there are %lld",
                     (long long)matrices, (long long)out->matrices);
  if (!json_get_real(sparsity, "density", &density, NULL)) return STATUS_OK;
  return check_density("config.json", density, (double)out->kept / (double)out->positions, err);
}

static enum status count_model(const struct model *model, int64_t tile, struct verification *out,
                               struct error *err) {
  struct inspection found;
  enum status status = inspect_model(&found, model, true, tile, err);
  if (status) return status;
  out->kept = found.kept;
  out->nonzero = found.nonzero;
  out->positions = found.linear_parameters;
  for (int i = 0; i < found.count; i++) {
    const struct inspected_linear *l = &found.linears[i];
    if (l->tiles_dense > 0) out->tiles_dense += l->tiles_dense;
    if (l->tiles_sparse > 0) out->tiles_sparse += l->tiles_sparse;
  }
  inspection_free(&found);
  return STATUS_OK;
}

enum status verify_model(const struct model *model, const struct model *against, int64_t tile,
                         struct verification *out, struct error *err) {
  *out = (struct verification){0};
  enum status status = check_packed(model, out, err);
  if (!status) status = count_model(model, tile, out, err);
  if (!status) status = check_config(model, out, err);
  for (int i = 0; i < model_tensor_count(model) && !status; i++) {
    status = interrupt_check(err);
    if (!status) status = check_finite(model, i, err);
  }
  return status || !against ? status : compare_models(model, against, out, err);
}
