/* A learning run: see run.h. */
#include "learn/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"
#include "learn/checkpoint.h"
#include "learn/rundir.h"
#include "text/tokenizer.h"

struct run {
  const struct learn_request *request;
  struct learn_report *report;
  struct model *model;
  struct corpus corpus;
  struct windows windows;
  int64_t *train, *heldout; /* window indices */
  int64_t train_count, heldout_count;
  bool *skip; /* (model_site_count) */
  struct prune_settings prune;
  struct calibration calibration;
  int64_t calibration_tokens;
  struct mask_set prior;
  struct learner learner;
  struct run_state state;
  struct run_directory directory;
  char *identity; /* the run's identity as JSON text, for checkpoints */
  double started_s, saved_s;
  double density_before;
  int64_t moved_tiles;
};

/* --- opening --- */

static enum status open_model(struct run *run, struct error *err) {
  const struct learn_request *q = run->request;
  enum status status = model_open(&run->model, q->model, err);
  if (status != STATUS_OK) return status;
  run->prune = prune_defaults();
  run->prune.skip_count = q->skip_count;
  memcpy(run->prune.skip, q->skip, sizeof q->skip);
  run->skip = mem_alloc((size_t)model_site_count(run->model), sizeof *run->skip, err);
  if (!run->skip) return STATUS_FAILED;
  for (int i = 0; i < model_site_count(run->model); i++)
    run->skip[i] = prune_skips(&run->prune, model_site(run->model, i)->name);
  run->report->settings = q->settings;
  return learn_settings_resolve(&run->report->settings, model_config(run->model)->context_length,
                                err);
}

/* Calibration of a prior that is made here: by default as many tokens as are learned from, within
 * what pruning takes by default. */
static void plan_calibration(struct run *run) {
  enum { LEAST = 8192, MOST = CALIBRATION_WINDOWS * CALIBRATION_WINDOW_MAX };
  int64_t tokens = run->request->calibration_tokens;
  if (!tokens) tokens = run->report->settings.tokens;
  if (tokens < LEAST && !run->request->calibration_tokens) tokens = LEAST;
  if (tokens > MOST && !run->request->calibration_tokens) tokens = MOST;
  run->calibration_tokens = tokens;
}

/* Windows set aside for the held-out loss are spread evenly over the corpus; the rest is for
 * learning and calibration. */
static enum status split_windows(struct run *run, struct error *err) {
  const struct learn_settings *s = &run->report->settings;
  int64_t count = run->windows.count, set_aside = s->heldout_windows;
  if (count < 2)
    return error_set(
        err, STATUS_REFUSED,
        "%s gives %lld window of %lld tokens; learning needs two at least, one of them "
        "held out: give more text or a smaller --window",
        run->request->data, (long long)count, (long long)s->window);
  if (set_aside > count / 4) set_aside = count / 4 > 1 ? count / 4 : 1;
  if (set_aside < s->heldout_windows)
    log_info("held-out loss: %lld windows instead of %lld, a quarter of the corpus",
             (long long)set_aside, (long long)s->heldout_windows);
  run->train = mem_alloc((size_t)count, sizeof *run->train, err);
  run->heldout = mem_alloc((size_t)set_aside, sizeof *run->heldout, err);
  if (!run->train || !run->heldout) return STATUS_FAILED;
  for (int64_t i = 0; i < count; i++) {
    int64_t next = run->heldout_count;
    if (next < set_aside && i == (2 * next + 1) * count / (2 * set_aside))
      run->heldout[run->heldout_count++] = i;
    else
      run->train[run->train_count++] = i;
  }
  return STATUS_OK;
}

static enum status open_data(struct run *run, struct error *err) {
  enum { SURPLUS_TOKENS = 1 << 19 }; /* read beyond the budget, for variety */
  const struct learn_settings *s = &run->report->settings;
  struct tokenizer *tokenizer = NULL;
  int64_t limit = s->tokens + run->calibration_tokens + s->heldout_windows * s->window;
  enum status status = tokenizer_open(&tokenizer, run->request->model, err);
  if (status == STATUS_OK)
    status = corpus_load(&run->corpus, run->request->data, tokenizer, limit + SURPLUS_TOKENS, err);
  if (status == STATUS_OK) status = windows_cut(&run->windows, &run->corpus, s->window, false, err);
  if (status == STATUS_OK) status = split_windows(run, err);
  tokenizer_close(tokenizer);
  return status;
}

