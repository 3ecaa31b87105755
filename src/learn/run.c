/* A learning run: see run.h. */
#include "learn/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "learn/background.h"
#include "learn/inputs.h"
#include "learn/journal.h"
#include "learn/run_report.h"
#include "learn/rundir.h"

struct run {
  struct run_inputs in;
  struct learn_report *report;
  struct mask_set prior;
  struct learner learner;
  struct run_state state;
  struct run_directory directory;
  struct journal journal;
  char *identity; /* as JSON text, for checkpoints */
  double saved_s; /* when the last checkpoint was taken */
  struct background background;
  double density_before;
  int64_t moved_tiles;
};

/* --- entering --- */

static json_t *make_config(const struct learn_request *q, json_t *identity) {
  json_t *priors = json_array();
  for (int i = 0; i < q->prior_count; i++) json_array_append_new(priors, json_string(q->priors[i]));
  return json_pack("{s:s, s:s, s:s, s:o, s:o}", "format", "tessera-run-1", "model", q->model,
                   "data", q->data, "prior", priors, "identity", identity);
}

static enum status enter_directory(struct run *run, enum run_entry *entry, struct error *err) {
  const struct learn_request *q = run->in.request;
  json_t *identity = NULL;
  enum status status = run_inputs_identity(&run->in, &identity, err);
  run->identity = json_dumps(identity, JSON_COMPACT | JSON_SORT_KEYS);
  INVARIANT(run->identity);
  json_t *config = make_config(q, identity);
  if (status == STATUS_OK)
    status = run_directory_enter(&run->directory, q->out, q->resume, q->force, config, entry, err);
  json_decref(config);
  return status;
}

/* --- the prior --- */

/* The canonical prior of RUN, made when it is not there yet. A killed process leaves none, and the
 * next makes the same. */
static enum status take_prior(struct run *run, struct error *err) {
  const struct learn_request *q = run->in.request;
  const char *kept = run->directory.prior;
  if (file_exists(kept)) return mask_load(&run->prior, kept, err);
  double start = clock_seconds();
  const struct prior_calibration calibration = {&run->in, run_inputs_calibrate};
  enum status status = prior_prepare(&run->prior, &run->learner, run->in.model, &run->in.prune,
                                     q->priors, q->prior_count, &calibration, err);
  if (status == STATUS_OK) status = mask_save(&run->prior, kept, err);
  calibration_free(&run->in.calibration);
  run->state.prior_seconds = clock_seconds() - start;
  return status;
}

/* --- held-out loss and the best mask --- */

static enum status heldout_loss(struct run *run, bool dense, double *loss, struct error *err) {
  return learner_loss(&run->learner, &run->in.windows, run->in.heldout, run->in.heldout_count,
                      dense, loss, err);
}

static void keep_best(struct run *run, double loss) {
  struct learner *l = &run->learner;
  run->state.best_loss = loss;
  run->state.best_step = l->step;
  for (int i = 0; i < l->site_count; i++) {
    const struct mask_matrix *from = &l->sites[i].mask;
    struct mask_matrix *to = &run->state.best[i];
    mask_copy_groups(to, from);
    memcpy(to->tiles, from->tiles, (size_t)mask_tile_count(from));
  }
}

static double sites_density(const struct run *run) {
  const struct learner *l = &run->learner;
  double kept = (double)l->left_dense_weights;
  for (int i = 0; i < l->site_count; i++) kept += (double)mask_kept(&run->state.best[i]);
  return kept / (double)(l->learned_weights + l->left_dense_weights);
}

/* Of decoding over the dense model, by the costs: NAN where none were measured. */
static double sites_speedup(const struct run *run) {
  const struct learner *l = &run->learner;
  const struct cost_table *costs = l->settings.costs;
  if (!costs) return NAN;
  double dense = (double)cost_dense_ps(costs, l->model), saved = 0;
  for (int i = 0; i < l->site_count; i++) {
    const struct mask_matrix *m = &run->state.best[i];
    saved += cost_saved_per_weight(cost_of_shape(costs, m->rows, m->cols)) *
             (double)(m->rows * m->cols - mask_kept(m));
  }
  return dense / (dense - saved);
}

