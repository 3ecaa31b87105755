/* eval: perplexity, KL and agreement against what transformers computes in fp64
 * (tools/golden/make_eval.py), and what must not change them: batches, threads, kept states. */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

struct fixture {
  struct model *dense, *masked;
  struct tokenizer *tokenizer;
  struct corpus corpus;
  struct windows windows;
  json_t *golden;
};

static double golden_number(const struct fixture *f, const char *key) {
  return json_number_value(json_object_get(f->golden, key));
}

static double golden_masked(const struct fixture *f, const char *key) {
  return json_number_value(json_object_get(json_object_get(f->golden, "masked"), key));
}

/* Every other pair of inputs of one matrix dropped. */
static void mask_one(struct model *model, const char *name) {
  struct error err = {0};
  struct mask_set set = {0};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    if (strcmp(site->name, name) != 0) continue;
    struct mask_matrix m;
    must(mask_matrix_init_hybrid(&m, name, linear_rows(&site->weight), linear_cols(&site->weight),
                                 128, 128, &err),
         err);
    must(mask_set_add(&set, &m, &err), err);
  }
  assert_int_equal(set.count, 1);
  must(model_apply_masks(model, &set, &err), err);
  mask_set_free(&set);
}

static void open_fixture(struct fixture *f) {
  struct error err = {0};
  const char *path = shared_data("models/stories260K"), *text = shared_data("calib/tiny.utf8");
  if (!path || !text) skip();
  *f = (struct fixture){0};
  f->golden = json_read_file(golden("eval_stories260k.json"), 1 << 20, &err);
  assert_non_null(f->golden);
  int64_t window = (int64_t)golden_number(f, "window");
  int64_t count = (int64_t)golden_number(f, "windows");
  must(model_open(&f->dense, path, &err), err);
  must(model_open(&f->masked, path, &err), err);
  mask_one(f->masked, json_get_string(json_object_get(f->golden, "masked"), "name"));
  must(tokenizer_open(&f->tokenizer, path, &err), err);
  /* half a window more than is measured: the remainder must be dropped */
  must(corpus_load(&f->corpus, text, f->tokenizer, window * count + window / 2, &err), err);
  must(windows_cut(&f->windows, &f->corpus, window, false, &err), err);
  assert_int_equal(f->windows.count, count);
}

static void close_fixture(struct fixture *f) {
  windows_free(&f->windows);
  corpus_free(&f->corpus);
  tokenizer_close(f->tokenizer);
  model_close(f->dense);
  model_close(f->masked);
  json_decref(f->golden);
}

static void check_close(double got, double expected, double tolerance, const char *what) {
  if (!(fabs(got - expected) <= tolerance))
    fail_msg("%s is %.9g, transformers has %.9g", what, got, expected);
}

static void agrees_with_transformers(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct eval_result r;
  open_fixture(&f);
  const json_t *first = json_object_get(f.golden, "first_ids");
  for (size_t i = 0; i < json_array_size(first); i++)
    assert_int_equal(f.corpus.ids.items[i], json_integer_value(json_array_get(first, i)));
  struct eval_request request = {.model = f.dense, .windows = &f.windows};
  must(eval_run(&r, &request, &err), err);
  check_close(r.nll.mean, golden_number(&f, "nll"), 2e-6, "nll");
  check_close(r.nll.standard_error, golden_number(&f, "nll_stderr"), 2e-6, "its error");
  check_close(r.perplexity, golden_number(&f, "perplexity"), 2e-5, "perplexity");
  assert_int_equal(r.predictions, f.windows.count * (f.windows.length - 1));
  request = (struct eval_request){
      .model = f.masked, .reference = f.dense, .windows = &f.windows, .batch = 5};
  must(eval_run(&r, &request, &err), err);
  check_close(r.nll.mean, golden_masked(&f, "nll"), 2e-6, "masked nll");
  check_close(r.kl.mean, golden_masked(&f, "kl"), 2e-6, "KL");
  check_close(r.kl.standard_error, golden_masked(&f, "kl_stderr"), 2e-6, "its error");
  /* two tokens may be equally likely to within fp32 */
  check_close(r.agreement.mean, golden_masked(&f, "agreement"), 1.5 / (double)r.predictions,
              "agreement");
  check_close(r.agreement.standard_error, golden_masked(&f, "agreement_stderr"), 1e-3, "its error");
  close_fixture(&f);
}

