/* What a run learns from: see inputs.h. */
#include "learn/inputs.h"

#include <math.h>
#include <string.h>
#include <zlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/file.h"
#include "learn/rundir.h"
#include "text/tokenizer.h"

/* Calibration of a prior that is made here: by default as many tokens as are learned from, within
 * what pruning takes by default. */
static int64_t calibration_tokens(const struct learn_request *q, int64_t tokens) {
  enum { LEAST = 8192, MOST = CALIBRATION_WINDOWS * CALIBRATION_WINDOW_MAX };
  if (q->calibration_tokens) return q->calibration_tokens;
  return tokens < LEAST ? LEAST : tokens > MOST ? MOST : tokens;
}

/* What `--budget` buys: the tokens that the run was started with, or as many as this machine does
 * in that time. */
static enum status spend_budget(struct run_inputs *in, struct error *err) {
  const struct learn_request *q = in->request;
  in->settings.tokens = q->resume ? run_directory_tokens(q->out) : 0;
  if (in->settings.tokens) return STATUS_OK;
  const struct budget_prior prior = {q, q->prior_count ? NULL : calibration_tokens};
  enum status status = learn_budget_measure(&in->budget, q->budget_seconds, in->model,
                                            &in->settings, in->skip, &prior, err);
  in->settings.tokens = in->budget.tokens;
  return status;
}

/* What matrices cost: as the run that is continued found it, or as this machine does now. The
 * sparsity that stands in the settings is that of tiles spread evenly over the time. */
static enum status take_costs(struct run_inputs *in, struct error *err) {
  const struct learn_request *q = in->request;
  struct learn_settings *s = &in->settings;
  if (!isnan(s->sparsity))
    return error_set(err, STATUS_USAGE, "--sparsity and --speedup both say how sparse: give one");
  json_t *was = q->resume ? run_directory_costs(q->out) : NULL;
  if (!was) log_info("measuring what matrices cost here, dense and 2:4");
  enum status status = was ? cost_from_json(&in->costs, was, in->model, q->out, err)
                           : cost_measure(&in->costs, in->model, err);
  json_decref(was);
  if (status != STATUS_OK) return status;
  double dense = (double)cost_dense_ps(&in->costs, in->model);
  double sparse = (double)cost_sparse_ps(&in->costs, in->model, in->skip);
  double share = sparse < dense ? (dense - dense / s->speedup) / (dense - sparse) : 0;
  s->costs = &in->costs;
  s->sparsity = 0.5 * fmin(fmax(share, 0), 1);
  return STATUS_OK;
}

enum status run_inputs_open_model(struct run_inputs *in, const struct learn_request *q,
                                  struct error *err) {
  *in = (struct run_inputs){.request = q};
  enum status status = model_open(&in->model, q->model, err);
  if (status != STATUS_OK) return status;
  in->prune = prune_defaults();
  in->prune.backend = q->settings.backend;
  in->prune.skip_count = q->skip_count;
  memcpy(in->prune.skip, q->skip, sizeof q->skip);
  in->skip = mem_alloc((size_t)model_site_count(in->model), sizeof *in->skip, err);
  if (!in->skip) return STATUS_FAILED;
  for (int i = 0; i < model_site_count(in->model); i++)
    in->skip[i] = prune_skips(&in->prune, model_site(in->model, i)->name);
  in->settings = q->settings;
  if (!isnan(q->settings.speedup) && (status = take_costs(in, err)) != STATUS_OK) return status;
  if (q->budget_seconds > 0 && (status = spend_budget(in, err)) != STATUS_OK) return status;
  status = learn_settings_resolve(&in->settings, model_config(in->model)->context_length, err);
  in->calibration_tokens = calibration_tokens(q, in->settings.tokens);
  return status;
}

static enum status split_windows(struct run_inputs *in, struct error *err) {
  const struct learn_settings *s = &in->settings;
  int64_t count = in->windows.count, set_aside = s->heldout_windows;
  if (count < 2)
    return error_set(
        err, STATUS_REFUSED,
        "%s gives %lld window of %lld tokens; learning needs two at least, one of them "
        "held out: give more text or a smaller --window",
        in->request->data, (long long)count, (long long)s->window);
  if (set_aside > count / 4) set_aside = count / 4 > 1 ? count / 4 : 1;
  if (set_aside < s->heldout_windows)
    log_info("held-out loss: %lld windows instead of %lld, a quarter of the corpus",
             (long long)set_aside, (long long)s->heldout_windows);
  in->train = mem_alloc((size_t)count, sizeof *in->train, err);
  in->heldout = mem_alloc((size_t)set_aside, sizeof *in->heldout, err);
  if (!in->train || !in->heldout) return STATUS_FAILED;
  for (int64_t i = 0; i < count; i++) {
    int64_t next = in->heldout_count;
    if (next < set_aside && i == (2 * next + 1) * count / (2 * set_aside))
      in->heldout[in->heldout_count++] = i;
    else
      in->train[in->train_count++] = i;
  }
  return STATUS_OK;
}

