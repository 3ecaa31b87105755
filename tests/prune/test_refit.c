/* refit: least squares under a mask against NumPy's (tools/golden/make_refit.py), and the two
 * streams on a small model: the error falls, the mask stays, a mask that drops nothing changes
 * nothing, threads do not show; and the whole command. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "io/safetensors.h"
#include "kernel/gemm.h"
#include "prune/least_squares.h"
#include "prune/refit.h"
#include "support/support.h"

static struct error err;

/* --- one matrix --- */

enum { ROWS = 270, COLS = 44, TOKENS = 96 }; /* more rows than a panel has */
static const double ridge = 3;
static struct safetensors *file;
static float h[COLS * COLS], c[COLS * COLS];
static struct mask_matrix mask;

static const void *data_of(const char *name) {
  const struct stored_tensor *t = safetensors_find(file, name);
  if (!t) fail_msg("golden tensor %s is missing", name);
  return t->data;
}

static int open_golden(void **state) {
  must(safetensors_open(&file, golden("refit.safetensors"), &err), err);
  const struct gemm_operand z = {data_of("z"), DTYPE_F32, COLS, false};
  const struct gemm_operand z_t = {data_of("z"), DTYPE_F32, COLS, true};
  const struct gemm_operand x_t = {data_of("x"), DTYPE_F32, COLS, true};
  gemm(COLS, COLS, TOKENS, 1.0f, z_t, z, 0.0f, h, COLS);
  gemm(COLS, COLS, TOKENS, 1.0f, x_t, z, 0.0f, c, COLS);
  must(mask_matrix_init_bits(&mask, "w", ROWS, COLS, &err), err);
  const uint8_t *kept = data_of("mask");
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t i = 0; i < COLS; i++) mask_set_bit(&mask, r, i, kept[r * COLS + i]);
  return 0;
}

static int close_golden(void **state) {
  mask_matrix_free(&mask);
  safetensors_close(file);
  return 0;
}

static float *solve(int64_t iterations) {
  float *v = mem_alloc(ROWS * COLS, sizeof *v, &err);
  must(least_squares_masked(&mask, data_of("w"), h, c, ridge, iterations, v, &err), err);
  return v;
}

static void the_rows_are_solved(void **state) {
  const float *expected = data_of("v");
  float *v = solve(2 * COLS);
  assert_true(relative_error(v, expected, ROWS * COLS) < 1e-4);
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t i = 0; i < COLS; i++)
      if (!mask_bit(&mask, r, i)) assert_true(v[r * COLS + i] == 0 && !signbit(v[r * COLS + i]));
  mem_free(v);
}

static void iterations_go_from_the_old_weights_to_the_solution(void **state) {
  const float *expected = data_of("v"), *w = data_of("w");
  float *start = solve(0);
  double before = INFINITY;
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t i = 0; i < COLS; i++)
      assert_true(start[r * COLS + i] == (mask_bit(&mask, r, i) ? w[r * COLS + i] : 0));
  mem_free(start);
  for (int64_t n = 0; n < 16; n = n ? 2 * n : 1) {
    float *v = solve(n);
    const double error = relative_error(v, expected, ROWS * COLS);
    assert_true(error < before);
    before = error;
    mem_free(v);
  }
}

static void rows_have_the_same_bits_at_any_thread_count(void **state) {
  parallel_set_threads(1);
  float *one = solve(5);
  parallel_set_threads(3);
  float *three = solve(5);
  assert_memory_equal(one, three, ROWS * COLS * sizeof *one);
  mem_free(one);
  mem_free(three);
  parallel_set_threads(0);
}

/* --- a model --- */

enum { WINDOW = 16, WINDOWS = 64 };
static int32_t ids[WINDOW * WINDOWS];
static const struct calibration text = {ids, WINDOWS, WINDOW, 0};

static struct model *open_llama(void) {
  struct model *model;
  for (int i = 0; i < WINDOW * WINDOWS; i++) ids[i] = (i * i + 3 * i) % 97;
  must(model_open(&model, golden("models/llama"), &err), err);
  return model;
}

