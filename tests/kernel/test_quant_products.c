/* Products with quantized strips under every instruction set: ragged sizes, tiles of every kind,
 * any number of tokens, the same bits whatever the number of threads. Two things are asked: that
 * activations are rounded to the integers that linear.h says and only fp32 sums round after that
 * (2e-5 of 1 + |y| against fp64), and that the product with activations as they are is not further
 * away than linear.h promises. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/linear.h"
#include "kernel/quant_x.h"
#include "support/isa.h"
#include "support/quants.h"

enum { TOKENS_MOST = 200, PROMPT = 65, ROWS_MOST = 150, COLS_MOST = 300 };
static const double TOLERANCE = 2e-5;
static const int64_t token_counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 33, 64};
static float weights[ROWS_MOST * COLS_MOST], x[TOKENS_MOST * COLS_MOST], y[TOKENS_MOST * ROWS_MOST];
static float rounded[TOKENS_MOST * COLS_MOST], bias[ROWS_MOST], dx[TOKENS_MOST * COLS_MOST];
static double step[TOKENS_MOST * COLS_MOST]; /* half the distance of the integers around it */
static double want[TOKENS_MOST * COLS_MOST];

static void assert_close(const char *what, const float *got, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!(fabs(got[i] - want[i]) <= TOLERANCE * (1 + fabs(want[i]))))
      fail_msg("%s %s: element %d is %.9g, not %.9g", kernel_table()->isa, what, (int)i, got[i],
               want[i]);
}

/* What linear.h says is multiplied. */
static void round_activations(int64_t cols) {
  for (int64_t t = 0; t < TOKENS_MOST; t++)
    for (int64_t g = 0; g < cols; g += QUANT_GROUP) {
      const float *from = x + t * cols;
      const int64_t end = g + QUANT_GROUP < cols ? g + QUANT_GROUP : cols;
      float most = 0;
      for (int64_t c = g; c < end; c++) most = fmaxf(most, fabsf(from[c]));
      for (int64_t c = g; c < end; c++) {
        rounded[t * cols + c] =
            most == 0 ? 0 : nearbyintf(from[c] * (127.0f / most)) * (most / 127.0f);
        step[t * cols + c] = most / 254.0;
      }
    }
}

static void check_forward(const struct linear_weight *w, int64_t tokens) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  const bool tiles = tokens >= 12 && kernel_table()->quant.batch_dot;
  memset(y, 0xff, sizeof y);
  linear_forward(w, bias, x, tokens, PRECISION_FP32, y);
  for (int64_t i = tokens * rows; i < TOKENS_MOST * ROWS_MOST; i++) assert_true(isnan(y[i]));
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double sum = bias[r], exact = bias[r], bound = 0, most = 0;
      for (int64_t c = 0; c < cols; c++) {
        const double weight = weights[r * cols + c];
        sum += weight * rounded[t * cols + c];
        exact += weight * x[t * cols + c];
        bound += fabs(weight) * step[t * cols + c];
        most += fabs(weight * x[t * cols + c]);
      }
      want[t * rows + r] = sum;
      if (tiles) bound = most / 127;
      assert_true(fabs(y[t * rows + r] - exact) <= bound * 1.0001 + TOLERANCE * (1 + fabs(exact)));
    }
  if (!tiles) assert_close("y", y, tokens * rows);
}

/* What is not decoding expands the weights, but for prompts in fp32 where there are no tiles: they
 * round x like short ones, block after block. */
static void check_expanded(const struct linear_weight *w, int64_t tokens) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  const bool rounds = kernel_table()->quant.dot && !kernel_table()->quant.batch_dot;
  if (rounds) check_forward(w, tokens);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double sum = 0;
      for (int64_t c = 0; c < cols; c++) sum += (double)weights[r * cols + c] * x[t * cols + c];
      want[t * rows + r] = sum;
    }
  if (!rounds) {
    linear_forward(w, NULL, x, tokens, PRECISION_FP32, y);
    assert_close("y of a prompt", y, tokens * rows);
  }
  linear_forward(w, NULL, x, tokens, PRECISION_BF16, y);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      double most = 0; /* both operands are rounded, by 2^-8 of themselves each */
      for (int64_t c = 0; c < cols; c++)
        most += fabs((double)weights[r * cols + c] * x[t * cols + c]);
      const double error = fabs(y[t * rows + r] - want[t * rows + r]);
      assert_true(error <= most / 127 + TOLERANCE * (1 + fabs(want[t * rows + r])));
    }
  for (int64_t t = 0; t < 5; t++)
    for (int64_t c = 0; c < cols; c++) {
      double sum = 0;
      for (int64_t r = 0; r < rows; r++) sum += (double)weights[r * cols + c] * x[t * rows + r];
      want[t * cols + c] = sum;
    }
  linear_backward_input(w, x, 5, PRECISION_FP32, dx, false);
  assert_close("dx", dx, 5 * cols);
}

