/* Decoding on an emulated card: every family's logits against the CPU's, texts of several lengths
 * in one step, pages that come and go, tokens drawn on the card, and recorded steps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "model/model.h"
#include "model/synthetic.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;
enum { CPU, CARD, SIDES, SLOTS = 3, CAPACITY = 64, IDS = 320 };
/* Activations are rounded to bf16 before each product: eight bits. */
#define CLOSE 4e-2
static double close_to = CLOSE;
static bool chooses; /* kernels by the card's table */

static struct sides {
  struct model *host, *placed;
  struct model_session *session[SIDES];
  int64_t vocab;
  float *logits[SIDES]; /* (SLOTS, vocab) */
  int32_t ids[IDS];
} t;

static void make_sessions(enum dtype kv, int64_t capacity, int64_t pages) {
  t.vocab = model_config(t.host)->vocab_size;
  const struct session_settings settings = {SLOTS, capacity, kv, pages};
  must(model_session_new_with(&t.session[CPU], t.host, &settings, &err), err);
  emulated_idle = true; /* what is multiplied to take its time need not be computed */
  must(model_session_new_with(&t.session[CARD], t.placed, &settings, &err), err);
  emulated_idle = false;
  for (int i = 0; i < SIDES; i++)
    t.logits[i] = mem_alloc((size_t)t.vocab, SLOTS * sizeof(float), &err);
  for (int i = 0; i < IDS; i++) t.ids[i] = (int32_t)((i * i + 5 * i + 1) % t.vocab);
}

static void open_capacity(const char *name, enum dtype kv, int64_t capacity, int64_t pages) {
  const struct backend *card = emulated_open(256 << 20);
  char path[64];
  snprintf(path, sizeof path, "models/%s", name);
  must(model_open_to_run(&t.host, golden(path), &err), err);
  must(model_place_to_run(&t.placed, t.host, card, chooses, &err), err);
  make_sessions(kv, capacity, pages);
}

static void open_sides(const char *name, enum dtype kv) { open_capacity(name, kv, CAPACITY, 0); }

static void close_sides(void) {
  for (int i = 0; i < SIDES; i++) {
    model_session_free(t.session[i]);
    mem_free(t.logits[i]);
  }
  model_close(t.placed);
  model_close(t.host);
  assert_int_equal(emulated_card.bank_conflicts, 0);
  emulated_close();
}

static void check_rows(const char *what, int64_t rows) {
  for (int64_t i = 0; i < rows; i++) {
    const double error =
        relative_error(t.logits[CARD] + i * t.vocab, t.logits[CPU] + i * t.vocab, (size_t)t.vocab);
    if (!(error < close_to)) fail_msg("%s, row %lld: off by %g", what, (long long)i, error);
  }
}

static void append(const char *what, int64_t slot, int64_t first, int64_t count) {
  for (int i = 0; i < SIDES; i++)
    must(model_slot_append(t.session[i], slot, t.ids + first, count, t.logits[i], &err), err);
  check_rows(what, 1);
}

static void step(const char *what, const int64_t *slots, int64_t count, int64_t first) {
  for (int i = 0; i < SIDES; i++)
    must(model_session_step(t.session[i], slots, t.ids + first, count, t.logits[i], &err), err);
  check_rows(what, count);
}

/* Prompts that end inside and at the border of a page, past the windows of those that have any;
 * then texts of different lengths, in any order, together and alone. */
static void logits_are_the_cpus(void **state) {
  (void)state;
  static const char *const models[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};
  for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
    open_sides(models[m], DTYPE_F16);
    append(models[m], 0, 0, 19);
    append(models[m], 1, 3, 32);
    append(models[m], 2, 7, 1);
    for (int i = 0; i < 3; i++) step(models[m], (int64_t[]){2, 0, 1}, 3, 20 + i);
    step(models[m], (int64_t[]){1}, 1, 30);
    append(models[m], 2, 11, 9);
    step(models[m], (int64_t[]){1, 2}, 2, 31);
    close_sides();
  }
}

/* Texts of more than a piece: pieces are joined, windows begin inside one; prompts go through the
 * largest panels, gate and up as a pair at every length, and short ones are read in pieces, too. */
static void long_texts_are_the_cpus(void **state) {
  (void)state;
  static const char *const models[] = {"llama", "gemma3"};
  for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
    open_capacity(models[m], DTYPE_F16, 600, 0);
    append(models[m], 1, 0, 258);
    if (m) append(models[m], 1, 258, 20);
    append(models[m], 0, 5, 3);
    step(models[m], (int64_t[]){0, 1}, 2, 11);
    assert_int_equal(emulated_card.serves[SERVE_serve_glu], 0);
    close_sides();
  }
}

