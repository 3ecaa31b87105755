/* Fine-tuning under a mask: see recover.h. */
#include "learn/recover.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "learn/schedule.h"
#include "learn/state_file.h"
#include "learn/tuning.h"

/* Adapters do best at this over their rank in the rates of all weights: docs/LEARNING.md. */
#define LORA_RATE 10

struct recovery {
  struct model *model;
  const struct recover_settings *settings;
  const struct windows *windows;
  struct tuning tuning;
  struct model_workspace *workspace;
  int32_t *ids;
  float *nll; /* (batch * (length - 1)) */
  int64_t steps, step;
  double rate, kl, distance;
  double dense_loss, masked_loss; /* held-out */
  double spent, began, saved;     /* seconds tuning before this process; clocks */
  char *identity;                 /* what a state must agree with, as JSON text */
  int64_t *train, *heldout, train_count, heldout_count;
};

/* --- making --- */

/* Held-out windows are spread over the text. */
static enum status split_windows(struct recovery *r, struct error *err) {
  const int64_t count = r->windows->count, length = r->windows->length;
  int64_t aside = 2048 / length < 2 ? 2 : 2048 / length;
  if (aside > count / 4) aside = count / 4;
  if (aside < 1)
    return error_set(err, STATUS_REFUSED,
                     "the text gives %lld windows of %lld tokens; recovery needs four at least",
                     (long long)count, (long long)length);
  r->train = mem_alloc((size_t)count, sizeof *r->train, err);
  r->heldout = mem_alloc((size_t)aside, sizeof *r->heldout, err);
  if (!r->train || !r->heldout) return STATUS_FAILED;
  for (int64_t i = 0; i < count; i++)
    if (r->heldout_count < aside && i == (2 * r->heldout_count + 1) * count / (2 * aside))
      r->heldout[r->heldout_count++] = i;
    else
      r->train[r->train_count++] = i;
  return STATUS_OK;
}

static enum status prepare(struct recovery *r, struct error *err) {
  const struct model_shape shape = {r->settings->batch, r->windows->length};
  const size_t tokens = (size_t)(shape.sequences * shape.length);
  r->rate = r->settings->rate > 0 ? r->settings->rate
                                  : recover_default_rate(r->model, r->settings->lora_rank);
  r->steps = r->settings->tokens / (int64_t)tokens;
  if (r->steps < 1 && !(r->settings->seconds > 0))
    return error_set(err, STATUS_USAGE, "--tokens %lld is less than one step of %zu tokens",
                     (long long)r->settings->tokens, tokens);
  enum status status = split_windows(r, err);
  if (status != STATUS_OK) return status;
  r->ids = mem_alloc(tokens, sizeof *r->ids, err);
  r->nll = mem_alloc(tokens, sizeof *r->nll, err);
  if (!r->ids || !r->nll) return STATUS_FAILED;
  status = model_workspace_new(&r->workspace, r->model, shape, true, false, err);
  if (status != STATUS_OK) return status;
  model_workspace_set_precision(r->workspace, r->settings->precision);
  if (!model_has_teacher(&r->settings->objective)) return STATUS_OK;
  INVARIANT(r->settings->teacher && r->settings->teacher != r->model);
  status = model_workspace_distill(r->workspace, r->settings->objective.match > 0, err);
  return status ? status : model_workspace_teacher(r->workspace, r->settings->teacher, err);
}

static void release(struct recovery *r) {
  tuning_free(&r->tuning);
  model_workspace_free(r->workspace);
  mem_free(r->ids);
  mem_free(r->nll);
  mem_free(r->train);
  mem_free(r->heldout);
  free(r->identity);
}

/* --- the state --- */

static enum status identify(struct recovery *r, struct error *err) {
  const struct recover_settings *s = r->settings;
  const struct corpus *text = r->windows->corpus;
  const uint32_t ids = (uint32_t)crc32_z(0, (const void *)text->ids.items,
                                         (size_t)text->ids.count * sizeof *text->ids.items);
  const struct distill_rule *rule = &s->objective.distill;
  json_t *o = json_pack("{s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:s, s:I, s:I, s:I, s:s, s:I}",
                        "tokens", (json_int_t)s->tokens, "seconds", s->seconds, "batch",
                        (json_int_t)s->batch, "window", (json_int_t)r->windows->length, "seed",
                        (json_int_t)s->seed, "rate", r->rate, "distill", rule->weight, "precision",
                        precision_name[s->precision], "weights", (json_int_t)tuning_sum(&r->tuning),
                        "text", (json_int_t)ids, "windows", (json_int_t)r->windows->count,
                        "teacher", model_has_teacher(&s->objective) ? model_path(s->teacher) : "",
                        "lora", (json_int_t)s->lora_rank);
  if (o && rule->kind != DISTILL_FORWARD)
    json_object_set_new(o, "distill_kind", json_string(distill_kind_name[rule->kind]));
  if (o && rule->top) json_object_set_new(o, "distill_k", json_integer(rule->top));
  if (o && s->objective.match > 0) json_object_set_new(o, "match", json_real(s->objective.match));
  r->identity = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(o);
  return r->identity ? STATUS_OK : error_set(err, STATUS_FAILED, "out of memory");
}

