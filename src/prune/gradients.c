/* Gradients gathered by a tap, window by window: see gradients.h. Owns the sums of all linears and
 * one matrix for the gradient at hand. */
#include "prune/gradients.h"

#include <math.h>

#include "base/interrupt.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"

enum { PIECE = 1 << 14 }; /* elements of an item of parallel work */

struct gathering {
  struct gradient_scores *scores;
  enum gradient_order order;
  float *gradient; /* (rows, cols) of the largest linear */
};

struct sum_job {
  const float *from; /* a gradient, or the weights */
  float *sum;
  int64_t count;
  enum gradient_order order;
  float scale;
};

static int64_t piece_end(const struct sum_job *job, int64_t piece) {
  const int64_t end = (piece + 1) * PIECE;
  return end < job->count ? end : job->count;
}

static void add_piece(void *ctx, int64_t piece, int worker) {
  const struct sum_job *job = ctx;
  const int64_t end = piece_end(job, piece);
  (void)worker;
  for (int64_t i = piece * PIECE; i < end; i++) {
    const float g = job->from[i];
    job->sum[i] += job->order == GRADIENT_FIRST ? g : g * g;
  }
}

/* From the sums to the scores, `from` being the weights. */
static void score_piece(void *ctx, int64_t piece, int worker) {
  const struct sum_job *job = ctx;
  const int64_t end = piece_end(job, piece);
  (void)worker;
  for (int64_t i = piece * PIECE; i < end; i++) {
    const float w = job->from[i], mean = job->sum[i] * job->scale;
    job->sum[i] = job->order == GRADIENT_FIRST ? fabsf(w * mean) : 0.5f * w * w * mean;
  }
}

static int64_t pieces(int64_t count) { return (count + PIECE - 1) / PIECE; }

static int64_t site_weights(const struct linear_site *site) {
  return linear_rows(&site->weight) * linear_cols(&site->weight);
}

static void add_gradient(void *ctx, const struct linear_site *site, const float *x, const float *dy,
                         int64_t tokens) {
  struct gathering *g = ctx;
  if (!g->scores->items[site->index]) return;
  linear_backward_weight(dy, x, tokens, linear_rows(&site->weight), linear_cols(&site->weight),
                         PRECISION_FP32, g->gradient, false);
  struct sum_job job = {.from = g->gradient,
                        .sum = g->scores->items[site->index],
                        .count = site_weights(site),
                        .order = g->order};
  parallel_for(pieces(job.count), add_piece, &job);
}

static enum status gather(struct gathering *g, const struct model *model,
                          const struct calibration *c, struct model_workspace *ws,
                          struct progress *progress, struct error *err) {
  const struct model_shape shape = {1, c->length};
  const struct tap tap = {.ctx = g, .gradient = add_gradient};
  for (int64_t window = 0; window < c->windows; window++) {
    double nll = 0;
    enum status status = interrupt_check(err);
    if (!status)
      status = model_train(model, c->ids + window * c->length, shape, 1 / (double)(c->length - 1),
                           &tap, ws, &nll, err);
    if (status) return status;
    if (!isfinite(nll))
      return error_set(err, STATUS_REFUSED,
                       "%s: the loss on the calibration text is %g; the model or its weights are "
                       "broken",
                       model_path(model), nll);
    progress_add(progress, (double)model_config(model)->layers / (double)c->windows);
  }
  return STATUS_OK;
}

static enum status finish(struct gathering *g, const struct model *model, int64_t windows,
                          struct error *err) {
  for (int i = 0; i < g->scores->sites; i++) {
    const struct linear_site *site = model_site(model, i);
    struct sum_job job = {.from = g->gradient,
                          .sum = g->scores->items[i],
                          .count = site_weights(site),
                          .order = g->order,
                          .scale = 1 / (float)windows};
    if (!job.sum) continue;
    model_site_expand(model, i, g->gradient); /* the room is free by now */
    parallel_for(pieces(job.count), score_piece, &job);
    if (!isfinite(sum_squares(job.sum, job.count)))
      return error_set(err, STATUS_REFUSED,
                       "%s: its gradients are not finite; the model or its weights are broken",
                       site->name);
  }
  return STATUS_OK;
}

static enum status make_room(struct gathering *g, const struct model *model,
                             bool (*wanted)(void *ctx, const struct linear_site *site), void *ctx,
                             struct error *err) {
  int64_t most = 0;
  g->scores->sites = model_site_count(model);
  g->scores->items = mem_alloc((size_t)g->scores->sites, sizeof *g->scores->items, err);
  if (!g->scores->items) return STATUS_FAILED;
  for (int i = 0; i < g->scores->sites; i++) {
    const struct linear_site *site = model_site(model, i);
    if (!wanted(ctx, site)) continue;
    const int64_t count = site_weights(site);
    g->scores->items[i] = mem_alloc((size_t)count, sizeof(float), err);
    if (!g->scores->items[i]) return STATUS_FAILED;
    if (count > most) most = count;
  }
  g->gradient = mem_alloc((size_t)(most ? most : 1), sizeof *g->gradient, err);
  return g->gradient ? STATUS_OK : STATUS_FAILED;
}

enum status gradient_scores_make(struct gradient_scores *out, const struct model *model,
                                 const struct calibration *c, enum gradient_order order,
                                 bool (*wanted)(void *ctx, const struct linear_site *site),
                                 void *ctx, struct progress *progress, struct error *err) {
  struct gathering g = {.scores = out, .order = order};
  struct model_workspace *ws = NULL;
  *out = (struct gradient_scores){0};
  if (c->length < 2)
    return error_set(err, STATUS_REFUSED, "windows of one token predict nothing: no gradients");
  enum status status = make_room(&g, model, wanted, ctx, err);
  if (!status)
    status = model_workspace_new(&ws, model, (struct model_shape){1, c->length}, true, true, err);
  if (!status) status = gather(&g, model, c, ws, progress, err);
  if (!status) status = finish(&g, model, c->windows, err);
  model_workspace_free(ws);
  mem_free(g.gradient);
  if (status) gradient_scores_free(out);
  return status;
}

void gradient_scores_free(struct gradient_scores *scores) {
  for (int i = 0; scores->items && i < scores->sites; i++) mem_free(scores->items[i]);
  mem_free(scores->items);
  *scores = (struct gradient_scores){0};
}
