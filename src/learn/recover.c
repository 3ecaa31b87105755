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
#include "base/parallel.h"
#include "kernel/ops.h"
#include "learn/adamw.h"
#include "learn/schedule.h"
#include "learn/state_file.h"

struct tuned_linear {
  const struct mask_matrix *mask;
  float *weight; /* (rows, cols), the model's */
  float *gradient, *first, *second;
};

struct recovery {
  struct model *model;
  const struct recover_settings *settings;
  const struct windows *windows;
  struct tuned_linear *linears; /* (model_site_count), mask NULL: not tuned */
  struct model_workspace *workspace;
  int32_t *ids;
  float *nll;   /* (batch * (length - 1)) */
  float *keeps; /* (threads, most columns): a row of a mask for each thread */
  int64_t most_cols, steps, step;
  double rate, kl;
  double dense_loss, masked_loss; /* held-out */
  double spent, began, saved;     /* seconds tuning before this process; clocks */
  char *identity;                 /* what a state must agree with, as JSON text */
  int64_t *train, *heldout, train_count, heldout_count;
};

/* --- making --- */

static enum status tune_linear(struct recovery *r, int index, const struct mask_matrix *mask,
                               struct error *err) {
  struct tuned_linear *t = &r->linears[index];
  const size_t count = (size_t)(mask->rows * mask->cols);
  float *weight = mem_alloc(count, sizeof *weight, err);
  if (!weight) return STATUS_FAILED;
  model_site_expand(r->model, index, weight);
  mask_apply(mask, weight, weight);
  model_site_replace(r->model, index, weight); /* it owns the weight from now on */
  *t = (struct tuned_linear){.mask = mask, .weight = weight};
  t->gradient = mem_alloc(count, sizeof(float), err);
  t->first = mem_alloc(count, sizeof(float), err);
  t->second = mem_alloc(count, sizeof(float), err);
  if (mask->cols > r->most_cols) r->most_cols = mask->cols;
  return t->gradient && t->first && t->second ? STATUS_OK : STATUS_FAILED;
}

static enum status mask_linears(struct recovery *r, const struct mask_set *masks,
                                struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < model_site_count(r->model) && status == STATUS_OK; i++) {
    const struct linear_site *site = model_site(r->model, i);
    const struct mask_matrix *mask = mask_set_find(masks, site->name);
    if (mask) status = tune_linear(r, i, mask, err);
  }
  if (status != STATUS_OK) return status;
  r->keeps = mem_alloc((size_t)(r->most_cols * parallel_threads()), sizeof *r->keeps, err);
  return r->keeps ? STATUS_OK : STATUS_FAILED;
}

/* The masks against the model, before anything is changed. */
static enum status check_masks(const struct model *m, const struct mask_set *masks,
                               struct error *err) {
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
  r->rate = r->settings->rate > 0 ? r->settings->rate : recover_default_rate(r->model);
  r->steps = r->settings->tokens / (int64_t)tokens;
  if (r->steps < 1 && !(r->settings->seconds > 0))
    return error_set(err, STATUS_USAGE, "--tokens %lld is less than one step of %zu tokens",
                     (long long)r->settings->tokens, tokens);
  enum status status = split_windows(r, err);
  if (status != STATUS_OK) return status;
  r->linears = mem_alloc((size_t)model_site_count(r->model), sizeof *r->linears, err);
  r->ids = mem_alloc(tokens, sizeof *r->ids, err);
  r->nll = mem_alloc(tokens, sizeof *r->nll, err);
  if (!r->linears || !r->ids || !r->nll) return STATUS_FAILED;
  status = model_workspace_new(&r->workspace, r->model, shape, true, false, err);
  if (status != STATUS_OK) return status;
  model_workspace_set_precision(r->workspace, r->settings->precision);
  if (!(r->settings->distill > 0)) return STATUS_OK;
  INVARIANT(r->settings->teacher && r->settings->teacher != r->model);
  status = model_workspace_distill(r->workspace, err);
  return status ? status : model_workspace_teacher(r->workspace, r->settings->teacher, err);
}

