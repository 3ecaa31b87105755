/* The scoring pass: see loglikelihood.h. */
#include "eval/loglikelihood.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"

enum { CHUNK_ELEMENTS = 8 << 20, CHUNK_ROWS_LEAST = 16, CHUNK_ROWS_MOST = 512 };

/* One group: what its texts have in common, and how many rows it takes. The last token of a text is
 * predicted and not read. */
struct plan {
  const struct text_group *group;
  int64_t index; /* in the request's order */
  int64_t stem;  /* tokens that all texts begin with */
  int64_t rows;
};

/* A token to be scored: which row predicts it. */
struct prediction {
  struct scored_text *text;
  int64_t row;
  int32_t target;
};

struct scorer {
  const struct model *model;
  enum precision precision;
  struct plan *plans; /* (groups), longest first */
  int64_t group_count;
  /* of a pass */
  struct model_branches *branches;
  struct model_branch *items; /* (rows_most) */
  int64_t item_count;
  int32_t *ids;  /* (rows_most) */
  float *normed; /* (rows_most, hidden_size) */
  int64_t rows;
  /* of a chunk of predictions */
  struct prediction *predictions; /* (chunk_rows) */
  int64_t pending, chunk_rows;
  float *gathered;    /* (chunk_rows, hidden_size) */
  float *logits;      /* (chunk_rows, vocab_size) */
  float *nll;         /* (chunk_rows) */
  int32_t *targets;   /* (chunk_rows) */
  uint8_t *likeliest; /* (chunk_rows) */
};

/* --- planning --- */

static int64_t inputs_of(const struct scored_text *text) { return text->count - 1; }

static struct plan plan_group(const struct text_group *group, int64_t index) {
  const struct scored_text *first = &group->texts[0];
  struct plan plan = {.group = group, .index = index, .stem = inputs_of(first)};
  for (int i = 1; i < group->count; i++) {
    const struct scored_text *text = &group->texts[i];
    int64_t common = 0;
    while (common < plan.stem && common < inputs_of(text) &&
           text->ids[common] == first->ids[common])
      common++;
    plan.stem = common;
  }
  plan.rows = plan.stem;
  for (int i = 0; i < group->count; i++) plan.rows += inputs_of(&group->texts[i]) - plan.stem;
  return plan;
}