enum { STATE_NUMBERS = 6 };

static enum status list_state(struct recovery *r, struct state_number numbers[STATE_NUMBERS],
                              struct state *s, struct error *err) {
  const struct state_number list[STATE_NUMBERS] = {
      {.key = "dense_loss", .real = &r->dense_loss},
      {.key = "masked_loss", .real = &r->masked_loss},
      {.key = "kl", .real = &r->kl},
      {.key = "seconds", .real = &r->spent},
      {.key = "steps", .integer = &r->steps, .least = 1, .most = INT64_MAX},
      {.key = "step", .integer = &r->step, .most = INT64_MAX}};
  memcpy(numbers, list, sizeof list);
  *s = (struct state){.format = "tessera-recovery-1",
                      .settings = r->identity,
                      .numbers = numbers,
                      .number_count = STATE_NUMBERS};
  return tuning_add_state(&r->tuning, &s->tensors, err);
}

static enum status save(struct recovery *r, struct error *err) {
  struct state_number numbers[STATE_NUMBERS];
  struct state s;
  const double before = r->spent;
  if (mkdir(r->settings->state, 0777) && errno != EEXIST)
    return error_set(err, STATUS_FAILED, "cannot make %s: %s", r->settings->state, strerror(errno));
  r->spent += clock_seconds() - r->began;
  enum status status = list_state(r, numbers, &s, err);
  if (!status) status = state_save(&s, r->settings->state, err);
  state_tensors_free(&s.tensors);
  r->spent = before;
  r->saved = clock_seconds();
  return status;
}

/* Goes on from the state that is there. */
static enum status resume(struct recovery *r, struct error *err) {
  struct state_number numbers[STATE_NUMBERS];
  struct state s;
  bool found;
  enum status status = list_state(r, numbers, &s, err);
  if (!status) status = state_load(&s, r->settings->state, &found, err);
  state_tensors_free(&s.tensors);
  if (status) return status;
  tuning_restored(&r->tuning);
  log_info("going on after step %lld of %lld", (long long)r->step, (long long)r->steps);
  return STATUS_OK;
}

/* After a step: what is due, and what an interrupt asks for. */
static enum status keep_state(struct recovery *r, struct error *err) {
  const bool interrupted = interrupt_requested() && r->step < r->steps;
  const struct recover_settings *s = r->settings;
  if (!s->state) return interrupt_check(err);
  if (!interrupted && (clock_seconds() - r->saved < s->checkpoint_seconds || r->step >= r->steps))
    return STATUS_OK;
  enum status status = save(r, err);
  if (status || !interrupted) return status;
  return error_set(err, STATUS_INTERRUPTED,
                   "interrupted after step %lld of %lld, which is saved: --resume goes on",
                   (long long)r->step, (long long)r->steps);
}

/* --- losses --- */

static enum status heldout_loss(struct recovery *r, double *loss, struct error *err) {
  const int64_t length = r->windows->length;
  double sum = 0;
  for (int64_t i = 0; i < r->heldout_count; i++) {
    memcpy(r->ids, windows_at(r->windows, r->heldout[i]), (size_t)length * sizeof *r->ids);
    enum status status = model_nll(r->model, r->ids, (struct model_shape){1, length}, NULL,
                                   r->workspace, r->nll, err);
    if (status != STATUS_OK) return status;
    for (int64_t k = 0; k < length - 1; k++) sum += (double)r->nll[k];
  }
  *loss = sum / (double)(r->heldout_count * (length - 1));
  return STATUS_OK;
}

/* --- a step --- */

static void take_gradient(void *ctx, const struct linear_site *site, const float *x,
                          const float *dy, int64_t tokens) {
  struct recovery *r = ctx;
  tuning_take(&r->tuning, site, x, dy, tokens);
}

static void update(struct recovery *r, double norm) {
  const struct learn_settings shape = {.steps = r->steps, .warmup_steps = r->steps / 10};
  const struct mask_adamw adamw = {
      .rate = (float)(r->rate * schedule_rate(&shape, r->step)),
      .beta1 = 0.9f,
      .beta2 = 0.95f,
      .epsilon = 1e-8f,
      .gradient_scale = norm > 1 ? (float)(1 / norm) : 1, /* clipped at norm 1 */
      .step = r->step + 1};
  tuning_update(&r->tuning, &adamw);
}