static void release(struct recovery *r) {
  for (int i = 0; r->linears && i < model_site_count(r->model); i++) {
    mem_free(r->linears[i].gradient);
    mem_free(r->linears[i].first);
    mem_free(r->linears[i].second);
  }
  model_workspace_free(r->workspace);
  mem_free(r->linears);
  mem_free(r->ids);
  mem_free(r->nll);
  mem_free(r->keeps);
  mem_free(r->train);
  mem_free(r->heldout);
  free(r->identity);
}

/* --- the state --- */

/* Sums of the masked weights and of what is kept of them: another mask, or another model, shows. */
static uint32_t sum_linears(struct recovery *r) {
  uLong crc = 0;
  for (int i = 0; i < model_site_count(r->model); i++) {
    const struct tuned_linear *t = &r->linears[i];
    if (!t->mask) continue;
    const size_t row_bytes = (size_t)t->mask->cols * sizeof(float);
    crc = crc32_z(crc, (const void *)t->weight, (size_t)t->mask->rows * row_bytes);
    for (int64_t row = 0; row < t->mask->rows; row++) {
      mask_row(t->mask, row, r->keeps);
      crc = crc32_z(crc, (const void *)r->keeps, row_bytes);
    }
  }
  return (uint32_t)crc;
}

static enum status identify(struct recovery *r, struct error *err) {
  const struct recover_settings *s = r->settings;
  const struct corpus *text = r->windows->corpus;
  const uint32_t ids = (uint32_t)crc32_z(0, (const void *)text->ids.items,
                                         (size_t)text->ids.count * sizeof *text->ids.items);
  json_t *o = json_pack("{s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:s, s:I, s:I, s:I, s:s}", "tokens",
                        (json_int_t)s->tokens, "seconds", s->seconds, "batch", (json_int_t)s->batch,
                        "window", (json_int_t)r->windows->length, "seed", (json_int_t)s->seed,
                        "rate", r->rate, "distill", s->distill, "precision",
                        precision_name[s->precision], "weights", (json_int_t)sum_linears(r), "text",
                        (json_int_t)ids, "windows", (json_int_t)r->windows->count, "teacher",
                        s->distill > 0 ? model_path(s->teacher) : "");
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
  enum status status = STATUS_OK;
  memcpy(numbers, list, sizeof list);
  *s = (struct state){.format = "tessera-recovery-1",
                      .settings = r->identity,
                      .numbers = numbers,
                      .number_count = STATE_NUMBERS};
  for (int i = 0; i < model_site_count(r->model) && !status; i++) {
    const struct tuned_linear *t = &r->linears[i];
    if (!t->mask) continue;
    const char *name = t->mask->name;
    const int64_t rows = t->mask->rows, cols = t->mask->cols;
    status = state_add(&s->tensors, err, "weight.", name, DTYPE_F32, rows, cols, 0, t->weight);
    if (!status)
      status = state_add(&s->tensors, err, "moment1.", name, DTYPE_F32, rows, cols, 0, t->first);
    if (!status)
      status = state_add(&s->tensors, err, "moment2.", name, DTYPE_F32, rows, cols, 0, t->second);
  }
  return status;
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
  if (!status)
    log_info("going on after step %lld of %lld", (long long)r->step, (long long)r->steps);
  return status;
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
  struct tuned_linear *t = &r->linears[site->index];
  if (t->mask)
    linear_backward_weight(dy, x, tokens, t->mask->rows, t->mask->cols, r->settings->precision,
                           t->gradient, false);
}

struct row_job {
  struct recovery *r;
  struct tuned_linear *linear;
  struct mask_adamw adamw;
};

static void mask_row_gradient(void *ctx, int64_t row, int worker) {
  const struct row_job *job = ctx;
  const struct mask_matrix *m = job->linear->mask;
  float *keep = job->r->keeps + worker * job->r->most_cols,
        *g = job->linear->gradient + row * m->cols;
  mask_row(m, row, keep);
  for (int64_t c = 0; c < m->cols; c++) g[c] = keep[c] != 0 ? g[c] : 0;
}

