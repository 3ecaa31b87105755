/* Speed: see speed.h. A run goes on until its time is up and gives tokens over seconds; sessions
 * live for one run, so that only one model's keys and values take memory at a time. */
#include "eval/speed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "eval/speed_read.h"

static const double WARM_UP_SHARE = 0.2; /* of the time of a run */

static bool on_host(const struct model *model) { return model_backend(model)->is_host; }

size_t speed_weight_bytes(const struct model *model) {
  if (!on_host(model)) return model_step_bytes(model);
  struct weight_spans spans;
  if (weight_spans_init(&spans, model, NULL)) return 0;
  size_t bytes = spans.bytes;
  weight_spans_free(&spans);
  return bytes;
}

/* --- one run of this program --- */

static void fill_prompt(int32_t *ids, int64_t count, int64_t vocab_size) {
  for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)(i * 7919 % vocab_size);
}

/* What a run needs; arrays have room for `batch` sequences or one prompt of `batch` tokens. */
struct run {
  const struct model *model;
  const struct speed_case *which;
  int64_t batch;
  double seconds;
  const struct speed_settings *settings;
  struct model_session *session;
  int32_t *ids;             /* (batch or more) */
  int64_t *slots;           /* (batch) */
  float *logits;            /* (batch, vocab_size) or (vocab_size) */
  struct model_draw *draws; /* (batch) */
  int32_t *drawn;           /* (batch) */
};

static void run_release(struct run *r) {
  model_session_free(r->session);
  mem_free(r->ids);
  mem_free(r->slots);
  mem_free(r->logits);
  mem_free(r->draws);
  mem_free(r->drawn);
}

/* Positions of a text, and ids that a run asks for at once. */
static int64_t capacity_of(const struct speed_case *c) {
  if (c->phase == SPEED_TEXT) return c->prompt + c->tokens;
  return c->phase == SPEED_DECODE ? SPEED_CONTEXT_MOST : c->batch;
}

static enum status run_init(struct run *r, struct error *err) {
  const bool decoding = r->which->phase != SPEED_PREFILL;
  int64_t vocab_size = model_config(r->model)->vocab_size;
  int64_t capacity = capacity_of(r->which);
  int64_t count = r->batch > capacity ? r->batch : capacity;
  if (r->which->phase == SPEED_TEXT) count = r->batch * r->which->prompt;
  r->ids = mem_alloc((size_t)count, sizeof *r->ids, err);
  r->slots = mem_alloc((size_t)r->batch, sizeof *r->slots, err);
  r->logits = mem_alloc(decoding ? (size_t)r->batch : 1, (size_t)vocab_size * sizeof(float), err);
  r->draws = mem_alloc((size_t)r->batch, sizeof *r->draws, err);
  r->drawn = mem_alloc((size_t)r->batch, sizeof *r->drawn, err);
  if (!r->ids || !r->slots || !r->logits || !r->draws || !r->drawn) return STATUS_FAILED;
  fill_prompt(r->ids, count, vocab_size);
  for (int64_t i = 0; i < r->batch; i++) r->slots[i] = i;
  struct session_settings session = {
      .slots = decoding ? r->batch : 1, .capacity = capacity, .kv = r->settings->kv};
  enum status status = model_session_new_with(&r->session, r->model, &session, err);
  if (status) return status;
  model_session_set_precision(r->session, r->settings->precision);
  model_session_record(r->session, r->settings->record);
  return STATUS_OK;
}

static void truncate_all(struct run *r) {
  for (int64_t i = 0; i < r->batch; i++) model_slot_truncate(r->session, i, SPEED_CONTEXT);
}

/* Fills all positions of all slots once, so that no run waits for fresh pages. */
static enum status fill_slots(struct run *r, struct error *err) {
  enum status status = model_slot_append(r->session, 0, r->ids, SPEED_CONTEXT_MOST, NULL, err);
  for (int64_t i = 1; i < r->batch && !status; i++)
    status = model_slot_copy(r->session, i, 0, SPEED_CONTEXT_MOST, err);
  if (!status) truncate_all(r);
  return status;
}

/* One token more in every slot; on a card the next ones are drawn there and brought to the host. */
static enum status step(struct run *r, struct error *err) {
  const bool draws = model_session_draws(r->session);
  enum status status =
      model_session_step(r->session, r->slots, r->ids, r->batch, draws ? NULL : r->logits, err);
  if (status || !draws) return status;
  for (int64_t i = 0; i < r->batch; i++)
    r->draws[i] = (struct model_draw){.slot = i, .top_p = 1, .repetition_penalty = 1};
  return model_session_draw(r->session, r->draws, r->batch, r->drawn, err);
}

