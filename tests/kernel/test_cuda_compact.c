/* kernel/cuda/compact.h under the emulator: rounding at random keeps the mean, one step is AdamW's
 * to the resolution of what is stored, and many small steps go as far as AdamW's in fp32. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/mask_ops.h"
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/compact.h"
#include "support/support.h"

/* A matrix of 5 rows of 20 groups: two blocks of 16 a row, padded. */
enum { ROWS = 5, COLS = 80, BLOCKS = 10, SLOTS = BLOCKS * 16, FIVE = SLOTS * 5, SIX_ = SLOTS * 6 };

struct store {
  uint16_t gradient[FIVE], logits[FIVE], first_scale[BLOCKS * 5], second_scale[BLOCKS * 6];
  int8_t first[FIVE];
  uint8_t second[SIX_];
};
static struct mask_adamw adamw = {.rate = 0.01f,
                                  .beta1 = 0.9f,
                                  .beta2 = 0.95f,
                                  .epsilon = 1e-8f,
                                  .weight_decay = 0.1f,
                                  .gradient_scale = 0.5f};

static void run_compact(struct store *s, int64_t step, uint32_t seed, uint32_t blocks) {
  struct mask_compact_args a = {.gradient = s->gradient,
                                .logits = s->logits,
                                .first = s->first,
                                .second = s->second,
                                .first_scale = s->first_scale,
                                .second_scale = s->second_scale,
                                .slots = SLOTS,
                                .blocks = blocks,
                                .key = {seed, 2},
                                .tensor = 3,
                                .step = (uint32_t)step,
                                .keep = 1 - adamw.rate * adamw.weight_decay,
                                .beta1 = adamw.beta1,
                                .beta2 = adamw.beta2,
                                .gradient_scale = adamw.gradient_scale,
                                .epsilon = adamw.epsilon};
  a.rate = (float)(adamw.rate / (1 - pow(adamw.beta1, (double)step)));
  a.root_scale = (float)(1 / sqrt(1 - pow(adamw.beta2, (double)step)));
  struct simt_launch launch = {.blocks = blocks, .threads = LEARN_THREADS};
  struct simt_report report;
  simt_buffer(&launch, s, sizeof *s, true);
  simt_run(&launch, mask_compact, &a, &report);
  if (report.failed) fail_msg("%s", report.text);
}

static void fill_bf16(uint16_t *out, size_t count, uint64_t seed, float scale) {
  float values[FIVE];
  fill_normal(values, count, seed, scale);
  dtype_from_f32(DTYPE_BF16, values, (int64_t)count, out);
}

static void widen(const uint16_t *from, float *to) { dtype_to_f32(DTYPE_BF16, from, FIVE, to); }

static void rounding_keeps_the_mean(void **state) {
  (void)state;
  const float values[] = {1.00001f, -3.14159f, 1e-20f, 0.00390f, -65000.7f, 0};
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
    double sum = 0;
    for (uint32_t noise = 0; noise < 65536; noise++)
      sum += (double)bf16_widen(bf16_at_random(values[i], noise));
    assert_true(fabs(sum / 65536 - values[i]) <= 1e-6 * fabsf(values[i]));
  }
}

/* From zero moments, with logits that bf16 holds: all of the error is the storage's. */
static void a_step_is_adamws(void **state) {
  (void)state;
  simt_need_fibers();
  struct store *s = test_calloc(1, sizeof *s);
  float gradient[FIVE], logits[FIVE], first[FIVE] = {0}, second[SIX_] = {0}, here[FIVE];
  fill_bf16(s->gradient, FIVE, 1, 1);
  fill_bf16(s->logits, FIVE, 2, 0.05f);
  widen(s->gradient, gradient);
  widen(s->logits, logits);
  adamw.step = 1;
  mask_adamw_step(&adamw, ROWS, COLS, gradient, logits, first, second, NULL);
  run_compact(s, 1, 7, 1);
  widen(s->logits, here);
  for (int i = 0; i < FIVE; i++)
    assert_true(fabsf(here[i] - logits[i]) <= fabsf(logits[i]) / 128 + 1e-6f);
  for (int plane = 0; plane < BLOCKS * 5; plane++)
    for (int lane = 0; lane < 16; lane++) {
      const float unit = bf16_to_f32(s->first_scale[plane]);
      assert_true(fabsf(unit * s->first[plane * 16 + lane] - first[plane * 16 + lane]) <= unit);
    }
  for (int plane = 0; plane < BLOCKS * 6; plane++)
    for (int lane = 0; lane < 16; lane++) {
      const float unit = bf16_to_f32(s->second_scale[plane]), v = second[plane * 16 + lane];
      assert_true(fabsf(unit * s->second[plane * 16 + lane] - sqrtf(v)) <= unit);
      assert_true(s->second[plane * 16 + lane] > 0 || v == 0);
    }
  test_free(s);
}

/* Steps of a hundredth of bf16's resolution: rounded to nearest they would all be lost. */
static void small_steps_add_up(void **state) {
  (void)state;
  simt_need_fibers();
  enum { STEPS_ = 60 };
  struct store *s = test_calloc(1, sizeof *s);
  float gradient[FIVE], logits[FIVE], start[FIVE], first[FIVE] = {0}, second[SIX_] = {0};
  float here[FIVE];
  const float rate = adamw.rate, decay = adamw.weight_decay;
  adamw.rate = 5e-5f;
  adamw.weight_decay = 0;
  fill_bf16(s->gradient, FIVE, 3, 1);
  for (int i = 0; i < FIVE; i++) s->logits[i] = bf16_from_f32(1);
  widen(s->gradient, gradient);
  widen(s->logits, logits);
  memcpy(start, logits, sizeof start);
  for (adamw.step = 1; adamw.step <= STEPS_; adamw.step++) {
    mask_adamw_step(&adamw, ROWS, COLS, gradient, logits, first, second, NULL);
    run_compact(s, adamw.step, 11, 1);
  }
  widen(s->logits, here);
  /* how far the logits have gone along the way that fp32 has gone */
  double along = 0, squares = 0;
  for (int i = 0; i < FIVE; i++) {
    along += (double)(here[i] - start[i]) * (logits[i] - start[i]);
    squares += pow(logits[i] - start[i], 2);
  }
  if (!(fabs(along / squares - 1) < 0.1)) fail_msg("went %g of the way", along / squares);
  adamw.rate = rate;
  adamw.weight_decay = decay;
  test_free(s);
}

/* The same noise whatever the grid. */
static void the_grid_does_not_show(void **state) {
  (void)state;
  simt_need_fibers();
  struct store *s[2];
  for (int i = 0; i < 2; i++) {
    s[i] = test_calloc(1, sizeof **s);
    fill_bf16(s[i]->gradient, FIVE, 1, 1);
    for (int64_t step = 1; step < 4; step++) run_compact(s[i], step, 5, i ? 3 : 1);
  }
  assert_memory_equal(s[0], s[1], sizeof **s);
  test_free(s[0]);
  test_free(s[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rounding_keeps_the_mean),
      cmocka_unit_test(a_step_is_adamws),
      cmocka_unit_test(small_steps_add_up),
      cmocka_unit_test(the_grid_does_not_show),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
