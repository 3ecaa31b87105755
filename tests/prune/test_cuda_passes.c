/* Pruning and evaluation on an emulated card: the same masks and figures as on the CPU. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "eval/eval.h"
#include "prune/prune.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;
enum { WINDOWS = 4, LENGTH = 16 };

static int32_t ids[WINDOWS * LENGTH];
static int64_t starts[WINDOWS];

static struct model *open_model(const char *name) {
  char path[64];
  struct model *model;
  snprintf(path, sizeof path, "models/%s", name);
  must(model_open(&model, golden(path), &err), err);
  for (int i = 0; i < WINDOWS * LENGTH; i++)
    ids[i] = (int32_t)((i * i + 3 * i) % model_config(model)->vocab_size);
  for (int i = 0; i < WINDOWS; i++) starts[i] = i * LENGTH;
  return model;
}

static void prune(struct model *model, enum prune_method method, const struct backend *backend,
                  struct mask_set *masks) {
  const struct calibration calibration = {ids, WINDOWS, LENGTH, 0};
  struct prune_settings s = prune_defaults();
  struct prune_report report;
  s.method = method;
  s.pattern = PRUNE_HYBRID;
  s.sparsity = 0.35;
  s.tile_rows = s.tile_cols = 16;
  s.backend = backend;
  must(prune_run(model, &s, &calibration, masks, NULL, &report, &err), err);
}

/* Codes that differ: where two choices are worth the same but for rounding. */
static void masks_are_the_cpus(void **state) {
  (void)state;
  static const enum prune_method methods[] = {PRUNE_WANDA, PRUNE_SPARSEGPT};
  for (int i = 0; i < 2; i++) {
    const struct backend *card = emulated_open(64 << 20);
    struct model *model = open_model(i ? "qwen2" : "llama");
    struct mask_set cpu = {0}, here = {0};
    int64_t differ = 0, groups = 0;
    prune(model, methods[i], NULL, &cpu);
    prune(model, methods[i], card, &here);
    assert_true(emulated_card.launches[LEARN_attention_rows] > 0);
    assert_int_equal(cpu.count, here.count);
    for (size_t m = 0; m < cpu.count; m++) {
      const struct mask_matrix *a = &cpu.items[m], *b = &here.items[m];
      assert_string_equal(a->name, b->name);
      for (int64_t r = 0; r < a->rows; r++)
        for (int64_t g = 0; g < mask_group_count(a); g++, groups++)
          differ += mask_code(a, r, g) != mask_code(b, r, g);
      for (int64_t t = 0; t < mask_tile_count(a); t++) assert_int_equal(a->tiles[t], b->tiles[t]);
    }
    assert_true(groups > 1000 && differ <= groups / 500);
    mask_set_free(&cpu);
    mask_set_free(&here);
    model_close(model);
    emulated_close();
  }
}

static void figures_are_the_cpus(void **state) {
  (void)state;
  const struct backend *card = emulated_open(64 << 20);
  struct model *host[2] = {open_model("gemma3"), open_model("gemma3")}, *placed[2];
  struct corpus corpus = {.ids = {.items = ids, .count = WINDOWS * LENGTH}};
  const struct windows windows = {&corpus, LENGTH, WINDOWS, starts};
  struct eval_result r[2];
  /* a reference that is not the model itself */
  struct mask_set masks = {0};
  prune(host[0], PRUNE_MAGNITUDE, NULL, &masks);
  must(model_apply_masks(host[0], &masks, &err), err);
  for (int i = 0; i < 2; i++) must(model_place(&placed[i], host[i], card, &err), err);
  for (int side = 0; side < 2; side++) {
    struct model *const *m = side ? placed : host;
    const struct eval_request request = {
        .model = m[0], .reference = m[1], .windows = &windows, .batch = 3};
    must(eval_run(&r[side], &request, &err), err);
  }
  assert_true(fabs(r[1].nll.mean - r[0].nll.mean) < 1e-5 * r[0].nll.mean);
  assert_true(r[0].kl.mean > 1e-4 && fabs(r[1].kl.mean - r[0].kl.mean) < 1e-3 * r[0].kl.mean);
  assert_true(fabs(r[1].agreement.mean - r[0].agreement.mean) < 0.02);
  /* states kept by one serve the other */
  char kept[256];
  snprintf(kept, sizeof kept, "%s/states", scratch());
  for (int side = 1; side >= 0; side--)
    for (int again = 0; again < 2; again++) {
      struct model *const *m = side ? placed : host;
      const struct eval_request request = {.model = m[0],
                                           .reference = m[1],
                                           .windows = &windows,
                                           .batch = 3,
                                           .reference_cache = kept};
      struct eval_result cached;
      must(eval_run(&cached, &request, &err), err);
      assert_true(fabs(cached.kl.mean - r[side].kl.mean) < 1e-4 * r[side].kl.mean);
      assert_true(cached.nll.mean == r[side].nll.mean);
    }
  mask_set_free(&masks);
  for (int i = 0; i < 2; i++) {
    model_close(placed[i]);
    model_close(host[i]);
  }
  emulated_close();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(masks_are_the_cpus),
      cmocka_unit_test(figures_are_the_cpus),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
