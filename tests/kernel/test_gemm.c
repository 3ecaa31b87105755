/* The products against fp64, under every instruction set: dtypes, transposes, ragged sizes, hybrid
 * weights, few tokens; and the same bits at any number of threads. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/gemm.h"
#include "kernel/linear.h"
#include "support/isa.h"

static void *must_alloc(size_t count, size_t size) {
  struct error err;
  void *p = mem_alloc(count, size, &err);
  assert_non_null(p);
  return p;
}

/* (stored rows, ld) of a dtype filled with values that it holds exactly; `value` gets them. */
static void *make_matrix(enum dtype dtype, size_t count, uint64_t seed, float *value) {
  fill_normal(value, count, seed, 1.0f);
  void *data = must_alloc(count, 4);
  dtype_from_f32(dtype, value, (int64_t)count, data);
  dtype_to_f32(dtype, data, (int64_t)count, value);
  return data;
}

static void check_gemm(int64_t m, int64_t n, int64_t k, bool ta, bool tb, enum dtype da,
                       enum dtype db, float alpha, float beta) {
  int64_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
  size_t size_a = (size_t)((ta ? k : m) * lda), size_b = (size_t)((tb ? n : k) * ldb);
  float *va = must_alloc(size_a + 1, 4), *vb = must_alloc(size_b + 1, 4);
  void *a = make_matrix(da, size_a, 1, va), *b = make_matrix(db, size_b, 2, vb);
  float *c = must_alloc((size_t)(m * ldc), 4), *before = must_alloc((size_t)(m * ldc), 4);
  fill_normal(before, (size_t)(m * ldc), 3, 1.0f);
  memcpy(c, before, (size_t)(m * ldc) * 4);
  gemm(m, n, k, alpha, (struct gemm_operand){a, da, lda, ta}, (struct gemm_operand){b, db, ldb, tb},
       beta, c, ldc);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < ldc; j++) {
      double sum = 0, size = 0;
      if (j >= n) { /* what lies between the rows is not touched */
        assert_true(c[i * ldc + j] == before[i * ldc + j]);
        continue;
      }
      for (int64_t p = 0; p < k; p++) {
        double term =
            (double)va[ta ? p * lda + i : i * lda + p] * vb[tb ? j * ldb + p : p * ldb + j];
        sum += term;
        size += fabs(term);
      }
      sum = alpha * sum + (beta != 0 ? before[i * ldc + j] : 0);
      size = fabs(alpha) * size + 1;
      if (!(fabs(sum - c[i * ldc + j]) <= 1e-6 * size))
        fail_msg("%s %ldx%ldx%ld: (%ld,%ld) is %g, not %g", kernel_table()->isa, (long)m, (long)n,
                 (long)k, (long)i, (long)j, c[i * ldc + j], sum);
    }
  void *all[] = {va, vb, a, b, c, before};
  for (int i = 0; i < 6; i++) mem_free(all[i]);
}

static void gemm_cases(void) {
  static const int64_t sizes[][3] = {{1, 1, 1},    {1, 40, 7},     {3, 33, 300},
                                     {13, 17, 5},  {12, 32, 64},   {25, 65, 31},
                                     {97, 50, 20}, {31, 200, 513}, {7, 8, 1700}};
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
    for (int t = 0; t < 4; t++)
      for (int d = 0; d < 3; d++)
        check_gemm(sizes[s][0], sizes[s][1], sizes[s][2], t & 1, t >> 1, dtypes[(d + t) % 3],
                   dtypes[d], t == 2 ? -0.5f : 1.0f, d == 1 ? 1.0f : 0.0f);
}
static void gemm_against_fp64(void **state) {
  (void)state;
  for_each_isa(gemm_cases);
}

/* Crosses every super-block boundary; too large for a naive reference, so a random column of C is
 * checked. */
static void large_case(void) {
  int64_t m = 1600, n = 1500, k = 1700;
  float *a = must_alloc((size_t)(m * k), 4), *b = must_alloc((size_t)(n * k), 4);
  float *c = must_alloc((size_t)(m * n), 4);
  for (int64_t i = 0; i < m * k; i++) a[i] = (float)(i * 7919 % 101 - 50) / 50;
  for (int64_t i = 0; i < n * k; i++) b[i] = (float)(i * 104729 % 97 - 48) / 48;
  gemm(m, n, k, 1, (struct gemm_operand){a, DTYPE_F32, k, false},
       (struct gemm_operand){b, DTYPE_F32, k, true}, 0, c, n);
  for (int64_t i = 0; i < m; i += 53)
    for (int64_t j = i % 7; j < n; j += 61) {
      double sum = 0;
      for (int64_t p = 0; p < k; p++) sum += (double)a[i * k + p] * b[j * k + p];
      assert_true(fabs(sum - c[i * n + j]) < 2e-3);
    }
  mem_free(a);
  mem_free(b);
  mem_free(c);
}
static void gemm_across_blocks(void **state) {
  (void)state;
  const char *best = kernel_table()->isa;
  large_case();
  kernel_table_use("avx2");
  if (strcmp(best, kernel_table()->isa)) large_case();
  kernel_table_use(best);
}