static enum status decode(struct run *r, double *tokens_per_s, struct error *err) {
  enum status status = fill_slots(r, err);
  double start_s = clock_seconds(), seconds = 0;
  int64_t steps = 0;
  while (!status && (steps == 0 || seconds < r->seconds)) {
    if (model_slot_length(r->session, 0) == SPEED_CONTEXT_MOST) truncate_all(r);
    status = step(r, err);
    if (!status) status = interrupt_check(err);
    steps++;
    seconds = clock_seconds() - start_s;
  }
  *tokens_per_s = (double)(steps * r->batch) / seconds;
  return status;
}

static enum status prefill(struct run *r, double *tokens_per_s, struct error *err) {
  enum status status = STATUS_OK;
  double start_s = clock_seconds(), seconds = 0;
  int64_t prompts = 0;
  while (!status && (prompts == 0 || seconds < r->seconds)) {
    model_session_truncate(r->session, 0);
    status = model_session_append(r->session, r->ids, r->batch, r->logits, err);
    if (!status) status = interrupt_check(err);
    prompts++;
    seconds = clock_seconds() - start_s;
  }
  *tokens_per_s = (double)(prompts * r->batch) / seconds;
  return status;
}

/* Prompts and what follows them, from the first token in to the last one out. */
static enum status texts(struct run *r, double *tokens_per_s, struct error *err) {
  const struct speed_case *c = r->which;
  enum status status = STATUS_OK;
  double start_s = clock_seconds(), seconds = 0;
  int64_t done = 0;
  while (!status && (done == 0 || seconds < r->seconds)) {
    status = model_session_prompts(r->session, r->slots, r->ids, r->batch, c->prompt, NULL, err);
    for (int64_t i = 0; i < c->tokens && !status; i++) {
      status = step(r, err);
      if (!status) status = interrupt_check(err);
    }
    done++;
    seconds = clock_seconds() - start_s;
  }
  *tokens_per_s = (double)(done * r->batch * c->tokens) / seconds;
  return status;
}

typedef enum status phase_run(struct run *, double *tokens_per_s, struct error *);

static enum status run_here(const struct model *model, const struct speed_case *which,
                            double seconds, const struct speed_settings *settings,
                            double *tokens_per_s, struct error *err) {
  struct run r = {.model = model,
                  .which = which,
                  .batch = which->batch,
                  .seconds = seconds,
                  .settings = settings};
  static phase_run *const phases[] = {
      [SPEED_DECODE] = decode, [SPEED_PREFILL] = prefill, [SPEED_TEXT] = texts};
  enum status status = run_init(&r, err);
  if (!status) status = phases[which->phase](&r, tokens_per_s, err);
  run_release(&r);
  return status;
}

static enum status run_entry(const struct speed_entry *entry, const struct speed_case *which,
                             double seconds, const struct speed_settings *settings,
                             double *tokens_per_s, struct error *err) {
  if (!entry->peer) return run_here(entry->model, which, seconds, settings, tokens_per_s, err);
  if (which->phase == SPEED_PREFILL)
    return peer_prefill(entry->peer, which->batch, seconds, tokens_per_s, err);
  return peer_decode(entry->peer, which->batch, SPEED_CONTEXT, SPEED_CONTEXT_MOST, seconds,
                     tokens_per_s, err);
}

/* --- rounds --- */

struct bench {
  const struct speed_entry *entries;
  const struct speed_settings *settings;
  struct speed_result *result;
  struct weight_spans *spans; /* (entries); none for a peer */
  double *reads;              /* (entries, rounds, cases) bytes a second */
  double *expected_s;         /* (entries, cases) of a run, everything around it included */
  int *left;                  /* (entries, cases) runs still to come */
  struct progress progress;
};

/* Number of the run of an entry in a case. */
static int64_t run_index(const struct bench *b, int entry, int which) {
  return (int64_t)entry * b->settings->case_count + which;
}