/* The gradient of a step, masked, and its norm. */
static enum status gradient(struct recovery *r, double *loss, double *norm, struct error *err) {
  const int64_t length = r->windows->length, batch = r->settings->batch;
  const double predictions = (double)(batch * (length - 1));
  const struct tap tap = {.ctx = r, .gradient = take_gradient};
  for (int64_t i = 0; i < batch; i++) {
    int64_t draw = windows_draw(r->train_count, r->settings->seed, (uint64_t)(r->step * batch + i));
    memcpy(r->ids + i * length, windows_at(r->windows, r->train[draw]),
           (size_t)length * sizeof *r->ids);
  }
  struct model_losses sums;
  enum status status =
      model_distill(r->model, r->ids, (struct model_shape){batch, length}, 1 / predictions,
                    &r->settings->objective, &tap, r->workspace, &sums, err);
  if (status != STATUS_OK) return status;
  *loss = sums.nll / predictions;
  r->kl = sums.kl / predictions;
  r->distance = sums.distance / predictions;
  *norm = tuning_norm(&r->tuning);
  if (!isfinite(*loss + r->kl + r->distance + *norm))
    return error_set(err, STATUS_FAILED,
                     "the loss became %g in step %lld: lower --lr (now %g), or look for damaged "
                     "weights in %s",
                     *loss, (long long)r->step + 1, r->rate, model_path(r->model));
  return STATUS_OK;
}

static enum status one_step(struct recovery *r, double *loss, struct error *err) {
  double norm;
  enum status status = gradient(r, loss, &norm, err);
  if (status != STATUS_OK) return status;
  update(r, norm);
  r->step++;
  return STATUS_OK;
}

/* How many steps fit into what is left of the time that was asked for. Gradients are timed, without
 * updates, which are small beside them; the first, which touches fresh memory, does not count. */
static enum status plan_steps(struct recovery *r, double left, struct error *err) {
  enum { TIMED = 3 };
  double spent = 0, loss, norm;
  for (int i = 0; i <= TIMED; i++) {
    const double start = clock_seconds();
    enum status status = gradient(r, &loss, &norm, err);
    if (status == STATUS_OK) status = interrupt_check(err);
    if (status != STATUS_OK) return status;
    left -= clock_seconds() - start;
    if (i) spent += clock_seconds() - start;
  }
  r->steps = (int64_t)(left * TIMED / spent);
  if (r->steps < 1)
    return error_set(err, STATUS_USAGE,
                     "--budget of %g seconds is too short here: a step takes %.1f, and held-out "
                     "losses are measured before and after",
                     r->settings->seconds, spent / TIMED);
  return STATUS_OK;
}

static enum status tune(struct recovery *r, struct error *err) {
  struct progress progress;
  enum status status = STATUS_OK;
  const double tokens = (double)(r->settings->batch * r->windows->length);
  progress_begin(&progress, "recovering", "tokens", tokens * (double)r->steps);
  while (r->step < r->steps && status == STATUS_OK) {
    double loss;
    status = one_step(r, &loss, err);
    if (status == STATUS_OK) progress_note(&progress, "loss %.3f", loss);
    if (status == STATUS_OK) status = keep_state(r, err);
    progress_set(&progress, tokens * (double)r->step);
  }
  progress_end(&progress);
  return status;
}

double recover_default_rate(const struct model *model, int64_t lora_rank) {
  double rate = 4e-4 * cbrt(135e6 / (double)model_parameters(model));
  if (rate > 3e-3) rate = 3e-3;
  return lora_rank ? rate * LORA_RATE / (double)lora_rank : rate;
}

/* From the model as it came to where tuning begins or goes on. A state has the losses and the
 * number of steps. */
static enum status enter(struct recovery *r, const struct mask_set *masks, struct error *err) {
  const struct recover_settings *s = r->settings;
  const double began = clock_seconds();
  const bool known = s->state && s->resume && state_exists(s->state);
  enum status status = known ? STATUS_OK : heldout_loss(r, &r->dense_loss, err);
  if (status == STATUS_OK)
    status = tuning_init(&r->tuning, r->model, masks, s->lora_rank, s->seed, s->precision, err);
  if (status == STATUS_OK && s->state) status = identify(r, err);
  if (status != STATUS_OK) return status;
  if (known) return resume(r, err);
  status = heldout_loss(r, &r->masked_loss, err);
  if (status != STATUS_OK || !(s->seconds > 0)) return status;
  const double losses = clock_seconds() - began; /* the last loss takes as long as the first two */
  return plan_steps(r, s->seconds - 1.5 * losses, err);
}

enum status recover_run(struct model *model, const struct mask_set *masks,
                        const struct windows *windows, const struct recover_settings *settings,
                        struct recover_report *report, struct error *err) {
  struct recovery r = {.model = model, .settings = settings, .windows = windows};
  *report = (struct recover_report){0};
  enum status status = tuning_check(model, masks, err);
  if (status == STATUS_OK) status = prepare(&r, err);
  if (status == STATUS_OK) status = enter(&r, masks, err);
  r.began = r.saved = clock_seconds();
  if (status == STATUS_OK) status = tune(&r, err);
  report->seconds = r.spent + clock_seconds() - r.began;
  if (status == STATUS_OK) status = tuning_count(&r.tuning, &report->weights, err);
  if (status == STATUS_OK) status = heldout_loss(&r, &report->loss, err);
  report->dense_loss = r.dense_loss;
  report->masked_loss = r.masked_loss;
  report->steps = r.step;
  report->rate = r.rate;
  report->kl = r.kl;
  report->distance = r.distance;
  report->tokens_per_second =
      (double)(r.step * settings->batch * windows->length) / report->seconds;
  release(&r);
  return status;
}
