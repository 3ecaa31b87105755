/* Soft masks of any n:m: against PyTorch's autograd in fp64, against the 2:4 path, and against
 * finite differences at ragged sizes; AdamW and hardening against their definitions; the same bits
 * at any number of threads. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "base/rng.h"
#include "io/json.h"
#include "kernel/pattern_ops.h"
#include "support/support.h"

static struct error err;

static void tables_are_whole(void **state) {
  static const int patterns[][3] = {{1, 2, 2},  {1, 4, 4},  {2, 4, 6},  {3, 4, 4},
                                    {3, 5, 10}, {4, 8, 70}, {6, 8, 28}, {1, 16, 16}};
  struct mask_pattern p;
  for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
    assert_true(mask_pattern_make(&p, patterns[i][0], patterns[i][1]));
    assert_int_equal(p.count, patterns[i][2]);
    for (int k = 0; k < p.count; k++) {
      assert_int_equal(__builtin_popcount(p.kept[k]), p.keep);
      assert_int_equal(p.kept[k] >> p.of, 0);
      for (int j = 0; j < k; j++) assert_true(p.kept[j] != p.kept[k]);
    }
  }
  assert_true(mask_pattern_make(&p, 2, 4));
  for (int k = 0; k < p.count; k++)
    for (int c = 0; c < 4; c++) assert_int_equal(p.kept[k] >> c & 1, sparse_candidate_table[k][c]);
  assert_false(mask_pattern_make(&p, 5, 10)); /* 252 candidates */
  assert_false(mask_pattern_make(&p, 1, 17));
  assert_false(mask_pattern_make(&p, 4, 4));
}

/* --- golden values --- */

static float *floats(const json_t *o, const char *key) {
  const json_t *list = json_object_get(o, key);
  float *out = calloc(json_array_size(list) + 1, sizeof *out);
  for (size_t i = 0; i < json_array_size(list); i++)
    out[i] = (float)json_number_value(json_array_get(list, i));
  return out;
}

static int64_t integer(const json_t *o, const char *key) {
  return (int64_t)json_integer_value(json_object_get(o, key));
}

