/* The measuring pass: see eval.h. Batches of windows go through the model (and the reference), and
 * the normed hidden states are then scored a few rows at a time. Only the rows that predict
 * something get logits: the last one of a window does not. */
#include "eval/eval.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "eval/states.h"
#include "kernel/ops.h"

enum {
  CHUNK_ELEMENTS = 8 << 20, /* of logits at a time: 32 MiB for each of the two models */
  CHUNK_ROWS_LEAST = 16,
  CHUNK_ROWS_MOST = 512
};

/* One model's side of the pass. */
struct side {
  const struct model *model;
  enum precision precision; /* of the products */
  struct model_workspace *workspace;
  float *computed;           /* (batch * length, hidden_size), in the backend's memory */
  struct states_cache cache; /* open where the states of all windows are kept */
  const float *normed;       /* of the batch: `computed`, or a part of what is kept */
  float *logits;             /* (chunk_rows, vocab_size), there too */
};

/* The model's side when it decodes: windows step together, one token at a time. */
struct decoding {
  struct model_session *session; /* NULL: it does not */
  int64_t *slots;                /* (batch) */
  int32_t *ids;                  /* (batch): of a step, and what comes next */
  int32_t *targets;              /* (batch) */
  float *logits;                 /* (batch, vocab_size) */
  int64_t ahead;                 /* steps for which the reference's logits are made at once, */
  float *reference;              /* (ahead, batch, vocab_size), from */
  float *normed;                 /* (ahead, batch, hidden_size) */
  float *nll, *kl;               /* (batch) */
  uint8_t *agree;                /* (batch) */
};

struct pass {
  struct side side[2]; /* the model, and the reference when there is one */
  int sides;
  int64_t batch, length, chunk_rows;
  const struct backend *ops; /* the models'; the reference's where the model decodes */
  int32_t *ids;              /* (batch * length) */
  float *nll, *kl;           /* (batch * (length - 1)): predictions, window after window */
  uint8_t *agree;            /* the same shape */
  /* the same three in the backend's memory, where the models leave them */
  float *far_nll, *far_kl;
  uint8_t *far_agree;
  struct decoding decoding;
  double *window_nll;    /* (windows): means */
  double *window_kl;     /* (windows) */
  double *window_agrees; /* (windows) */
};

struct eval_figure eval_figure_of(const double *values, int64_t count) {
  struct eval_figure figure = {0, NAN};
  double squares = 0;
  for (int64_t i = 0; i < count; i++) figure.mean += values[i];
  figure.mean /= (double)count;
  for (int64_t i = 0; i < count; i++)
    squares += (values[i] - figure.mean) * (values[i] - figure.mean);
  if (count > 1) figure.standard_error = sqrt(squares / (double)(count - 1) / (double)count);
  return figure;
}

static int64_t choose_batch(const struct eval_request *request) {
  int64_t batch = request->batch;
  if (batch <= 0) batch = EVAL_PASS_TOKENS / request->windows->length;
  if (request->decode && batch > SESSION_SLOTS_MAX) batch = SESSION_SLOTS_MAX;
  if (batch < 1) batch = 1;
  return batch < request->windows->count ? batch : request->windows->count;
}

static int64_t choose_chunk_rows(int64_t vocab_size) {
  int64_t rows = CHUNK_ELEMENTS / vocab_size;
  if (rows < CHUNK_ROWS_LEAST) return CHUNK_ROWS_LEAST;
  return rows < CHUNK_ROWS_MOST ? rows : CHUNK_ROWS_MOST;
}

static enum status side_init(struct side *side, const struct model *model, const char *cache,
                             const struct windows *windows, const struct pass *pass,
                             struct error *err) {
  const struct model_config *config = model_config(model);
  side->model = model;
  if (pass->decoding.session && side == &pass->side[0]) return STATUS_OK;
  INVARIANT(model_backend(model) == pass->ops);
  enum status status =
      pass->ops->alloc((size_t)(pass->chunk_rows * config->vocab_size) * sizeof *side->logits,
                       (void **)&side->logits, err);
  if (status) return status;
  if (cache) {
    status = states_cache_open(&side->cache, cache, model, windows, pass->batch, err);
    if (status || pass->ops->is_host) return status;
  }
  const size_t states = (size_t)(pass->batch * pass->length * config->hidden_size);
  status = pass->ops->alloc(states * sizeof *side->computed, (void **)&side->computed, err);
  if (status || cache) return status;
  status = model_workspace_new(&side->workspace, model,
                               (struct model_shape){pass->batch, pass->length}, false, false, err);
  if (!status) model_workspace_set_precision(side->workspace, side->precision);
  return status;
}