/* --- the products of a linear layer --- */

struct layer {
  int64_t rows, cols;
  float *value; /* (rows, cols) */
  struct linear_weight weight;
  struct hybrid_matrix hybrid;
  void *data[4];
};

static struct layer *layer_dense(int64_t rows, int64_t cols, enum dtype dtype) {
  struct layer *l = calloc(1, sizeof *l);
  l->rows = rows;
  l->cols = cols;
  l->value = must_alloc((size_t)(rows * cols), 4);
  l->data[0] = make_matrix(dtype, (size_t)(rows * cols), 5, l->value);
  l->weight.dense = (struct matrix_view){l->data[0], dtype, rows, cols};
  return l;
}

static struct layer *layer_hybrid(int64_t rows, int64_t cols, int64_t tile_rows, int64_t tile_cols,
                                  enum dtype dtype) {
  struct error err;
  struct mask_matrix mask;
  struct layer *l = layer_dense(rows, cols, dtype);
  must(mask_matrix_init_hybrid(&mask, "w", rows, cols, tile_rows, tile_cols, &err), err);
  struct rng rng = rng_make(9, 9);
  for (int64_t t = 0; t < mask_tile_count(&mask); t++) mask.tiles[t] = rng_next(&rng) % 3 == 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < mask_group_count(&mask); g++) {
      uint8_t code;
      do code = sparse_candidate_code[rng_below(&rng, 6)];
      while (!sparse_code_fits(code, mask_group_width(&mask, g)));
      mask_set_code(&mask, r, g, code);
    }
  mask_apply(&mask, l->value, l->value);
  struct hybrid_sizes sizes;
  uint8_t *map = must_alloc((size_t)(mask_tile_count(&mask) + 7) / 8, 1);
  for (int64_t t = 0; t < mask_tile_count(&mask); t++)
    if (mask.tiles[t]) map[t / 8] |= (uint8_t)(1 << t % 8);
  must(hybrid_measure(rows, cols, tile_rows, tile_cols, dtype, map, &sizes, &err), err);
  l->data[1] = must_alloc(sizes.dense_bytes, 1);
  l->data[2] = must_alloc(sizes.values_bytes, 1);
  l->data[3] = must_alloc(sizes.codes_bytes, 1);
  hybrid_pack(&mask, l->value, dtype, map, l->data[1], l->data[2], l->data[3]);
  l->hybrid = (struct hybrid_matrix){rows,       cols,       tile_rows,  tile_cols, dtype, map,
                                     l->data[1], l->data[2], l->data[3], NULL,      NULL};
  must(hybrid_index(&l->hybrid, &err), err);
  l->weight.hybrid = &l->hybrid;
  mask_matrix_free(&mask);
  return l;
}

static void layer_free(struct layer *l) {
  if (l->weight.hybrid) {
    mem_free((void *)l->hybrid.tile_map);
    hybrid_release(&l->hybrid);
  }
  for (int i = 0; i < 4; i++) mem_free(l->data[i]);
  mem_free(l->value);
  free(l);
}

static void assert_close(const char *what, const float *got, const double *want, size_t count,
                         double tolerance) {
  for (size_t i = 0; i < count; i++)
    if (!(fabs(got[i] - want[i]) <= tolerance * (1 + fabs(want[i]))))
      fail_msg("%s %s: element %zu is %.9g, not %.9g", kernel_table()->isa, what, i, got[i],
               want[i]);
}

static void check_layer(struct layer *l, int64_t tokens) {
  int64_t rows = l->rows, cols = l->cols;
  float *x = must_alloc((size_t)(tokens * cols), 4), *dy = must_alloc((size_t)(tokens * rows), 4);
  float *y = must_alloc((size_t)(tokens * rows), 4), *dx = must_alloc((size_t)(tokens * cols), 4);
  float *bias = must_alloc((size_t)rows, 4), *row = must_alloc((size_t)cols, 4);
  double *want_y = must_alloc((size_t)(tokens * rows), 8);
  double *want_dx = must_alloc((size_t)(tokens * cols), 8);
  fill_normal(x, (size_t)(tokens * cols), 11, 1);
  fill_normal(dy, (size_t)(tokens * rows), 12, 1);
  fill_normal(dx, (size_t)(tokens * cols), 13, 1);
  fill_normal(bias, (size_t)rows, 14, 1);
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t c = 0; c < cols; c++) want_dx[t * cols + c] = dx[t * cols + c];
    for (int64_t r = 0; r < rows; r++) {
      double sum = bias[r];
      for (int64_t c = 0; c < cols; c++) {
        sum += (double)x[t * cols + c] * l->value[r * cols + c];
        want_dx[t * cols + c] += (double)dy[t * rows + r] * l->value[r * cols + c];
      }
      want_y[t * rows + r] = sum;
    }
  }
  linear_forward(&l->weight, bias, x, tokens, PRECISION_FP32, y);
  assert_close("y", y, want_y, (size_t)(tokens * rows), 2e-5);
  linear_backward_input(&l->weight, dy, tokens, PRECISION_FP32, dx, true);
  assert_close("dx", dx, want_dx, (size_t)(tokens * cols), 2e-5);
  for (int64_t r = 0; r < rows; r += 7) {
    linear_row(&l->weight, r, row);
    for (int64_t c = 0; c < cols; c++) assert_true(row[c] == l->value[r * cols + c]);
  }
  void *all[] = {x, dy, y, dx, bias, row, want_y, want_dx};
  for (int i = 0; i < 8; i++) mem_free(all[i]);
}