/* --- identity: what must agree for a run to be continued --- */

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

static enum status make_identity(struct run *run, json_t **out, struct error *err) {
  const struct learn_request *q = run->request;
  uint32_t weights;
  enum status status = weights_crc(run->model, &weights, err);
  json_t *priors = json_array(), *skips = json_array(), *o = json_object();
  for (int i = 0; i < q->prior_count && status == STATUS_OK; i++) {
    uint32_t crc = 0;
    status = file_crc(q->priors[i], &crc, err);
    json_array_append_new(priors, json_integer(crc));
  }
  for (int i = 0; i < q->skip_count; i++) json_array_append_new(skips, json_string(q->skip[i]));
  json_object_set_new(o, "settings", learn_settings_to_json(&run->report->settings));
  json_object_set_new(o, "prior_crc32", priors);
  json_object_set_new(o, "skip", skips);
  json_object_set_new(o, "calibration_tokens", json_integer(run->calibration_tokens));
  json_object_set_new(o, "weights_crc32", json_integer(weights));
  size_t bytes = run->corpus.ids.count * sizeof *run->corpus.ids.items;
  json_object_set_new(
      o, "tokens_crc32",
      json_integer((json_int_t)crc32_z(0, (const void *)run->corpus.ids.items, bytes)));
  *out = o;
  run->identity = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
  INVARIANT(run->identity);
  return status;
}

static json_t *make_config(const struct run *run, json_t *identity) {
  const struct learn_request *q = run->request;
  json_t *priors = json_array();
  for (int i = 0; i < q->prior_count; i++) json_array_append_new(priors, json_string(q->priors[i]));
  return json_pack("{s:s, s:s, s:s, s:o, s:o}", "format", "tessera-run-1", "model", q->model,
                   "data", q->data, "prior", priors, "identity", identity);
}

static enum status enter_directory(struct run *run, enum run_entry *entry, struct error *err) {
  json_t *identity = NULL;
  enum status status = make_identity(run, &identity, err);
  json_t *config = make_config(run, identity);
  if (status == STATUS_OK)
    status = run_directory_enter(&run->directory, run->request->out, run->request->resume,
                                 run->request->force, config, entry, err);
  json_decref(config);
  return status;
}

/* --- the prior --- */

/* Calibration windows are drawn from those for learning, so that the held-out ones stay unseen. */
static enum status calibrate(void *ctx, const struct calibration **out, struct error *err) {
  struct run *run = ctx;
  struct calibration *c = &run->calibration;
  c->length = run->windows.length;
  c->windows = run->calibration_tokens / c->length;
  c->seed = run->report->settings.seed;
  if (c->windows > run->train_count) c->windows = run->train_count;
  if (c->windows < 1) c->windows = 1;
  log_info("calibration: %lld windows of %lld tokens", (long long)c->windows, (long long)c->length);
  c->ids = mem_alloc((size_t)(c->windows * c->length), sizeof *c->ids, err);
  if (!c->ids) return STATUS_FAILED;
  for (int64_t i = 0; i < c->windows; i++) {
    int64_t window = run->train[windows_draw(run->train_count, c->seed, (uint64_t)i)];
    memcpy(c->ids + i * c->length, windows_at(&run->windows, window),
           (size_t)c->length * sizeof *c->ids);
  }
  *out = c;
  return STATUS_OK;
}

/* The canonical prior of RUN, made when it is not there yet. A killed process leaves none, and the
 * next makes the same. */
static enum status take_prior(struct run *run, struct error *err) {
  const struct learn_request *q = run->request;
  const char *kept = run->directory.prior;
  if (file_exists(kept)) return mask_load(&run->prior, kept, err);
  double start = clock_seconds();
  const struct prior_calibration calibration = {run, calibrate};
  enum status status = prior_prepare(&run->prior, &run->learner, run->model, &run->prune, q->priors,
                                     q->prior_count, &calibration, err);
  if (status == STATUS_OK) status = mask_save(&run->prior, kept, err);
  calibration_free(&run->calibration);
  run->state.prior_seconds = clock_seconds() - start;
  return status;
}

/* --- record --- */

static enum status record(struct run *run, json_t *line, struct error *err) {
  return run_record(&run->directory, line, err);
}

static json_t *stamp(const char *type) {
  char now[21];
  clock_iso(now);
  return json_pack("{s:s, s:s}", "type", type, "time", now);
}

