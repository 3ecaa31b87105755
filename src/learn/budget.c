/* Time to tokens: see budget.h. No state. */
#include "learn/budget.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

enum { GUESS_TOKENS = 20480, STEPS_LEAST = 4, TIMED_STEPS_MOST = 3, ROUNDS = 4 };
#define TIMED_SECONDS_MOST 6.0

/* --- the steps that are timed --- */

/* Any ids do: how long a step takes does not depend on the text. */
static enum status make_text(struct corpus *corpus, int64_t *start, int64_t windows, int64_t length,
                             int64_t vocab, struct error *err) {
  corpus->ids.count = (size_t)(windows * length);
  corpus->ids.items = mem_alloc(corpus->ids.count, sizeof *corpus->ids.items, err);
  if (!corpus->ids.items) return STATUS_FAILED;
  for (size_t i = 0; i < corpus->ids.count; i++)
    corpus->ids.items[i] = (int32_t)((i * 7919 + i / 64) % (uint64_t)vocab);
  for (int64_t i = 0; i < windows; i++) start[i] = i * length;
  return STATUS_OK;
}

/* Some 2:4 mask in every linear, as the frozen codes of tile mode. Other patterns have one from the
 * start. */
static void set_codes(struct learner *l) {
  for (int i = 0; i < l->site_count; i++) {
    struct mask_matrix *m = &l->sites[i].mask;
    if (m->kind != MASK_HYBRID) continue;
    for (int64_t row = 0; row < m->rows; row++)
      for (int64_t g = 0; g < mask_group_count(m); g++)
        mask_set_code(m, row, g, sparse_candidate_code[(row + g) % SPARSE_CANDIDATES]);
  }
  learner_masks_changed(l);
}

static enum status time_steps(struct learn_budget *b, struct learner *l,
                              const struct windows *windows, const int64_t *train,
                              struct error *err) {
  struct step_result result;
  double spent = 0;
  enum status status = learner_step(l, windows, train, windows->count, &result, err);
  while (status == STATUS_OK && b->steps < TIMED_STEPS_MOST && spent < TIMED_SECONDS_MOST) {
    const double start = clock_seconds();
    status = learner_step(l, windows, train, windows->count, &result, err);
    spent += clock_seconds() - start;
    b->steps++;
  }
  b->tokens_per_second = (double)(b->steps * b->step_tokens) / spent;
  return status;
}

/* The rate with resolved settings. A step of several micro-batches is timed with one of them, so
 * that it does not take minutes to learn what a minute buys. */
static enum status measure_rate(struct learn_budget *b, const struct model *model,
                                struct learn_settings s, const bool *skip, struct error *err) {
  struct learner l;
  struct corpus corpus = {0};
  s.batch = s.micro;
  if (s.steps <= TIMED_STEPS_MOST + 1) s.steps = TIMED_STEPS_MOST + 2;
  b->step_tokens = s.batch * s.window;
  b->steps = 0;
  enum status status = learner_init(&l, model, &s, skip, err);
  if (status != STATUS_OK) return status;
  set_codes(&l);
  int64_t *start = mem_alloc((size_t)s.batch, sizeof *start, err);
  int64_t *train = mem_alloc((size_t)s.batch, sizeof *train, err);
  status = start && train ? STATUS_OK : STATUS_FAILED;
  if (status == STATUS_OK)
    status = make_text(&corpus, start, s.batch, s.window, model_config(model)->vocab_size, err);
  for (int64_t i = 0; status == STATUS_OK && i < s.batch; i++) train[i] = i;
  const struct windows windows = {&corpus, s.window, s.batch, start};
  if (status == STATUS_OK) status = time_steps(b, &l, &windows, train, err);
  mem_free(corpus.ids.items);
  mem_free(start);
  mem_free(train);
  learner_free(&l);
  return status;
}

/* --- from the rate to a number of tokens --- */

static enum status resolve_at(struct learn_settings *out, const struct learn_settings *given,
                              const struct model *model, int64_t tokens, struct error *err) {
  *out = *given;
  out->tokens = tokens;
  return learn_settings_resolve(out, model_config(model)->context_length, err);
}

static enum status too_short(const struct learn_budget *b, struct error *err) {
  return error_set(
      err, STATUS_USAGE,
      "--budget of %.0f seconds is too short here: a prior takes about %.0f, held-out "
      "losses %.0f, and learning does %.0f tokens a second; give more time, a --prior, "
      "or fewer --evaluations",
      b->seconds, b->prior_seconds, b->heldout_seconds, b->tokens_per_second);
}

enum status learn_budget_measure(struct learn_budget *b, double seconds, const struct model *model,
                                 const struct learn_settings *given, const bool *skip,
                                 const struct budget_prior *prior, struct error *err) {
  struct learn_settings s;
  *b = (struct learn_budget){.seconds = seconds, .tokens = GUESS_TOKENS};
  for (int round = 0; round < ROUNDS; round++) {
    enum status status = resolve_at(&s, given, model, b->tokens, err);
    if (status != STATUS_OK) return status;
    const struct learn_plan plan = learn_plan_make(
        model, &s, skip, prior->tokens ? prior->tokens(prior->request, b->tokens) : 0);
    if (!(plan.learn_seconds > 0))
      return error_set(err, STATUS_FAILED, "no memory to measure this machine's speed with");
    const int64_t planned_tokens = s.steps * s.batch * s.window;
    /* the first round knows the plan's estimate only; the second measures with its settings */
    if (round == 1) status = measure_rate(b, model, s, skip, err);
    if (status != STATUS_OK) return status;
    double rate = round ? b->tokens_per_second : (double)planned_tokens / plan.learn_seconds;
    double slower = (double)planned_tokens / rate / plan.learn_seconds; /* than the plan says */
    b->prior_seconds = plan.prior_seconds * slower;
    b->heldout_seconds = plan.heldout_seconds * slower;
    double left = seconds - b->prior_seconds - b->heldout_seconds;
    b->tokens = (int64_t)fmin(fmax(left, 0) * rate, 1e15);
    if (b->tokens < STEPS_LEAST * 16) { /* 16 tokens: the smallest window */
      if (round) return too_short(b, err);
      b->tokens = GUESS_TOKENS;
    }
  }
  enum status status = resolve_at(&s, given, model, b->tokens, err);
  if (status != STATUS_OK) return status;
  b->tokens = s.steps * s.batch * s.window; /* whole steps: the same settings again */
  return STATUS_OK;
}
