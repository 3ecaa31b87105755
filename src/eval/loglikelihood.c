/* The scoring pass: see loglikelihood.h.
 *
 * On the CPU a pass is model_branches_forward; in another backend's memory, which has no branches,
 * texts are sequences of one length, the shorter ones padded behind their end, where nothing looks.
 */
#include "eval/loglikelihood.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"

enum { CHUNK_ELEMENTS = 8 << 20, CHUNK_ROWS_LEAST = 16, CHUNK_ROWS_MOST = 512 };

/* One group: what its texts have in common, and how many rows it takes. The last token of a text is
 * predicted and not read. */
struct plan {
  const struct text_group *group;
  int64_t index;   /* in the request's order */
  int64_t stem;    /* tokens that all texts begin with, computed once: 0 where texts are padded */
  int64_t longest; /* tokens of the longest text */
  int64_t rows;    /* of the group; where texts are padded, were they as long as the longest */
};

/* A token to be scored: which row predicts it. */
struct prediction {
  struct scored_text *text;
  int64_t row;
  int32_t target;
};

struct scorer {
  const struct model *model;
  const struct backend *ops; /* the model's */
  enum precision precision;
  struct plan *plans; /* (groups), longest first */
  int64_t group_count;
  /* of a pass */
  struct model_branches *branches;   /* on the CPU */
  struct model_workspace *workspace; /* elsewhere: texts are padded, */
  int64_t length;                    /* to so many rows in the pass at hand */
  struct model_branch *items;        /* (rows_most) */
  int64_t item_count;
  int32_t *ids;  /* (rows_most) */
  float *normed; /* (rows_most, hidden_size), in the backend's memory */
  int64_t rows;
  /* of a chunk of predictions */
  struct prediction *predictions; /* (chunk_rows) */
  int64_t pending, chunk_rows;
  int32_t *targets;   /* (chunk_rows) */
  float *nll;         /* (chunk_rows) */
  uint8_t *likeliest; /* (chunk_rows) */
  /* in the backend's memory */
  float *gathered;        /* (chunk_rows, hidden_size) */
  float *logits;          /* (chunk_rows, vocab_size) */
  float *far_nll;         /* (chunk_rows) */
  uint8_t *far_likeliest; /* (chunk_rows) */
};

static bool is_padded(const struct scorer *s) { return !s->ops->is_host; }

/* --- planning --- */

static int64_t inputs_of(const struct scored_text *text) { return text->count - 1; }

static struct plan plan_padded(const struct text_group *group, int64_t index) {
  struct plan plan = {.group = group, .index = index};
  for (int i = 0; i < group->count; i++)
    if (inputs_of(&group->texts[i]) > plan.longest) plan.longest = inputs_of(&group->texts[i]);
  plan.rows = group->count * plan.longest;
  return plan;
}

static struct plan plan_group(const struct text_group *group, int64_t index) {
  const struct scored_text *first = &group->texts[0];
  struct plan plan = plan_padded(group, index);
  plan.stem = inputs_of(first);
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

/* Where texts are padded, those of a length come together. */
static int longest_texts_first(const void *a, const void *b) {
  const struct plan *x = a, *y = b;
  if (x->longest != y->longest) return x->longest > y->longest ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
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
    if (plan->longest > e.longest) e.longest = plan->longest;
    e.total_rows += plan->rows;
  }
  INVARIANT(e.longest >= 1); /* a scored token has one before it: check_groups */
  return e;
}

static int64_t choose_chunk_rows(int64_t vocab_size) {
  int64_t rows = CHUNK_ELEMENTS / vocab_size;
  if (rows < CHUNK_ROWS_LEAST) return CHUNK_ROWS_LEAST;
  return rows < CHUNK_ROWS_MOST ? rows : CHUNK_ROWS_MOST;
}

static enum status make_plans(struct scorer *s, struct text_group *groups, struct error *err) {
  const size_t count = (size_t)s->group_count;
  s->plans = mem_alloc(count, sizeof *s->plans, err);
  if (!s->plans) return STATUS_FAILED;
  for (int64_t i = 0; i < s->group_count; i++)
    s->plans[i] = is_padded(s) ? plan_padded(&groups[i], i) : plan_group(&groups[i], i);
  qsort(s->plans, count, sizeof *s->plans, is_padded(s) ? longest_texts_first : longest_first);
  return STATUS_OK;
}