static void check_golden(const json_t *file, const json_t *o) {
  struct mask_pattern p;
  assert_true(mask_pattern_make(&p, (int)integer(o, "keep"), (int)integer(o, "of")));
  const int64_t rows = integer(o, "rows"), cols = integer(o, "cols");
  const size_t count = (size_t)pattern_logit_count(&p, rows, cols), n = (size_t)(rows * cols);
  const size_t tiles = json_array_size(json_object_get(o, "tiles"));
  float *logits = floats(o, "logits"), *w = floats(o, "w"), *g = floats(o, "g");
  float *soft = floats(o, "tiles"), *want = floats(o, "out"), *want_d = floats(o, "dlogits");
  float *want_t = floats(o, "dtiles"), *got_t = calloc(tiles, sizeof *got_t);
  float *out = calloc(n, sizeof *out), *again = calloc(n, sizeof *again);
  float *d = calloc(count, sizeof *d);
  double *dtile = calloc(tiles, sizeof *dtile), squares = 0;
  const json_t *key = json_object_get(file, "key");
  const struct pattern_source s = {
      .pattern = &p,
      .rows = rows,
      .cols = cols,
      .tile_rows = integer(o, "tile_rows"),
      .tile_cols = integer(o, "tile_cols"),
      .logits = logits,
      .tile_soft = soft,
      .kappa = (float)json_number_value(json_object_get(file, "kappa")),
      .tau = (float)json_number_value(json_object_get(file, "tau")),
      .noise = true,
      .key = {(uint32_t)json_integer_value(json_array_get(key, 0)),
              (uint32_t)json_integer_value(json_array_get(key, 1))},
      .tensor = (uint32_t)integer(file, "tensor"),
      .draw = (uint32_t)integer(file, "draw")};
  const struct matrix_view view = {w, DTYPE_F32, rows, cols};
  const double sum = pattern_sample(&s, view, DTYPE_F32, out);
  for (size_t i = 0; i < n; i++) squares += (double)want[i] * want[i];
  assert_true(relative_error(out, want, n) < 1e-5);
  assert_true(fabs(sum - squares) < 1e-4 * squares);
  const float decay = (float)json_number_value(json_object_get(file, "decay"));
  pattern_backward(&s, view, g, decay, false, d, dtile, DTYPE_F32, again);
  assert_memory_equal(out, again, n * sizeof *out);
  for (size_t i = 0; i < tiles; i++) got_t[i] = (float)dtile[i];
  assert_true(relative_error(d, want_d, count) < 1e-4);
  assert_true(relative_error(got_t, want_t, tiles) < 1e-4);
  pattern_backward(&s, view, g, decay, true, d, dtile, DTYPE_F32, NULL);
  for (size_t i = 0; i < tiles; i++) got_t[i] = (float)dtile[i] / 2;
  for (size_t i = 0; i < count; i++) d[i] /= 2;
  assert_true(relative_error(d, want_d, count) < 1e-4);
  assert_true(relative_error(got_t, want_t, tiles) < 1e-4);
  void *all[] = {logits, w, g, soft, want, want_d, want_t, got_t, out, again, d, dtile};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void matches_pytorch(void **state) {
  (void)state;
  json_t *file = json_read_file(golden("pattern.json"), 1 << 20, &err), *o;
  size_t i;
  assert_non_null(file);
  assert_int_equal(json_array_size(json_object_get(file, "cases")), 4);
  json_array_foreach(json_object_get(file, "cases"), i, o) check_golden(file, o);
  json_decref(file);
}

/* --- the 2:4 path, and differences --- */

struct problem {
  struct mask_pattern pattern;
  struct pattern_source s;
  float *logits, *tile_soft, *w, *dw, *out, *dlogits;
  double *dtile;
  size_t count, tiles, n;
};

static struct problem *problem_make(int keep, int of, int64_t rows, int64_t cols, int64_t tile) {
  struct problem *p = calloc(1, sizeof *p);
  assert_true(mask_pattern_make(&p->pattern, keep, of));
  p->count = (size_t)pattern_logit_count(&p->pattern, rows, cols);
  p->n = (size_t)(rows * cols);
  p->tiles = (size_t)(((rows + tile - 1) / tile) * ((cols + tile - 1) / tile));
  p->logits = calloc(p->count, 4), p->dlogits = calloc(p->count, 4);
  p->w = calloc(p->n, 4), p->dw = calloc(p->n, 4), p->out = calloc(p->n, 4);
  p->tile_soft = calloc(p->tiles, 4), p->dtile = calloc(p->tiles, 8);
  fill_normal(p->logits, p->count, 1, 0.02f);
  fill_normal(p->w, p->n, 2, 1);
  fill_normal(p->dw, p->n, 3, 1);
  struct rng rng = rng_make(4, 1);
  for (size_t i = 0; i < p->tiles; i++) p->tile_soft[i] = (float)rng_uniform(&rng);
  p->s = (struct pattern_source){.pattern = &p->pattern,
                                 .rows = rows,
                                 .cols = cols,
                                 .tile_rows = tile,
                                 .tile_cols = tile,
                                 .logits = p->logits,
                                 .tile_soft = p->tile_soft,
                                 .kappa = 60,
                                 .tau = 1.5f,
                                 .noise = true,
                                 .key = {3, 4},
                                 .tensor = 9,
                                 .draw = 2};
  return p;
}

static void problem_free(struct problem *p) {
  void *all[] = {p->logits, p->dlogits, p->w, p->dw, p->out, p->tile_soft, p->dtile, p};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static struct matrix_view view_of(const struct problem *p) {
  return (struct matrix_view){p->w, DTYPE_F32, p->s.rows, p->s.cols};
}

/* With 2:4 this is mask_ops.h: the same noise, masks and gradients, five of six. */
static void pairs_are_the_other_path(void **state) {
  (void)state;
  const int64_t rows = 37, cols = 54;
  struct problem *p = problem_make(2, 4, rows, cols, 16);
  const size_t five = (size_t)mask_logit_count(rows, cols);
  float *logits = calloc(five, 4), *d = calloc(five, 4), *out = calloc(p->n, 4);
  double *dtile = calloc(p->tiles, 8);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < mask_row_groups(cols); g++)
      for (int k = 0; k < 5; k++) {
        const float *six = p->logits + (r * mask_row_groups(cols) + g) * 6;
        logits[mask_logit_index(cols, r, g, k)] = six[k] - six[5];
      }
  const struct mask_source s = {.rows = rows,
                                .cols = cols,
                                .tile_rows = 16,
                                .tile_cols = 16,
                                .logits = logits,
                                .tile_soft = p->tile_soft,
                                .kappa = 60,
                                .tau = 1.5f,
                                .noise = true,
                                .key = {3, 4},
                                .tensor = 9,
                                .draw = 2};
  mask_sample(&s, view_of(p), DTYPE_F32, out);
  mask_backward(&s, view_of(p), p->dw, 0.3f, false, d, dtile, DTYPE_F32, NULL);
  pattern_sample(&p->s, view_of(p), DTYPE_F32, p->out);
  pattern_backward(&p->s, view_of(p), p->dw, 0.3f, false, p->dlogits, p->dtile, DTYPE_F32, NULL);
  assert_true(relative_error(p->out, out, p->n) < 1e-4);
  for (size_t i = 0; i < p->tiles; i++)
    assert_true(fabs(p->dtile[i] - dtile[i]) < 1e-3 * (1 + fabs(dtile[i])));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < mask_row_groups(cols); g++)
      for (int k = 0; k < 5; k++) {
        const float want = d[mask_logit_index(cols, r, g, k)];
        const float got = p->dlogits[(r * mask_row_groups(cols) + g) * 6 + k];
        assert_true(fabsf(got - want) < 1e-3f * (1 + fabsf(want)));
      }
  free(logits), free(d), free(out), free(dtile);
  problem_free(p);
}