static int longest_first(const void *a, const void *b) {
  const struct plan *x = a, *y = b;
  if (x->rows != y->rows) return x->rows > y->rows ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

/* What the passes will need at most. Each branch has a row, so that `rows` bounds them too. */
struct extent {
  int64_t rows, longest, total_rows;
};

static struct extent measure_plans(const struct scorer *s, int64_t pass_tokens) {
  struct extent e = {.rows = pass_tokens};
  for (int64_t i = 0; i < s->group_count; i++) {
    const struct plan *plan = &s->plans[i];
    if (plan->rows > e.rows) e.rows = plan->rows;
    for (int t = 0; t < plan->group->count; t++)
      if (inputs_of(&plan->group->texts[t]) > e.longest)
        e.longest = inputs_of(&plan->group->texts[t]);
    e.total_rows += plan->rows;
  }
  return e;
}

static int64_t choose_chunk_rows(int64_t vocab_size) {
  int64_t rows = CHUNK_ELEMENTS / vocab_size;
  if (rows < CHUNK_ROWS_LEAST) return CHUNK_ROWS_LEAST;
  return rows < CHUNK_ROWS_MOST ? rows : CHUNK_ROWS_MOST;
}

static enum status scorer_init(struct scorer *s, const struct model *model,
                               enum precision precision, struct text_group *groups, int64_t count,
                               int64_t pass_tokens, struct extent *extent, struct error *err) {
  size_t hidden = (size_t)model_config(model)->hidden_size * sizeof(float);
  size_t vocab = (size_t)model_config(model)->vocab_size * sizeof(float);
  *s = (struct scorer){.model = model, .precision = precision, .group_count = count};
  s->plans = mem_alloc((size_t)count, sizeof *s->plans, err);
  if (!s->plans) return STATUS_FAILED;
  for (int64_t i = 0; i < count; i++) s->plans[i] = plan_group(&groups[i], i);
  qsort(s->plans, (size_t)count, sizeof *s->plans, longest_first);
  *extent = measure_plans(s, pass_tokens);
  s->chunk_rows = choose_chunk_rows(model_config(model)->vocab_size);
  s->items = mem_alloc((size_t)extent->rows, sizeof *s->items, err);
  s->ids = mem_alloc((size_t)extent->rows, sizeof *s->ids, err);
  s->normed = mem_alloc((size_t)extent->rows, hidden, err);
  s->predictions = mem_alloc((size_t)s->chunk_rows, sizeof *s->predictions, err);
  s->gathered = mem_alloc((size_t)s->chunk_rows, hidden, err);
  s->logits = mem_alloc((size_t)s->chunk_rows, vocab, err);
  s->nll = mem_alloc((size_t)s->chunk_rows, sizeof *s->nll, err);
  s->targets = mem_alloc((size_t)s->chunk_rows, sizeof *s->targets, err);
  s->likeliest = mem_alloc((size_t)s->chunk_rows, 1, err);
  if (!s->items || !s->ids || !s->normed || !s->predictions || !s->gathered || !s->logits ||
      !s->nll || !s->targets || !s->likeliest)
    return STATUS_FAILED;
  return model_branches_new(&s->branches, model, extent->rows, extent->longest, precision, err);
}

static void scorer_release(struct scorer *s) {
  model_branches_free(s->branches);
  mem_free(s->plans);
  mem_free(s->items);
  mem_free(s->ids);
  mem_free(s->normed);
  mem_free(s->predictions);
  mem_free(s->gathered);
  mem_free(s->logits);
  mem_free(s->nll);
  mem_free(s->targets);
  mem_free(s->likeliest);
}

/* --- one pass --- */

static void put_branch(struct scorer *s, const int32_t *ids, int64_t count, int64_t stem,
                       int64_t stem_count) {
  if (!count) return;
  s->items[s->item_count++] = (struct model_branch){stem, stem_count, s->rows, count};
  memcpy(s->ids + s->rows, ids, (size_t)count * sizeof *ids);
  s->rows += count;
}

static void put_group(struct scorer *s, const struct plan *plan) {
  int64_t stem = s->rows;
  put_branch(s, plan->group->texts[0].ids, plan->stem, 0, 0);
  for (int i = 0; i < plan->group->count; i++) {
    const struct scored_text *text = &plan->group->texts[i];
    put_branch(s, text->ids + plan->stem, inputs_of(text) - plan->stem, stem, plan->stem);
  }
}

struct likeliest {
  const struct scorer *s;
  int64_t vocab_size;
};

/* Whether the target is what argmax would give: the first of the largest. */
static void find_likeliest(void *ctx, int64_t row, int worker) {
  const struct likeliest *l = ctx;
  (void)worker;
  const float *logits = l->s->logits + row * l->vocab_size;
  int32_t target = l->s->targets[row];
  float own = logits[target];
  bool likeliest = true;
  for (int32_t i = 0; i < target; i++) likeliest &= logits[i] < own;
  for (int64_t i = target; i < l->vocab_size; i++) likeliest &= logits[i] <= own;
  l->s->likeliest[row] = likeliest;
}

/* Scores what is pending. */
static void flush(struct scorer *s) {
  const struct model_config *c = model_config(s->model);
  for (int64_t i = 0; i < s->pending; i++) {
    memcpy(s->gathered + i * c->hidden_size, s->normed + s->predictions[i].row * c->hidden_size,
           (size_t)c->hidden_size * sizeof(float));
    s->targets[i] = s->predictions[i].target;
  }
  model_logits(s->model, s->gathered, s->pending, s->precision, s->logits);
  cross_entropy(s->logits, s->targets, s->pending, c->vocab_size, 1, s->nll, NULL);
  parallel_for(s->pending, find_likeliest, &(struct likeliest){s, c->vocab_size});
  for (int64_t i = 0; i < s->pending; i++) {
    struct scored_text *text = s->predictions[i].text;
    text->log_probability -= (double)s->nll[i];
    text->greedy &= s->likeliest[i] != 0;
  }
  s->pending = 0;
}

/* The tokens of a text whose own rows begin at `branch`, and those of its stem at `stem`. */
static void score_text(struct scorer *s, struct scored_text *text, const struct plan *plan,
                       int64_t stem, int64_t branch) {
  text->log_probability = 0;
  text->greedy = true;
  for (int64_t at = inputs_of(text) - text->scored; at < inputs_of(text); at++) {
    int64_t row = at < plan->stem ? stem + at : branch + at - plan->stem;
    if (s->pending == s->chunk_rows) flush(s);
    s->predictions[s->pending++] = (struct prediction){text, row, text->ids[at + 1]};
  }
}

static void score_group(struct scorer *s, const struct plan *plan, int64_t *row) {
  int64_t stem = *row;
  *row += plan->stem;
  for (int i = 0; i < plan->group->count; i++) {
    struct scored_text *text = &plan->group->texts[i];
    score_text(s, text, plan, stem, *row);
    *row += inputs_of(text) - plan->stem;
  }
}

/* Scores the plans [first, *end), as many as fit into `rows_most` rows. */
static enum status run_pass(struct scorer *s, int64_t first, int64_t rows_most, int64_t *end,
                            struct error *err) {
  int64_t row = 0;
  s->rows = s->item_count = 0;
  *end = first;
  do put_group(s, &s->plans[(*end)++]);
  while (*end < s->group_count && s->rows + s->plans[*end].rows <= rows_most);
  enum status status =
      model_branches_forward(s->branches, s->ids, s->items, s->item_count, s->normed, err);
  if (status) return status;
  for (int64_t i = first; i < *end; i++) score_group(s, &s->plans[i], &row);
  if (s->pending) flush(s);
  INVARIANT(row == s->rows);
  return STATUS_OK;
}

static enum status check_results(const struct scorer *s, int64_t first, int64_t end,
                                 struct error *err) {
  for (int64_t i = first; i < end; i++)
    for (int t = 0; t < s->plans[i].group->count; t++)
      if (!isfinite(s->plans[i].group->texts[t].log_probability))
        return error_set(err, STATUS_FAILED,
                         "the likelihood of a text under %s is not a number: its weights are "
                         "damaged or overflow in fp32",
                         model_path(s->model));
  return STATUS_OK;
}

/* Targets are checked here, what is read by the forward pass. */
static enum status check_groups(const struct model *model, const struct text_group *groups,
                                int64_t count, struct error *err) {
  int64_t vocab_size = model_config(model)->vocab_size;
  for (int64_t i = 0; i < count; i++) {
    INVARIANT(groups[i].count >= 1);
    for (int t = 0; t < groups[i].count; t++) {
      const struct scored_text *text = &groups[i].texts[t];
      INVARIANT(text->scored >= 1 && text->count > text->scored);
      for (int64_t at = text->count - text->scored; at < text->count; at++)
        if (text->ids[at] < 0 || text->ids[at] >= vocab_size)
          return error_set(
              err, STATUS_REFUSED,
              "token id %d is outside the vocabulary of %lld: the tokenizer belongs to "
              "another model",
              text->ids[at], (long long)vocab_size);
    }
  }
  return STATUS_OK;
}

static enum status run_passes(struct scorer *s, const struct extent *extent, int64_t pass_tokens,
                              struct error *err) {
  struct progress progress;
  enum status status = STATUS_OK;
  progress_begin(&progress, "scoring", "tokens", (double)extent->total_rows);
  for (int64_t first = 0, end; first < s->group_count && !status; first = end) {
    status = interrupt_check(err);
    if (!status) status = run_pass(s, first, pass_tokens, &end, err);
    if (status) break;
    status = check_results(s, first, end, err);
    progress_add(&progress, (double)s->rows);
  }
  progress_end(&progress);
  return status;
}

enum status loglikelihood_run(const struct model *model, enum precision precision,
                              struct text_group *groups, int64_t count, int64_t pass_tokens,
                              struct error *err) {
  struct scorer s;
  struct extent extent;
  enum status status = check_groups(model, groups, count, err);
  if (status || count == 0) return status;
  if (pass_tokens <= 0) pass_tokens = LOGLIKELIHOOD_PASS_TOKENS;
  status = scorer_init(&s, model, precision, groups, count, pass_tokens, &extent, err);
  if (!status) status = run_passes(&s, &extent, pass_tokens, err);
  scorer_release(&s);
  return status;
}
