/* Scores of continuations: against one forward pass a text, however the texts are packed; and the
 * rules by which text becomes context and continuation. */
#include "eval/loglikelihood.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;

/* --- scores --- */

enum { VOCAB = 101, GROUPS = 9, TEXTS_MOST = 4, LENGTH_MOST = 80, HIDDEN = 64 };

struct fixture {
  struct model *model;
  struct text_group groups[GROUPS];
  struct scored_text texts[GROUPS][TEXTS_MOST];
};

static int32_t token(int group, int text, int position) {
  return (position * position * 5 + group * 17 + text * 29 + position) % VOCAB;
}

/* Groups of 1 to 4 texts that share 0 to 60 tokens; some continuations begin in what is shared,
 * some texts are wholly contained in another. */
static void make_groups(struct fixture *f) {
  for (int g = 0; g < GROUPS; g++) {
    int count = 1 + g % TEXTS_MOST, shared = g == 3 ? 0 : g * 7 % 61;
    f->groups[g] = (struct text_group){f->texts[g], count};
    for (int t = 0; t < count; t++) {
      struct scored_text *text = &f->texts[g][t];
      text->scored = 1 + (g + 2 * t) % 5;
      text->count = shared + 2 + (g * t) % 12;
      if (text->scored >= text->count) text->scored = text->count - 1;
      text->ids = calloc((size_t)text->count, sizeof *text->ids);
      for (int64_t i = 0; i < text->count; i++) text->ids[i] = token(g, i < shared ? 0 : t, (int)i);
    }
  }
}

static void open_fixture(struct fixture *f, const char *name) {
  char path[512];
  *f = (struct fixture){0};
  snprintf(path, sizeof path, "%s/%s", golden("models"), name);
  must(model_open(&f->model, path, &err), err);
  assert_int_equal(model_config(f->model)->vocab_size, VOCAB);
  make_groups(f);
}

static void close_fixture(struct fixture *f) {
  for (int g = 0; g < GROUPS; g++)
    for (int t = 0; t < f->groups[g].count; t++) scored_text_free(&f->texts[g][t]);
  model_close(f->model);
}

/* One text by itself, its whole logits in fp64. */
static double score_alone(const struct model *model, const struct scored_text *text, bool *greedy) {
  static float normed[LENGTH_MOST * HIDDEN], logits[LENGTH_MOST * VOCAB];
  struct model_shape shape = {1, text->count - 1};
  struct model_workspace *ws;
  double sum = 0;
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  must(model_forward(model, text->ids, shape, NULL, ws, normed, &err), err);
  model_logits(model, normed, shape.length, PRECISION_FP32, logits);
  *greedy = true;
  for (int64_t row = shape.length - text->scored; row < shape.length; row++) {
    double total = 0;
    int best = 0;
    for (int i = 0; i < VOCAB; i++) {
      total += exp((double)logits[row * VOCAB + i]);
      if (logits[row * VOCAB + i] > logits[row * VOCAB + best]) best = i;
    }
    sum += (double)logits[row * VOCAB + text->ids[row + 1]] - log(total);
    *greedy &= best == text->ids[row + 1];
  }
  model_workspace_free(ws);
  return sum;
}

/* Of f->model, run as `model`: itself or a copy elsewhere. */
static void check_scores(struct fixture *f, const struct model *model, const char *name, int groups,
                         int64_t pass_tokens) {
  must(loglikelihood_run(model, PRECISION_FP32, f->groups, groups, pass_tokens, &err), err);
  for (int g = 0; g < groups; g++)
    for (int t = 0; t < f->groups[g].count; t++) {
      bool greedy;
      const struct scored_text *text = &f->texts[g][t];
      double alone = score_alone(f->model, text, &greedy);
      if (!(fabs(text->log_probability - alone) < 1e-4) || text->greedy != greedy)
        fail_msg("%s, passes of %d, text %d of group %d: %.6f (%d) instead of %.6f (%d)", name,
                 (int)pass_tokens, t, g, text->log_probability, text->greedy, alone, greedy);
    }
}

