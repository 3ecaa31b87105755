/* Generation on an emulated card: tokens drawn there against generate/sampler.c, texts against the
 * CPU's, recorded steps, and the whole decoding path of eval. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "eval/eval.h"
#include "generate/generate.h"
#include "kernel/serve.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;

/* --- drawing --- */

enum { ROWS = 3, VOCAB = 700 };

static struct drawing {
  const struct backend *card;
  float *logits;
  struct serve_draw *draws;
  uint8_t *seen;
  unsigned long long *mass;
  int32_t *ids;
} far;

static void *take(size_t bytes) {
  void *memory;
  must(far.card->alloc(bytes, &memory, &err), err);
  return memory;
}

static void open_drawing(void) {
  far.card = emulated_open(16 << 20);
  far.logits = take(ROWS * VOCAB * sizeof *far.logits);
  far.draws = take(ROWS * sizeof *far.draws);
  far.seen = take(ROWS * VOCAB);
  far.mass = take(ROWS * VOCAB * sizeof *far.mass);
  far.ids = take(ROWS * sizeof *far.ids);
}

static void close_drawing(void) {
  far.card->free(far.logits);
  far.card->free(far.draws);
  far.card->free(far.seen);
  far.card->free(far.mass);
  far.card->free(far.ids);
  assert_int_equal(emulated_card.bank_conflicts, 0);
  emulated_close();
}

static void draw_far(const float *logits, const struct serve_draw *draws, int32_t *ids) {
  must(far.card->upload(far.logits, logits, ROWS * VOCAB * sizeof *logits, &err), err);
  must(far.card->upload(far.draws, draws, ROWS * sizeof *draws, &err), err);
  far.card->serve->sample(
      (struct serve_sample_args){far.logits, far.draws, far.seen, far.mass, far.ids, VOCAB}, ROWS);
  must(far.card->download(ids, far.ids, ROWS * sizeof *ids, &err), err);
}

/* Logits with ties: multiples of a quarter, so that whole groups of candidates are worth the same.
 */
static void make_logits(float *logits, uint64_t seed, bool ties) {
  fill_normal(logits, ROWS * VOCAB, seed, 3);
  for (int i = 0; ties && i < ROWS * VOCAB; i++) logits[i] = roundf(4 * logits[i]) / 4;
}

/* The same tokens as the sampler's for the same seed, draw after draw, with what was drawn seen. */
static void draws_are_the_samplers(void **state) {
  (void)state;
  static const struct sampler_settings settings[] = {
      {.top_p = 1, .repetition_penalty = 1},
      {.top_p = 1, .repetition_penalty = 1.5},
      {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 1},
      {.temperature = 0.7, .top_p = 1, .repetition_penalty = 1.3, .seed = 2},
      {.temperature = 1, .top_k = 1, .top_p = 1, .repetition_penalty = 1, .seed = 3},
      {.temperature = 1.5, .top_k = 40, .top_p = 1, .repetition_penalty = 1, .seed = 4},
      {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1, .seed = 5},
      {.temperature = 1, .top_k = 50, .top_p = 0.8, .repetition_penalty = 1.1, .seed = 6},
      {.temperature = 1, .top_p = 1, .min_p = 0.1, .repetition_penalty = 1, .seed = 7},
      {.temperature = 2,
       .top_k = 600,
       .top_p = 0.95,
       .min_p = 0.02,
       .repetition_penalty = 1,
       .seed = 8},
      {.temperature = 1, .top_k = VOCAB + 5, .top_p = 1e-9, .repetition_penalty = 1, .seed = 9},
  };
  static float logits[ROWS * VOCAB], copy[VOCAB];
  open_drawing();
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
    struct sampler sampler[ROWS];
    far.card->clear(far.seen, ROWS * VOCAB);
    for (int r = 0; r < ROWS; r++) {
      struct sampler_settings s = settings[i];
      s.seed += (uint64_t)(100 * r);
      must(sampler_init(&sampler[r], &s, VOCAB, &err), err);
    }
    for (int round = 0; round < 4; round++) {
      struct serve_draw draws[ROWS];
      int32_t ids[ROWS];
      make_logits(logits, 50 * i + (uint64_t)round, round % 2);
      for (int r = 0; r < ROWS; r++) {
        struct rng before = sampler[r].rng;
        const struct sampler_settings *s = &sampler[r].settings;
        draws[r] = (struct serve_draw){.uniform = sampler_uniform(&sampler[r]),
                                       .temperature = s->temperature,
                                       .top_p = s->top_p,
                                       .min_p = s->min_p,
                                       .penalty = (float)s->repetition_penalty,
                                       .top_k = (uint32_t)s->top_k,
                                       .slot = (uint32_t)(ROWS - 1 - r)};
        sampler[r].rng = before;
      }
      draw_far(logits, draws, ids);
      for (int r = 0; r < ROWS; r++) {
        memcpy(copy, logits + r * VOCAB, sizeof copy);
        const int32_t id = sampler_draw(&sampler[r], copy);
        if (ids[r] != id)
          fail_msg("settings %zu, round %d, row %d: %d on the card, %d by the sampler", i, round, r,
                   ids[r], id);
      }
    }
    for (int r = 0; r < ROWS; r++) sampler_release(&sampler[r]);
  }
  close_drawing();
}