static void check(const struct quant_strips *s, const struct quant_matrix *q) {
  const struct linear_weight w = {.quant = s};
  float row[COLS_MOST];
  assert_int_equal(linear_rows(&w), q->rows);
  assert_int_equal(linear_cols(&w), q->cols);
  for (int64_t r = 0; r < q->rows; r++) {
    quant_row(q, r, weights + r * q->cols);
    linear_row(&w, r, row);
    for (int64_t c = 0; c < q->cols; c++) assert_true(row[c] == weights[r * q->cols + c]);
  }
  round_activations(q->cols);
  for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++)
    check_forward(&w, token_counts[i]);
  /* a longer one now and then: tiles take short ones as they take batches */
  check_expanded(&w, q->cols == 130 ? TOKENS_MOST : PROMPT);
}

static void every_matrix(void) {
  /* tile 0: no mask */
  static const int64_t shapes[][3] = {{150, 200, 128}, {37, 45, 8},   {70, 130, 64}, {33, 19, 128},
                                      {1, 3, 8},       {40, 290, 16}, {48, 192, 32}, {70, 130, 0}};
  struct error err = {0};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    for (int f = 0; f < QUANT_FORMS; f++) {
      struct quant_case c;
      struct quant_strips s;
      quant_case_make(&c, &quant_forms[f], shapes[i][0], shapes[i][1], shapes[i][2], 0.4, i + 1);
      struct quant_matrix *q = &c.owned.matrix;
      if (i == 0 && f < 4) /* chunks without a weight */
        memset((void *)q->values, q->type == QUANT_I8 ? 0 : 0x88, c.owned.sizes.values_bytes / 2);
      must(quant_strips_from_quant(&s, q, &err), err);
      check(&s, q);
      quant_strips_release(&s);
      quant_case_free(&c);
    }
}

static void products_against_fp64(void **state) {
  (void)state;
  fill_normal(x, sizeof x / sizeof *x, 1, 1);
  fill_normal(bias, ROWS_MOST, 2, 1);
  for (int i = 0; i < 64; i++) x[i] = i < 32 ? 0 : x[i] * 8; /* a group of zeros, a loud one */
  for_each_isa(every_matrix);
}

/* The largest integers everywhere: nothing saturates. */
static void every_extreme(void) {
  struct error err = {0};
  for (int f = 0; f < QUANT_FORMS; f++)
    for (int tile = 0; tile <= 64; tile += 64)
      for (int fill = 0; fill < 3; fill++) {
        struct quant_case c;
        struct quant_strips s;
        quant_case_make(&c, &quant_forms[f], 32, 128, tile, 0.5, 3);
        struct quant_matrix *q = &c.owned.matrix;
        static const uint8_t wide[] = {0x80, 0x7f, 0x81};
        const int byte = q->type == QUANT_I8 ? wide[fill] : fill == 1 ? 0xff : 0;
        memset((void *)q->values, byte, c.owned.sizes.values_bytes);
        memset((void *)q->dense, byte, c.owned.sizes.dense_bytes);
        must(quant_strips_from_quant(&s, q, &err), err);
        check(&s, q);
        quant_strips_release(&s);
        quant_case_free(&c);
      }
}

static void nothing_saturates(void **state) {
  (void)state;
  memset(bias, 0, sizeof bias);
  for (int64_t i = 0; i < TOKENS_MOST * COLS_MOST; i++)
    x[i] = i / 128 % 3 == 0 ? 0.5f : i / 128 % 3 == 1 ? -0.5f : i % 2 ? 0.5f : -0.5f;
  for_each_isa(every_extreme);
}