/* A dropped weight is 0 with zero moments, and stays so: 0 - rate * 0 / (0 + epsilon). */
static void update_row(void *ctx, int64_t row, int worker) {
  const struct row_job *job = ctx;
  struct tuned_linear *t = job->linear;
  const int64_t cols = t->mask->cols, at = row * cols;
  (void)worker;
  adamw_step(&job->adamw, cols, t->gradient + at, t->weight + at, t->first + at, t->second + at);
}

static double masked_norm(struct recovery *r) {
  double squares = 0;
  for (int i = 0; i < model_site_count(r->model); i++) {
    struct tuned_linear *t = &r->linears[i];
    struct row_job job = {.r = r, .linear = t};
    if (!t->mask) continue;
    parallel_for(t->mask->rows, mask_row_gradient, &job);
    squares += sum_squares(t->gradient, t->mask->rows * t->mask->cols);
  }
  return sqrt(squares);
}

static void update(struct recovery *r, double norm) {
  const struct learn_settings shape = {.steps = r->steps, .warmup_steps = r->steps / 10};
  struct row_job job = {
      .r = r,
      .adamw = {.rate = (float)(r->rate * schedule_rate(&shape, r->step)),
                .beta1 = 0.9f,
                .beta2 = 0.95f,
                .epsilon = 1e-8f,
                .gradient_scale = norm > 1 ? (float)(1 / norm) : 1, /* clipped at norm 1 */
                .step = r->step + 1}};
  for (int i = 0; i < model_site_count(r->model); i++) {
    job.linear = &r->linears[i];
    if (job.linear->mask) parallel_for(job.linear->mask->rows, update_row, &job);
  }
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
                    r->settings->distill, &tap, r->workspace, &sums, err);
  if (status != STATUS_OK) return status;
  *loss = sums.nll / predictions;
  r->kl = sums.kl / predictions;
  *norm = masked_norm(r);
  if (!isfinite(*loss + r->kl + *norm))
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

/* Counts the kept weights, and fails if a dropped one is anything but zero. */
static enum status check_zeros(const struct recovery *r, int64_t *kept, struct error *err) {
  *kept = 0;
  for (int i = 0; i < model_site_count(r->model); i++) {
    const struct tuned_linear *t = &r->linears[i];
    if (!t->mask) continue;
    *kept += mask_kept(t->mask);
    for (int64_t row = 0; row < t->mask->rows; row++) {
      mask_row(t->mask, row, r->keeps);
      for (int64_t c = 0; c < t->mask->cols; c++)
        if (r->keeps[c] == 0 && t->weight[row * t->mask->cols + c] != 0)
          return error_set(err, STATUS_FAILED, "a weight that the mask drops was changed in %s",
                           t->mask->name);
    }
  }
  return STATUS_OK;
}

double recover_default_rate(const struct model *model) {
  const double rate = 4e-4 * cbrt(135e6 / (double)model_parameters(model));
  return rate > 3e-3 ? 3e-3 : rate;
}

/* From the model as it came to where tuning begins or goes on. A state has the losses and the
 * number of steps. */
static enum status enter(struct recovery *r, const struct mask_set *masks, struct error *err) {
  const struct recover_settings *s = r->settings;
  const double began = clock_seconds();
  const bool known = s->state && s->resume && state_exists(s->state);
  enum status status = known ? STATUS_OK : heldout_loss(r, &r->dense_loss, err);
  if (status == STATUS_OK) status = mask_linears(r, masks, err);
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
  enum status status = check_masks(model, masks, err);
  if (status == STATUS_OK) status = prepare(&r, err);
  INVARIANT(status != STATUS_OK || r.linears != NULL);
  if (status == STATUS_OK) status = enter(&r, masks, err);
  r.began = r.saved = clock_seconds();
  if (status == STATUS_OK) status = tune(&r, err);
  report->seconds = r.spent + clock_seconds() - r.began;
  if (status == STATUS_OK) status = check_zeros(&r, &report->weights, err);
  if (status == STATUS_OK) status = heldout_loss(&r, &report->loss, err);
  report->dense_loss = r.dense_loss;
  report->masked_loss = r.masked_loss;
  report->steps = r.step;
  report->rate = r.rate;
  report->kl = r.kl;
  report->tokens_per_second =
      (double)(r.step * settings->batch * windows->length) / report->seconds;
  release(&r);
  return status;
}
