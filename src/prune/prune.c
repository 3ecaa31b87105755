/* The layer loop: gather, prune, propagate, block by block.
 *
 * Owns the hidden states of all calibration tokens, the moments of one block's four inputs, and the
 * pruned weights of one block. What may surprise: a block runs over a copy of its input while
 * moments are gathered, and in place afterwards, with the pruned weights handed in by the tap; the
 * model itself changes only when updated weights are asked for. */
#include "prune/prune.h"

#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "prune/describe.h"
#include "prune/far.h"
#include "prune/far_sparsegpt.h"
#include "prune/gradients.h"
#include "prune/inputs.h"
#include "prune/scored.h"
#include "prune/sparsegpt.h"
#include "sparse/project.h"

enum { BATCH_TOKENS = 2048 };

struct pass {
  struct model *model;
  const struct prune_settings *settings;
  const struct calibration *calibration; /* NULL: nothing to calibrate */
  const struct mask_set *fixed;          /* masks whose tiles are kept, or NULL */
  bool update;                           /* weights, in this pass */
  struct mask_set *masks, *unstructured; /* results; the latter may be NULL */
  const struct gradient_scores *scores;  /* of methods that take gradients, else NULL */
  struct prune_report *report;

  const struct backend *ops;
  struct model *placed;     /* the model in its memory, where that is not the host's */
  const struct model *runs; /* the model that passes run over */
  float *hidden;            /* (windows * length, hidden_size), in the backend's memory */
  float *scratch;           /* (batch * length, hidden_size), there too */
  int64_t batch;            /* windows at a time */
  struct model_workspace *workspace;
  struct moments moments[BLOCK_INPUTS];
  float *factor;              /* (n, n) for the widest input, SparseGPT on the CPU only */
  struct far_sparsegpt card;  /* elsewhere */
  float *norms;               /* (n) */
  float *weights[SITE_ROLES]; /* pruned, (rows, cols); NULL when a linear stays dense */
  struct linear_weight pruned[SITE_ROLES]; /* the same in the backend's memory */
  struct far_moments far[BLOCK_INPUTS];
  struct progress *progress;
};

/* --- which linears --- */

static const struct linear_site *block_site(const struct pass *p, int layer, enum site_role role) {
  return model_site(p->model, model_block_site(layer) + (int)role);
}

static bool input_needed(const struct pass *p, int layer, enum block_input input) {
  for (int role = 0; role < SITE_ROLES; role++)
    if (role_input[role] == input &&
        !prune_skips(p->settings, block_site(p, layer, (enum site_role)role)->name))
      return true;
  return false;
}

/* --- running a block --- */

static void gather_input(void *ctx, const struct linear_site *site, const float *x,
                         int64_t tokens) {
  struct pass *p = ctx;
  const enum block_input input = role_input[site->role];
  if (input_leader[input] == site->role && input_needed(p, site->layer, input))
    far_moments_add(&p->far[input], &p->moments[input], x, tokens);
}

static const struct linear_weight *pruned_weight(void *ctx, const struct linear_site *site,
                                                 enum tap_pass direction) {
  const struct pass *p = ctx;
  return p->weights[site->role] ? &p->pruned[site->role] : NULL;
}

/* Runs block `layer` over all calibration tokens: over copies with `gather`, else in place. */
static enum status run_block(struct pass *p, int layer, bool gather, struct error *err) {
  const int64_t hidden_size = model_config(p->model)->hidden_size;
  const struct tap tap = {
      .ctx = p, .weight = gather ? NULL : pruned_weight, .input = gather ? gather_input : NULL};
  for (int64_t window = 0; window < p->calibration->windows; window += p->batch) {
    enum status status = interrupt_check(err);
    if (status) return status;
    const int64_t left = p->calibration->windows - window;
    const struct model_shape shape = {left < p->batch ? left : p->batch, p->calibration->length};
    const int64_t tokens = shape.sequences * shape.length;
    float *x = p->hidden + window * shape.length * hidden_size;
    if (gather) {
      p->ops->copy_floats(p->scratch, x, tokens * hidden_size);
      x = p->scratch;
    }
    model_block(p->runs, layer, shape, x, &tap, p->workspace);
    progress_add(p->progress, 0.3 * (double)shape.sequences / (double)p->calibration->windows);
  }
  return STATUS_OK;
}

/* --- pruning a matrix --- */