static enum status bench_init(struct bench *b, struct error *err) {
  const struct speed_settings *s = b->settings;
  struct speed_result *result = b->result;
  size_t entries = (size_t)result->entry_count, runs = entries * (size_t)s->case_count;
  size_t rounds = (size_t)s->rounds;
  result->figures = mem_alloc(runs, sizeof *result->figures, err);
  result->rates = mem_alloc(runs * rounds, sizeof *result->rates, err);
  result->read_bytes_per_s = mem_alloc(entries, sizeof *result->read_bytes_per_s, err);
  b->spans = mem_alloc(entries, sizeof *b->spans, err);
  b->reads = mem_alloc(runs * rounds, sizeof *b->reads, err);
  b->expected_s = mem_alloc(runs, sizeof *b->expected_s, err);
  b->left = mem_alloc(runs, sizeof *b->left, err);
  if (!result->figures || !result->rates || !result->read_bytes_per_s || !b->spans || !b->reads ||
      !b->expected_s || !b->left)
    return STATUS_FAILED;
  for (size_t i = 0; i < runs; i++) {
    b->expected_s[i] = s->seconds;
    b->left[i] = s->rounds + 1;
  }
  for (size_t i = 0; i < entries; i++) {
    if (b->entries[i].peer) continue;
    enum status status = on_host(b->entries[i].model)
                             ? weight_spans_init(&b->spans[i], b->entries[i].model, err)
                             : STATUS_OK;
    if (status) return status;
    if (!on_host(b->entries[i].model)) b->spans[i].bytes = model_step_bytes(b->entries[i].model);
  }
  return STATUS_OK;
}

static void bench_release(struct bench *b) {
  for (int i = 0; b->spans && i < b->result->entry_count; i++) weight_spans_free(&b->spans[i]);
  mem_free(b->spans);
  mem_free(b->reads);
  mem_free(b->expected_s);
  mem_free(b->left);
}

/* Runs differ a hundredfold in length, so what is left is known only from what each took. */
static void update_progress(struct bench *b, int64_t run, double took_s) {
  int64_t runs = (int64_t)b->result->entry_count * b->settings->case_count;
  double left_s = 0;
  b->expected_s[run] = took_s;
  b->left[run]--;
  for (int64_t i = 0; i < runs; i++) left_s += b->expected_s[i] * b->left[i];
  b->progress.total = b->progress.done + took_s + left_s;
  progress_add(&b->progress, took_s);
}

/* Seconds that a plain read of as many bytes takes; on a card: half of what copying them takes,
 * which reads and writes each once. */
static enum status time_read(const struct speed_entry *entry, const struct weight_spans *spans,
                             double *seconds, struct error *err) {
  enum { COPY_BYTES_MOST = 512 << 20, COPIES = 4 };
  const struct backend *ops = model_backend(entry->model);
  void *from = NULL, *to = NULL;
  if (ops->is_host) {
    *seconds = weight_spans_time_read(spans);
    return STATUS_OK;
  }
  const size_t bytes = spans->bytes < COPY_BYTES_MOST ? spans->bytes : COPY_BYTES_MOST;
  double start_s = 0;
  enum status status = ops->alloc(bytes, &from, err);
  if (!status) status = ops->alloc(bytes, &to, err);
  for (int i = -1; i < COPIES && !status; i++) { /* the first warms up */
    if (i == 0) status = ops->wait(err);
    if (i == 0) start_s = clock_seconds();
    ops->copy_floats(to, from, (int64_t)(bytes / sizeof(float)));
  }
  if (!status) status = ops->wait(err);
  *seconds = (clock_seconds() - start_s) / COPIES / 2 * ((double)spans->bytes / (double)bytes);
  ops->free(from);
  ops->free(to);
  return status;
}