/* All instruction sets make the same integers, scales and sums, and what is not a number shows. */
static struct quant_x first_x[TOKENS_MOST];
static void every_rounding(void) {
  static struct quant_x got[TOKENS_MOST];
  static const int64_t widths[] = {64, 63, 40, 32, 31, 1};
  for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
    const char *isa = kernel_table()->isa;
    memset(got, 0, sizeof got);
    memset(first_x, 0, sizeof first_x);
    kernel_table()->quant.round(x, 128, widths[i], TOKENS_MOST, got);
    kernel_table_use("reference");
    kernel_table()->quant.round(x, 128, widths[i], TOKENS_MOST, first_x);
    kernel_table_use(isa);
    assert_memory_equal(got, first_x, sizeof got);
  }
  float wild[64] = {1, -2, 3};
  for (int i = 0; i < 3; i++) {
    wild[40] = i == 0 ? NAN : i == 1 ? -INFINITY : 0x1p-101f;
    kernel_table()->quant.round(wild, 64, 64, 1, got);
    assert_true(got->scale[0] == 3.0f / 127.0f && got->near[1] == -85);
    assert_true(i == 2 ? got->scale[1] == 0 : !isfinite(got->scale[1]));
    for (int c = 32; c < 64; c++) assert_int_equal(got->near[c], 0);
  }
}

static void rounding_is_the_same_everywhere(void **state) {
  (void)state;
  fill_normal(x, sizeof x / sizeof *x, 5, 1);
  for (int64_t i = 0; i < 2000; i++) x[i] *= exp2f((float)(i / 64 * 8 - 120));
  for_each_isa(every_rounding);
}

static void every_thread_count(void) {
  struct error err = {0};
  struct quant_case c;
  struct quant_strips s;
  static float first[TOKENS_MOST * ROWS_MOST];
  quant_case_make(&c, &quant_forms[4], 150, 290, 32, 0.4, 9);
  must(quant_strips_from_quant(&s, &c.owned.matrix, &err), err);
  const struct linear_weight w = {.quant = &s};
  static const int64_t counts[] = {1, 7, 40, TOKENS_MOST};
  for (int i = 0; i < 4; i++)
    for (int threads = 1; threads <= 3; threads++) {
      const size_t bytes = (size_t)(counts[i] * 150) * sizeof(float);
      parallel_set_threads(threads);
      linear_forward(&w, NULL, x, counts[i], PRECISION_FP32, threads == 1 ? first : y);
      if (threads > 1) assert_memory_equal(first, y, bytes);
    }
  parallel_set_threads(0);
  quant_strips_release(&s);
  quant_case_free(&c);
}

static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(every_thread_count);
}

/* Several matrices in one section, odd numbers of strips among them. */
static void several_matrices(void) {
  static const int64_t rows[] = {37, 150, 16}, counts[] = {1, 3, 8, 40, PROMPT};
  static float one[TOKENS_MOST * ROWS_MOST], out[3][TOKENS_MOST * ROWS_MOST];
  struct error err = {0};
  struct quant_case c[3];
  struct quant_strips s[3];
  struct linear_weight w[3];
  struct linear_output outputs[3];
  for (int i = 0; i < 3; i++) {
    quant_case_make(&c[i], &quant_forms[i], rows[i], 130, 16, 0.4, (uint64_t)i);
    must(quant_strips_from_quant(&s[i], &c[i].owned.matrix, &err), err);
    w[i] = (struct linear_weight){.quant = &s[i]};
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
    quant_strips_release(&s[i]);
    quant_case_free(&c[i]);
  }
}

static void several_at_once_give_the_same_bits(void **state) {
  (void)state;
  fill_normal(bias, ROWS_MOST, 2, 1);
  for_each_isa(several_matrices);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(products_against_fp64),
                                     cmocka_unit_test(nothing_saturates),
                                     cmocka_unit_test(rounding_is_the_same_everywhere),
                                     cmocka_unit_test(same_bits_at_any_thread_count),
                                     cmocka_unit_test(several_at_once_give_the_same_bits)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