/* Tiles of 16, `dense` of 3 dense; the first block's k is left out, its q masked bit by bit. */
static void make_masks(const struct model *model, int dense, struct mask_set *set) {
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
    struct mask_matrix m;
    if (i == SITE_K) continue;
    if (i == SITE_Q) {
      must(mask_matrix_init_bits(&m, site->name, rows, cols, &err), err);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t col = 0; col < cols; col++)
          mask_set_bit(&m, r, col, dense == 3 || (r + col) % 3 == 0);
    } else {
      must(mask_matrix_init_hybrid(&m, site->name, rows, cols, 16, 16, &err), err);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < mask_group_count(&m); g++)
          mask_set_code(&m, r, g, sparse_candidate_code[(r * 7 + g * 5 + i) % SPARSE_CANDIDATES]);
      for (int64_t k = 0; k < mask_tile_count(&m); k++) m.tiles[k] = (k + i) % 3 < dense;
    }
    must(mask_set_add(set, &m, &err), err);
  }
}

static struct model *refit_llama(int dense, struct refit_report *report) {
  const struct refit_settings settings = refit_defaults();
  struct model *model = open_llama();
  struct mask_set masks = {0};
  make_masks(model, dense, &masks);
  must(refit_run(model, &masks, &text, &settings, report, &err), err);
  mask_set_free(&masks);
  return model;
}

static float *weights_of(const struct model *model, int site, size_t *count) {
  const struct linear_weight *w = &model_site(model, site)->weight;
  *count = (size_t)(linear_rows(w) * linear_cols(w));
  float *out = mem_alloc(*count, sizeof *out, &err);
  model_site_expand(model, site, out);
  return out;
}

static void the_error_falls_and_the_mask_stays(void **state) {
  struct refit_report report;
  struct model *dense = open_llama(), *model = refit_llama(1, &report);
  struct mask_set masks = {0};
  make_masks(dense, 1, &masks);
  printf("error %.4f before, %.4f after; %lld of %lld linears as they were\n", report.error_before,
         report.error_after, (long long)report.kept, (long long)report.linears);
  assert_int_equal(report.linears, model_site_count(model) - 1);
  assert_true(report.error_after < 0.9 * report.error_before);
  for (int i = 0; i < model_site_count(model); i++) {
    const struct mask_matrix *m = mask_set_find(&masks, model_site(model, i)->name);
    size_t count, dropped = 0;
    float *was = weights_of(dense, i, &count), *now = weights_of(model, i, &count);
    float *applied = mem_alloc(count, sizeof *applied, &err);
    if (!m) assert_memory_equal(was, now, count * sizeof *was);
    if (m) mask_apply(m, now, applied);
    if (m) assert_memory_equal(now, applied, count * sizeof *now);
    for (size_t k = 0; k < count; k++) dropped += now[k] == 0;
    if (m) assert_int_equal(count - dropped, mask_kept(m));
    mem_free(was);
    mem_free(now);
    mem_free(applied);
  }
  mask_set_free(&masks);
  model_close(model);
  model_close(dense);
}

static void assert_same_weights(const struct model *a, const struct model *b) {
  for (int i = 0; i < model_site_count(a); i++) {
    size_t count;
    float *x = weights_of(a, i, &count), *y = weights_of(b, i, &count);
    assert_memory_equal(x, y, count * sizeof *x);
    mem_free(x);
    mem_free(y);
  }
}

/* Both streams are the same then but for rounding, and there is nothing to make up for. */
static void a_mask_that_drops_nothing_changes_little(void **state) {
  struct refit_report report;
  struct model *dense = open_llama(), *model = refit_llama(3, &report);
  assert_true(report.error_before < 1e-12 && report.error_after < 1e-12);
  for (int i = 0; i < model_site_count(model); i++) {
    size_t count;
    float *was = weights_of(dense, i, &count), *now = weights_of(model, i, &count);
    assert_true(relative_error(now, was, count) < 1e-5);
    mem_free(was);
    mem_free(now);
  }
  model_close(model);
  model_close(dense);
}