static void logits_that_are_no_numbers_are_said(void **state) {
  (void)state;
  static const float bad[ROWS] = {NAN, INFINITY, -INFINITY};
  static float logits[ROWS * VOCAB];
  struct serve_draw draws[ROWS];
  int32_t ids[ROWS];
  open_drawing();
  for (int i = 0; i < ROWS * VOCAB; i++) logits[i] = i / VOCAB == 2 ? -INFINITY : 1;
  for (int r = 0; r < ROWS; r++) {
    logits[r * VOCAB + 300] = bad[r];
    draws[r] = (struct serve_draw){.temperature = r, .top_p = 1, .penalty = 1};
  }
  draw_far(logits, draws, ids);
  for (int r = 0; r < ROWS; r++) assert_int_equal(ids[r], -1);
  close_drawing();
}

/* --- whole texts --- */

static struct model *host, *placed;

static void open_placed(const char *name) {
  const struct backend *card = emulated_open(256 << 20);
  char path[64];
  snprintf(path, sizeof path, "models/%s", name);
  must(model_open_to_run(&host, golden(path), &err), err);
  must(model_place_to_run(&placed, host, card, false, &err), err);
}
static void close_placed(void) {
  model_close(placed);
  model_close(host);
  emulated_close();
}

/* By teacher forcing: the loss of a text, token by token, is the CPU's but for bf16. */
static void losses_are_the_cpus(void **state) {
  (void)state;
  enum { WINDOWS = 3, LENGTH = 20 };
  static int32_t ids[WINDOWS * LENGTH];
  static int64_t starts[WINDOWS];
  struct corpus corpus = {.ids = {.items = ids, .count = WINDOWS * LENGTH}};
  const struct windows windows = {&corpus, LENGTH, WINDOWS, starts};
  struct eval_result r[2];
  open_placed("llama");
  for (int i = 0; i < WINDOWS * LENGTH; i++)
    ids[i] = (int32_t)((i * i + 3 * i) % model_config(host)->vocab_size);
  for (int i = 0; i < WINDOWS; i++) starts[i] = i * LENGTH;
  for (int side = 0; side < 2; side++) {
    const struct eval_request request = {
        .model = side ? placed : host, .reference = host, .windows = &windows, .decode = true};
    must(eval_run(&r[side], &request, &err), err);
  }
  assert_true(fabs(r[1].nll.mean - r[0].nll.mean) < 1e-3 * r[0].nll.mean);
  assert_true(r[1].kl.mean < 1e-4);
  close_placed();
}

/* Greedy and sampled text of a real model, plain and from records: the CPU's, but that bf16 may
 * turn a draw that is close, so only the beginning is held against it. */
static void texts_are_the_cpus(void **state) {
  (void)state;
  enum { TOKENS = 16, SAME = 8 };
  static const struct sampler_settings settings[] = {
      {.top_p = 1, .repetition_penalty = 1},
      {.temperature = 0.7, .top_k = 40, .top_p = 0.9, .repetition_penalty = 1.1, .seed = 5},
  };
  const char *path = shared_data("models/stories260K");
  struct tokenizer *tokenizer;
  if (!path) skip();
  const struct backend *card = emulated_open(256 << 20);
  must(model_open_to_run(&host, path, &err), err);
  must(model_place_to_run(&placed, host, card, false, &err), err);
  must(tokenizer_open(&tokenizer, path, &err), err);
  for (int s = 0; s < 2; s++) {
    struct generate_result r[3];
    struct token_ids ids = {0};
    must(tokenizer_encode(tokenizer, "Once upon a time", 16, 0, &ids, &err), err);
    for (int side = 0; side < 3; side++) { /* the CPU, the card, the card with records */
      struct generator g;
      must(generator_init(&g, side ? placed : host, tokenizer, 64, DTYPE_F16, &settings[s], &err),
           err);
      model_session_record(g.session, side == 2);
      must(generate(&g, ids.items, ids.count, TOKENS, NULL, &r[side], &err), err);
      generator_release(&g);
    }
    assert_int_equal(r[1].ids.count, r[2].ids.count);
    assert_memory_equal(r[1].ids.items, r[2].ids.items, r[1].ids.count * sizeof(int32_t));
    assert_true(r[0].ids.count >= SAME && r[1].ids.count >= SAME);
    assert_memory_equal(r[0].ids.items, r[1].ids.items, SAME * sizeof(int32_t));
    for (int side = 0; side < 3; side++) generate_result_free(&r[side]);
    token_ids_free(&ids);
  }
  assert_true(emulated_card.recorded_launches > 0);
  tokenizer_close(tokenizer);
  close_placed();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_are_the_samplers),
      cmocka_unit_test(logits_that_are_no_numbers_are_said),
      cmocka_unit_test(losses_are_the_cpus),
      cmocka_unit_test(texts_are_the_cpus),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
