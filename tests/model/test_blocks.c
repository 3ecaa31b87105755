/* Models that stay as they are stored: block types of a GGUF give the results of the expanded
 * model, under masks too, and rows of q and k are in Hugging Face's order. Prepared, they and
 * packed integers keep their weights, and results but for the rounding of activations to int8. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "convert/convert.h"
#include "model/model.h"
#include "support/block_gguf.h"
#include "support/hybrids.h"
#include "support/support.h"

enum { LENGTH = 40 };
static struct error err;
static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q5_0, DTYPE_Q4_0,
                                   DTYPE_Q4_1, DTYPE_Q4_K, DTYPE_Q6_K};
enum { TYPES = sizeof types / sizeof *types };

static const char *write_model(int i) {
  const char *path = scratch_path("blocks.gguf");
  block_gguf_write(path, types[i], types[(i + 3) % TYPES], (uint64_t)i);
  return path;
}

/* Losses of a text in one pass, then logits after a prompt and after one token more. */
static void results_of(const struct model *model, float *nll, float logits[2][BLOCK_GGUF_VOCAB]) {
  struct model_workspace *ws;
  struct model_session *s;
  int32_t ids[LENGTH];
  for (int i = 0; i < LENGTH; i++) ids[i] = i * 7 % BLOCK_GGUF_VOCAB;
  must(model_workspace_new(&ws, model, (struct model_shape){1, LENGTH}, false, false, &err), err);
  must(model_nll(model, ids, (struct model_shape){1, LENGTH}, NULL, ws, nll, &err), err);
  model_workspace_free(ws);
  must(model_session_new(&s, model, LENGTH, &err), err);
  must(model_session_append(s, ids, LENGTH - 1, logits[0], &err), err);
  must(model_session_append(s, ids + LENGTH - 1, 1, logits[1], &err), err);
  model_session_free(s);
}

static void assert_same_results(const struct model *a, const struct model *b) {
  float nll[2][LENGTH], logits[2][2][BLOCK_GGUF_VOCAB];
  results_of(a, nll[0], logits[0]);
  results_of(b, nll[1], logits[1]);
  assert_true(largest_difference(nll[0], nll[1], LENGTH - 1) < 1e-4);
  for (int i = 0; i < 2; i++)
    assert_true(relative_error(logits[1][i], logits[0][i], BLOCK_GGUF_VOCAB) < 1e-5);
}

static void assert_same_weights(const struct model *a, const struct model *b) {
  assert_int_equal(model_tensor_count(a), model_tensor_count(b));
  for (int i = 0; i < model_tensor_count(a); i++) {
    const struct model_tensor *t = model_tensor(a, i);
    const size_t count = (size_t)(t->shape[0] * t->shape[1]);
    float *x = mem_alloc(count, sizeof *x, &err), *y = mem_alloc(count, sizeof *y, &err);
    model_tensor_expand(a, i, 0, t->shape[0], x);
    model_tensor_expand(b, i, 0, t->shape[0], y);
    if (memcmp(x, y, count * sizeof *x) != 0) fail_msg("%s differs", t->name);
    mem_free(x);
    mem_free(y);
  }
}

static void blocks_give_what_expanded_weights_give(void **state) {
  (void)state;
  for (int i = 0; i < TYPES; i++) {
    struct model *expanded, *stored;
    const char *path = write_model(i);
    must(model_open(&expanded, path, &err), err);
    must(model_open_to_run(&stored, path, &err), err);
    for (int s = 0; s < model_site_count(stored); s++) {
      assert_int_equal(model_site(stored, s)->weight.dense.dtype, types[i]);
      assert_int_equal(model_site(expanded, s)->weight.dense.dtype, DTYPE_F32);
    }
    assert_same_weights(expanded, stored);
    assert_same_results(expanded, stored);
    model_close(expanded);
    model_close(stored);
  }
}

