/* prune: the per-matrix algorithms against an independent PyTorch implementation
 * (tools/golden/make_prune.py), their counts at ragged sizes, and what must not be fatal. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "io/safetensors.h"
#include "prune/moments.h"
#include "prune/scored.h"
#include "prune/select.h"
#include "prune/sparsegpt.h"
#include "support/support.h"

enum { ROWS = 24, COLS = 44, TOKENS = 96, BLOCK = 16, DEAD = 7 };

static struct safetensors *file;
static struct moments moments;
static float factor[COLS * COLS], norms[COLS];

static const void *data_of(const char *format, const char *a, const char *b) {
  char name[64];
  snprintf(name, sizeof name, format, a, b);
  const struct stored_tensor *t = safetensors_find(file, name);
  if (!t) fail_msg("golden tensor %s is missing", name);
  return t->data;
}

static int open_golden(void **state) {
  struct error err = {0};
  must(safetensors_open(&file, golden("prune.safetensors"), &err), err);
  must(moments_init(&moments, COLS, true, &err), err);
  const float *x = data_of("x", "", "");
  moments_add(&moments, x, 40);
  moments_add(&moments, x + 40 * COLS, TOKENS - 40);
  moments_norms(&moments, norms);
  struct factor_report report;
  must(moments_factor(&moments, 0.01, factor, &report, &err), err);
  assert_int_equal(report.retries, 0);
  return 0;
}

static int close_golden(void **state) {
  moments_free(&moments);
  safetensors_close(file);
  return 0;
}

static struct prune_rule rule_named(const char *name) {
  struct prune_rule rule = {.tile_rows = 10, .tile_cols = 16, .sparsity = 0.6};
  rule.pattern = !strcmp(name, "2_4")   ? PRUNE_2_4
                 : !strcmp(name, "5_8") ? PRUNE_N_M
                                        : PRUNE_UNSTRUCTURED;
  rule.keep = 5;
  rule.of = 8;
  return rule;
}

static void assert_mask(const struct mask_matrix *m, const uint8_t *expected) {
  float row[COLS];
  for (int64_t r = 0; r < m->rows; r++) {
    mask_row(m, r, row);
    for (int64_t c = 0; c < m->cols; c++)
      if (row[c] != expected[r * m->cols + c]) fail_msg("mask differs at %d, %d", (int)r, (int)c);
  }
}

static const char *const patterns[3] = {"2_4", "5_8", "unstructured"};

static void factor_matches(void **state) {
  (void)state;
  assert_true(relative_error(factor, data_of("factor", "", ""), COLS * COLS) < 1e-4);
}

static void wanda_matches(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < 3; i++) {
    struct mask_matrix m;
    const struct prune_rule rule = rule_named(patterns[i]);
    must(prune_scored(&rule, "w", data_of("w", "", ""), ROWS, COLS, norms, &m, &err), err);
    assert_mask(&m, data_of("wanda.%s.mask%s", patterns[i], ""));
    if (i == 0)
      assert_true(relative_error(m.tile_scores, data_of("wanda.2_4.tiles", "", ""), 9) < 1e-5);
    mask_matrix_free(&m);
  }
}

static void load_weights(float *w) {
  memcpy(w, data_of("w", "", ""), ROWS * COLS * sizeof *w);
  for (int r = 0; r < ROWS; r++) w[r * COLS + DEAD] = 0;
}

static void sparsegpt_matches(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < 3; i++)
    for (int64_t block = BLOCK; block <= (i == 2 ? BLOCK : 48); block += BLOCK) {
      float w[ROWS * COLS];
      struct mask_matrix m;
      const struct prune_rule rule = rule_named(patterns[i]);
      load_weights(w);
      must(prune_sparsegpt(&rule, "w", w, ROWS, COLS, factor, block, &m, &err), err);
      assert_mask(&m, data_of("sparsegpt.%s.mask%s", patterns[i], ""));
      assert_true(relative_error(w, data_of("sparsegpt.%s.w%s", patterns[i], ""), ROWS * COLS) <
                  1e-3);
      if (i == 0)
        assert_true(relative_error(m.tile_scores, data_of("sparsegpt.2_4.tiles", "", ""), 9) <
                    1e-3);
      mask_matrix_free(&m);
    }
}

/* sum over tokens of |(W - V) x|^2 */
static double output_error(const float *w, const float *v) {
  const float *x = data_of("x", "", "");
  double sum = 0;
  for (int t = 0; t < TOKENS; t++)
    for (int r = 0; r < ROWS; r++) {
      double y = 0;
      for (int c = 0; c < COLS; c++)
        y += (double)(w[r * COLS + c] - v[r * COLS + c]) * x[t * COLS + c];
      sum += y * y;
    }
  return sum;
}