/* What lies where the model runs. */
static enum status alloc_far(struct scorer *s, int64_t rows, struct error *err) {
  const size_t hidden = (size_t)model_config(s->model)->hidden_size * sizeof(float);
  const size_t vocab = (size_t)model_config(s->model)->vocab_size * sizeof(float);
  const size_t chunk = (size_t)s->chunk_rows;
  enum status status = s->ops->alloc((size_t)rows * hidden, (void **)&s->normed, err);
  if (!status) status = s->ops->alloc(chunk * hidden, (void **)&s->gathered, err);
  if (!status) status = s->ops->alloc(chunk * vocab, (void **)&s->logits, err);
  if (!status) status = s->ops->alloc(chunk * sizeof *s->nll, (void **)&s->far_nll, err);
  return status ? status : s->ops->alloc(chunk, (void **)&s->far_likeliest, err);
}

static enum status make_pass(struct scorer *s, const struct extent *e, struct error *err) {
  if (!is_padded(s))
    return model_branches_new(&s->branches, s->model, e->rows, e->longest, s->precision, err);
  const struct model_shape most = {(e->rows + e->longest - 1) / e->longest, e->longest};
  enum status status = model_workspace_new(&s->workspace, s->model, most, false, false, err);
  if (!status) model_workspace_set_precision(s->workspace, s->precision);
  return status;
}

static enum status scorer_init(struct scorer *s, const struct model *model,
                               enum precision precision, struct text_group *groups, int64_t count,
                               int64_t pass_tokens, struct extent *extent, struct error *err) {
  *s = (struct scorer){.model = model,
                       .ops = model_backend(model),
                       .precision = precision,
                       .group_count = count,
                       .chunk_rows = choose_chunk_rows(model_config(model)->vocab_size)};
  enum status status = make_plans(s, groups, err);
  if (status) return status;
  *extent = measure_plans(s, pass_tokens);
  s->items = mem_alloc((size_t)extent->rows, sizeof *s->items, err);
  s->ids = mem_alloc((size_t)extent->rows, sizeof *s->ids, err);
  s->predictions = mem_alloc((size_t)s->chunk_rows, sizeof *s->predictions, err);
  s->targets = mem_alloc((size_t)s->chunk_rows, sizeof *s->targets, err);
  s->nll = mem_alloc((size_t)s->chunk_rows, sizeof *s->nll, err);
  s->likeliest = mem_alloc((size_t)s->chunk_rows, 1, err);
  if (!s->items || !s->ids || !s->predictions || !s->targets || !s->nll || !s->likeliest)
    return STATUS_FAILED;
  status = alloc_far(s, extent->rows, err);
  return status ? status : make_pass(s, extent, err);
}

static void scorer_release(struct scorer *s) {
  void *const far[] = {s->normed, s->gathered, s->logits, s->far_nll, s->far_likeliest};
  for (size_t i = 0; i < sizeof far / sizeof *far; i++) s->ops->free(far[i]);
  model_branches_free(s->branches);
  model_workspace_free(s->workspace);
  mem_free(s->plans);
  mem_free(s->items);
  mem_free(s->ids);
  mem_free(s->predictions);
  mem_free(s->targets);
  mem_free(s->nll);
  mem_free(s->likeliest);
}

/* --- one pass --- */

/* Each text a sequence: what is behind its end is never looked at. */
static void put_padded(struct scorer *s, const struct plan *plan) {
  for (int i = 0; i < plan->group->count; i++, s->rows += s->length) {
    const struct scored_text *text = &plan->group->texts[i];
    const int64_t count = inputs_of(text);
    memcpy(s->ids + s->rows, text->ids, (size_t)count * sizeof *s->ids);
    for (int64_t at = count; at < s->length; at++) s->ids[s->rows + at] = text->ids[0];
  }
}

static void put_branch(struct scorer *s, const int32_t *ids, int64_t count, int64_t stem,
                       int64_t stem_count) {
  if (!count) return;
  s->items[s->item_count++] = (struct model_branch){stem, stem_count, s->rows, count};
  memcpy(s->ids + s->rows, ids, (size_t)count * sizeof *ids);
  s->rows += count;
}