/* All entries through all cases once; round -1 warms up and is not kept. */
static enum status run_round(struct bench *b, int round, struct error *err) {
  const struct speed_settings *s = b->settings;
  double seconds = s->seconds * (round < 0 ? WARM_UP_SHARE : 1);
  enum status status = interrupt_check(err);
  for (int which = 0; which < s->case_count && !status; which++)
    for (int i = 0; i < b->result->entry_count && !status; i++) {
      double start_s = clock_seconds(), rate = 0;
      double read_s = NAN;
      if (!b->entries[i].peer) status = time_read(&b->entries[i], &b->spans[i], &read_s, err);
      if (status) break;
      status = run_entry(&b->entries[i], &s->cases[which], seconds, s, &rate, err);
      int64_t run = run_index(b, i, which);
      update_progress(b, run, clock_seconds() - start_s + s->seconds - seconds);
      if (round < 0) continue;
      b->result->rates[run * s->rounds + round] = rate;
      b->reads[run * s->rounds + round] = (double)b->spans[i].bytes / read_s;
    }
  return status;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double speed_quantile(double *values, int count, double share) {
  INVARIANT(count > 0 && share >= 0 && share <= 1);
  qsort(values, (size_t)count, sizeof *values, ascending);
  double at = share * (count - 1);
  int below = (int)at, above = below + 1 < count ? below + 1 : below;
  return values[below] + (at - below) * (values[above] - values[below]);
}

static double median_rate(const struct speed_result *result, int entry, int which) {
  double sorted[SPEED_ROUNDS_MAX];
  memcpy(sorted, speed_rates_of(result, entry, which), (size_t)result->rounds * sizeof *sorted);
  return speed_quantile(sorted, result->rounds, 0.5);
}

static void take_medians(struct bench *b) {
  const struct speed_settings *s = b->settings;
  for (int i = 0; i < b->result->entry_count; i++) {
    bool peer = b->entries[i].peer != NULL;
    int reads = s->case_count * s->rounds;
    double read = peer ? NAN : speed_quantile(b->reads + (int64_t)i * reads, reads, 0.5);
    double bytes = peer ? NAN : (double)b->spans[i].bytes;
    b->result->read_bytes_per_s[i] = read;
    for (int which = 0; which < s->case_count; which++) {
      struct speed_figure *f = &b->result->figures[run_index(b, i, which)];
      f->tokens_per_s = median_rate(b->result, i, which);
      f->bytes_per_token = bytes / (double)s->cases[which].batch;
      f->read_share = f->tokens_per_s * f->bytes_per_token / read;
    }
  }
}

static enum status check_settings(const struct speed_settings *s, struct error *err) {
  INVARIANT(s->rounds > 0 && s->rounds <= SPEED_ROUNDS_MAX && s->case_count > 0);
  for (int i = 0; i < s->case_count; i++) {
    const struct speed_case *c = &s->cases[i];
    if (c->phase == SPEED_TEXT && (c->prompt < 1 || c->tokens < 1))
      return error_set(err, STATUS_USAGE, "a text needs a prompt and tokens to generate");
    if (c->phase != SPEED_PREFILL && (c->batch < 1 || c->batch > SESSION_SLOTS_MAX))
      return error_set(err, STATUS_USAGE, "a batch of %lld cannot be decoded; 1 to %d can",
                       (long long)c->batch, SESSION_SLOTS_MAX);
    if (c->batch < 1)
      return error_set(err, STATUS_USAGE, "a prompt of %lld tokens cannot be read",
                       (long long)c->batch);
  }
  return STATUS_OK;
}

enum status speed_measure(struct speed_result *out, const struct speed_entry *entries,
                          int entry_count, const struct speed_settings *settings,
                          struct error *err) {
  INVARIANT(entry_count > 0);
  *out =
      (struct speed_result){entry_count, settings->case_count, settings->rounds, NULL, NULL, NULL};
  struct bench b = {.entries = entries, .settings = settings, .result = out};
  enum status status = check_settings(settings, err);
  if (!status) status = bench_init(&b, err);
  progress_begin(&b.progress, "bench", "s of runs", settings->seconds);
  for (int round = -1; round < settings->rounds && !status; round++)
    status = run_round(&b, round, err);
  progress_end(&b.progress);
  if (!status) take_medians(&b);
  bench_release(&b);
  if (status) speed_result_free(out);
  return status;
}

void speed_result_free(struct speed_result *r) {
  mem_free(r->figures);
  mem_free(r->rates);
  mem_free(r->read_bytes_per_s);
  *r = (struct speed_result){0};
}

const struct speed_figure *speed_figure_of(const struct speed_result *r, int entry, int which) {
  return &r->figures[(int64_t)entry * r->case_count + which];
}

const double *speed_rates_of(const struct speed_result *r, int entry, int which) {
  return r->rates + ((int64_t)entry * r->case_count + which) * r->rounds;
}

struct speed_ratio speed_compare(const struct speed_result *r, int entry, int other, int which) {
  const double *a = speed_rates_of(r, entry, which), *b = speed_rates_of(r, other, which);
  double ratios[SPEED_ROUNDS_MAX];
  for (int i = 0; i < r->rounds; i++) ratios[i] = a[i] / b[i];
  struct speed_ratio out = {.ratio = speed_figure_of(r, entry, which)->tokens_per_s /
                                     speed_figure_of(r, other, which)->tokens_per_s,
                            .low = speed_quantile(ratios, r->rounds, 0.25),
                            .high = speed_quantile(ratios, r->rounds, 0.75)};
  out.noise = r->rounds >= 3 && out.low <= 1 && out.high >= 1;
  return out;
}