/* sum(dw * out) + decay / 2 * sum(out^2) */
static double objective(struct problem *p, double decay) {
  double loss = decay / 2 * pattern_sample(&p->s, view_of(p), DTYPE_F32, p->out);
  for (size_t i = 0; i < p->n; i++) loss += (double)p->dw[i] * p->out[i];
  return loss;
}

/* The derivative along the gradient of `x` (count), by differences. */
static void check_differences(struct problem *p, float *x, const double *gradient, size_t count,
                              double step) {
  double squares = 0, high, low;
  float *kept = calloc(count, 4);
  memcpy(kept, x, count * 4);
  for (size_t i = 0; i < count; i++) squares += gradient[i] * gradient[i];
  const double norm = sqrt(squares);
  assert_true(norm > 0.1);
  for (size_t i = 0; i < count; i++) x[i] = (float)(kept[i] + step * gradient[i] / norm);
  high = objective(p, 0.3);
  for (size_t i = 0; i < count; i++) x[i] = (float)(kept[i] - step * gradient[i] / norm);
  low = objective(p, 0.3);
  memcpy(x, kept, count * 4);
  if (fabs((high - low) / (2 * step) - norm) > 0.01 * norm)
    fail_msg("%d:%d: derivative %g, by differences %g", p->pattern.keep, p->pattern.of, norm,
             (high - low) / (2 * step));
  free(kept);
}

static void gradients_match_differences(void **state) {
  (void)state;
  static const int patterns[][2] = {{1, 4}, {3, 4}, {3, 5}, {4, 8}, {1, 16}};
  for (int i = 0; i < 5; i++) {
    struct problem *p = problem_make(patterns[i][0], patterns[i][1], 9, 83, 4 * patterns[i][1]);
    double *gradient = calloc(p->count, sizeof *gradient);
    pattern_backward(&p->s, view_of(p), p->dw, 0.3f, false, p->dlogits, p->dtile, DTYPE_F32, NULL);
    for (size_t k = 0; k < p->count; k++) gradient[k] = p->dlogits[k];
    check_differences(p, p->logits, gradient, p->count, 5e-3);
    check_differences(p, p->tile_soft, p->dtile, p->tiles, 1e-2);
    free(gradient);
    problem_free(p);
  }
}

/* --- hard masks --- */

