/* Products with strips against fp64, under every instruction set: ragged sizes, tiles of every
 * kind, any number of tokens, and the same bits whatever the number of threads. Weights are 16-bit
 * and products exact, so that only the fp32 sums round: 2e-5 of 1 + |y| is asked for. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/linear.h"
#include "support/hybrids.h"
#include "support/isa.h"

enum { TOKENS_MOST = 70, ROWS_MOST = 300, COLS_MOST = 300 };
static const double TOLERANCE = 2e-5;
static const int64_t token_counts[] = {1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 33, 64, TOKENS_MOST};
static float weights[ROWS_MOST * COLS_MOST], x[TOKENS_MOST * COLS_MOST], y[TOKENS_MOST * ROWS_MOST];
static float bias[ROWS_MOST], dx[TOKENS_MOST * COLS_MOST];
static double want[TOKENS_MOST * COLS_MOST];

static void assert_close(const char *what, const float *got, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!(fabs(got[i] - want[i]) <= TOLERANCE * (1 + fabs(want[i]))))
      fail_msg("%s %s: element %d is %.9g, not %.9g", kernel_table()->isa, what, (int)i, got[i],
               want[i]);
}

static void check_forward(const struct linear_weight *w, int64_t tokens) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double sum = bias[r];
      for (int64_t c = 0; c < cols; c++) sum += (double)weights[r * cols + c] * x[t * cols + c];
      want[t * rows + r] = sum;
    }
  memset(y, 0xff, sizeof y);
  linear_forward(w, bias, x, tokens, PRECISION_FP32, y);
  assert_close("y", y, tokens * rows);
  for (int64_t i = tokens * rows; i < TOKENS_MOST * ROWS_MOST; i++) assert_true(isnan(y[i]));
}

/* With PRECISION_BF16 batches may round x, each product by at most 2^-8 of itself. */
static void check_rounded(const struct linear_weight *w, int64_t tokens) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  linear_forward(w, NULL, x, tokens, PRECISION_BF16, y);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double sum = 0, most = 0;
      for (int64_t c = 0; c < cols; c++) {
        const double product = (double)weights[r * cols + c] * x[t * cols + c];
        sum += product;
        most += fabs(product);
      }
      assert_true(fabs(y[t * rows + r] - sum) <= most / 256 + TOLERANCE);
    }
}

static void check_backward(const struct linear_weight *w, int64_t tokens) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t c = 0; c < cols; c++) {
      double sum = 0;
      for (int64_t r = 0; r < rows; r++) sum += (double)weights[r * cols + c] * x[t * rows + r];
      want[t * cols + c] = sum;
    }
  linear_backward_input(w, x, tokens, PRECISION_FP32, dx, false);
  assert_close("dx", dx, tokens * cols);
}

/* Both operands rounded to bf16. */
static void check_bf16(const struct linear_weight *w) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  memset(want, 0, sizeof want);
  for (int64_t t = 0; t < TOKENS_MOST; t++)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < cols; c++)
        want[t * rows + r] += (double)bf16_to_f32(bf16_from_f32(weights[r * cols + c])) *
                              bf16_to_f32(bf16_from_f32(x[t * cols + c]));
  linear_forward(w, NULL, x, TOKENS_MOST, PRECISION_BF16, y);
  assert_close("y in bf16", y, TOKENS_MOST * rows);
  memset(want, 0, sizeof want);
  for (int64_t t = 0; t < TOKENS_MOST; t++)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < cols; c++)
        want[t * cols + c] += (double)bf16_to_f32(bf16_from_f32(weights[r * cols + c])) *
                              bf16_to_f32(bf16_from_f32(x[t * rows + r]));
  linear_backward_input(w, x, TOKENS_MOST, PRECISION_BF16, dx, false);
  assert_close("dx in bf16", dx, TOKENS_MOST * cols);
}

static void check(const struct strip_matrix *s) {
  const struct linear_weight w = {.strips = s};
  for (int64_t r = 0; r < s->rows; r++) linear_row(&w, r, weights + r * s->cols);
  for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++)
    check_forward(&w, token_counts[i]);
  static const int64_t rounded[] = {5, 11, 20, 40,
                                    64}; /* a part of a tile, one, two, three, four */
  for (size_t i = 0; i < sizeof rounded / sizeof *rounded; i++) check_rounded(&w, rounded[i]);
  check_backward(&w, 5);
  check_bf16(&w);
}