static void scores_do_not_depend_on_packing(void **state) {
  static const char *const names[] = {"llama", "qwen2", "gemma3"};
  for (int i = 0; i < 3; i++) {
    struct fixture f;
    open_fixture(&f, names[i]);
    check_scores(&f, f.model, names[i], GROUPS, 1); /* one group a pass */
    check_scores(&f, f.model, names[i], GROUPS, 90);
    check_scores(&f, f.model, names[i], GROUPS, 0);
    close_fixture(&f);
  }
}

static void scores_on_a_card_are_the_cpus(void **state) {
  struct fixture f;
  struct model *placed;
  const struct backend *card = emulated_open(32 << 20);
  open_fixture(&f, "gemma3");
  must(model_place(&placed, f.model, card, &err), err);
  check_scores(&f, placed, "gemma3 on a card", 5, 100); /* several passes, groups that share one */
  assert_true(emulated_card.launches[LEARN_loss_rows] > 1);
  model_close(placed);
  close_fixture(&f);
  emulated_close();
}

/* A text whose continuation is what the model would say. */
static void knows_what_is_greedy(void **state) {
  struct fixture f;
  float normed[LENGTH_MOST * HIDDEN], logits[VOCAB];
  struct model_workspace *ws;
  open_fixture(&f, "llama");
  struct scored_text *text = &f.texts[4][0];
  struct model_shape shape = {1, text->count - 1};
  must(model_workspace_new(&ws, f.model, shape, false, false, &err), err);
  must(model_forward(f.model, text->ids, shape, NULL, ws, normed, &err), err);
  model_logits(f.model, normed + (shape.length - 1) * model_config(f.model)->hidden_size, 1,
               PRECISION_FP32, logits);
  model_workspace_free(ws);
  int best = 0;
  for (int i = 0; i < VOCAB; i++)
    if (logits[i] > logits[best]) best = i;
  text->scored = 1;
  text->ids[text->count - 1] = best;
  must(loglikelihood_run(f.model, PRECISION_FP32, f.groups, GROUPS, 0, &err), err);
  assert_true(text->greedy);
  text->ids[text->count - 1] = (best + 1) % VOCAB;
  must(loglikelihood_run(f.model, PRECISION_FP32, f.groups, GROUPS, 0, &err), err);
  assert_false(text->greedy);
  close_fixture(&f);
}

static void same_bits_at_any_thread_count(void **state) {
  struct fixture f;
  double first[GROUPS][TEXTS_MOST] = {{0}};
  open_fixture(&f, "gemma3");
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    must(loglikelihood_run(f.model, PRECISION_FP32, f.groups, GROUPS, 0, &err), err);
    for (int g = 0; g < GROUPS; g++)
      for (int t = 0; t < f.groups[g].count; t++) {
        if (threads == 1) first[g][t] = f.texts[g][t].log_probability;
        assert_true(first[g][t] == f.texts[g][t].log_probability);
      }
  }
  parallel_set_threads(0);
  close_fixture(&f);
}

static void refuses_foreign_tokens(void **state) {
  struct fixture f;
  open_fixture(&f, "llama");
  struct scored_text *text = &f.texts[2][1];
  text->ids[text->count - 1] = VOCAB; /* predicted and never read */
  assert_int_equal(loglikelihood_run(f.model, PRECISION_FP32, f.groups, GROUPS, 0, &err),
                   STATUS_REFUSED);
  assert_non_null(strstr(err.text, "vocabulary"));
  close_fixture(&f);
}

/* --- texts --- */

enum { LONG = 1 << 20 };

static struct tokenizer *open_tokenizer(const char *name) {
  struct tokenizer *t;
  must(tokenizer_open(&t, golden(name), &err), err);
  return t;
}

static struct token_ids encode(const struct tokenizer *t, const char *text, unsigned flags) {
  struct token_ids ids = {0};
  must(tokenizer_encode(t, text, strlen(text), flags, &ids, &err), err);
  return ids;
}

/* Checks that the text is `whole` tokenized by `flags`, cut behind `context`. */
static void check_cut(const struct tokenizer *t, const char *context, const char *continuation,
                      const char *whole, const char *before, unsigned flags) {
  struct scored_text text;
  struct token_ids all = encode(t, whole, flags), head = encode(t, before, flags);
  must(scored_text_encode(&text, t, context, continuation, LONG, &err), err);
  assert_int_equal(text.count, all.count);
  assert_memory_equal(text.ids, all.items, all.count * sizeof *all.items);
  assert_int_equal(text.count - text.scored, head.count);
  assert_int_equal(text.dropped, 0);
  scored_text_free(&text);
  token_ids_free(&all);
  token_ids_free(&head);
}

