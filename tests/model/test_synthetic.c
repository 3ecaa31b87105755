/* model/synthetic: exact densities, contents that a packed file could hold, and models that run. */
#include "model/synthetic.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "support/support.h"

static struct model *make(const char *shape, int layers, enum dtype dtype, double density,
                          uint64_t seed) {
  struct error err = {0};
  struct model *model = NULL;
  struct synthetic_model request = {shape, layers, dtype, density, seed, 0};
  must(synthetic_settle(&request, &err), err);
  must(synthetic_open(&model, &request, &err), err);
  return model;
}

/* smollm2-135m has half tiles at its edges: 576 and 192 are 4.5 and 1.5 tiles. */
static void densities_are_exact_to_a_tile(void **state) {
  (void)state;
  const double wanted[] = {0.75, 0.65, 0.55, 0.5};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    struct model *model = make("smollm2-135m", 2, DTYPE_BF16, wanted[i], 7);
    double weights = 0;
    for (int s = 0; s < model_site_count(model); s++) {
      const struct linear_weight *w = &model_site(model, s)->weight;
      assert_non_null(w->hybrid);
      weights += (double)(linear_rows(w) * linear_cols(w));
    }
    assert_true(fabs(model_density(model) - wanted[i]) * weights <= 128 * 128 / 2 / 2);
    model_close(model);
  }
  struct model *dense = make("smollm2-135m", 1, DTYPE_F32, 1, 7);
  assert_true(model_density(dense) == 1);
  assert_null(model_site(dense, 0)->weight.hybrid);
  model_close(dense);
}

static void packed_matrices_are_sound(void **state) {
  (void)state;
  struct error err = {0};
  const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  for (int i = 0; i < 3; i++) {
    struct model *model = make("smollm2-135m", 1, dtypes[i], 0.65, 3);
    for (int s = 0; s < model_site_count(model); s++) {
      const struct linear_site *site = model_site(model, s);
      int64_t count = linear_rows(&site->weight) * linear_cols(&site->weight), kept = 0;
      must(hybrid_check(site->weight.hybrid, site->name, &err), err);
      float *w = mem_alloc((size_t)count, sizeof *w, &err);
      assert_non_null(w);
      model_site_expand(model, s, w);
      double squares = 0;
      for (int64_t k = 0; k < count; k++) kept += w[k] != 0, squares += (double)w[k] * w[k];
      mem_free(w);
      /* variance 1 / cols, as far as so many draws can tell */
      assert_true(fabs(squares / (double)kept * (double)linear_cols(&site->weight) - 1) < 0.05);
    }
    model_close(model);
  }
}

/* What a step gives, and that it is the same for the same seed at any thread count. */
static void logits_of(struct model *model, float *logit) {
  struct error err = {0};
  struct model_session *session;
  const int32_t ids[3] = {0};
  must(model_session_new(&session, model, 8, &err), err);
  must(model_session_append(session, ids, 3, logit, &err), err);
  model_session_free(session);
}

/* int8 and int4: sound, of variance 1 / cols, as large as foretold, and run. */
static void integers_are_sound(void **state) {
  (void)state;
  struct error err = {0};
  const enum dtype dtypes[] = {DTYPE_I8, DTYPE_U8};
  for (int i = 0; i < 4; i++) {
    const double density = i % 2 ? 1 : 0.65;
    struct model *model = make("smollm2-135m", 1, dtypes[i / 2], density, 3);
    for (int s = 0; s < model_site_count(model); s++) {
      const struct linear_site *site = model_site(model, s);
      const struct quant_matrix *q = site->weight.integers;
      const int64_t cols = linear_cols(&site->weight), count = linear_rows(&site->weight) * cols;
      double squares = 0, kept = (double)count;
      must(quant_check(q, site->name, &err), err);
      assert_int_equal(linear_is_hybrid(&site->weight), density < 1);
      float *w = mem_alloc((size_t)count, sizeof *w, &err);
      assert_non_null(w);
      model_site_expand(model, s, w);
      for (int64_t k = 0; k < count; k++) squares += (double)w[k] * w[k];
      mem_free(w);
      if (q->tile_map) {
        struct mask_matrix mask;
        const struct hybrid_matrix tiles = quant_tiles(q);
        must(hybrid_mask(&tiles, site->name, &mask, &err), err);
        kept = (double)mask_kept(&mask);
        mask_matrix_free(&mask);
      }
      assert_true(fabs(squares / kept * (double)cols - 1) < 0.08);
    }
    float before, after;
    logits_of(model, &before);
    must(model_prepare(model, false, &err), err);
    logits_of(model, &after);
    assert_true(isfinite(before) && isfinite(after));
    model_close(model);
  }
  struct synthetic_model request = {"llama2-7b", 1, DTYPE_U8, 0.5, 1, 0};
  const double weights = 4 * 4096.0 * 4096 + 3 * 4096.0 * 11008;
  assert_true(fabs((double)synthetic_bytes(&request) / weights - 3.5 / 8) < 1e-6);
}