static void hard_masks_obey_the_pattern(void **state) {
  (void)state;
  static const int patterns[][2] = {{1, 4}, {4, 8}, {3, 5}, {5, 6}};
  for (int i = 0; i < 4; i++)
    for (int64_t cols = 61; cols < 68; cols++) {
      struct problem *p =
          problem_make(patterns[i][0], patterns[i][1], 40, cols, 4 * patterns[i][1]);
      const int of = p->pattern.of;
      struct mask_matrix m;
      must(mask_matrix_init_tiled(&m, "w", 40, cols, 4 * of, 4 * of, p->pattern.keep, of, &err),
           err);
      const int64_t groups = pattern_groups(&p->pattern, cols);
      assert_true(pattern_harden(&p->pattern, p->logits, 40, cols, m.bits) > 0);
      must(mask_check_groups(&m, p->pattern.keep, of, &err), err);
      assert_int_equal(pattern_harden(&p->pattern, p->logits, 40, cols, m.bits), 0);
      for (int64_t g = 0; g + 1 < groups; g++) { /* of row 3: what the largest logit keeps */
        const float *logits = p->logits + (3 * groups + g) * p->pattern.count;
        int best = 0;
        for (int k = 1; k < p->pattern.count; k++)
          if (logits[k] > logits[best]) best = k;
        for (int c = 0; c < of; c++)
          assert_int_equal(mask_bit(&m, 3, g * of + c), p->pattern.kept[best] >> c & 1);
      }
      m.tiles[0] = 1;
      float *applied = calloc(p->n, 4);
      mask_apply(&m, p->w, applied);
      pattern_keep(&m, view_of(p), p->out);
      assert_memory_equal(applied, p->out, p->n * 4);
      /* fixed bits are the limit of sharp logits */
      p->s.bits = m.bits;
      p->s.logits = NULL;
      p->s.tile_soft = NULL;
      pattern_sample(&p->s, view_of(p), DTYPE_F32, applied);
      m.tiles[0] = 0;
      mask_apply(&m, p->w, p->out);
      for (size_t k = 0; k < p->n; k++) assert_true(applied[k] == p->out[k]);
      free(applied);
      mask_matrix_free(&m);
      problem_free(p);
    }
}

static void adamw_is_adamw(void **state) {
  (void)state;
  struct problem *p = problem_make(3, 4, 35, 18, 16);
  const struct mask_adamw a = {.rate = 0.01f,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .epsilon = 1e-8f,
                               .weight_decay = 0.1f,
                               .gradient_scale = 0.5f,
                               .step = 1};
  float *first = calloc(p->count, 4), *second = calloc(p->count, 4), *g = calloc(p->count, 4);
  uint8_t *bits = calloc(35 * 3, 1);
  fill_normal(g, p->count, 8, 1);
  float *logits = calloc(p->count, 4);
  memcpy(logits, p->logits, p->count * 4);
  pattern_adamw_step(&p->pattern, &a, 35, 18, g, p->logits, first, second, bits);
  for (size_t i = 0; i < p->count; i++) { /* in the first step m^ / sqrt(v^) is the sign */
    const float want = (1 - 0.001f) * logits[i] - 0.01f * (g[i] > 0 ? 1 : -1);
    assert_true(fabsf(p->logits[i] - want) < 1e-5f);
    assert_true(fabsf(first[i] - 0.05f * g[i]) < 1e-6f);
  }
  assert_int_equal(pattern_harden(&p->pattern, p->logits, 35, 18, bits), 0);
  free(first), free(second), free(g), free(bits), free(logits);
  problem_free(p);
}

static void threads_do_not_show(void **state) {
  (void)state;
  struct problem *p = problem_make(4, 8, 70, 100, 40), *q = problem_make(4, 8, 70, 100, 40);
  parallel_set_threads(1);
  const double one = pattern_sample(&p->s, view_of(p), DTYPE_BF16, p->out);
  pattern_backward(&p->s, view_of(p), p->dw, 0.3f, false, p->dlogits, p->dtile, DTYPE_BF16, NULL);
  parallel_set_threads(3);
  assert_true(one == pattern_sample(&q->s, view_of(q), DTYPE_BF16, q->out));
  pattern_backward(&q->s, view_of(q), q->dw, 0.3f, false, q->dlogits, q->dtile, DTYPE_BF16, NULL);
  parallel_set_threads(0);
  assert_memory_equal(p->out, q->out, p->n * 2);
  assert_memory_equal(p->dlogits, q->dlogits, p->count * 4);
  assert_memory_equal(p->dtile, q->dtile, p->tiles * 8);
  problem_free(p);
  problem_free(q);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tables_are_whole),
      cmocka_unit_test(matches_pytorch),
      cmocka_unit_test(pairs_are_the_other_path),
      cmocka_unit_test(gradients_match_differences),
      cmocka_unit_test(hard_masks_obey_the_pattern),
      cmocka_unit_test(adamw_is_adamw),
      cmocka_unit_test(threads_do_not_show),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