static struct prune_rule make_rule(const struct pass *p, const char *name) {
  const struct prune_settings *s = p->settings;
  const struct mask_matrix *fixed = p->fixed ? mask_set_find(p->fixed, name) : NULL;
  return (struct prune_rule){.pattern = s->pattern,
                             .keep = s->keep,
                             .of = s->of,
                             .sparsity = s->sparsity,
                             .tile_rows = s->tile_rows,
                             .tile_cols = s->tile_cols,
                             .dense_tiles = fixed ? fixed->tiles : NULL};
}

/* Makes the mask of a site under `rule`. w (rows, cols) holds its weights and is used up. */
static enum status prune_weights(struct pass *p, const struct prune_rule *rule,
                                 const struct linear_site *site, float *w, struct mask_matrix *mask,
                                 struct error *err) {
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  const struct moments *m = &p->moments[role_input[site->role]];
  if (p->settings->method == PRUNE_MAGNITUDE)
    return prune_scored(rule, site->name, w, rows, cols, NULL, mask, err);
  if (p->scores)
    return prune_scored(rule, site->name, p->scores->items[site->index], rows, cols, NULL, mask,
                        err);
  if (p->settings->method == PRUNE_WANDA) {
    moments_norms(m, p->norms);
    return prune_scored(rule, site->name, w, rows, cols, p->norms, mask, err);
  }
  for (int64_t c = 0; c < cols; c++)
    if (moments_dead(m, c))
      for (int64_t r = 0; r < rows; r++) w[r * cols + c] = 0;
  const int64_t block = p->settings->block;
  if (p->card.ops)
    return far_sparsegpt_prune(&p->card, rule, site->name, w, rows, cols, block, mask, err);
  return prune_sparsegpt(rule, site->name, w, rows, cols, p->factor, block, mask, err);
}

static enum status add_unstructured(struct pass *p, const struct linear_site *site, float *w,
                                    struct error *err) {
  struct mask_matrix mask = {0};
  const struct prune_rule rule = {.pattern = PRUNE_UNSTRUCTURED,
                                  .sparsity = p->settings->unstructured_sparsity};
  model_site_expand(p->model, site->index, w);
  enum status status = prune_weights(p, &rule, site, w, &mask, err);
  if (!status) status = mask_set_add(p->unstructured, &mask, err);
  mask_matrix_free(&mask);
  return status;
}

/* A second pass knows only what the tiles that are 2:4 by now lose: the first pass's scores stay.
 */
static void keep_scores(const struct pass *p, struct mask_matrix *mask) {
  const struct mask_matrix *fixed = p->fixed ? mask_set_find(p->fixed, mask->name) : NULL;
  if (fixed && fixed->tile_scores)
    memcpy(mask->tile_scores, fixed->tile_scores,
           (size_t)mask_tile_count(mask) * sizeof *mask->tile_scores);
}

/* A pruned weight to where the rest of the pass runs. */
static enum status send_pruned(struct pass *p, enum site_role role, float *w, int64_t rows,
                               int64_t cols, struct error *err) {
  const size_t bytes = (size_t)(rows * cols) * sizeof *w;
  void *far = w;
  enum status status = STATUS_OK;
  if (!p->ops->is_host) {
    status = p->ops->alloc(bytes, &far, err);
    if (status) return status;
    status = p->ops->upload(far, w, bytes, err);
  }
  p->pruned[role] = (struct linear_weight){.dense = {far, DTYPE_F32, rows, cols}};
  return status;
}

static enum status prune_site(struct pass *p, const struct linear_site *site, struct error *err) {
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  const struct prune_rule rule = make_rule(p, site->name);
  struct mask_matrix mask = {0};
  float *w = mem_alloc((size_t)rows * (size_t)cols, sizeof *w, err);
  enum status status = w ? STATUS_OK : STATUS_FAILED;
  if (!status && p->unstructured) status = add_unstructured(p, site, w, err);
  if (status) goto out;
  model_site_expand(p->model, site->index, w);
  status = prune_weights(p, &rule, site, w, &mask, err);
  if (status) goto out;
  if (!p->update) {
    model_site_expand(p->model, site->index, w);
    mask_apply(&mask, w, w);
  }
  keep_scores(p, &mask);
  status = mask_set_add(p->masks, &mask, err);
  if (status) goto out;
  p->weights[site->role] = w;
  status = send_pruned(p, site->role, w, rows, cols, err);
  w = NULL;
out:
  mem_free(w);
  mask_matrix_free(&mask);
  return status;
}