static enum status record_start(struct run *run, const char *type, struct error *err) {
  json_t *line = stamp(type);
  json_object_set_new(line, "settings", learn_settings_to_json(&run->report->settings));
  json_object_set_new(line, "model", json_string(run->request->model));
  json_object_set_new(line, "data", json_string(run->request->data));
  json_object_set_new(line, "threads", json_integer(parallel_threads()));
  json_object_set_new(line, "isa", json_string(kernel_isa()));
  json_object_set_new(line, "step", json_integer(run->learner.step));
  return record(run, line, err);
}

static enum status record_step(struct run *run, const struct step_result *r, double density_hard,
                               int64_t flips_tile, double seconds, struct error *err) {
  const struct learner *l = &run->learner;
  const struct learn_settings *s = &l->settings;
  json_t *line = json_pack(
      "{s:s, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "type", "step",
      "step", (json_int_t)l->step, "tokens", (json_int_t)(l->step * s->batch * s->window), "loss",
      r->loss, "density_soft", r->density_soft, "density_hard", density_hard, "flips_tile",
      (json_int_t)flips_tile, "flips_24", (json_int_t)r->flips_24, "lr",
      r->learning_rate * (learn_uses_tiles(s) ? s->lr_tile : s->lr_24), "lr_24",
      r->learning_rate * s->lr_24, "grad_norm", r->gradient_norm, "regularizer", r->regularizer,
      "seconds", seconds, "elapsed", run->state.seconds);
  const struct relaxation *relax = learn_uses_tiles(s) ? &l->relax_tile : &l->relax_24;
  json_object_set_new(line, "kappa", json_real(relax->kappa));
  json_object_set_new(line, "tau", json_real(relax->tau));
  json_object_set_new(line, "kappa_24", json_real(l->relax_24.kappa));
  json_object_set_new(line, "tau_24", json_real(l->relax_24.tau));
  return record(run, line, err);
}

/* --- held-out loss and the best mask --- */

static enum status heldout_loss(struct run *run, bool dense, double *loss, struct error *err) {
  return learner_loss(&run->learner, &run->windows, run->heldout, run->heldout_count, dense, loss,
                      err);
}

static void keep_best(struct run *run, double loss) {
  struct learner *l = &run->learner;
  run->state.best_loss = loss;
  run->state.best_step = l->step;
  for (int i = 0; i < l->site_count; i++) {
    const struct mask_matrix *from = &l->sites[i].mask;
    struct mask_matrix *to = &run->state.best[i];
    memcpy(to->codes, from->codes, (size_t)(from->rows * mask_code_stride(from)));
    memcpy(to->tiles, from->tiles, (size_t)mask_tile_count(from));
  }
}

static double sites_density(const struct run *run) {
  const struct learner *l = &run->learner;
  double kept = (double)l->left_dense_weights;
  for (int i = 0; i < l->site_count; i++) kept += (double)mask_kept(&run->state.best[i]);
  return kept / (double)(l->learned_weights + l->left_dense_weights);
}

static enum status evaluate(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  double loss;
  enum status status = learner_harden(l, true, &run->density_before, &run->moved_tiles, err);
  if (status == STATUS_OK) status = heldout_loss(run, false, &loss, err);
  if (status != STATUS_OK) return status;
  bool best = !(loss >= run->state.best_loss);
  if (best) keep_best(run, loss);
  run->report->last_loss = loss;
  log_info("step %lld of %lld: held-out loss %.4f (prior %.4f, dense %.4f)", (long long)l->step,
           (long long)l->settings.steps, loss, run->state.prior_loss, run->state.dense_loss);
  json_t *line = json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:b}", "type", "heldout",
                           "step", (json_int_t)l->step, "tokens",
                           (json_int_t)(l->step * l->settings.batch * l->settings.window), "loss",
                           loss, "prior_loss", run->state.prior_loss, "dense_loss",
                           run->state.dense_loss, "density_before", run->density_before,
                           "moved_tiles", (json_int_t)run->moved_tiles, "best", best);
  return record(run, line, err);
}

/* Whether the held-out loss is due after `step` steps: `evaluations` times, the last at the end. */
static bool evaluation_due(const struct learn_settings *s, int64_t step) {
  if (step == s->steps) return true;
  for (int64_t i = 1; i < s->evaluations; i++)
    if (step == s->steps * i / s->evaluations) return true;
  return false;
}

