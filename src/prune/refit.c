/* The two streams of a refit: see refit.h.
 *
 * Owns the hidden states of both, the inputs that the linears of one dense block saw, and the
 * weights of one pruned block. The model keeps its own weights until its block is through, since
 * the dense stream needs them. */
#include "prune/refit.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernel/gemm.h"
#include "kernel/ops.h"
#include "prune/inputs.h"
#include "prune/least_squares.h"
#include "prune/moments.h"

enum { BATCH_TOKENS = 2048, ASIDE = 8 }; /* one window of eight is for the line search */

struct refit {
  struct model *model;
  const struct mask_set *masks;
  const struct calibration *calibration;
  const struct refit_settings *settings;
  struct refit_report *report;

  int64_t fitted, batch;     /* windows that are fitted on, the first ones; windows at a time */
  float *dense, *pruned;     /* hidden states (tokens, hidden_size) */
  float *scratch;            /* (batch tokens, hidden_size) */
  float *seen[BLOCK_INPUTS]; /* (tokens, cols) of the dense block */
  float *aside;              /* (tokens set aside, widest): what the pruned linear saw */
  float *expected, *change;  /* (tokens set aside, most rows): outputs */
  struct moments moments;    /* of one input of the pruned block */
  float *cross;              /* (widest, widest): sum of seen * pruned^T */
  struct model_workspace *workspace;
  struct progress progress;

  int layer;
  enum block_input input;     /* that is being gathered */
  int64_t first;              /* token of the batch at hand */
  float *weights[SITE_ROLES]; /* masked, then refit; NULL: not masked */
  struct linear_weight view[SITE_ROLES];
};

struct refit_settings refit_defaults(void) {
  return (struct refit_settings){.ridge = 0.3, .iterations = 8, .precision = PRECISION_FP32};
}

static const struct linear_site *block_site(const struct refit *r, enum site_role role) {
  return model_site(r->model, model_block_site(r->layer) + (int)role);
}

static const struct mask_matrix *block_mask(const struct refit *r, enum site_role role) {
  return mask_set_find(r->masks, block_site(r, role)->name);
}

static bool input_needed(const struct refit *r, enum block_input input) {
  for (int role = 0; role < SITE_ROLES; role++)
    if (role_input[role] == input && r->weights[role]) return true;
  return false;
}

/* --- running blocks --- */

static void gather_dense(void *ctx, const struct linear_site *site, const float *x,
                         int64_t tokens) {
  struct refit *r = ctx;
  const enum block_input input = role_input[site->role];
  const int64_t cols = linear_cols(&site->weight);
  if (input_leader[input] == site->role)
    memcpy(r->seen[input] + r->first * cols, x, (size_t)(tokens * cols) * sizeof *x);
}

static void gather_pruned(void *ctx, const struct linear_site *site, const float *z,
                          int64_t tokens) {
  struct refit *r = ctx;
  const int64_t cols = linear_cols(&site->weight), length = r->calibration->length;
  if (role_input[site->role] != r->input || input_leader[r->input] != site->role) return;
  if (r->first >= r->fitted * length) {
    memcpy(r->aside + (r->first - r->fitted * length) * cols, z,
           (size_t)(tokens * cols) * sizeof *z);
    return;
  }
  moments_add(&r->moments, z, tokens);
  gemm(cols, cols, tokens, 1.0f,
       (struct gemm_operand){r->seen[r->input] + r->first * cols, DTYPE_F32, cols, true},
       (struct gemm_operand){z, DTYPE_F32, cols, false}, 1.0f, r->cross, cols);
}

static const struct linear_weight *pruned_weight(void *ctx, const struct linear_site *site,
                                                 enum tap_pass direction) {
  const struct refit *r = ctx;
  (void)direction;
  return r->weights[site->role] ? &r->view[site->role] : NULL;
}

/* Runs the block over `hidden` of all tokens, in place or over copies. Batches do not straddle the
 * windows that are set aside. */