/* Several prompts in one pass, of lengths that items of rows divide and do not. */
static void prompts_are_the_cpus(void **state) {
  (void)state;
  static const int64_t lengths[] = {16, 7, 21}, slots[] = {2, 0, 1};
  open_sides("qwen3", DTYPE_F16);
  for (int i = 0; i < 3; i++) {
    for (int side = 0; side < SIDES; side++)
      must(model_session_prompts(t.session[side], slots, t.ids + i, 3, lengths[i], t.logits[side],
                                 &err),
           err);
    check_rows("prompts", 3);
    step("after prompts", slots, 3, 100);
  }
  close_sides();
}

static void bf16_caches_are_close(void **state) {
  (void)state;
  close_to = 8e-2;
  open_sides("llama", DTYPE_BF16);
  append("bf16", 0, 0, 30);
  step("bf16", (int64_t[]){0}, 1, 30);
  close_sides();
  close_to = CLOSE;
}

static float *card_step(const int64_t *slots, int64_t count, int64_t first) {
  float *out = mem_alloc((size_t)(count * t.vocab), sizeof *out, &err);
  must(model_session_step(t.session[CARD], slots, t.ids + first, count, out, &err), err);
  return out;
}

static void is_same(const float *a, const float *b, int64_t rows) {
  assert_memory_equal(a, b, (size_t)(rows * t.vocab) * sizeof *a);
}

/* The company of a text does not show in its bits, nor the order of blocks, nor whether the step
 * was recorded; other ids, positions and pages go through the same record. */
static void records_and_company_do_not_show(void **state) {
  (void)state;
  const int64_t together[] = {2, 0, 1}, alone[] = {0};
  open_sides("qwen2", DTYPE_F16);
  append("qwen2", 0, 0, 15);
  append("qwen2", 1, 1, 20);
  append("qwen2", 2, 2, 7);
  for (int round = 0; round < 3; round++) {
    float *plain = card_step(together, 3, 30 + round);
    for (int i = 0; i < 3; i++)
      model_slot_truncate(t.session[CARD], i, model_slot_length(t.session[CARD], i) - 1);
    emulated_card.order = 1 + (uint32_t)round;
    model_session_record(t.session[CARD], true);
    const uint64_t before = emulated_card.recorded_launches;
    float *recorded = card_step(together, 3, 30 + round);
    is_same(recorded, plain, 3);
    for (int again = 0; again < 2; again++) {
      for (int i = 0; i < 3; i++)
        model_slot_truncate(t.session[CARD], i, model_slot_length(t.session[CARD], i) - 1);
      mem_free(recorded);
      recorded = card_step(together, 3, 30 + round);
      is_same(recorded, plain, 3);
    }
    assert_true(emulated_card.recorded_launches > before);
    model_slot_truncate(t.session[CARD], 0, model_slot_length(t.session[CARD], 0) - 1);
    float *single = card_step(alone, 1, 31 + round);
    is_same(single, plain + t.vocab, 1);
    if (round == 1) model_session_record(t.session[CARD], false);
    mem_free(plain);
    mem_free(recorded);
    mem_free(single);
  }
  close_sides();
}

/* Pages come from one pool: it runs out aloud and without a change, and what texts give back serves
 * others. A copied text goes on like the first. */
static void pages_come_and_go(void **state) {
  (void)state;
  struct model_session *s;
  open_capacity("llama", DTYPE_F16, CAPACITY, 5);
  s = t.session[CARD];
  append("pages", 0, 0, 40); /* three pages */
  append("pages", 1, 0, 32); /* the other two */
  assert_int_equal(model_slot_append(s, 2, t.ids, 1, NULL, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "pages"));
  assert_int_equal(model_session_step(s, (int64_t[]){1, 0}, t.ids, 2, NULL, &err), STATUS_REFUSED);
  assert_int_equal(model_slot_length(s, 0), 40);
  assert_int_equal(model_slot_length(s, 1), 32);
  for (int i = 0; i < SIDES; i++) model_slot_truncate(t.session[i], 0, 17); /* one is free */
  append("pages", 2, 7, 16);
  for (int i = 0; i < SIDES; i++) model_slot_truncate(t.session[i], 1, 0);
  for (int i = 0; i < SIDES; i++) must(model_slot_copy(t.session[i], 1, 0, 17, &err), err);
  step("copies", (int64_t[]){1, 0}, 2, 50);
  assert_int_equal(model_slot_append(s, 0, t.ids, CAPACITY, NULL, &err), STATUS_REFUSED);
  close_sides();
}