static void every_matrix(void) {
  static const int64_t shapes[][3] = {{150, 200, 128}, {37, 45, 8},   {70, 130, 64},
                                      {33, 19, 128},   {1, 3, 8},     {300, 290, 128},
                                      {48, 96, 32},    {130, 257, 16}};
  static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16};
  struct error err = {0};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    for (int d = 0; d < 2; d++) {
      struct hybrid_case c;
      struct strip_matrix s;
      hybrid_case_make(&c, shapes[i][0], shapes[i][1], shapes[i][2], 0.4, dtypes[d], i + 1);
      if (i == 5) memset(c.values, 0, 4096); /* strips with nothing in a tile */
      must(strips_from_hybrid(&s, &c.h, &err), err);
      check(&s);
      strips_release(&s);
      hybrid_case_free(&c);
    }
  uint16_t *dense = mem_alloc(100 * 77, 2, &err);
  dtype_from_f32(DTYPE_BF16, x, 100 * 77, dense);
  const struct matrix_view view = {dense, DTYPE_BF16, 100, 77};
  struct strip_matrix s;
  must(strips_from_dense(&s, &view, &err), err);
  check(&s);
  strips_release(&s);
  mem_free(dense);
}

static void products_against_fp64(void **state) {
  (void)state;
  fill_normal(x, sizeof x / sizeof *x, 1, 1);
  fill_normal(bias, ROWS_MOST, 2, 1);
  for_each_isa(every_matrix);
}

static void every_thread_count(void) {
  struct error err = {0};
  struct hybrid_case c;
  struct strip_matrix s;
  static float first[TOKENS_MOST * ROWS_MOST];
  hybrid_case_make(&c, 300, 290, 16, 0.4, DTYPE_BF16, 9); /* neighbours differ in kind */
  must(strips_from_hybrid(&s, &c.h, &err), err);
  const struct linear_weight w = {.strips = &s};
  static const int64_t counts[] = {1, 7, 40};
  for (int i = 0; i < 3; i++)
    for (int threads = 1; threads <= 5; threads++) {
      const size_t bytes = (size_t)(counts[i] * 300) * sizeof(float);
      parallel_set_threads(threads);
      linear_forward(&w, NULL, x, counts[i], PRECISION_FP32, threads == 1 ? first : y);
      if (threads > 1) assert_memory_equal(first, y, bytes);
    }
  parallel_set_threads(0);
  strips_release(&s);
  hybrid_case_free(&c);
}

static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(every_thread_count);
}

/* Several matrices in one section, odd numbers of strips among them. */
static void several_matrices(void) {
  static const int64_t rows[] = {37, 150, 16}, counts[] = {1, 3, 6, 40, TOKENS_MOST};
  static float one[TOKENS_MOST * ROWS_MOST], out[3][TOKENS_MOST * ROWS_MOST];
  struct error err = {0};
  struct hybrid_case c[3];
  struct strip_matrix s[3];
  struct linear_weight w[3];
  struct linear_output outputs[3];
  for (int i = 0; i < 3; i++) {
    hybrid_case_make(&c[i], rows[i], 130, 16, 0.4, DTYPE_BF16, (uint64_t)i);
    must(strips_from_hybrid(&s[i], &c[i].h, &err), err);
    w[i] = (struct linear_weight){.strips = &s[i]};
    outputs[i] = (struct linear_output){&w[i], i ? bias : NULL, out[i]};
  }
  for (size_t k = 0; k < sizeof counts / sizeof *counts; k++)
    for (int threads = 1; threads <= 2; threads++) {
      parallel_set_threads(threads);
      linear_forward_many(outputs, 3, x, counts[k], PRECISION_FP32);
      for (int i = 0; i < 3; i++) {
        linear_forward(&w[i], outputs[i].bias, x, counts[k], PRECISION_FP32, one);
        assert_memory_equal(one, out[i], (size_t)(counts[k] * rows[i]) * sizeof *one);
      }
    }
  parallel_set_threads(0);
  for (int i = 0; i < 3; i++) {
    strips_release(&s[i]);
    hybrid_case_free(&c[i]);
  }
}

static void several_at_once_give_the_same_bits(void **state) {
  (void)state;
  for_each_isa(several_matrices);
}

static void every_read(void) {
  uint8_t *bytes = (uint8_t *)weights;
  for (size_t count = 0; count < 3000; count += count < 70 ? 1 : 77)
    for (int streams = 1; streams <= 4; streams *= 2) {
      uint32_t sum = 0;
      for (size_t i = 0; i < count; i++) sum += (uint32_t)bytes[i + 3] << 8 * (i % 4);
      assert_int_equal(kernel_table()->sum_words(bytes + 3, count, streams), sum);
    }
}

static void a_plain_read_loads_every_byte(void **state) {
  (void)state;
  fill_normal(weights, 1000, 3, 1);
  for_each_isa(every_read);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_plain_read_loads_every_byte),
                                     cmocka_unit_test(products_against_fp64),
                                     cmocka_unit_test(same_bits_at_any_thread_count),
                                     cmocka_unit_test(several_at_once_give_the_same_bits)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
