/* Logits and weight gradients of every family against transformers, on tiny random models with
 * every feature of the family on (tools/golden/make_models.py), from directories and from GGUF
 * files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "support/support.h"

static struct error err;

static const char *path_of(const char *name, const char *end) {
  static char text[4][512];
  static int next;
  char *out = text[next++ % 4];
  snprintf(out, sizeof text[0], "%s%s", golden("models/"), name);
  strncat(out, end, sizeof text[0] - strlen(out) - 1);
  return out;
}

static const struct stored_tensor *tensor(const struct safetensors *file, const char *name) {
  const struct stored_tensor *t = safetensors_find(file, name);
  if (!t) fail_msg("the golden file lacks %s", name);
  return t;
}

static float *floats(size_t count) {
  float *out = mem_alloc(count, sizeof *out, &err);
  assert_non_null(out);
  return out;
}

static void check(const char *what, const char *name, const float *have, const float *want,
                  int64_t count, double limit) {
  double error = relative_error(have, want, (size_t)count);
  if (!(error <= limit)) fail_msg("%s of %s: relative error %.3g > %.3g", what, name, error, limit);
}

/* --- logits --- */

static void check_logits(const char *model_name, const char *expected_name) {
  struct model *model;
  struct safetensors *expected;
  must(model_open(&model, model_name, &err), err);
  must(safetensors_open(&expected, expected_name, &err), err);
  const struct stored_tensor *ids = tensor(expected, "ids"), *want = tensor(expected, "logits");
  struct model_shape shape = {ids->shape[0], ids->shape[1]};
  int64_t tokens = shape.sequences * shape.length, vocab = model_config(model)->vocab_size;
  assert_int_equal(want->shape[2], vocab);
  struct model_workspace *ws;
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  float *normed = floats((size_t)(tokens * model_config(model)->hidden_size));
  float *logits = floats((size_t)(tokens * vocab));
  must(model_forward(model, (const int32_t *)ids->data, shape, NULL, ws, normed, &err), err);
  model_logits(model, normed, tokens, PRECISION_FP32, logits);
  check("logits", model_name, logits, (const float *)want->data, tokens * vocab, 2e-6);
  mem_free(normed);
  mem_free(logits);
  model_workspace_free(ws);
  safetensors_close(expected);
  model_close(model);
}

static void check_family_logits(const char *name) {
  check_logits(path_of(name, ""), path_of(name, "/expected.safetensors"));
}

static void check_gguf_logits(const char *name) {
  check_logits(path_of(name, ".gguf"), path_of(name, ".gguf.expected.safetensors"));
}

/* --- gradients --- */

struct gradients {
  float **dw; /* (sites) (rows, cols) */
  int seen;
};

static void gather(void *ctx, const struct linear_site *site, const float *x, const float *dy,
                   int64_t tokens) {
  struct gradients *g = ctx;
  int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  g->dw[site->index] = floats((size_t)(rows * cols));
  linear_backward_weight(dy, x, tokens, rows, cols, PRECISION_FP32, g->dw[site->index], false);
  g->seen++;
}

static struct gradients train(const struct model *model, const int32_t *ids,
                              struct model_shape shape, bool checkpoint, double *loss) {
  struct gradients g = {.dw = calloc((size_t)model_site_count(model), sizeof(float *))};
  struct tap tap = {.ctx = &g, .gradient = gather};
  struct model_workspace *ws;
  must(model_workspace_new(&ws, model, shape, true, checkpoint, &err), err);
  must(model_train(model, ids, shape, 1.0, &tap, ws, loss, &err), err);
  assert_int_equal(g.seen, model_site_count(model));
  model_workspace_free(ws);
  return g;
}

static void release(const struct model *model, struct gradients *g) {
  for (int i = 0; i < model_site_count(model); i++) mem_free(g->dw[i]);
  free(g->dw);
}

static int64_t site_size(const struct linear_site *site) {
  return linear_rows(&site->weight) * linear_cols(&site->weight);
}

static void check_family_gradients(const char *name) {
  struct model *model;
  struct safetensors *expected;
  must(model_open(&model, path_of(name, ""), &err), err);
  must(safetensors_open(&expected, path_of(name, "/expected.safetensors"), &err), err);
  const struct stored_tensor *ids = tensor(expected, "ids");
  struct model_shape shape = {ids->shape[0], ids->shape[1]};
  double loss, want = *(const float *)tensor(expected, "loss")->data;
  struct gradients g = train(model, (const int32_t *)ids->data, shape, false, &loss);
  if (fabs(loss - want) > 2e-6 * want) fail_msg("loss of %s: %.9g, not %.9g", name, loss, want);
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    char key[256];
    snprintf(key, sizeof key, "grad.%s", site->name);
    const float *dw = (const float *)tensor(expected, key)->data;
    check(key, name, g.dw[i], dw, site_size(site), 2e-5);
  }
  release(model, &g);
  safetensors_close(expected);
  model_close(model);
}

/* Checkpoints and threads change nothing, not one bit. */
static void check_family_bits(const char *name) {
  struct model *model;
  must(model_open(&model, path_of(name, ""), &err), err);
  int32_t ids[3 * 17];
  for (int i = 0; i < 3 * 17; i++) ids[i] = (i * 37 + i * i) % 101;
  struct model_shape shape = {3, 17};
  double loss, other;
  parallel_set_threads(1);
  struct gradients plain = train(model, ids, shape, false, &loss);
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    for (int checkpoint = 0; checkpoint < 2; checkpoint++) {
      struct gradients again = train(model, ids, shape, checkpoint, &other);
      assert_memory_equal(&loss, &other, sizeof loss);
      for (int i = 0; i < model_site_count(model); i++)
        assert_memory_equal(plain.dw[i], again.dw[i],
                            (size_t)site_size(model_site(model, i)) * sizeof(float));
      release(model, &again);
    }
  }
  parallel_set_threads(0);
  release(model, &plain);
  model_close(model);
}

#define FAMILY(name)                                                            \
  static void name##_logits(void **state) { check_family_logits(#name); }       \
  static void name##_gradients(void **state) { check_family_gradients(#name); } \
  static void name##_bits(void **state) { check_family_bits(#name); }
FAMILY(llama)
FAMILY(mistral)
FAMILY(qwen2)
FAMILY(qwen3)
FAMILY(gemma3)

static void llama_gguf(void **state) { check_gguf_logits("llama"); }
static void qwen2_gguf(void **state) { check_gguf_logits("qwen2"); }
static void gemma3_gguf(void **state) { check_gguf_logits("gemma3"); }

#define TESTS(name) \
  cmocka_unit_test(name##_logits), cmocka_unit_test(name##_gradients), cmocka_unit_test(name##_bits)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(llama),
      TESTS(mistral),
      TESTS(qwen2),
      TESTS(qwen3),
      TESTS(gemma3),
      cmocka_unit_test(llama_gguf),
      cmocka_unit_test(qwen2_gguf),
      cmocka_unit_test(gemma3_gguf),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