enum status run_inputs_open_data(struct run_inputs *in, struct error *err) {
  enum { SURPLUS_TOKENS = 1 << 19 }; /* read beyond the budget, for variety */
  const struct learn_settings *s = &in->settings;
  struct tokenizer *tokenizer = NULL;
  int64_t limit = s->tokens + in->calibration_tokens + s->heldout_windows * s->window;
  enum status status = tokenizer_open(&tokenizer, in->request->model, err);
  if (status == STATUS_OK)
    status = corpus_load(&in->corpus, in->request->data, tokenizer, limit + SURPLUS_TOKENS, err);
  if (status == STATUS_OK) status = windows_cut(&in->windows, &in->corpus, s->window, false, err);
  if (status == STATUS_OK) status = split_windows(in, err);
  tokenizer_close(tokenizer);
  return status;
}

/* A CRC of some rows of every linear: tells models apart without reading all of them. */
static enum status weights_crc(const struct model *model, uint32_t *crc, struct error *err) {
  *crc = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    int64_t rows = linear_rows(w), cols = linear_cols(w);
    float *row = mem_alloc((size_t)cols, sizeof *row, err);
    if (!row) return STATUS_FAILED;
    for (int part = 0; part < 3; part++) {
      linear_row(w, part * (rows - 1) / 2, row);
      *crc = (uint32_t)crc32_z(*crc, (const void *)row, (size_t)cols * sizeof *row);
    }
    mem_free(row);
  }
  return STATUS_OK;
}

static enum status file_crc(const char *path, uint32_t *crc, struct error *err) {
  struct file_map map;
  enum status status = file_map_open(&map, path, err);
  if (status != STATUS_OK) return status;
  *crc = (uint32_t)crc32_z(0, map.data, map.size_bytes);
  file_map_close(&map);
  return STATUS_OK;
}

enum status run_inputs_identity(const struct run_inputs *in, json_t **out, struct error *err) {
  const struct learn_request *q = in->request;
  uint32_t weights;
  enum status status = weights_crc(in->model, &weights, err);
  json_t *priors = json_array(), *skips = json_array(), *o = json_object();
  for (int i = 0; i < q->prior_count && status == STATUS_OK; i++) {
    uint32_t crc = 0;
    status = file_crc(q->priors[i], &crc, err);
    json_array_append_new(priors, json_integer(crc));
  }
  for (int i = 0; i < q->skip_count; i++) json_array_append_new(skips, json_string(q->skip[i]));
  json_object_set_new(o, "settings", learn_settings_to_json(&in->settings));
  json_object_set_new(o, "prior_crc32", priors);
  json_object_set_new(o, "skip", skips);
  json_object_set_new(o, "calibration_tokens", json_integer(in->calibration_tokens));
  json_object_set_new(o, "weights_crc32", json_integer(weights));
  size_t bytes = in->corpus.ids.count * sizeof *in->corpus.ids.items;
  json_object_set_new(
      o, "tokens_crc32",
      json_integer((json_int_t)crc32_z(0, (const void *)in->corpus.ids.items, bytes)));
  *out = o;
  return status;
}

/* Calibration windows are drawn from those for learning, so that the held-out ones stay unseen. */
enum status run_inputs_calibrate(void *ctx, const struct calibration **out, struct error *err) {
  struct run_inputs *in = ctx;
  struct calibration *c = &in->calibration;
  c->length = in->windows.length;
  c->windows = in->calibration_tokens / c->length;
  c->seed = in->settings.seed;
  if (c->windows > in->train_count) c->windows = in->train_count;
  if (c->windows < 1) c->windows = 1;
  log_info("calibration: %lld windows of %lld tokens", (long long)c->windows, (long long)c->length);
  c->ids = mem_alloc((size_t)(c->windows * c->length), sizeof *c->ids, err);
  if (!c->ids) return STATUS_FAILED;
  for (int64_t i = 0; i < c->windows; i++) {
    int64_t window = in->train[windows_draw(in->train_count, c->seed, (uint64_t)i)];
    memcpy(c->ids + i * c->length, windows_at(&in->windows, window),
           (size_t)c->length * sizeof *c->ids);
  }
  *out = c;
  return STATUS_OK;
}

void run_inputs_release(struct run_inputs *in) {
  calibration_free(&in->calibration);
  windows_free(&in->windows);
  corpus_free(&in->corpus);
  mem_free(in->train);
  mem_free(in->heldout);
  mem_free(in->skip);
  model_close(in->model);
  *in = (struct run_inputs){0};
}