static enum status run_block(struct refit *r, float *hidden, bool in_place, const struct tap *tap,
                             struct error *err) {
  const int64_t hidden_size = model_config(r->model)->hidden_size, length = r->calibration->length;
  for (int64_t window = 0; window < r->calibration->windows;) {
    enum status status = interrupt_check(err);
    if (status) return status;
    const int64_t end = window < r->fitted ? r->fitted : r->calibration->windows;
    const int64_t count = end - window < r->batch ? end - window : r->batch;
    float *x = hidden + window * length * hidden_size;
    if (!in_place) {
      memcpy(r->scratch, x, (size_t)(count * length * hidden_size) * sizeof *x);
      x = r->scratch;
    }
    r->first = window * length;
    model_block(r->model, r->layer, (struct model_shape){count, length}, x, tap, r->workspace);
    window += count;
  }
  return STATUS_OK;
}

/* --- refitting a matrix --- */

/* How far to go from the old weights to the new, from 0 to 1: what is best on the tokens set aside.
 * Adds to the report. change (rows, cols): the new weights less the old. */
static double search(struct refit *r, const struct linear_site *site, const float *w,
                     const float *old, const float *change) {
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  const int64_t first = r->fitted * r->calibration->length;
  const int64_t tokens = r->calibration->windows * r->calibration->length - first;
  const struct gemm_operand z = {r->aside, DTYPE_F32, cols, false};
  const struct gemm_operand x = {r->seen[role_input[site->role]] + first * cols, DTYPE_F32, cols,
                                 false};
  gemm(tokens, rows, cols, 1.0f, x, (struct gemm_operand){w, DTYPE_F32, cols, true}, 0.0f,
       r->expected, rows);
  const double squares = sum_squares(r->expected, tokens * rows);
  gemm(tokens, rows, cols, -1.0f, z, (struct gemm_operand){old, DTYPE_F32, cols, true}, 1.0f,
       r->expected, rows);
  gemm(tokens, rows, cols, 1.0f, z, (struct gemm_operand){change, DTYPE_F32, cols, true}, 0.0f,
       r->change, rows);
  const double before = sum_squares(r->expected, tokens * rows);
  const double length = sum_squares(r->change, tokens * rows);
  double agreement = 0;
  for (int64_t i = 0; i < tokens * rows; i++)
    agreement += (double)r->expected[i] * (double)r->change[i];
  double share = length > 0 ? agreement / length : 0;
  share = share < 0 ? 0 : share > 1 ? 1 : share;
  const double after = before - 2 * share * agreement + share * share * length;
  if (squares > 0) {
    r->report->error_before += before / squares;
    r->report->error_after += after / squares;
  }
  log_debug("%s: %.4f of the outputs' squares before, %.4f after, %.2f of the way", site->name,
            before / squares, after / squares, share);
  return share;
}

static enum status refit_site(struct refit *r, const struct linear_site *site,
                              const struct mask_matrix *mask, double ridge, struct error *err) {
  const int64_t rows = mask->rows, cols = mask->cols;
  float *old = r->weights[site->role];
  float *w = mem_alloc((size_t)(rows * cols), sizeof *w, err);
  float *change = mem_alloc((size_t)(rows * cols), sizeof *change, err);
  enum status status = w && change ? STATUS_OK : STATUS_FAILED;
  if (!status) {
    model_site_expand(r->model, site->index, w);
    status = least_squares_masked(mask, w, r->moments.products, r->cross, ridge,
                                  r->settings->iterations, change, err);
  }
  if (!status) {
    for (int64_t i = 0; i < rows * cols; i++) change[i] -= old[i];
    const float share = (float)search(r, site, w, old, change);
    for (int64_t i = 0; i < rows * cols; i++) old[i] += share * change[i];
    r->report->linears++;
    r->report->kept += share == 0;
    r->report->weights += share > 0 ? mask_kept(mask) : 0;
  }
  mem_free(w);
  mem_free(change);
  return status;
}

/* The upper triangle of the moments, which least squares reads too; returns the diagonal's mean. */
static double complete(struct moments *m) {
  double sum = 0;
  for (int64_t i = 0; i < m->cols; i++) {
    for (int64_t k = 0; k < i; k++) m->products[k * m->cols + i] = m->products[i * m->cols + k];
    sum += (double)m->products[i * m->cols + i];
  }
  return sum / (double)m->cols;
}