/* The table is measured once and then read; every bucket of batches gets a kernel that the dense
 * product does not beat, and where it wins, it multiplies: the results are the same. */
static void kernels_are_chosen(void **state) {
  (void)state;
  char folder[] = "/tmp/tsr_choice_XXXXXX", output[64];
  assert_non_null(mkdtemp(folder));
  setenv("XDG_CACHE_HOME", folder, 1);
  chooses = true;
  emulated_dense_cost = 1e-4;
  for (int round = 0; round < 2; round++) { /* the second reads what the first has written */
    open_sides("llama", DTYPE_F16);
    const uint64_t timed = emulated_card.timings;
    assert_true(round ? timed == 0 : timed > 100);
    append("chosen", 0, 0, 20);
    step("chosen", (int64_t[]){0}, 1, 20);
    assert_true(emulated_card.dense_products > 0);
    assert_true(emulated_card.serves[SERVE_serve_glu] > 0); /* the pair lost, too */
    assert_true(model_placed_bytes(t.placed) > model_step_bytes(t.placed));
    close_sides();
  }
  emulated_dense_cost = 1e4; /* dearer than any packed product */
  run_command(output, sizeof output, "rm -rf %s/tessera", folder);
  open_sides("llama", DTYPE_F16);
  const uint64_t before = emulated_card.dense_products;
  append("packed", 0, 0, 20);
  step("packed", (int64_t[]){0}, 1, 20);
  assert_int_equal(emulated_card.dense_products, before);
  assert_int_equal(emulated_card.serves[SERVE_serve_glu], 0);
  close_sides();
  emulated_dense_cost = 1;
  chooses = false;
  run_command(output, sizeof output, "rm -rf %s", folder);
  unsetenv("XDG_CACHE_HOME");
}

/* Packed weights of every kind, dense tiles and 2:4 tiles mixed, against the CPU's products of the
 * same weights. */
static void packed_weights_are_the_cpus(void **state) {
  (void)state;
  static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_I8, DTYPE_U8};
  for (int i = 0; i < 3; i++) {
    const struct backend *card = emulated_open(256 << 20);
    struct synthetic_model request = {.shape = "smollm2-135m",
                                      .layers = 1,
                                      .dtype = dtypes[i],
                                      .density = 0.6,
                                      .seed = 3,
                                      .vocabulary = 50};
    must(synthetic_settle(&request, &err), err);
    must(synthetic_open(&t.host, &request, &err), err);
    must(model_place_to_run(&t.placed, t.host, card, false, &err), err);
    make_sessions(DTYPE_F16, 40, 0);
    append(dtype_traits(dtypes[i])->name, 0, 0, 3);
    step(dtype_traits(dtypes[i])->name, (int64_t[]){1, 0}, 2, 4);
    /* what lies on the card is smaller than the dense matrices would be */
    assert_true(model_step_bytes(t.placed) < 2 * (size_t)model_parameters(t.host));
    close_sides();
  }
}

static void bad_requests_are_refused(void **state) {
  (void)state;
  struct model_session *s;
  const int32_t outside = 1 << 20;
  open_sides("llama", DTYPE_F16);
  s = t.session[CARD];
  assert_int_equal(model_slot_append(s, 0, &outside, 1, NULL, &err), STATUS_REFUSED);
  assert_int_equal(model_slot_append(s, 0, t.ids, 0, NULL, &err), STATUS_USAGE);
  assert_int_equal(model_session_step(s, (int64_t[]){1, 1}, t.ids, 2, NULL, &err), STATUS_USAGE);
  assert_int_equal(model_session_step(s, (int64_t[]){0}, &outside, 1, NULL, &err), STATUS_REFUSED);
  assert_int_equal(model_slot_length(s, 0), 0);
  const struct session_settings wide = {.slots = 1, .capacity = 8, .kv = DTYPE_I8};
  assert_int_equal(model_session_new_with(&s, t.placed, &wide, &err), STATUS_USAGE);
  close_sides();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(logits_are_the_cpus),
      cmocka_unit_test(long_texts_are_the_cpus),
      cmocka_unit_test(prompts_are_the_cpus),
      cmocka_unit_test(bf16_caches_are_close),
      cmocka_unit_test(records_and_company_do_not_show),
      cmocka_unit_test(pages_come_and_go),
      cmocka_unit_test(packed_weights_are_the_cpus),
      cmocka_unit_test(kernels_are_chosen),
      cmocka_unit_test(bad_requests_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