static void a_model_does_not_differ_from_itself(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct eval_result r;
  open_fixture(&f);
  struct eval_request request = {.model = f.masked, .reference = f.masked, .windows = &f.windows};
  must(eval_run(&r, &request, &err), err);
  assert_true(r.kl.mean == 0 && r.kl.standard_error == 0);
  assert_true(r.agreement.mean == 1);
  close_fixture(&f);
}

static void threads_and_batches_change_nothing(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct eval_result first, r;
  open_fixture(&f);
  struct eval_request request = {
      .model = f.masked, .reference = f.dense, .windows = &f.windows, .batch = 4};
  must(eval_run(&first, &request, &err), err);
  for (int threads = 1; threads <= 3; threads += 2) {
    parallel_set_threads(threads);
    must(eval_run(&r, &request, &err), err);
    assert_memory_equal(&first.nll, &r.nll, sizeof r.nll);
    assert_memory_equal(&first.kl, &r.kl, sizeof r.kl);
  }
  parallel_set_threads(0);
  request.batch = 1;
  must(eval_run(&r, &request, &err), err);
  check_close(r.nll.mean, first.nll.mean, 1e-6, "nll in batches of one");
  check_close(r.kl.mean, first.kl.mean, 1e-6, "KL in batches of one");
  close_fixture(&f);
}

static void kept_states_give_the_same(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct eval_result plain, r;
  open_fixture(&f);
  const char *cache = scratch_path("states");
  struct eval_request request = {.model = f.masked, .reference = f.dense, .windows = &f.windows};
  must(eval_run(&plain, &request, &err), err);
  request.reference_cache = cache;
  for (int round = 0; round < 2; round++) { /* made, then used */
    must(eval_run(&r, &request, &err), err);
    assert_memory_equal(&plain.kl, &r.kl, sizeof r.kl);
    assert_memory_equal(&plain.agreement, &r.agreement, sizeof r.agreement);
  }
  /* the states of another model, or another text, are not taken for these */
  request.reference = f.masked;
  must(eval_run(&r, &request, &err), err);
  assert_true(r.kl.mean == 0);
  f.corpus.ids.items[7] ^= 1;
  must(eval_run(&r, &request, &err), err);
  assert_true(r.kl.mean == 0);
  /* and what is no cache is left alone */
  must(file_write_all(cache, "notes", 5, &err), err);
  assert_int_equal(eval_run(&r, &request, &err), STATUS_REFUSED);
  close_fixture(&f);
}

static void damaged_weights_are_told(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct eval_result r;
  open_fixture(&f);
  const struct linear_site *site = model_site(f.dense, 3);
  size_t count = (size_t)(linear_rows(&site->weight) * linear_cols(&site->weight));
  float *weight = mem_alloc(count, sizeof *weight, &err);
  assert_non_null(weight);
  weight[5] = NAN;
  model_site_replace(f.dense, 3, weight);
  struct eval_request request = {.model = f.dense, .windows = &f.windows};
  assert_int_equal(eval_run(&r, &request, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "not a number"));
  close_fixture(&f);
}

static void figures(void **state) {
  (void)state;
  const double values[] = {1, 2, 4, 5};
  struct eval_figure figure = eval_figure_of(values, 4);
  assert_true(figure.mean == 3);
  check_close(figure.standard_error, sqrt(10.0 / 3 / 4), 1e-15, "standard error");
  assert_true(isnan(eval_figure_of(values, 1).standard_error));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(agrees_with_transformers),
      cmocka_unit_test(a_model_does_not_differ_from_itself),
      cmocka_unit_test(threads_and_batches_change_nothing),
      cmocka_unit_test(kept_states_give_the_same),
      cmocka_unit_test(damaged_weights_are_told),
      cmocka_unit_test(figures),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