static void threads_do_not_show(void **state) {
  struct refit_report report[2];
  struct model *model[2];
  for (int i = 0; i < 2; i++) {
    parallel_set_threads(i ? 3 : 1);
    model[i] = refit_llama(1, &report[i]);
  }
  assert_same_weights(model[0], model[1]);
  assert_true(report[0].error_after == report[1].error_after);
  model_close(model[0]);
  model_close(model[1]);
  parallel_set_threads(0);
}

static void what_does_not_fit_is_refused(void **state) {
  const struct refit_settings settings = refit_defaults();
  const struct calibration single = {ids, 1, WINDOW, 0};
  struct model *model = open_llama();
  struct mask_set masks = {0};
  struct mask_matrix stranger;
  struct refit_report report;
  make_masks(model, 1, &masks);
  assert_int_equal(refit_run(model, &masks, &single, &settings, &report, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "two at least"));
  must(mask_matrix_init_bits(&stranger, "model.layers.99.mlp.up_proj.weight", 8, 8, &err), err);
  must(mask_set_add(&masks, &stranger, &err), err);
  assert_int_equal(refit_run(model, &masks, &text, &settings, &report, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "another model"));
  mask_set_free(&masks);
  model_close(model);
}

static double perplexity_of(const char *json) {
  char output[4096], *end;
  if (run_command(output, sizeof output, "grep -o '\"perplexity\": [0-9.]*' %s", json))
    fail_msg("no perplexity in %s", json);
  return strtod(strchr(output, ':') + 1, &end);
}

/* On real text: a one-shot mask of a trained model loses half of its distance to dense and more. */
static void the_command_writes_a_better_model(void **state) {
  static char output[1 << 14];
  const char *path = shared_data("models/stories260K"), *story = shared_data("calib/tiny.utf8");
  if (!path || !story) skip();
  const char *pruned = scratch_path("mask"), *out = scratch_path("out");
  const char *before = scratch_path("before.json"), *after = scratch_path("after.json");
  if (run_command(output, sizeof output,
                  "%s prune %s --method magnitude --pattern hybrid --sparsity 40%% --tile 16 --out "
                  "%s && %s refit %s --mask %s --calib %s --calib-tokens 8192 --out %s",
                  program(), path, pruned, program(), path, pruned, story, out))
    fail_msg("%s", output);
  assert_non_null(strstr(output, "the mask is as it was"));
  assert_int_equal(run_command(NULL, 0, "grep -q 'tessera refit' %s/README.md", out), 0);
  if (run_command(
          output, sizeof output,
          "%s eval %s --mask %s --ppl %s --window 256 --tokens 4096 --json %s --quiet && %s "
          "eval %s --mask %s --ppl %s --window 256 --tokens 4096 --json %s --quiet",
          program(), path, pruned, story, before, program(), out, pruned, story, after))
    fail_msg("%s", output);
  printf("perplexity %.2f before, %.2f after\n", perplexity_of(before), perplexity_of(after));
  assert_true(perplexity_of(after) < 0.5 * perplexity_of(before));
  assert_int_equal(run_command(output, sizeof output, "%s refit %s --mask %s --out %s", program(),
                               path, pruned, scratch_path("none")),
                   STATUS_USAGE);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_rows_are_solved),
      cmocka_unit_test(iterations_go_from_the_old_weights_to_the_solution),
      cmocka_unit_test(rows_have_the_same_bits_at_any_thread_count),
      cmocka_unit_test(the_error_falls_and_the_mask_stays),
      cmocka_unit_test(a_mask_that_drops_nothing_changes_little),
      cmocka_unit_test(threads_do_not_show),
      cmocka_unit_test(what_does_not_fit_is_refused),
      cmocka_unit_test(the_command_writes_a_better_model),
  };
  return cmocka_run_group_tests(tests, open_golden, close_golden);
}