/* side->normed for windows [first, first + count). */
static enum status side_states(struct side *side, const struct windows *windows, int64_t first,
                               int64_t count, int32_t *ids, struct error *err) {
  if (side->cache.normed) {
    const int64_t window = windows->length * model_config(side->model)->hidden_size;
    const float *kept = side->cache.normed + first * window;
    side->normed = side->computed ? side->computed : kept;
    if (!side->computed) return STATUS_OK; /* the model runs where they are */
    return model_backend(side->model)
        ->upload(side->computed, kept, (size_t)(count * window) * sizeof *kept, err);
  }
  side->normed = side->computed;
  return states_compute(side->model, windows, first, count, side->workspace, ids, side->computed,
                        err);
}

static enum status decoding_init(struct decoding *d, const struct eval_request *request,
                                 int64_t batch, struct error *err) {
  const struct model_config *config = model_config(request->model);
  const struct session_settings settings = {
      .slots = batch, .capacity = request->windows->length, .kv = DTYPE_F16};
  const size_t count = (size_t)batch, row = (size_t)config->vocab_size * sizeof(float);
  d->slots = mem_alloc(count, sizeof *d->slots, err);
  d->ids = mem_alloc(count, sizeof *d->ids, err);
  d->targets = mem_alloc(count, sizeof *d->targets, err);
  d->ahead = choose_chunk_rows(config->vocab_size) / batch + 1;
  const size_t rows = request->reference ? count * (size_t)d->ahead : 0;
  d->logits = mem_alloc(count, row, err);
  d->reference = mem_alloc(rows, row, err);
  d->nll = mem_alloc(count, sizeof *d->nll, err);
  d->kl = mem_alloc(count, sizeof *d->kl, err);
  d->agree = mem_alloc(count, 1, err);
  const int64_t width =
      request->reference ? model_config(request->reference)->hidden_size : config->hidden_size;
  d->normed = mem_alloc(rows, (size_t)width * sizeof *d->normed, err);
  if (!d->slots || !d->ids || !d->targets || !d->logits || !d->reference || !d->nll || !d->kl ||
      !d->agree || !d->normed)
    return STATUS_FAILED;
  for (int64_t i = 0; i < batch; i++) d->slots[i] = i;
  return model_session_new_with(&d->session, request->model, &settings, err);
}

static void decoding_release(struct decoding *d) {
  model_session_free(d->session);
  mem_free(d->slots);
  mem_free(d->ids);
  mem_free(d->targets);
  mem_free(d->logits);
  mem_free(d->reference);
  mem_free(d->normed);
  mem_free(d->nll);
  mem_free(d->kl);
  mem_free(d->agree);
}

static void pass_release(struct pass *pass) {
  decoding_release(&pass->decoding);
  for (int i = 0; i < pass->sides; i++) {
    model_workspace_free(pass->side[i].workspace);
    states_cache_close(&pass->side[i].cache);
    pass->ops->free(pass->side[i].computed);
    pass->ops->free(pass->side[i].logits);
  }
  pass->ops->free(pass->far_nll);
  pass->ops->free(pass->far_kl);
  pass->ops->free(pass->far_agree);
  mem_free(pass->ids);
  mem_free(pass->nll);
  mem_free(pass->kl);
  mem_free(pass->agree);
  mem_free(pass->window_nll);
  mem_free(pass->window_kl);
  mem_free(pass->window_agrees);
}

static enum status alloc_far(struct pass *pass, size_t tokens, struct error *err) {
  enum status status = pass->ops->alloc(tokens * sizeof(float), (void **)&pass->far_nll, err);
  if (!status) status = pass->ops->alloc(tokens * sizeof(float), (void **)&pass->far_kl, err);
  return status ? status : pass->ops->alloc(tokens, (void **)&pass->far_agree, err);
}

