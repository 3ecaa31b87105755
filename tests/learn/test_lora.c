/* Low-rank adapters under a mask: gradients against finite differences of a loss that is linear in
 * the merged weight, and a merge that keeps the pattern. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "learn/lora.h"
#include "support/support.h"

static struct error err;
enum { ROWS = 24, COLS = 36, RANK = 3 };
static float weight[ROWS * COLS], slope[ROWS * COLS], merged[ROWS * COLS];
static float keeps[PARALLEL_THREADS_MAX * COLS];
static struct mask_matrix mask;
static struct lora lora;

static float noise(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)((double)(*state >> 33) / (double)(1u << 30) - 1);
}

static int begin(void **state) {
  uint64_t random = 5;
  must(mask_matrix_init_bits(&mask, "w", ROWS, COLS, &err), err);
  for (int i = 0; i < ROWS * COLS; i++) {
    const bool keep = i % 4 == 1 || i % 7 == 3;
    mask_set_bit(&mask, i / COLS, i % COLS, keep);
    weight[i] = keep ? noise(&random) : 0;
    slope[i] = noise(&random);
  }
  must(lora_init(&lora, weight, ROWS, COLS, RANK, 11, 4, &err), err);
  return 0;
}

static int end(void **state) {
  lora_free(&lora);
  mask_matrix_free(&mask);
  return 0;
}

/* L = sum of slope * W. */
static double loss(void) {
  double sum = 0;
  lora_merge(&lora, &mask, keeps, merged);
  for (int i = 0; i < ROWS * COLS; i++) sum += (double)slope[i] * (double)merged[i];
  return sum;
}

static void it_begins_as_the_weight(void **state) {
  loss();
  assert_memory_equal(merged, weight, sizeof weight);
  double squares = 0;
  for (int i = 0; i < RANK * COLS; i++)
    squares += (double)lora.a.value[i] * (double)lora.a.value[i];
  assert_true(squares * COLS / (RANK * COLS) > 0.6 && squares * COLS / (RANK * COLS) < 1.5);
}

static void check_gradient(struct lora_factor *f) {
  const float step = 0x1p-6f;
  for (int64_t i = 0; i < f->rows * f->cols; i++) {
    const float was = f->value[i];
    f->value[i] = was + step;
    const double above = loss();
    f->value[i] = was - step;
    const double below = loss();
    f->value[i] = was;
    assert_float_equal((above - below) / (2 * (double)step), f->gradient[i], 2e-3);
  }
}

static void gradients_are_those_of_the_merged_weight(void **state) {
  uint64_t random = 9;
  float g[ROWS * COLS];
  for (int i = 0; i < ROWS * RANK; i++) lora.b.value[i] = noise(&random);
  for (int i = 0; i < ROWS * COLS; i++) g[i] = weight[i] != 0 ? slope[i] : 0;
  lora_gradient(&lora, g);
  double squares = 0;
  for (int i = 0; i < RANK * COLS; i++) squares += pow((double)lora.a.gradient[i], 2);
  for (int i = 0; i < ROWS * RANK; i++) squares += pow((double)lora.b.gradient[i], 2);
  assert_true(squares > 1 && fabs(lora_squares(&lora) - squares) < 1e-6 * squares);
  check_gradient(&lora.a);
  check_gradient(&lora.b);
}

static void a_step_goes_down_and_keeps_the_pattern(void **state) {
  const struct mask_adamw settings = {.rate = 1e-2f,
                                      .beta1 = 0.9f,
                                      .beta2 = 0.95f,
                                      .epsilon = 1e-8f,
                                      .gradient_scale = 1,
                                      .step = 1};
  const double before = loss();
  lora_update(&lora, &settings);
  assert_true(loss() < before);
  int changed = 0;
  for (int i = 0; i < ROWS * COLS; i++) {
    if (weight[i] == 0) assert_true(merged[i] == 0 && !signbit(merged[i]));
    changed += merged[i] != weight[i];
  }
  assert_true(changed > ROWS * COLS / 4);
  assert_int_equal(lora_parameters(&lora), RANK * (ROWS + COLS));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(it_begins_as_the_weight),
      cmocka_unit_test(gradients_are_those_of_the_merged_weight),
      cmocka_unit_test(a_step_goes_down_and_keeps_the_pattern),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