/* SparseGPT's factor of one input, and what there is to say about it. */
static enum status factor_input(struct pass *p, int layer, enum block_input input,
                                struct error *err) {
  const struct moments *m = &p->moments[input];
  const char *name = block_site(p, layer, input_leader[input])->name;
  struct factor_report report;
  const double damping = p->settings->damping;
  enum status status =
      p->card.ops ? far_sparsegpt_factor(&p->card, &p->far[input], m, damping, &report, err)
                  : moments_factor(m, damping, p->factor, &report, err);
  if (status) {
    error_prefix(err, "%s", name);
    return status;
  }
  for (int64_t c = 0; c < m->cols; c++) p->report->dead += moments_dead(m, c);
  if (!report.retries) return STATUS_OK;
  p->report->dampened++;
  if (report.damping > p->report->worst_damping) p->report->worst_damping = report.damping;
  log_warn("%s: the Hessian is not positive definite; %s", name,
           report.diagonal_only ? "its diagonal alone is used" : "dampened more");
  return STATUS_OK;
}

static enum status prune_input(struct pass *p, int layer, enum block_input input,
                               struct error *err) {
  if (!input_needed(p, layer, input)) return STATUS_OK;
  if (p->settings->method == PRUNE_SPARSEGPT) {
    enum status status = factor_input(p, layer, input, err);
    if (status) return status;
  }
  for (int role = 0; role < SITE_ROLES; role++) {
    const struct linear_site *site = block_site(p, layer, (enum site_role)role);
    if (role_input[role] != input || prune_skips(p->settings, site->name)) continue;
    enum status status = interrupt_check(err);
    if (!status) status = prune_site(p, site, err);
    if (status) return status;
  }
  return STATUS_OK;
}

/* The block's pruned weights go: into the model when they were updated, else away. */
static void drop_weights(struct pass *p, int layer, bool keep) {
  for (int role = 0; role < SITE_ROLES; role++) {
    if (keep && p->weights[role])
      model_site_replace(p->model, model_block_site(layer) + role, p->weights[role]);
    else
      mem_free(p->weights[role]);
    p->weights[role] = NULL;
    if (!p->ops->is_host) p->ops->free((void *)p->pruned[role].dense.data);
    p->pruned[role] = (struct linear_weight){0};
  }
}

static enum status prune_block(struct pass *p, int layer, struct error *err) {
  enum status status = STATUS_OK;
  const double done = p->progress->done;
  if (p->calibration) {
    for (int i = 0; i < BLOCK_INPUTS; i++) far_moments_clear(&p->far[i], &p->moments[i]);
    status = run_block(p, layer, true, err);
    for (int i = 0; i < BLOCK_INPUTS && !status; i++)
      status = far_moments_fetch(&p->far[i], &p->moments[i], err);
  }
  for (int i = 0; i < BLOCK_INPUTS && !status; i++) {
    status = prune_input(p, layer, (enum block_input)i, err);
    progress_add(p->progress, 0.1);
  }
  const bool last = layer + 1 == model_config(p->model)->layers;
  if (!status && p->calibration && !last) status = run_block(p, layer, false, err);
  drop_weights(p, layer, p->update && !status);
  progress_set(p->progress, done + 1);
  return status;
}

/* --- a pass over the model --- */

static enum status pass_alloc(struct pass *p, struct error *err) {
  const struct model_config *config = model_config(p->model);
  const struct calibration *c = p->calibration;
  const bool sparsegpt = p->settings->method == PRUNE_SPARSEGPT;
  int64_t widest = 0;
  p->batch = BATCH_TOKENS / c->length;
  if (p->batch < 1) p->batch = 1;
  if (p->batch > c->windows) p->batch = c->windows;
  for (int i = 0; i < BLOCK_INPUTS; i++) {
    const int64_t cols = linear_cols(&block_site(p, 0, input_leader[i])->weight);
    if (cols > widest) widest = cols;
    enum status status = far_moments_init(&p->far[i], p->ops, &p->moments[i], cols, sparsegpt,
                                          p->batch * c->length, err);
    if (status) return status;
  }
  const size_t width = (size_t)config->hidden_size, length = (size_t)c->length;
  const size_t window_bytes = length * width * sizeof(float);
  enum status status = p->ops->alloc((size_t)c->windows * window_bytes, (void **)&p->hidden, err);
  if (!status) status = p->ops->alloc((size_t)p->batch * window_bytes, (void **)&p->scratch, err);
  if (status) return status;
  p->norms = mem_alloc((size_t)widest, sizeof(float), err);
  if (!p->norms) return STATUS_FAILED;
  if (sparsegpt && p->ops->is_host) {
    p->factor = mem_alloc((size_t)widest * (size_t)widest, sizeof(float), err);
    if (!p->factor) return STATUS_FAILED;
  } else if (sparsegpt) {
    status = far_sparsegpt_init(&p->card, p->ops, widest, err);
    if (status) return status;
  }
  p->runs = p->model;
  if (!p->ops->is_host) {
    if ((status = model_place(&p->placed, p->model, p->ops, err))) return status;
    p->runs = p->placed;
  }
  return model_workspace_new(&p->workspace, p->runs, (struct model_shape){p->batch, c->length},
                             false, false, err);
}