static void put_group(struct scorer *s, const struct plan *plan) {
  int64_t stem = s->rows;
  if (is_padded(s)) {
    put_padded(s, plan);
    return;
  }
  put_branch(s, plan->group->texts[0].ids, plan->stem, 0, 0);
  for (int i = 0; i < plan->group->count; i++) {
    const struct scored_text *text = &plan->group->texts[i];
    put_branch(s, text->ids + plan->stem, inputs_of(text) - plan->stem, stem, plan->stem);
  }
}

/* The rows that predict what is pending, one after the other: runs of rows at a time. */
static void gather_rows(struct scorer *s) {
  const int64_t hidden = model_config(s->model)->hidden_size;
  for (int64_t i = 0, run; i < s->pending; i += run) {
    const int64_t row = s->predictions[i].row;
    for (run = 1; i + run < s->pending && s->predictions[i + run].row == row + run;) run++;
    s->ops->copy_floats(s->gathered + i * hidden, s->normed + row * hidden, run * hidden);
  }
}

/* Scores what is pending. */
static enum status flush(struct scorer *s, struct error *err) {
  const struct backend *ops = s->ops;
  const size_t count = (size_t)s->pending;
  gather_rows(s);
  for (size_t i = 0; i < count; i++) s->targets[i] = s->predictions[i].target;
  model_logits(s->model, s->gathered, s->pending, s->precision, s->logits);
  ops->score_targets(s->logits, s->targets, s->pending, model_config(s->model)->vocab_size,
                     s->far_nll, s->far_likeliest);
  enum status status = ops->download(s->nll, s->far_nll, count * sizeof *s->nll, err);
  if (!status) status = ops->download(s->likeliest, s->far_likeliest, count, err);
  for (size_t i = 0; i < count && !status; i++) {
    struct scored_text *text = s->predictions[i].text;
    text->log_probability -= (double)s->nll[i];
    text->greedy &= s->likeliest[i] != 0;
  }
  s->pending = 0;
  return status;
}

/* The tokens of a text whose own rows begin at `branch`, and those of its stem at `stem`. */
static enum status score_text(struct scorer *s, struct scored_text *text, const struct plan *plan,
                              int64_t stem, int64_t branch, struct error *err) {
  enum status status = STATUS_OK;
  text->log_probability = 0;
  text->greedy = true;
  for (int64_t at = inputs_of(text) - text->scored; at < inputs_of(text) && !status; at++) {
    int64_t row = at < plan->stem ? stem + at : branch + at - plan->stem;
    if (s->pending == s->chunk_rows) status = flush(s, err);
    s->predictions[s->pending++] = (struct prediction){text, row, text->ids[at + 1]};
  }
  return status;
}

static enum status score_group(struct scorer *s, const struct plan *plan, int64_t *row,
                               struct error *err) {
  enum status status = STATUS_OK;
  int64_t stem = *row;
  *row += plan->stem;
  for (int i = 0; i < plan->group->count && !status; i++) {
    struct scored_text *text = &plan->group->texts[i];
    status = score_text(s, text, plan, stem, *row, err);
    *row += is_padded(s) ? s->length : inputs_of(text) - plan->stem;
  }
  return status;
}

static enum status forward(struct scorer *s, struct error *err) {
  if (!is_padded(s))
    return model_branches_forward(s->branches, s->ids, s->items, s->item_count, s->normed, err);
  const struct model_shape shape = {s->rows / s->length, s->length};
  return model_forward(s->model, s->ids, shape, NULL, s->workspace, s->normed, err);
}

/* Whether another group fits into the pass. */
static bool fits(const struct scorer *s, const struct plan *plan, int64_t rows_most) {
  const int64_t rows = is_padded(s) ? plan->group->count * s->length : plan->rows;
  return s->rows + rows <= rows_most;
}

/* Scores the plans [first, *end), as many as fit into `rows_most` rows. */
static enum status run_pass(struct scorer *s, int64_t first, int64_t rows_most, int64_t *end,
                            struct error *err) {
  int64_t row = 0;
  s->rows = s->item_count = 0;
  s->length = s->plans[first].longest;
  *end = first;
  do put_group(s, &s->plans[(*end)++]);
  while (*end < s->group_count && fits(s, &s->plans[*end], rows_most));
  enum status status = forward(s, err);
  for (int64_t i = first; i < *end && !status; i++)
    status = score_group(s, &s->plans[i], &row, err);
  if (!status && s->pending) status = flush(s, err);
  INVARIANT(status || row == s->rows);
  return status;
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