static void masks_apply_to_blocks(void **state) {
  (void)state;
  for (int i = 0; i < TYPES; i++) {
    struct model *expanded, *stored;
    struct mask_set masks;
    const char *path = write_model(i);
    must(model_open(&expanded, path, &err), err);
    must(model_open_to_run(&stored, path, &err), err);
    hybrid_masks_make(&masks, expanded, 16, 0.6, 3);
    must(model_apply_masks(expanded, &masks, &err), err);
    must(model_apply_masks(stored, &masks, &err), err);
    assert_true(model_density(stored) == model_density(expanded));
    assert_int_equal(model_site(stored, 0)->weight.dense.dtype, types[i]); /* has no mask */
    assert_same_weights(expanded, stored);
    assert_same_results(expanded, stored);
    mask_set_free(&masks);
    model_close(expanded);
    model_close(stored);
  }
}

/* Rounding activations to int8 is an error of some 2^-8 of their largest in each product; these
 * small random models add up 0.3 to 4 % of the logits. What a product may be off by is held in
 * test_quant_products. */
static const double PREPARED_ERROR = 0.1;

static void assert_prepared(const char *path, double weight_error) {
  struct model *stored, *prepared;
  float nll[2][LENGTH], logits[2][2][BLOCK_GGUF_VOCAB];
  must(model_open_to_run(&stored, path, &err), err);
  must(model_open_to_run(&prepared, path, &err), err);
  must(model_prepare(prepared, false, &err), err);
  must(model_prepare(prepared, false, &err), err); /* nothing is left to do */
  assert_true(model_density(stored) == model_density(prepared));
  for (int i = 0; i < model_site_count(stored); i++) {
    const struct linear_weight *w = &model_site(prepared, i)->weight;
    const struct linear_weight *was = &model_site(stored, i)->weight;
    const bool keeps = was->integers || quant_strips_takes(was->dense.dtype);
    assert_true(keeps ? w->quant != NULL : w->strips != NULL);
    assert_int_equal(linear_is_hybrid(w), linear_is_hybrid(was));
    const size_t count = (size_t)(linear_rows(w) * linear_cols(w));
    float *a = mem_alloc(count, sizeof *a, &err), *b = mem_alloc(count, sizeof *b, &err);
    model_site_expand(stored, i, a);
    model_site_expand(prepared, i, b);
    assert_true(relative_error(b, a, count) <= weight_error);
    mem_free(a);
    mem_free(b);
  }
  results_of(stored, nll[0], logits[0]);
  results_of(prepared, nll[1], logits[1]);
  for (int i = 0; i < 2; i++) {
    const double error = relative_error(logits[1][i], logits[0][i], BLOCK_GGUF_VOCAB);
    if (!(error < PREPARED_ERROR)) fail_msg("%s: relative error of the logits %g", path, error);
  }
  model_close(stored);
  model_close(prepared);
}

static void prepared_blocks_keep_their_weights(void **state) {
  (void)state;
  for (int i = 0; i < TYPES; i++) {
    const bool rounded = types[i] == DTYPE_Q4_K || types[i] == DTYPE_Q6_K;
    assert_prepared(write_model(i), rounded ? 0x1p-8 : 0);
  }
}

static void prepared_packed_integers_keep_their_weights(void **state) {
  static const char *const families[] = {"models/llama", "models/qwen2", "models/gemma3"};
  static const struct quant_form forms[] = {
      {QUANT_I8, 0, false}, {QUANT_I8, 32, false}, {QUANT_I4, 32, false}, {QUANT_I4, 32, true}};
  (void)state;
  for (int i = 0; i < 24; i++) {
    const struct pack_quant_settings settings = {forms[i / 6], false, true};
    struct model *model;
    struct mask_set masks;
    must(model_open_headers(&model, golden(families[i % 3]), &err), err);
    hybrid_masks_make(&masks, model, 16, 0.6, (uint64_t)i);
    must(convert_pack_quant(model, i % 2 ? &masks : NULL, scratch_path("packed"), &settings, &err),
         err);
    assert_prepared(scratch_path("packed"), 0);
    mask_set_free(&masks);
    model_close(model);
  }
}

int main(void) {
  log_set_level(LOG_ERROR); /* the tiny models have no tokenizers, which is said each time */
  const struct CMUnitTest tests[] = {cmocka_unit_test(blocks_give_what_expanded_weights_give),
                                     cmocka_unit_test(masks_apply_to_blocks),
                                     cmocka_unit_test(prepared_blocks_keep_their_weights),
                                     cmocka_unit_test(prepared_packed_integers_keep_their_weights)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