static enum status pass_init(struct pass *pass, const struct eval_request *request,
                             struct error *err) {
  const struct windows *windows = request->windows;
  *pass = (struct pass){.batch = choose_batch(request),
                        .length = windows->length,
                        .ops = request->decode ? backend_cpu() : model_backend(request->model),
                        .sides = request->reference ? 2 : 1};
  pass->chunk_rows = choose_chunk_rows(model_config(request->model)->vocab_size);
  size_t tokens = (size_t)(pass->batch * pass->length), count = (size_t)windows->count;
  pass->ids = mem_alloc(tokens, sizeof *pass->ids, err);
  pass->nll = mem_alloc(tokens, sizeof *pass->nll, err);
  pass->kl = mem_alloc(tokens, sizeof *pass->kl, err);
  pass->agree = mem_alloc(tokens, 1, err);
  pass->window_nll = mem_alloc(count, sizeof(double), err);
  pass->window_kl = mem_alloc(count, sizeof(double), err);
  pass->window_agrees = mem_alloc(count, sizeof(double), err);
  if (!pass->ids || !pass->nll || !pass->kl || !pass->agree || !pass->window_nll ||
      !pass->window_kl || !pass->window_agrees)
    return STATUS_FAILED;
  pass->side[0].precision = request->precision;
  enum status status =
      request->decode ? decoding_init(&pass->decoding, request, pass->batch, err) : STATUS_OK;
  if (!status) status = alloc_far(pass, tokens, err);
  if (!status) status = side_init(&pass->side[0], request->model, NULL, windows, pass, err);
  if (!status && request->reference)
    status =
        side_init(&pass->side[1], request->reference, request->reference_cache, windows, pass, err);
  return status;
}

/* Scores the predictions of one window. `window` is its place in the batch. */
static void score_window(struct pass *pass, int64_t window) {
  int64_t predictions = pass->length - 1;
  const struct side *model = &pass->side[0], *reference = &pass->side[1];
  const int32_t *ids = pass->ids + window * pass->length;
  for (int64_t at = 0, rows; at < predictions; at += rows) {
    rows = predictions - at < pass->chunk_rows ? predictions - at : pass->chunk_rows;
    int64_t out = window * predictions + at;
    for (int i = 0; i < pass->sides; i++) {
      const struct side *side = &pass->side[i];
      int64_t hidden_size = model_config(side->model)->hidden_size;
      model_logits(side->model, side->normed + (window * pass->length + at) * hidden_size, rows,
                   side->precision, side->logits);
    }
    int64_t vocab_size = model_config(model->model)->vocab_size;
    pass->ops->cross_entropy(model->logits, ids + at + 1, rows, vocab_size, 1, pass->far_nll + out,
                             NULL);
    if (pass->sides == 2)
      pass->ops->softmax_kl(reference->logits, model->logits, rows, vocab_size, pass->far_kl + out,
                            pass->far_agree + out);
  }
}

/* The reference's logits of `steps` positions from `at` on in `count` windows: its head is stored
 * for large products, and a few rows at a time would cost as much as many. */
static void reference_logits(const struct pass *pass, int64_t at, int64_t steps, int64_t count) {
  const struct decoding *d = &pass->decoding;
  const struct side *side = &pass->side[1];
  const int64_t width = model_config(side->model)->hidden_size;
  for (int64_t i = 0; i < steps; i++)
    for (int64_t w = 0; w < count; w++)
      memcpy(d->normed + (i * count + w) * width,
             side->normed + (w * pass->length + at + i) * width, (size_t)width * sizeof *d->normed);
  model_logits(side->model, d->normed, steps * count, side->precision, d->reference);
}

/* Scores all predictions of windows [first, first + count), position by position. */
static enum status decode_windows(struct pass *pass, const struct windows *windows, int64_t first,
                                  int64_t count, struct error *err) {
  const struct decoding *d = &pass->decoding;
  const int64_t predictions = pass->length - 1;
  const int64_t vocab_size = model_config(pass->side[0].model)->vocab_size;
  enum status status = STATUS_OK;
  for (int64_t w = 0; w < count; w++) model_slot_truncate(d->session, w, 0);
  for (int64_t at = 0; at < predictions && !status; at++) {
    for (int64_t w = 0; w < count; w++) {
      d->ids[w] = windows_at(windows, first + w)[at];
      d->targets[w] = windows_at(windows, first + w)[at + 1];
    }
    status = interrupt_check(err);
    if (!status) status = model_session_step(d->session, d->slots, d->ids, count, d->logits, err);
    if (status) break;
    if (pass->sides == 2) {
      const int64_t left = predictions - at, ahead = at % d->ahead;
      if (!ahead) reference_logits(pass, at, left < d->ahead ? left : d->ahead, count);
      softmax_kl(d->reference + ahead * count * vocab_size, d->logits, count, vocab_size, d->kl,
                 d->agree);
    }
    cross_entropy(d->logits, d->targets, count, vocab_size, 1, d->nll, NULL);
    for (int64_t w = 0; w < count; w++) {
      pass->nll[w * predictions + at] = d->nll[w];
      pass->kl[w * predictions + at] = d->kl[w];
      pass->agree[w * predictions + at] = d->agree[w];
    }
  }
  return status;
}