static void models_run_and_are_reproducible(void **state) {
  (void)state;
  const char *const shapes[] = {"smollm2-135m", "qwen2.5-0.5b"};
  for (int i = 0; i < 2; i++) {
    float one, two, other, threads;
    struct model *a = make(shapes[i], 1, DTYPE_BF16, 0.55, 1),
                 *b = make(shapes[i], 1, DTYPE_BF16, 0.55, 1);
    struct model *c = make(shapes[i], 1, DTYPE_BF16, 0.55, 2);
    logits_of(a, &one);
    logits_of(b, &two);
    logits_of(c, &other);
    parallel_set_threads(3);
    struct model *d = make(shapes[i], 1, DTYPE_BF16, 0.55, 1);
    logits_of(d, &threads);
    parallel_set_threads(0);
    assert_true(isfinite(one) && one == two && one == threads && one != other);
    model_close(a);
    model_close(b);
    model_close(c);
    model_close(d);
  }
}

static void sizes_are_foretold(void **state) {
  (void)state;
  struct error err = {0};
  struct synthetic_model request = {"llama2-7b", 0, DTYPE_BF16, 0.55, 1, 0};
  must(synthetic_settle(&request, &err), err);
  assert_int_equal(request.layers, 2); /* 2 x 405 MB */
  double dense = 2.0 * 2 * (4 * 4096.0 * 4096 + 3 * 4096.0 * 11008);
  assert_true(fabs((double)synthetic_bytes(&request) / dense - 1 / 1.649) < 1e-3);
  request.density = 1;
  assert_true(fabs((double)synthetic_bytes(&request) / dense - 1) < 1e-9);
  request = (struct synthetic_model){"smollm2-135m", 0, DTYPE_BF16, 1, 1, 0};
  must(synthetic_settle(&request, &err), err);
  assert_int_equal(request.layers, 30); /* all of them: 212 MB */
}

static void requests_are_checked(void **state) {
  (void)state;
  const struct {
    struct synthetic_model request;
    const char *says;
  } cases[] = {
      {{"gpt-2", 1, DTYPE_BF16, 1, 1, 0}, "llama2-7b"},
      {{"llama2-7b", 33, DTYPE_BF16, 1, 1, 0}, "32 layers"},
      {{"llama2-7b", -1, DTYPE_BF16, 1, 1, 0}, "32 layers"},
      {{"llama2-7b", 1, DTYPE_BF16, 0.45, 1, 0}, "0.45"},
      {{"llama2-7b", 1, DTYPE_BF16, NAN, 1, 0}, "between 0.5 and 1"},
      {{"llama2-7b", 1, DTYPE_Q8_0, 1, 1, 0}, "q8_0"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct error err = {0};
    struct synthetic_model request = cases[i].request;
    assert_int_equal(synthetic_settle(&request, &err), STATUS_USAGE);
    assert_non_null(strstr(err.text, cases[i].says));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(densities_are_exact_to_a_tile),
      cmocka_unit_test(packed_matrices_are_sound),
      cmocka_unit_test(integers_are_sound),
      cmocka_unit_test(models_run_and_are_reproducible),
      cmocka_unit_test(sizes_are_foretold),
      cmocka_unit_test(requests_are_checked),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
