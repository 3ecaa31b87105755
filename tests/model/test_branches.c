/* Several texts in one pass: each row is what a pass over its whole text alone gives, whether its
 * stem lies right before it or elsewhere, for every family (Gemma's sliding layers included). */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/model.h"
#include "support/support.h"

enum { STEM = 37, TAIL = 21, LONG = 300, LONGEST = 310, ROWS = 700, VOCAB = 101, HIDDEN = 64 };

static struct error err;
static int32_t ids[ROWS];
static float normed[ROWS * HIDDEN], again[ROWS * HIDDEN], alone[LONGEST * HIDDEN];

/* A stem with three branches (the first adjacent, one of a single row), a text that nothing
 * shares, and a long text with a branch from its middle. */
static const struct model_branch branches[] = {
    {0, 0, 0, STEM},
    {0, STEM, STEM, TAIL},
    {0, STEM, STEM + TAIL, 1},
    {0, STEM, STEM + TAIL + 1, TAIL},
    {0, 0, STEM + 2 * TAIL + 1, 5},
    {0, 0, STEM + 2 * TAIL + 6, LONG},
    {STEM + 2 * TAIL + 6, 100, STEM + 2 * TAIL + 6 + LONG, 10},
};
enum { BRANCHES = sizeof branches / sizeof *branches };

static struct model *open_golden(const char *name) {
  struct model *model;
  char path[512];
  snprintf(path, sizeof path, "%s/%s", golden("models"), name);
  must(model_open(&model, path, &err), err);
  assert_true(model_config(model)->hidden_size <= HIDDEN);
  for (int i = 0; i < ROWS; i++) ids[i] = (i * i * 7 + i * 3) % VOCAB;
  return model;
}

static void run(const struct model *model, float *out) {
  struct model_branches *pass;
  must(model_branches_new(&pass, model, ROWS, LONGEST, PRECISION_FP32, &err), err);
  must(model_branches_forward(pass, ids, branches, BRANCHES, out, &err), err);
  model_branches_free(pass);
}

/* The rows of branch `b` against the last rows of a pass over its text alone. */
static void check_branch(const struct model *model, const char *name,
                         const struct model_branch *b) {
  int32_t text[LONGEST];
  int64_t length = b->stem_count + b->count, hidden = model_config(model)->hidden_size;
  struct model_shape shape = {1, length};
  struct model_workspace *ws;
  memcpy(text, ids + b->stem, (size_t)b->stem_count * sizeof *ids);
  memcpy(text + b->stem_count, ids + b->first, (size_t)b->count * sizeof *ids);
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  must(model_forward(model, text, shape, NULL, ws, alone, &err), err);
  double error = relative_error(normed + b->first * hidden, alone + b->stem_count * hidden,
                                (size_t)(b->count * hidden));
  if (!(error < 1e-5)) fail_msg("%s, rows from %d: error %g", name, (int)b->first, error);
  model_workspace_free(ws);
}

static void check_family(const char *name) {
  struct model *model = open_golden(name);
  run(model, normed);
  for (int i = 0; i < BRANCHES; i++) check_branch(model, name, &branches[i]);
  model_close(model);
}

static void llama(void **state) { check_family("llama"); }
static void mistral(void **state) { check_family("mistral"); }
static void qwen2(void **state) { check_family("qwen2"); }
static void qwen3(void **state) { check_family("qwen3"); }
static void gemma3(void **state) { check_family("gemma3"); }

static void same_bits_at_any_thread_count(void **state) {
  struct model *model = open_golden("gemma3");
  for (int count = 1; count <= 3; count++) {
    parallel_set_threads(count);
    run(model, count == 1 ? normed : again);
    if (count > 1) assert_memory_equal(normed, again, sizeof normed);
  }
  parallel_set_threads(0);
  model_close(model);
}

static void refuses_foreign_ids(void **state) {
  struct model *model = open_golden("llama");
  struct model_branches *pass;
  must(model_branches_new(&pass, model, ROWS, LONGEST, PRECISION_FP32, &err), err);
  ids[3] = VOCAB + 7000;
  assert_int_equal(model_branches_forward(pass, ids, branches, 1, normed, &err), STATUS_REFUSED);
  model_branches_free(pass);
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(llama),
      cmocka_unit_test(mistral),
      cmocka_unit_test(qwen2),
      cmocka_unit_test(qwen3),
      cmocka_unit_test(gemma3),
      cmocka_unit_test(same_bits_at_any_thread_count),
      cmocka_unit_test(refuses_foreign_ids),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