/* --- starting --- */

static enum status make_best(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  run->state.best = mem_alloc((size_t)l->site_count, sizeof *run->state.best, err);
  enum status status = run->state.best ? STATUS_OK : STATUS_FAILED;
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++)
    status = mask_matrix_copy(&run->state.best[i], &l->sites[i].mask, err);
  return status;
}

/* A run without a checkpoint: the prior's own loss is the first to beat. What a process that was
 * killed before its first checkpoint had recorded is cut off. */
static enum status begin(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  enum status status = run_record_cut(&run->directory, 0, err);
  if (status == STATUS_OK) status = record_start(run, "settings", err);
  if (status == STATUS_OK) status = prior_harden(&run->prior, l, err);
  if (status == STATUS_OK) status = heldout_loss(run, true, &run->state.dense_loss, err);
  if (status == STATUS_OK) status = heldout_loss(run, false, &run->state.prior_loss, err);
  if (status != STATUS_OK) return status;
  if (!isfinite(run->state.prior_loss) || !isfinite(run->state.dense_loss))
    return error_set(err, STATUS_REFUSED,
                     "the loss of %s on held-out text is %g, with the prior's mask %g: its weights "
                     "are damaged",
                     run->request->model, run->state.dense_loss, run->state.prior_loss);
  keep_best(run, run->state.prior_loss);
  log_info("held-out loss: dense %.4f, prior %.4f", run->state.dense_loss, run->state.prior_loss);
  json_t *line =
      json_pack("{s:s, s:f, s:f, s:f, s:I}", "type", "prior", "loss", run->state.prior_loss,
                "dense_loss", run->state.dense_loss, "seconds", run->state.prior_seconds,
                "heldout_tokens", (json_int_t)(run->heldout_count * run->windows.length));
  if ((status = record(run, line, err)) != STATUS_OK) return status;
  return prior_apply(&run->prior, l, err);
}

static enum status start_or_continue(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  bool found;
  enum status status = make_best(run, err);
  if (status == STATUS_OK)
    status = checkpoint_load(l, &run->state, run->identity, run->directory.path, &found, err);
  if (status != STATUS_OK) return status;
  if (!found) return begin(run, err);
  for (int i = 0; i < l->site_count; i++) { /* tile mode's codes are the prior's */
    struct mask_matrix *m = &l->sites[i].mask;
    memcpy(m->codes, mask_set_find(&run->prior, m->name)->codes,
           (size_t)(m->rows * mask_code_stride(m)));
  }
  log_info("going on after step %lld of %lld", (long long)l->step, (long long)l->settings.steps);
  status = run_record_cut(&run->directory, run->state.record_bytes, err);
  return status == STATUS_OK ? record_start(run, "resumed", err) : status;
}

/* --- the loop --- */

static enum status save(struct run *run, struct error *err) {
  enum status status = run_record_length(&run->directory, &run->state.record_bytes, err);
  if (status == STATUS_OK)
    status = checkpoint_save(&run->learner, &run->state, run->identity, run->directory.path, err);
  run->saved_s = clock_seconds();
  return status;
}

/* A loss far above that of blind guessing does not come back. */
static enum status check_explosion(struct run *run, double loss, struct error *err) {
  const struct learner *l = &run->learner;
  if (l->step == 1) run->state.first_loss = loss;
  double blind = log((double)model_config(run->model)->vocab_size);
  if (loss < 2 * fmax(run->state.first_loss, blind)) return STATUS_OK;
  return error_set(err, STATUS_FAILED,
                   "the loss exploded in step %lld: %.3g nats per token, from %.3g in the first. "
                   "Lower --lr (now %g for tiles, %g for 2:4 logits) and start a new run",
                   (long long)l->step, loss, run->state.first_loss, l->settings.lr_tile,
                   l->settings.lr_24);
}

/* The tiles as they would harden now, and how many differ from those in `dense`. */
static double watch_tiles(struct run *run, bool *dense, bool *scratch, int64_t *flips) {
  struct learner *l = &run->learner;
  *flips = 0;
  if (!learn_uses_tiles(&l->settings)) return 0.5;
  tiles_harden(&l->tiles, l->relax_tile, (enum learn_density)l->settings.density, scratch);
  for (int64_t i = 0; i < l->tiles.count; i++) *flips += scratch[i] != dense[i];
  memcpy(dense, scratch, (size_t)l->tiles.count * sizeof *dense);
  return tiles_hard_density(&l->tiles, dense);
}

