/* model_prepare: the same weights and the same logits as before, for every family, packed or not.
 */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "convert/convert.h"
#include "model/model.h"
#include "support/support.h"

enum { LENGTH = 40, TILE = 16, VOCAB_MOST = 512 };
static struct error err;
static const char *const families[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};

static struct model *open_at(const char *path) {
  struct model *model;
  must(model_open(&model, path, &err), err);
  return model;
}

static const char *golden_model(const char *family) {
  static char path[512];
  snprintf(path, sizeof path, "%s/%s", golden("models"), family);
  return path;
}

/* Every second tile of every linear 2:4, as bf16. */
static const char *pack_golden(const char *family) {
  struct mask_set set = {0};
  struct model *model = open_at(golden_model(family));
  const char *out = scratch_path("packed");
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    struct mask_matrix m;
    must(mask_matrix_init_hybrid(&m, site->name, linear_rows(&site->weight),
                                 linear_cols(&site->weight), TILE, TILE, &err),
         err);
    for (int64_t t = 0; t < mask_tile_count(&m); t++) m.tiles[t] = (uint8_t)(t % 2);
    must(mask_set_add(&set, &m, &err), err);
  }
  must(convert_pack(model, &set, out, DTYPE_BF16, true, &err), err);
  mask_set_free(&set);
  model_close(model);
  return out;
}

/* After a prompt, and after one more token. */
static void logits_of(const struct model *model, float *prompt, float *next) {
  struct model_session *s;
  int32_t ids[LENGTH];
  assert_true(model_config(model)->vocab_size <= VOCAB_MOST);
  for (int i = 0; i < LENGTH; i++) ids[i] = i * 7 % (int32_t)model_config(model)->vocab_size;
  must(model_session_new(&s, model, LENGTH, &err), err);
  must(model_session_append(s, ids, LENGTH - 1, prompt, &err), err);
  must(model_session_append(s, ids + LENGTH - 1, 1, next, &err), err);
  model_session_free(s);
}

static void compare(const char *family, const char *path, bool round_fp32, double tolerance) {
  struct model *plain = open_at(path), *prepared = open_at(path);
  static float a[2][VOCAB_MOST], b[2][VOCAB_MOST];
  const size_t vocab = (size_t)model_config(plain)->vocab_size;
  must(model_prepare(prepared, round_fp32, &err), err);
  must(model_prepare(prepared, round_fp32, &err), err); /* nothing is left to do */
  for (int i = 0; i < model_site_count(plain); i++)
    if (linear_dtype(&model_site(plain, i)->weight) != DTYPE_F32 || round_fp32)
      assert_non_null(model_site(prepared, i)->weight.strips);
  assert_true(model_density(plain) == model_density(prepared));
  logits_of(plain, a[0], a[1]);
  logits_of(prepared, b[0], b[1]);
  for (int i = 0; i < 2; i++) {
    double error = relative_error(b[i], a[i], vocab);
    if (!(error <= tolerance)) fail_msg("%s, %s: relative error %g", family, path, error);
  }
  model_close(plain);
  model_close(prepared);
}

static void logits_stay(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof families / sizeof *families; i++)
    compare(families[i], pack_golden(families[i]), false, 1e-5);
}

/* Rounding weights to bf16, by 2^-8 at most, moves these small models' logits by some 1e-2. */
static void fp32_weights_are_rounded_when_asked(void **state) {
  (void)state;
  compare("llama", golden_model("llama"), false, 1e-5);
  compare("llama", golden_model("llama"), true, 3e-2);
}

static void weights_can_still_be_read(void **state) {
  (void)state;
  const char *path = pack_golden("llama");
  struct model *plain = open_at(path), *prepared = open_at(path);
  must(model_prepare(prepared, false, &err), err);
  for (int i = 0; i < model_tensor_count(plain); i++) {
    const struct model_tensor *t = model_tensor(plain, i);
    const size_t count = (size_t)(t->shape[0] * t->shape[1]);
    float *a = mem_alloc(count, sizeof *a, &err), *b = mem_alloc(count, sizeof *b, &err);
    model_tensor_expand(plain, i, 0, t->shape[0], a);
    model_tensor_expand(prepared, i, 0, t->shape[0], b);
    assert_memory_equal(a, b, count * sizeof *a);
    mem_free(a);
    mem_free(b);
  }
  model_close(plain);
  model_close(prepared);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(logits_stay),
                                     cmocka_unit_test(fp32_weights_are_rounded_when_asked),
                                     cmocka_unit_test(weights_can_still_be_read)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