static enum status refit_input(struct refit *r, enum block_input input, struct error *err) {
  const struct tap tap = {.ctx = r, .weight = pruned_weight, .input = gather_pruned};
  const struct linear_site *leader = block_site(r, input_leader[input]);
  if (!input_needed(r, input)) return STATUS_OK;
  r->input = input;
  r->moments.cols = linear_cols(&leader->weight);
  moments_clear(&r->moments);
  memset(r->cross, 0, (size_t)(r->moments.cols * r->moments.cols) * sizeof *r->cross);
  enum status status = run_block(r, r->pruned, false, &tap, err);
  if (status) return status;
  const double mean = complete(&r->moments);
  if (!isfinite(mean))
    return error_set(err, STATUS_REFUSED,
                     "%s: the activations are not finite; the model or its weights are broken",
                     leader->name);
  for (int role = 0; role < SITE_ROLES && !status; role++)
    if (role_input[role] == input && r->weights[role])
      status = refit_site(r, block_site(r, (enum site_role)role),
                          block_mask(r, (enum site_role)role), r->settings->ridge * mean, err);
  return status;
}

/* --- a block --- */

static enum status mask_block(struct refit *r, struct error *err) {
  for (int role = 0; role < SITE_ROLES; role++) {
    const struct linear_site *site = block_site(r, (enum site_role)role);
    const struct mask_matrix *mask = block_mask(r, (enum site_role)role);
    if (!mask) continue;
    float *w = mem_alloc((size_t)(mask->rows * mask->cols), sizeof *w, err);
    if (!w) return STATUS_FAILED;
    model_site_expand(r->model, site->index, w);
    mask_apply(mask, w, w);
    r->weights[role] = w;
    r->view[role] = (struct linear_weight){.dense = {w, DTYPE_F32, mask->rows, mask->cols}};
  }
  return STATUS_OK;
}

static void finish_block(struct refit *r, bool keep) {
  for (int role = 0; role < SITE_ROLES; role++) {
    if (keep && r->weights[role])
      model_site_replace(r->model, model_block_site(r->layer) + role, r->weights[role]);
    else
      mem_free(r->weights[role]);
    r->weights[role] = NULL;
  }
}

static enum status refit_block(struct refit *r, struct error *err) {
  const struct tap seen = {.ctx = r, .input = gather_dense};
  const struct tap pruned = {.ctx = r, .weight = pruned_weight};
  enum status status = run_block(r, r->dense, true, &seen, err);
  if (!status) status = mask_block(r, err);
  for (int input = 0; input < BLOCK_INPUTS && !status; input++) {
    status = refit_input(r, (enum block_input)input, err);
    progress_set(&r->progress, r->layer + 0.2 * (input + 1));
  }
  if (!status) status = run_block(r, r->pruned, true, &pruned, err);
  finish_block(r, !status);
  progress_set(&r->progress, r->layer + 1);
  return status;
}

/* --- the whole of it --- */

static enum status check(const struct refit *r, struct error *err) {
  size_t found = 0;
  for (int i = 0; i < model_site_count(r->model); i++) {
    const struct linear_site *site = model_site(r->model, i);
    const struct mask_matrix *mask = mask_set_find(r->masks, site->name);
    if (!mask) continue;
    found++;
    if (linear_is_hybrid(&site->weight))
      return error_set(err, STATUS_REFUSED,
                       "%s is packed already: refit the dense model that it was made from",
                       model_path(r->model));
    if (mask->rows != linear_rows(&site->weight) || mask->cols != linear_cols(&site->weight))
      return error_set(err, STATUS_REFUSED, "the mask of %s does not have the shape of the weight",
                       site->name);
  }
  if (!found || found != r->masks->count)
    return error_set(err, STATUS_REFUSED,
                     "the mask is for %zu weights, of which %s has %zu: it was made for another "
                     "model",
                     r->masks->count, model_path(r->model), found);
  if (r->calibration->windows < 2)
    return error_set(err, STATUS_REFUSED,
                     "the text gives %lld window of %lld tokens; refit needs two at least",
                     (long long)r->calibration->windows, (long long)r->calibration->length);
  return STATUS_OK;
}