static enum status evaluate(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  double loss;
  enum status status = learner_harden(l, true, &run->density_before, &run->moved_tiles, err);
  if (status == STATUS_OK) status = heldout_loss(run, false, &loss, err);
  if (status != STATUS_OK) return status;
  bool best = !(loss >= run->state.best_loss);
  if (best) keep_best(run, loss);
  run->state.last_loss = loss;
  log_info("step %lld of %lld: held-out loss %.4f (prior %.4f, dense %.4f)", (long long)l->step,
           (long long)l->settings.steps, loss, run->state.prior_loss, run->state.dense_loss);
  const struct journal_heldout line = {.step = l->step,
                                       .loss = loss,
                                       .prior_loss = run->state.prior_loss,
                                       .dense_loss = run->state.dense_loss,
                                       .density_before = run->density_before,
                                       .moved_tiles = run->moved_tiles,
                                       .best = best};
  return journal_heldout(&run->journal, &line, err);
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

static enum status open_journal(struct run *run, struct error *err) {
  struct journal *j = &run->journal;
  const int64_t step = run->learner.step;
  enum status status = journal_open(j, &run->directory, &run->learner.settings,
                                    run->in.request->tfevents, step, err);
  return status == STATUS_OK ? journal_start(j, run->in.request, step, err) : status;
}

/* A run without a checkpoint: the prior's own loss is the first to beat. What a process that was
 * killed before its first checkpoint had recorded is cut off. */
static enum status begin(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  enum status status = run_record_cut(&run->directory, 0, err);
  if (status == STATUS_OK) status = open_journal(run, err);
  if (status == STATUS_OK) status = prior_harden(&run->prior, l, err);
  if (status == STATUS_OK) status = heldout_loss(run, true, &run->state.dense_loss, err);
  if (status == STATUS_OK) status = interrupt_check(err); /* nothing is lost: --resume starts */
  if (status == STATUS_OK) status = heldout_loss(run, false, &run->state.prior_loss, err);
  if (status != STATUS_OK) return status;
  if (!isfinite(run->state.prior_loss) || !isfinite(run->state.dense_loss))
    return error_set(err, STATUS_REFUSED,
                     "the loss of %s on held-out text is %g, with the prior's mask %g: its weights "
                     "are damaged",
                     run->in.request->model, run->state.dense_loss, run->state.prior_loss);
  keep_best(run, run->state.prior_loss);
  log_info("held-out loss: dense %.4f, prior %.4f", run->state.dense_loss, run->state.prior_loss);
  status =
      journal_prior(&run->journal, run->state.prior_loss, run->state.dense_loss,
                    run->state.prior_seconds, run->in.heldout_count * run->in.windows.length, err);
  if (status != STATUS_OK) return status;
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
  for (int i = 0; i < l->site_count; i++) { /* tile mode's codes are the prior's for good */
    struct mask_matrix *m = &l->sites[i].mask;
    mask_copy_groups(m, mask_set_find(&run->prior, m->name));
  }
  learner_masks_changed(l);
  if ((status = learner_harden_groups(l, err)) != STATUS_OK) return status;
  log_info("going on after step %lld of %lld", (long long)l->step, (long long)l->settings.steps);
  status = run_record_cut(&run->directory, run->state.record_bytes, err);
  return status == STATUS_OK ? open_journal(run, err) : status;
}

/* --- the loop --- */

/* The state as it is, beside the steps that follow where that can be; `now`: before this returns.
 */
static enum status save(struct run *run, bool now, struct error *err) {
  struct background *b = &run->background;
  struct learner *l = &run->learner;
  const char *path = run->directory.path;
  enum status status = now ? background_finish(b, l, err) : STATUS_OK;
  if (status == STATUS_OK && b->phase != BACKGROUND_IDLE)
    return STATUS_OK; /* the last is not out */
  if (status == STATUS_OK)
    status = run_record_length(&run->directory, &run->state.record_bytes, err);
  if (status == STATUS_OK && !now && background_serves(b, l))
    status = background_begin(b, l, &run->state, run->identity, path, err);
  if (status == STATUS_OK && b->phase == BACKGROUND_IDLE)
    status = checkpoint_save(l, &run->state, run->identity, path, err);
  run->saved_s = clock_seconds();
  return status;
}

/* A loss far above that of blind guessing does not come back. */
static enum status check_explosion(struct run *run, double loss, struct error *err) {
  const struct learner *l = &run->learner;
  if (l->step == 1) run->state.first_loss = loss;
  double blind = log((double)model_config(run->in.model)->vocab_size);
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
  if (!learn_uses_tiles(&l->settings)) return 1 - learn_most_sparsity(&l->settings);
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
  enum status status =
      learner_step(l, &run->in.windows, run->in.train, run->in.train_count, &r, err);
  if (status == STATUS_OK) status = check_explosion(run, r.loss, err);
  if (status != STATUS_OK) return status;
  int64_t flips;
  double density = watch_tiles(run, dense, scratch, &flips);
  double seconds = clock_seconds() - start;
  run->state.seconds += seconds;
  const struct journal_step line = {.result = &r,
                                    .step = l->step,
                                    .density_hard = density,
                                    .flips_tile = flips,
                                    .tile = l->relax_tile,
                                    .two_four = l->relax_24,
                                    .seconds = seconds,
                                    .elapsed_seconds = run->state.seconds};
  if ((status = journal_step(&run->journal, &line, err)) != STATUS_OK) return status;
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
    status = background_step(&run->background, err);
    bool interrupted = interrupt_requested(), now = interrupted || l->step == s->steps;
    if (status == STATUS_OK &&
        (now || clock_seconds() - run->saved_s >= run->in.request->checkpoint_seconds))
      status = save(run, now, err);
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
  char pattern[16];
  const struct learn_settings *s = &run->report->settings;
  if (learn_uses_tiles(s))
    prune_hybrid_name(s->keep, s->of, pattern);
  else
    snprintf(pattern, sizeof pattern, "%d:%d", s->keep, s->of);
  enum status status = mask_set_meta(set, "method", "learn", err);
  if (status == STATUS_OK) status = mask_set_meta(set, "pattern", pattern, err);
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
  r->speedup = sites_speedup(run);
  r->density_before = run->density_before;
  r->moved_tiles = run->moved_tiles;
  r->seconds = run->state.seconds;
  r->prior_seconds = run->state.prior_seconds;
  if (r->seconds > 0) r->tokens_per_second = (double)(r->step * s->batch * s->window) / r->seconds;
  r->peak_bytes = mem_peak_bytes();
}

/* The held-out loss of the last mask as the logits harden, before the projection. */
static enum status loss_before_projection(struct run *run, struct error *err) {
  struct learner *l = &run->learner;
  double density;
  int64_t none;
  enum status status = learner_harden(l, true, &run->density_before, &run->moved_tiles, err);
  run->report->last_loss = run->report->last_loss_before = run->state.last_loss;
  if (status != STATUS_OK || !run->moved_tiles) return status;
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
  if ((status = journal_final(&run->journal, r, err)) != STATUS_OK) return status;
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
  status = learner_init(&run->learner, run->in.model, &run->report->settings, run->in.skip, err);
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
  background_free(&run->background); /* before the memory that it copies from */
  learner_free(&run->learner);
  mask_set_free(&run->prior);
  free(run->identity);
  journal_close(&run->journal);
  run_directory_leave(&run->directory);
  run_inputs_release(&run->in);
}

enum status learn_run(const struct learn_request *request, struct learn_report *report,
                      struct error *err) {
  struct run run = {.report = report};
  *report = (struct learn_report){.dry_run = request->dry_run};
  enum status status = run_inputs_open_model(&run.in, request, err);
  if (status != STATUS_OK) goto out;
  report->settings = run.in.settings;
  report->costs = run.in.costs;
  if (run.in.settings.costs) report->settings.costs = &report->costs;
  report->budget = run.in.budget;
  report->plan = learn_plan_make(run.in.model, &run.in.settings, run.in.skip,
                                 request->prior_count ? 0 : run.in.calibration_tokens);
  run_say_plan(report);
  run_say_budget(request, report);
  if (request->dry_run) goto out;
  status = run_inputs_open_data(&run.in, err);
  if (status == STATUS_OK) status = work(&run, err);
out:
  release(&run);
  return status;
}
