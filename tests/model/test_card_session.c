/* Decoding on an emulated card: every family's logits against the CPU's, texts of several lengths
 * in one step, pages that come and go, tokens drawn on the card, and recorded steps. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "model/model.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;
enum { CPU, CARD, SIDES, SLOTS = 3, CAPACITY = 64, IDS = 64 };
/* Activations are rounded to bf16 before each product: eight bits. */
static const double CLOSE = 4e-2;

static struct sides {
  struct model *host, *placed;
  struct model_session *session[SIDES];
  int64_t vocab;
  float *logits[SIDES]; /* (SLOTS, vocab) */
  int32_t ids[IDS];
} t;

static void open_sides(const char *name, enum dtype kv, int64_t pages) {
  const struct backend *card = emulated_open(256 << 20);
  char path[64];
  snprintf(path, sizeof path, "models/%s", name);
  must(model_open_to_run(&t.host, golden(path), &err), err);
  must(model_place_to_run(&t.placed, t.host, card, &err), err);
  t.vocab = model_config(t.host)->vocab_size;
  const struct session_settings settings = {SLOTS, CAPACITY, kv, pages};
  must(model_session_new_with(&t.session[CPU], t.host, &settings, &err), err);
  must(model_session_new_with(&t.session[CARD], t.placed, &settings, &err), err);
  for (int i = 0; i < SIDES; i++)
    t.logits[i] = mem_alloc((size_t)t.vocab, SLOTS * sizeof(float), &err);
  for (int i = 0; i < IDS; i++) t.ids[i] = (int32_t)((i * i + 5 * i + 1) % t.vocab);
}

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
    if (!(error < CLOSE)) fail_msg("%s, row %lld: off by %g", what, (long long)i, error);
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
    open_sides(models[m], DTYPE_F16, 0);
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

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(logits_are_the_cpus),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