static enum status prepare(struct refit *r, struct error *err) {
  const struct calibration *c = r->calibration;
  const int64_t aside = c->windows < 2 * ASIDE ? 1 : c->windows / ASIDE;
  const size_t hidden_size = (size_t)model_config(r->model)->hidden_size;
  const size_t tokens = (size_t)(c->windows * c->length), held = (size_t)(aside * c->length);
  int64_t widest = 0, tallest = 0;
  r->fitted = c->windows - aside;
  r->batch = BATCH_TOKENS / c->length < 1 ? 1 : BATCH_TOKENS / c->length;
  for (int role = 0; role < SITE_ROLES; role++) {
    const struct linear_weight *w = &block_site(r, (enum site_role)role)->weight;
    if (linear_cols(w) > widest) widest = linear_cols(w);
    if (linear_rows(w) > tallest) tallest = linear_rows(w);
  }
  for (int i = 0; i < BLOCK_INPUTS; i++) {
    const size_t cols = (size_t)linear_cols(&block_site(r, input_leader[i])->weight);
    r->seen[i] = mem_alloc(tokens, cols * sizeof(float), err);
    if (!r->seen[i]) return STATUS_FAILED;
  }
  r->dense = mem_alloc(tokens, hidden_size * sizeof(float), err);
  r->pruned = mem_alloc(tokens, hidden_size * sizeof(float), err);
  r->scratch = mem_alloc((size_t)(r->batch * c->length), hidden_size * sizeof(float), err);
  r->aside = mem_alloc(held, (size_t)widest * sizeof(float), err);
  r->expected = mem_alloc(held, (size_t)tallest * sizeof(float), err);
  r->change = mem_alloc(held, (size_t)tallest * sizeof(float), err);
  r->cross = mem_alloc((size_t)widest, (size_t)widest * sizeof(float), err);
  if (!r->dense || !r->pruned || !r->scratch || !r->aside || !r->expected || !r->change ||
      !r->cross)
    return STATUS_FAILED;
  enum status status = moments_init(&r->moments, widest, true, err);
  if (!status)
    status = model_workspace_new(&r->workspace, r->model, (struct model_shape){r->batch, c->length},
                                 false, false, err);
  if (status) return status;
  model_workspace_set_precision(r->workspace, r->settings->precision);
  status = model_embed(r->model, c->ids, (int64_t)tokens, r->dense, err);
  if (!status) memcpy(r->pruned, r->dense, tokens * hidden_size * sizeof(float));
  return status;
}

static void release(struct refit *r) {
  for (int i = 0; i < BLOCK_INPUTS; i++) mem_free(r->seen[i]);
  mem_free(r->dense);
  mem_free(r->pruned);
  mem_free(r->scratch);
  mem_free(r->aside);
  mem_free(r->expected);
  mem_free(r->change);
  mem_free(r->cross);
  moments_free(&r->moments);
  model_workspace_free(r->workspace);
}

enum status refit_run(struct model *model, const struct mask_set *masks,
                      const struct calibration *calibration, const struct refit_settings *settings,
                      struct refit_report *report, struct error *err) {
  struct refit r = {.model = model,
                    .masks = masks,
                    .calibration = calibration,
                    .settings = settings,
                    .report = report};
  const double start = clock_seconds();
  *report = (struct refit_report){0};
  enum status status = check(&r, err);
  if (!status) status = prepare(&r, err);
  progress_begin(&r.progress, "refitting", "blocks", (double)model_config(model)->layers);
  for (; r.layer < model_config(model)->layers && !status; r.layer++) status = refit_block(&r, err);
  progress_end(&r.progress);
  if (report->linears) {
    report->error_before /= (double)report->linears;
    report->error_after /= (double)report->linears;
  }
  report->seconds = clock_seconds() - start;
  release(&r);
  return status;
}