static enum status one_step(struct run *run, bool *dense, bool *scratch, struct progress *progress,
                            struct error *err) {
  struct learner *l = &run->learner;
  struct step_result r;
  double start = clock_seconds();
  enum status status = learner_step(l, &run->windows, run->train, run->train_count, &r, err);
  if (status == STATUS_OK) status = check_explosion(run, r.loss, err);
  if (status != STATUS_OK) return status;
  int64_t flips;
  double density = watch_tiles(run, dense, scratch, &flips);
  double seconds = clock_seconds() - start;
  run->state.seconds += seconds;
  if ((status = record_step(run, &r, density, flips, seconds, err)) != STATUS_OK) return status;
  if (evaluation_due(&l->settings, l->step)) status = evaluate(run, err);
  progress_note(progress, "loss %.3f", r.loss);
  progress_set(progress, (double)(l->step * l->settings.batch * l->settings.window));
  return status;
}

static enum status loop(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  const struct learn_settings *s = &l->settings;
  enum status status = STATUS_FAILED;
  struct progress progress;
  int64_t flips;
  bool *dense = mem_alloc((size_t)l->tiles.count + 1, sizeof *dense, err);
  bool *scratch = mem_alloc((size_t)l->tiles.count + 1, sizeof *scratch, err);
  progress_begin(&progress, "learning", "tokens", (double)(s->steps * s->batch * s->window));
  progress.resumed = (double)(l->step * s->batch * s->window);
  if (!dense || !scratch) goto out;
  int64_t last = l->step > 0 ? l->step - 1 : 0;
  l->relax_tile = schedule_relaxation(&s->tile, last, s->steps);
  watch_tiles(run, dense, scratch, &flips);
  run->saved_s = clock_seconds();
  status = STATUS_OK;
  while (l->step < s->steps && status == STATUS_OK) {
    status = one_step(run, dense, scratch, &progress, err);
    if (status != STATUS_OK) break;
    bool interrupted = interrupt_requested();
    if (interrupted || clock_seconds() - run->saved_s >= run->request->checkpoint_seconds ||
        l->step == s->steps)
      status = save(run, err);
    if (status == STATUS_OK && interrupted && l->step < s->steps)
      status = error_set(err, STATUS_INTERRUPTED,
                         "interrupted after step %lld of %lld, which is saved: --resume goes on",
                         (long long)l->step, (long long)s->steps);
  }
out:
  progress_end(&progress);
  mem_free(dense);
  mem_free(scratch);
  return status;
}

/* --- the end --- */

static enum status set_meta(struct run *run, struct mask_set *set, struct error *err) {
  json_t *settings = learn_settings_to_json(&run->report->settings);
  char *text = json_dumps(settings, JSON_COMPACT | JSON_SORT_KEYS);
  json_decref(settings);
  INVARIANT(text);
  enum status status = mask_set_meta(set, "method", "learn", err);
  if (status == STATUS_OK)
    status = mask_set_meta(set, "pattern",
                           learn_uses_tiles(&run->report->settings) ? "hybrid" : "2:4", err);
  if (status == STATUS_OK) status = mask_set_meta(set, "settings", text, err);
  free(text);
  return status;
}

static enum status write_mask(struct run *run, struct error *err) {
  struct mask_set set = {0};
  enum status status = set_meta(run, &set, err);
  for (int i = 0; i < run->learner.site_count && status == STATUS_OK; i++) {
    struct mask_matrix copy;
    status = mask_matrix_copy(&copy, &run->state.best[i], err);
    if (status == STATUS_OK && (status = mask_set_add(&set, &copy, err)) != STATUS_OK)
      mask_matrix_free(&copy);
  }
  if (status == STATUS_OK) status = mask_save(&set, run->directory.mask, err);
  mask_set_free(&set);
  return status;
}

static void fill_report(struct run *run) {
  struct learn_report *r = run->report;
  const struct learn_settings *s = &run->learner.settings;
  r->step = run->learner.step;
  r->best_step = run->state.best_step;
  r->dense_loss = run->state.dense_loss;
  r->prior_loss = run->state.prior_loss;
  r->best_loss = run->state.best_loss;
  r->density = sites_density(run);
  r->density_before = run->density_before;
  r->moved_tiles = run->moved_tiles;
  r->seconds = run->state.seconds;
  r->prior_seconds = run->state.prior_seconds;
  if (r->seconds > 0) r->tokens_per_second = (double)(r->step * s->batch * s->window) / r->seconds;
  r->peak_bytes = mem_peak_bytes();
}