static void layer_cases(void) {
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  static const int64_t shapes[][4] = {{150, 200, 128, 128}, {37, 45, 8, 12}, {70, 130, 64, 64},
                                      {33, 19, 128, 128},   {40, 64, 16, 4}, {20, 300, 128, 128}};
  for (int d = 0; d < 3; d++)
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
      for (int hybrid = 0; hybrid < 2; hybrid++) {
        const int64_t *z = shapes[s];
        struct layer *l = hybrid ? layer_hybrid(z[0], z[1], z[2], z[3], dtypes[d])
                                 : layer_dense(z[0], z[1], dtypes[d]);
        static const int64_t tokens[] = {1, 2, 3, 5, 8, 9, 30};
        for (int t = 0; t < 7; t++) check_layer(l, tokens[t]);
        layer_free(l);
      }
}
static void linear_against_fp64(void **state) {
  (void)state;
  for_each_isa(layer_cases);
}

static void weight_gradient_case(void) {
  int64_t tokens = 70, rows = 45, cols = 51;
  float *x = must_alloc((size_t)(tokens * cols), 4), *dy = must_alloc((size_t)(tokens * rows), 4);
  float *dw = must_alloc((size_t)(rows * cols), 4);
  fill_normal(x, (size_t)(tokens * cols), 1, 1);
  fill_normal(dy, (size_t)(tokens * rows), 2, 1);
  for (int pass = 1; pass <= 2; pass++) {
    linear_backward_weight(dy, x, tokens, rows, cols, PRECISION_FP32, dw, pass == 2);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < cols; c++) {
        double sum = 0;
        for (int64_t t = 0; t < tokens; t++) sum += (double)dy[t * rows + r] * x[t * cols + c];
        assert_true(fabs(dw[r * cols + c] - pass * sum) < 1e-4);
      }
  }
  mem_free(x);
  mem_free(dy);
  mem_free(dw);
}
static void weight_gradient(void **state) {
  (void)state;
  for_each_isa(weight_gradient_case);
}

/* Everything once more at 1, 2 and 3 threads: the same bits. */
static void thread_case(void) {
  int64_t tokens = 130, rows = 300, cols = 260;
  struct layer *dense = layer_dense(rows, cols, DTYPE_BF16);
  struct layer *hybrid = layer_hybrid(rows, cols, 128, 128, DTYPE_BF16);
  float *x = must_alloc((size_t)(tokens * cols), 4), *y = must_alloc((size_t)(tokens * rows), 4);
  float *dx = must_alloc((size_t)(tokens * cols), 4), *dw = must_alloc((size_t)(rows * cols), 4);
  float *first = NULL;
  size_t part[6] = {(size_t)(tokens * rows), (size_t)(tokens * rows), (size_t)(3 * rows),
                    (size_t)(3 * rows),      (size_t)(tokens * cols), (size_t)(rows * cols)};
  size_t total = 0;
  for (int i = 0; i < 6; i++) total += part[i];
  fill_normal(x, (size_t)(tokens * cols), 3, 1);
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    float *all = must_alloc(total, 4), *at = all;
    linear_forward(&dense->weight, NULL, x, tokens, PRECISION_FP32, y);
    memcpy(at, y, part[0] * 4), at += part[0];
    linear_backward_input(&dense->weight, y, tokens, PRECISION_FP32, dx, false);
    linear_backward_weight(y, x, tokens, rows, cols, PRECISION_FP32, dw, false);
    linear_forward(&hybrid->weight, NULL, x, tokens, PRECISION_FP32, y);
    memcpy(at, y, part[1] * 4), at += part[1];
    linear_forward(&dense->weight, NULL, x, 3, PRECISION_FP32, at), at += part[2];
    linear_forward(&hybrid->weight, NULL, x, 3, PRECISION_FP32, at), at += part[3];
    memcpy(at, dx, part[4] * 4), at += part[4];
    memcpy(at, dw, part[5] * 4);
    if (first) {
      assert_memory_equal(first, all, total * 4);
      mem_free(all);
    } else {
      first = all;
    }
  }
  mem_free(first);
  mem_free(x);
  mem_free(y);
  mem_free(dx);
  mem_free(dw);
  layer_free(dense);
  layer_free(hybrid);
  parallel_set_threads(0);
}
static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(thread_case);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gemm_against_fp64),
      cmocka_unit_test(gemm_across_blocks),
      cmocka_unit_test(linear_against_fp64),
      cmocka_unit_test(weight_gradient),
      cmocka_unit_test(same_bits_at_any_thread_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