static void pass_free(struct pass *p) {
  for (int i = 0; i < BLOCK_INPUTS; i++) {
    moments_free(&p->moments[i]);
    far_moments_free(&p->far[i]);
  }
  p->ops->free(p->hidden);
  p->ops->free(p->scratch);
  mem_free(p->norms);
  mem_free(p->factor);
  far_sparsegpt_free(&p->card);
  model_workspace_free(p->workspace);
  model_close(p->placed);
}

static enum status pass_run(struct pass *p, struct error *err) {
  enum status status = STATUS_OK;
  if (p->calibration) {
    status = pass_alloc(p, err);
    if (!status)
      status = model_embed(p->runs, p->calibration->ids,
                           p->calibration->windows * p->calibration->length, p->hidden, err);
  }
  for (int layer = 0; layer < model_config(p->model)->layers && !status; layer++)
    status = prune_block(p, layer, err);
  pass_free(p);
  return status;
}

/* --- the whole of it --- */

/* The second pass of a hybrid whose weights are updated: the tiles of *masks stay, the rest is made
 * again. */
static enum status update_hybrid(struct pass first, struct error *err) {
  struct mask_set again = {0};
  struct pass p = first;
  p.fixed = first.masks;
  p.masks = &again;
  p.unstructured = NULL;
  p.update = true;
  enum status status = pass_run(&p, err);
  if (status) {
    mask_set_free(&again);
    return status;
  }
  mask_set_free(first.masks);
  *first.masks = again;
  return STATUS_OK;
}

static bool is_pruned(void *ctx, const struct linear_site *site) {
  return !prune_skips(ctx, site->name);
}

/* Scores of all that is pruned, where the method has them; half of the progress. */
static enum status score_gradients(struct pass *p, struct gradient_scores *scores,
                                   const struct calibration *calibration, struct error *err) {
  const enum prune_method method = p->settings->method;
  if (!prune_takes_gradients(method)) return STATUS_OK;
  p->scores = scores;
  return gradient_scores_make(scores, p->model, calibration,
                              method == PRUNE_TAYLOR ? GRADIENT_FIRST : GRADIENT_SECOND, is_pruned,
                              (void *)p->settings, p->progress, err);
}

enum status prune_run(struct model *model, const struct prune_settings *settings,
                      const struct calibration *calibration, struct mask_set *masks,
                      struct mask_set *unstructured, struct prune_report *report,
                      struct error *err) {
  const bool hybrid = settings->pattern == PRUNE_HYBRID;
  const bool two_passes = hybrid && settings->update_weights;
  const int64_t total = model_prunable_weights(model);
  struct progress progress = {0};
  enum status status = prune_check(settings, err);
  if (status) return status;
  INVARIANT(calibration || settings->method == PRUNE_MAGNITUDE);
  const bool gradients = prune_takes_gradients(settings->method);
  const bool loops = settings->method != PRUNE_MAGNITUDE && !gradients;
  struct gradient_scores scores = {0};
  *report = (struct prune_report){0};
  const struct pass pass = {.model = model,
                            .settings = settings,
                            .ops = settings->backend && loops ? settings->backend : backend_cpu(),
                            .calibration = loops ? calibration : NULL,
                            .update = settings->update_weights && !hybrid,
                            .masks = masks,
                            .unstructured = unstructured,
                            .report = report,
                            .progress = &progress};
  progress_begin(&progress, "pruning", "layers",
                 (double)model_config(model)->layers * (two_passes || gradients ? 2 : 1));
  struct pass first = pass;
  status = score_gradients(&first, &scores, calibration, err);
  if (!status) status = pass_run(&first, err);
  if (!status && hybrid) status = project_set(masks, total, 1 - settings->sparsity, err);
  if (!status && two_passes) status = update_hybrid(pass, err);
  progress_end(&progress);
  gradient_scores_free(&scores);
  if (!status)
    status = prune_describe(masks, unstructured, settings, loops || gradients ? calibration : NULL,
                            total, err);
  if (status) {
    mask_set_free(masks);
    if (unstructured) mask_set_free(unstructured);
  }
  return status;
}