static enum status record_final(struct run *run, struct error *err) {
  const struct learn_report *r = run->report;
  json_t *line = stamp("final");
  json_t *figures = json_pack(
      "{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:b, s:f, s:f, s:f, s:I}", "steps",
      (json_int_t)r->step, "best_step", (json_int_t)r->best_step, "dense_loss", r->dense_loss,
      "prior_loss", r->prior_loss, "best_loss", r->best_loss, "last_loss", r->last_loss,
      "last_loss_before", r->last_loss_before, "density", r->density, "density_before",
      r->density_before, "moved_tiles", (json_int_t)r->moved_tiles, "worse_than_prior",
      r->last_loss > r->prior_loss, "seconds", r->seconds, "prior_seconds", r->prior_seconds,
      "tokens_per_second", r->tokens_per_second, "peak_bytes", (json_int_t)r->peak_bytes);
  INVARIANT(figures);
  json_object_update(line, figures);
  json_decref(figures);
  return record(run, line, err);
}

/* The held-out loss of the last mask once more, as the logits harden before the projection. */
static enum status loss_before_projection(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  enum status status = learner_harden(l, true, &run->density_before, &run->moved_tiles, err);
  if (status == STATUS_OK) status = heldout_loss(run, false, &run->report->last_loss, err);
  run->report->last_loss_before = run->report->last_loss;
  if (status != STATUS_OK || !run->moved_tiles) return status;
  double density;
  int64_t none;
  if ((status = learner_harden(l, false, &density, &none, err)) != STATUS_OK) return status;
  return heldout_loss(run, false, &run->report->last_loss_before, err);
}

static enum status finish(struct run *run, struct error *err) {
  enum status status = loss_before_projection(run, err);
  if (status != STATUS_OK) return status;
  fill_report(run);
  const struct learn_report *r = run->report;
  if (r->last_loss > r->prior_loss)
    log_warn(
        "the learned mask is worse than its prior on held-out text: %.4f against %.4f nats per "
        "token. %s; try more tokens or a lower --lr",
        r->last_loss, r->prior_loss,
        r->best_step ? "An earlier mask, the best, is kept" : "The prior's mask is kept");
  if ((status = record_final(run, err)) != STATUS_OK) return status;
  return write_mask(run, err);
}

static enum status work(struct run *run, struct error *err) {
  enum run_entry entry;
  enum status status = enter_directory(run, &entry, err);
  if (status != STATUS_OK) return status;
  if (entry == RUN_FINISHED) {
    run->report->finished_before = true;
    return STATUS_OK;
  }
  status = learner_init(&run->learner, run->model, &run->report->settings, run->skip, err);
  if (status == STATUS_OK) status = take_prior(run, err);
  if (status == STATUS_OK) status = start_or_continue(run, err);
  if (status == STATUS_OK) status = loop(run, err);
  if (status == STATUS_OK) status = finish(run, err);
  return status;
}

static void release(struct run *run) {
  if (run->state.best)
    for (int i = 0; i < run->learner.site_count; i++) mask_matrix_free(&run->state.best[i]);
  mem_free(run->state.best);
  learner_free(&run->learner);
  mask_set_free(&run->prior);
  calibration_free(&run->calibration);
  windows_free(&run->windows);
  corpus_free(&run->corpus);
  mem_free(run->train);
  mem_free(run->heldout);
  mem_free(run->skip);
  free(run->identity);
  run_directory_leave(&run->directory);
  model_close(run->model);
}

enum status learn_run(const struct learn_request *request, struct learn_report *report,
                      struct error *err) {
  struct run run = {.request = request, .report = report};
  *report = (struct learn_report){.dry_run = request->dry_run};
  enum status status = open_model(&run, err);
  if (status != STATUS_OK) goto out;
  plan_calibration(&run);
  report->plan = learn_plan_make(run.model, &report->settings, run.skip,
                                 request->prior_count ? 0 : run.calibration_tokens);
  if (request->dry_run) goto out;
  status = open_data(&run, err);
  if (status == STATUS_OK) status = work(&run, err);
out:
  release(&run);
  return status;
}