static void better_methods_lose_less(void **state) {
  (void)state;
  struct error err = {0};
  const float *w = data_of("w", "", "");
  const struct prune_rule rule = rule_named("2_4");
  float magnitude[ROWS * COLS], wanda[ROWS * COLS], updated[ROWS * COLS];
  struct mask_matrix m;
  must(prune_scored(&rule, "w", w, ROWS, COLS, NULL, &m, &err), err);
  mask_apply(&m, w, magnitude);
  mask_matrix_free(&m);
  must(prune_scored(&rule, "w", w, ROWS, COLS, norms, &m, &err), err);
  mask_apply(&m, w, wanda);
  mask_matrix_free(&m);
  load_weights(updated);
  must(prune_sparsegpt(&rule, "w", updated, ROWS, COLS, factor, BLOCK, &m, &err), err);
  mask_matrix_free(&m);
  assert_true(output_error(w, wanda) < output_error(w, magnitude));
  assert_true(output_error(w, updated) < 0.7 * output_error(w, wanda));
}

static void dense_tiles_keep_all_and_cost_nothing(void **state) {
  (void)state;
  struct error err = {0};
  static const uint8_t dense[9] = {1, 0, 1, 0, 0, 1, 0, 1, 0};
  struct prune_rule rule = rule_named("2_4");
  rule.dense_tiles = dense;
  float w[ROWS * COLS];
  struct mask_matrix m;
  load_weights(w);
  must(prune_sparsegpt(&rule, "w", w, ROWS, COLS, factor, BLOCK, &m, &err), err);
  for (int t = 0; t < 9; t++) {
    assert_int_equal(m.tiles[t], dense[t]);
    assert_true((m.tile_scores[t] == 0) == dense[t]);
  }
  int zeros = 0;
  for (int r = 0; r < 10; r++)
    for (int c = 0; c < 16; c++) zeros += w[r * COLS + c] == 0;
  assert_int_equal(zeros, 10); /* the dead column alone */
  mask_matrix_free(&m);
}

static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  struct error err = {0};
  float first[ROWS * COLS], again[ROWS * COLS];
  const struct prune_rule rule = rule_named("unstructured");
  for (int threads = 1; threads <= 4; threads++) {
    struct mask_matrix m;
    float *w = threads == 1 ? first : again;
    parallel_set_threads(threads);
    load_weights(w);
    must(prune_sparsegpt(&rule, "w", w, ROWS, COLS, factor, BLOCK, &m, &err), err);
    mask_matrix_free(&m);
    if (threads > 1) assert_memory_equal(first, again, sizeof first);
  }
  parallel_set_threads(0);
}

static void selection_is_exact(void **state) {
  (void)state;
  struct rng rng = rng_make(8, 0);
  for (int round = 0; round < 500; round++) {
    float scores[200];
    const int64_t count = 1 + (int64_t)rng_below(&rng, 200);
    for (int64_t i = 0; i < count; i++)
      scores[i] = round % 2 ? (float)rng_below(&rng, 5) : fabsf((float)rng_normal(&rng));
    if (round % 7 == 0) scores[0] = NAN;
    const int64_t drop = (int64_t)rng_below(&rng, (uint64_t)count + 1);
    const struct select_cut cut = select_smallest(scores, count, drop);
    int64_t ties = cut.ties, dropped = 0;
    uint32_t most_dropped = 0, least_kept = UINT32_MAX;
    for (int64_t i = 0; i < count; i++) {
      const uint32_t key = select_key(scores[i]);
      if (select_drops(&cut, scores[i], &ties)) {
        dropped++;
        if (key > most_dropped) most_dropped = key;
      } else if (key < least_kept) {
        least_kept = key;
      }
    }
    assert_int_equal(dropped, drop);
    assert_true(drop == 0 || most_dropped <= least_kept);
  }
}