/* What `count` predictions scored, from the backend's memory. */
static enum status bring_scores(struct pass *pass, size_t count, struct error *err) {
  const struct backend *ops = pass->ops;
  enum status status = ops->download(pass->nll, pass->far_nll, count * sizeof(float), err);
  if (status || pass->sides < 2) return status;
  status = ops->download(pass->kl, pass->far_kl, count * sizeof(float), err);
  return status ? status : ops->download(pass->agree, pass->far_agree, count, err);
}

static double mean_of(const float *values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += values[i];
  return sum / (double)count;
}

/* Windows [first, first + count): forward, scores, and their means. */
static enum status measure_batch(struct pass *pass, const struct windows *windows, int64_t first,
                                 int64_t count, struct error *err) {
  int64_t predictions = pass->length - 1;
  const bool decodes = pass->decoding.session != NULL;
  enum status status = STATUS_OK;
  for (int i = decodes; i < pass->sides && !status; i++)
    status = side_states(&pass->side[i], windows, first, count, pass->ids, err);
  for (int64_t w = 0; w < count && !status && !decodes; w++) score_window(pass, w);
  if (!status)
    status = decodes ? decode_windows(pass, windows, first, count, err)
                     : bring_scores(pass, (size_t)(count * predictions), err);
  for (int64_t w = 0; w < count && !status; w++) {
    pass->window_nll[first + w] = mean_of(pass->nll + w * predictions, predictions);
    if (pass->sides < 2) continue;
    pass->window_kl[first + w] = mean_of(pass->kl + w * predictions, predictions);
    int64_t agreeing = 0;
    for (int64_t i = 0; i < predictions; i++) agreeing += pass->agree[w * predictions + i];
    pass->window_agrees[first + w] = (double)agreeing / (double)predictions;
  }
  return status;
}

static enum status measure_all(struct pass *pass, const struct windows *windows,
                               struct error *err) {
  struct progress progress;
  double nll_sum = 0;
  enum status status = STATUS_OK;
  progress_begin(&progress, "evaluating", "tokens", (double)(windows->count * windows->length));
  for (int64_t first = 0; first < windows->count && !status; first += pass->batch) {
    int64_t count = windows->count - first < pass->batch ? windows->count - first : pass->batch;
    status = interrupt_check(err);
    if (!status) status = measure_batch(pass, windows, first, count, err);
    for (int64_t w = 0; w < count; w++) nll_sum += pass->window_nll[first + w];
    progress_note(&progress, "perplexity %.4g", exp(nll_sum / (double)(first + count)));
    progress_add(&progress, (double)(count * windows->length));
  }
  progress_end(&progress);
  return status;
}

static enum status check_request(const struct eval_request *request, struct error *err) {
  INVARIANT(request->windows->length >= 2 && request->windows->count >= 1);
  int64_t vocab_size = model_config(request->model)->vocab_size;
  if (request->reference && model_config(request->reference)->vocab_size != vocab_size)
    return error_set(err, STATUS_REFUSED,
                     "%s has a vocabulary of %lld tokens and the reference %s one of %lld: the "
                     "divergence needs the same tokens on both sides",
                     model_path(request->model), (long long)vocab_size,
                     model_path(request->reference),
                     (long long)model_config(request->reference)->vocab_size);
  return STATUS_OK;
}

enum status eval_run(struct eval_result *result, const struct eval_request *request,
                     struct error *err) {
  enum status status = check_request(request, err);
  if (status) return status;
  struct pass pass;
  const struct windows *windows = request->windows;
  double start_s = clock_seconds();
  status = pass_init(&pass, request, err);
  if (!status) status = measure_all(&pass, windows, err);
  if (!status) {
    struct eval_figure nll = eval_figure_of(pass.window_nll, windows->count);
    *result = (struct eval_result){.nll = nll,
                                   .perplexity = exp(nll.mean),
                                   .perplexity_error = exp(nll.mean) * nll.standard_error,
                                   .windows = windows->count,
                                   .predictions = windows->count * (windows->length - 1),
                                   .batch = pass.batch,
                                   .seconds = clock_seconds() - start_s};
    if (request->reference) {
      result->kl = eval_figure_of(pass.window_kl, windows->count);
      result->agreement = eval_figure_of(pass.window_agrees, windows->count);
    }
    if (!isfinite(nll.mean) || !isfinite(result->kl.mean))
      status = error_set(err, STATUS_FAILED,
                         "the likelihood of the text under %s is not a number: its weights are "
                         "damaged or overflow in fp32",
                         model_path(request->model));
  }
  pass_release(&pass);
  return status;
}