static void cuts_as_the_harness(void **state) {
  static const char *const names[] = {"tokenizer_byte_level.json", "tokenizer_llama_style.json"};
  for (int i = 0; i < 2; i++) {
    struct tokenizer *t = open_tokenizer(names[i]);
    check_cut(t, "the answer is", " a word", "the answer is a word", "the answer is", 0);
    /* white space at the context's end belongs to the continuation */
    check_cut(t, "the answer \t\n", " a", "the answer \t\n a", "the answer", 0);
    check_cut(t, "the answer\xc2\xa0", "a",
              "the answer\xc2\xa0"
              "a",
              "the answer", 0);
    tokenizer_close(t);
  }
}

static void bos_is_not_doubled(void **state) {
  struct tokenizer *t = open_tokenizer("tokenizer_llama_style.json");
  struct strbuf bos = {0}, context = {0}, whole = {0};
  int32_t id = tokenizer_bos(t);
  struct token_ids plain = encode(t, "the", 0);
  assert_true(id >= 0 && plain.items[0] == id); /* this one adds a BOS by itself */
  must(tokenizer_decode(t, &id, 1, false, &bos, &err), err);
  strbuf_printf(&context, "%sthe answer", strbuf_text(&bos));
  strbuf_printf(&whole, "%s is", strbuf_text(&context));
  check_cut(t, strbuf_text(&context), " is", strbuf_text(&whole), strbuf_text(&context),
            TOKENIZE_NO_BOS);
  strbuf_free(&bos);
  strbuf_free(&context);
  strbuf_free(&whole);
  token_ids_free(&plain);
  tokenizer_close(t);
}

static void empty_context_is_the_prefix(void **state) {
  struct tokenizer *t = open_tokenizer("tokenizer_llama_style.json");
  struct scored_text text;
  struct token_ids alone = encode(t, " a word", TOKENIZE_NO_BOS);
  must(scored_text_encode(&text, t, "", " a word", LONG, &err), err);
  assert_int_equal(text.count, alone.count + 1);
  assert_int_equal(text.scored, alone.count);
  assert_int_equal(text.ids[0], tokenizer_bos(t));
  assert_memory_equal(text.ids + 1, alone.items, alone.count * sizeof *alone.items);
  scored_text_free(&text);
  token_ids_free(&alone);
  tokenizer_close(t);
}

static void keeps_the_last_tokens(void **state) {
  struct tokenizer *t = open_tokenizer("tokenizer_byte_level.json");
  struct scored_text whole, cut;
  const char *context = "one two three four five six seven eight nine ten", *rest = " eleven";
  must(scored_text_encode(&whole, t, context, rest, LONG, &err), err);
  int64_t keep = whole.scored + 3;
  must(scored_text_encode(&cut, t, context, rest, keep - 1, &err), err);
  assert_int_equal(cut.count, keep); /* the model reads one less than it is given */
  assert_int_equal(cut.scored, whole.scored);
  assert_int_equal(cut.dropped, whole.count - keep);
  assert_memory_equal(cut.ids, whole.ids + cut.dropped, (size_t)keep * sizeof *cut.ids);
  scored_text_free(&cut);
  assert_int_equal(scored_text_encode(&cut, t, context, rest, whole.scored - 1, &err),
                   STATUS_REFUSED);
  assert_int_equal(scored_text_encode(&cut, t, context, "", LONG, &err), STATUS_REFUSED);
  assert_int_equal(scored_text_encode(&cut, t, "a\xff", "b", LONG, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "UTF-8"));
  scored_text_free(&whole);
  tokenizer_close(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(scores_do_not_depend_on_packing),
      cmocka_unit_test(scores_on_a_card_are_the_cpus),
      cmocka_unit_test(knows_what_is_greedy),
      cmocka_unit_test(same_bits_at_any_thread_count),
      cmocka_unit_test(refuses_foreign_tokens),
      cmocka_unit_test(cuts_as_the_harness),
      cmocka_unit_test(bos_is_not_doubled),
      cmocka_unit_test(empty_context_is_the_prefix),
      cmocka_unit_test(keeps_the_last_tokens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