static void counts_are_exact_at_ragged_sizes(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(9, 0);
  for (int round = 0; round < 60; round++) {
    const int64_t rows = 1 + (int64_t)rng_below(&rng, 20), cols = 1 + (int64_t)rng_below(&rng, 30);
    float w[20 * 30], u[30 * 30] = {0}, ones[30];
    fill_normal(w, (size_t)(rows * cols), (uint64_t)round, 1);
    for (int64_t i = 0; i < cols; i++) u[i * cols + i] = ones[i] = 1;
    const struct prune_rule share = {.pattern = PRUNE_UNSTRUCTURED, .sparsity = rng_uniform(&rng)};
    const int64_t kept = rows * cols - select_share(share.sparsity, 0, rows * cols);
    struct mask_matrix m;
    must(prune_scored(&share, "w", w, rows, cols, NULL, &m, &err), err);
    assert_int_equal(mask_kept(&m), kept);
    mask_matrix_free(&m);
    must(prune_scored(&share, "w", w, rows, cols, ones, &m, &err), err);
    assert_int_equal(mask_kept(&m), kept);
    mask_matrix_free(&m);
    must(prune_sparsegpt(&share, "w", w, rows, cols, u, 8, &m, &err), err);
    assert_int_equal(mask_kept(&m), kept);
    mask_matrix_free(&m);
    const struct prune_rule pair = {.pattern = PRUNE_2_4, .tile_rows = 8, .tile_cols = 8};
    must(prune_sparsegpt(&pair, "w", w, rows, cols, u, 8, &m, &err), err);
    assert_int_equal(mask_kept(&m), rows * (cols / 4 * 2 + (cols % 4 < 2 ? cols % 4 : 2)));
    for (int64_t r = 0; r < rows; r++)
      for (int64_t g = 0; g < mask_group_count(&m); g++)
        assert_true(sparse_code_fits(mask_code(&m, r, g), mask_group_width(&m, g)));
    mask_matrix_free(&m);
  }
}

/* Two equal features make H singular without damping; NaN weights stay where they are. */
static void singular_and_broken_are_not_fatal(void **state) {
  (void)state;
  struct error err = {0};
  struct moments m;
  struct factor_report report;
  float x[2 * 8], u[64], w[8] = {1, NAN, 2, 3, -0.0f, 0, 0, 0};
  must(moments_init(&m, 8, true, &err), err);
  for (int i = 0; i < 16; i++) x[i] = i < 8; /* H is all ones: exactly singular */
  moments_add(&m, x, 2);
  must(moments_factor(&m, 0, u, &report, &err), err);
  assert_true(report.retries > 0);
  assert_true(report.damping > 0);
  struct mask_matrix mask;
  const struct prune_rule rule = {.pattern = PRUNE_2_4, .tile_rows = 4, .tile_cols = 8};
  must(prune_sparsegpt(&rule, "w", w, 1, 8, u, 8, &mask, &err), err);
  assert_true(isnan(w[1]));
  assert_int_equal(mask_kept(&mask), 4);
  mask_matrix_free(&mask);
  x[3] = INFINITY;
  moments_add(&m, x, 2);
  assert_int_equal(moments_factor(&m, 0.01, u, &report, &err), STATUS_REFUSED);
  moments_free(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(factor_matches),
      cmocka_unit_test(wanda_matches),
      cmocka_unit_test(sparsegpt_matches),
      cmocka_unit_test(better_methods_lose_less),
      cmocka_unit_test(dense_tiles_keep_all_and_cost_nothing),
      cmocka_unit_test(same_bits_at_any_thread_count),
      cmocka_unit_test(selection_is_exact),
      cmocka_unit_test(counts_are_exact_at_ragged_sizes),
      cmocka_unit_test(singular_and_broken_are_not_fatal),
  };
  return cmocka_run_group_tests(tests, open_golden, close_golden);
}
