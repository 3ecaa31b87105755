/* Compact storage on the CPU: codes and their rounding one by one, a step against AdamW's in fp32
 * to the resolution of what is stored, many small steps, gradients of soft masks, and the same bits
 * under every instruction set and at any number of threads. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "kernel/mask_compact.h"
#include "kernel/ref/ref.h"
#include "support/isa.h"

/* Rows whose last block of 16 groups is padded, and whose last group is narrow. */
enum { ROWS = 67, COLS = 150, BLOCKS = ROWS * 3, SLOTS = BLOCKS * 16, FIVE = SLOTS * 5 };
enum { SIX_ = SLOTS * 6, CODE_BYTES = ROWS * 19 };

struct store {
  uint16_t gradient[FIVE], logits[FIVE];
  uint8_t first[FIVE], second[SIX_], first_scale[BLOCKS * 5], second_scale[BLOCKS * 6];
};
static struct mask_compact view_of(struct store *s) {
  return (struct mask_compact){s->gradient, s->logits,      s->first,
                               s->second,   s->first_scale, s->second_scale};
}
static const struct mask_adamw usual = {.rate = 0.01f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.95f,
                                        .epsilon = 1e-15f,
                                        .weight_decay = 0.1f,
                                        .gradient_scale = 0.5f,
                                        .step = 1};
static const struct mask_rounding rounding = {{7, 2}, 3};

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

/* Normals whose sizes go over ten powers of ten, as gradients of nearly hard masks do; zero in
 * padding, and in every eleventh group. */
static void fill(uint16_t *out, uint64_t seed, float scale, bool wide) {
  float *values = test_calloc(2 * FIVE, sizeof *values);
  fill_normal(values, 2 * FIVE, seed, 1);
  memset(out, 0, FIVE * sizeof *out);
  for (int64_t row = 0; row < ROWS; row++)
    for (int64_t group = 0; group < mask_row_groups(COLS); group++)
      for (int k = 0; k < 5 && (!wide || group % 11); k++) {
        const int64_t at = mask_logit_index(COLS, row, group, k);
        const float size = wide ? powf(10, -2.5f * fabsf(values[FIVE + at])) : 1;
        out[at] = bf16_from_f32(scale * size * values[at]);
      }
  test_free(values);
}

static float *widen(const uint16_t *from) {
  float *to = test_malloc(FIVE * sizeof *to);
  dtype_to_f32(DTYPE_BF16, from, FIVE, to);
  return to;
}

/* --- one value --- */

static const int mantissas[] = {COMPACT_FIRST_MANTISSA, COMPACT_SECOND_MANTISSA};

/* Every code's value, by what it stands for, and back again. */
static void codes_come_back(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++)
    for (int scale = 60; scale < 255; scale += 13)
      for (uint32_t code = 0; code < 8u << mantissas[i]; code++) {
        const uint32_t units = 1u << mantissas[i];
        const int exponent = (int)(code / units), least = scale - COMPACT_EXPONENTS - 127;
        const double share = (double)(code % units) / units;
        const double value =
            exponent ? ldexp(1 + share, exponent + least) : ldexp(share, 1 + least);
        const uint32_t bits = compact_bits(code, (uint32_t)scale, mantissas[i]);
        assert_true((double)float_of(bits) == value);
        for (uint32_t noise = 0; noise < 65536; noise += 65535)
          assert_int_equal(compact_code(bits, (uint32_t)scale, mantissas[i], 0, noise), code);
      }
}

static void rounding_keeps_the_mean(void **state) {
  (void)state;
  const float values[] = {1, 0.99999f, 0.7f, 3.1e-2f, 1.9999f, 4e-3f, 3e-5f};
  for (int m = 0; m < 2; m++)
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
      const uint32_t scale = compact_scale(bits_of(values[i] > 1 ? values[i] : 1), mantissas[m]);
      const double least = ldexp(1, (int)scale - COMPACT_EXPONENTS - 126 - mantissas[m]);
      double sum = 0;
      for (uint32_t noise = 0; noise < 65536; noise++) {
        const uint32_t code = compact_code(bits_of(values[i]), scale, mantissas[m], 0, noise);
        assert_true(code < 8u << mantissas[m]);
        sum += (double)float_of(compact_bits(code, scale, mantissas[m]));
      }
      /* the noise has 16 bits */
      if (!(fabs(sum / 65536 - values[i]) <= 1e-5 * values[i] + least / 65536))
        fail_msg("the mean of %g is %g", values[i], sum / 65536);
    }
}

static void zero_is_zero_and_roots_are_not(void **state) {
  (void)state;
  const int m = COMPACT_SECOND_MANTISSA;
  const uint32_t scale = compact_scale(bits_of(1), m), tiny = bits_of(1e-20f);
  assert_int_equal(compact_scale(0, m), 0);
  assert_int_equal(compact_scale(5, m), 0); /* what fp32 holds below its normal range */
  assert_int_equal(compact_code(0, scale, m, COMPACT_LEAST_ROOT, 65535), 0);
  assert_int_equal(compact_code(tiny, scale, m, COMPACT_LEAST_ROOT, 0), COMPACT_LEAST_ROOT);
  assert_int_equal(compact_code(tiny, scale, m, 0, 65535), 0);
  assert_true(float_of(compact_bits(COMPACT_LEAST_ROOT, scale, m)) == 1.0f / 64);
  assert_int_equal(compact_bits(0, scale, m), 0);
  /* the largest value of fp32 has a code */
  const uint32_t most = compact_scale(0x7f7fffff, m);
  assert_true(compact_code(0x7f7fffff, most, m, COMPACT_LEAST_ROOT, 0) <= 255);
}

/* --- steps --- */

/* A unit of the last place of a code with so many bits of mantissa. */
static float unit(float x, int mantissa) { return fabsf(x) * ldexpf(1, -mantissa); }

/* From zero moments: all of the error is the storage's. */
static void a_step_is_adamws(void **state) {
  (void)state;
  struct store *s = test_calloc(1, sizeof *s);
  const struct mask_compact view = view_of(s);
  float *first = test_calloc(FIVE, 4), *second = test_calloc(SIX_, 4);
  uint8_t codes[CODE_BYTES] = {0}, plain_codes[CODE_BYTES] = {0};
  fill(s->gradient, 1, 1, false);
  fill(s->logits, 2, 0.05f, false);
  float *gradient = widen(s->gradient), *logits = widen(s->logits);
  const int64_t flips =
      mask_adamw_step(&usual, ROWS, COLS, gradient, logits, first, second, plain_codes);
  const int64_t compact = mask_compact_step(&usual, &rounding, ROWS, COLS, &view, codes);
  float *here = widen(s->logits);
  int compared = 0;
  for (int i = 0; i < FIVE; i++) {
    /* steps are divided by roots that are not below their plane's span */
    const int block = i / (5 * 16), lane = i % 16;
    bool within = true;
    for (int k = 0; k < 6; k++) {
      const int plane = block * 6 + k;
      within &= sqrtf(second[plane * 16 + lane]) >= ldexpf(1, s->second_scale[plane] - 127 - 6);
    }
    if (within) assert_true(fabsf(here[i] - logits[i]) <= unit(logits[i], 7) + 1e-5f);
    assert_true(fabsf(here[i] - logits[i]) <= unit(logits[i], 7) + 2.1f * usual.rate);
    compared += within;
  }
  assert_true(compared > FIVE / 2);
  assert_true(llabs(compact - flips) < flips / 20);
  for (int i = 0; i < FIVE; i++) {
    const float got =
        float_of(compact_bits(s->first[i] & 0x7f, s->first_scale[i / 16], mantissas[0]) |
                 (uint32_t)(s->first[i] >> 7) << 31);
    const float least =
        ldexpf(1, s->first_scale[i / 16] - 127 - COMPACT_EXPONENTS - 3); /* of the plane's span */
    assert_true(fabsf(got - first[i]) <= unit(first[i], 4) * 1.001f + least);
  }
  for (int i = 0; i < SIX_; i++) {
    const float got = float_of(compact_bits(s->second[i], s->second_scale[i / 16], mantissas[1]));
    const float root = sqrtf(second[i]),
                least = ldexpf(1, s->second_scale[i / 16] - 127 - COMPACT_EXPONENTS + 1);
    assert_true(fabsf(got - root) <= unit(root, 5) * 1.001f + least);
    assert_true((got > 0) == (root > 0));
  }
  test_free(first), test_free(second), test_free(gradient), test_free(logits), test_free(here);
  test_free(s);
}

/* A sixth gradient that is exactly zero, time and again, while the others' rounding makes a first
 * moment of it: its step stays a step. */
static void nothing_leaps(void **state) {
  (void)state;
  struct store *s = test_calloc(1, sizeof *s);
  const struct mask_compact view = view_of(s);
  struct mask_adamw o = usual;
  for (int64_t row = 0; row < ROWS; row++)
    for (int64_t group = 0; group < mask_row_groups(COLS); group++)
      for (int k = 0; k < 4; k++)
        s->gradient[mask_logit_index(COLS, row, group, k)] =
            bf16_from_f32((k % 2 ? -1.0f : 1.0f) * (1 + (float)((group + k / 2) % 9) / 7));
  for (o.step = 1; o.step <= 20; o.step++) {
    float *before = widen(s->logits);
    mask_compact_step(&o, &rounding, ROWS, COLS, &view, NULL);
    float *after = widen(s->logits);
    for (int i = 0; i < FIVE; i++)
      assert_true(fabsf(after[i] - before[i]) <= 12 * usual.rate + unit(after[i], 7));
    test_free(before), test_free(after);
  }
  test_free(s);
}

/* Steps of a hundredth of bf16's resolution: rounded to nearest they would all be lost. */
static void small_steps_add_up(void **state) {
  (void)state;
  struct store *s = test_calloc(1, sizeof *s);
  const struct mask_compact view = view_of(s);
  struct mask_adamw o = usual;
  float *first = test_calloc(FIVE, 4), *second = test_calloc(SIX_, 4);
  o.rate = 5e-5f;
  o.weight_decay = 0;
  o.epsilon = 1e-8f; /* fp32 divides the rounding of a sixth moment by it where all else is 0 */
  fill(s->gradient, 3, 1, false);
  for (int i = 0; i < FIVE; i++) s->logits[i] = bf16_from_f32(1);
  float *gradient = widen(s->gradient), *logits = widen(s->logits), *start = widen(s->logits);
  for (o.step = 1; o.step <= 60; o.step++) {
    mask_adamw_step(&o, ROWS, COLS, gradient, logits, first, second, NULL);
    mask_compact_step(&o, &rounding, ROWS, COLS, &view, NULL);
  }
  float *here = widen(s->logits);
  /* how far the logits have gone along the way that fp32 has gone */
  double along = 0, squares = 0;
  for (int i = 0; i < FIVE; i++) {
    along += (double)(here[i] - start[i]) * (logits[i] - start[i]);
    squares += pow(logits[i] - start[i], 2);
  }
  /* a little less: the least roots are larger than fp32's */
  if (!(fabs(along / squares - 0.95) < 0.07)) fail_msg("went %g of the way", along / squares);
  test_free(first), test_free(second), test_free(gradient), test_free(logits), test_free(here);
  test_free(start), test_free(s);
}

static void run_steps(struct store *s, uint8_t *codes) {
  struct mask_adamw o = usual;
  const struct mask_compact view = view_of(s);
  memset(s, 0, sizeof *s);
  memset(codes, 0, CODE_BYTES);
  fill(s->logits, 2, 0.05f, false);
  for (o.step = 1; o.step <= 3; o.step++) {
    fill(s->gradient, 10 + (uint64_t)o.step, 1, true);
    mask_compact_step(&o, &rounding, ROWS, COLS, &view, codes);
  }
}

static struct store *expected;
static uint8_t expected_codes[CODE_BYTES];

static void check_isa(void) {
  struct store *s = test_calloc(1, sizeof *s);
  uint8_t codes[CODE_BYTES], again[CODE_BYTES] = {0};
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    run_steps(s, codes);
    assert_memory_equal(s, expected, sizeof *s);
    assert_memory_equal(codes, expected_codes, sizeof codes);
  }
  parallel_set_threads(0);
  /* what the step hardened on its way */
  mask_compact_harden(s->logits, ROWS, COLS, again);
  assert_memory_equal(codes, again, sizeof codes);
  float *gradient = widen(s->gradient);
  const double squares = mask_gradient_squares(gradient, ROWS, COLS);
  assert_true(fabs(mask_compact_squares(s->gradient, ROWS, COLS) / squares - 1) < 1e-6);
  test_free(gradient);
  test_free(s);
}

static void all_give_the_same_bits(void **state) {
  (void)state;
  expected = test_calloc(1, sizeof *expected);
  assert_true(kernel_table_use("reference"));
  run_steps(expected, expected_codes);
  for_each_isa(check_isa);
  test_free(expected);
}

/* --- soft masks over compact logits --- */

/* The same W * M as over the widened logits, and gradients that lie beside those of fp32. */
static void check_masks(void) {
  struct store *s = test_calloc(1, sizeof *s);
  float *w = test_malloc(ROWS * COLS * 4), *dw = test_malloc(ROWS * COLS * 4);
  float *out[2], soft[10 * 5];
  double dtile[2][10 * 5] = {{0}};
  fill(s->logits, 2, 0.05f, false);
  float *logits = widen(s->logits), *dlogits = test_calloc(FIVE, 4);
  fill_normal(w, ROWS * COLS, 4, 1);
  fill_normal(dw, ROWS * COLS, 5, 1);
  for (int i = 0; i < 50; i++) soft[i] = (float)(i % 7) / 6;
  for (int i = 0; i < 2; i++) out[i] = test_malloc(ROWS * COLS * 4);
  const struct matrix_view view = {w, DTYPE_F32, ROWS, COLS};
  struct mask_source source = {.rows = ROWS,
                               .cols = COLS,
                               .tile_rows = 8,
                               .tile_cols = 32,
                               .logits = logits,
                               .tile_soft = soft,
                               .kappa = 60,
                               .tau = 1.5f,
                               .noise = true,
                               .key = {11, 12},
                               .tensor = 5,
                               .draw = 77};
  const double sum = mask_sample(&source, view, DTYPE_F32, out[0]);
  for (int pass = 0; pass < 2; pass++)
    mask_backward(&source, view, dw, 0.3f, pass, dlogits, dtile[0], DTYPE_F32, NULL);
  source.logits = s->logits;
  source.logit_dtype = DTYPE_BF16;
  assert_true(mask_sample(&source, view, DTYPE_F32, out[1]) == sum);
  assert_memory_equal(out[0], out[1], ROWS * COLS * 4);
  for (source.pass = 0; source.pass < 2; source.pass++)
    mask_backward(&source, view, dw, 0.3f, source.pass, s->gradient, dtile[1], DTYPE_F32, NULL);
  assert_memory_equal(dtile[0], dtile[1], sizeof dtile[0]);
  float *here = widen(s->gradient);
  double bias = 0, size = 0;
  for (int i = 0; i < FIVE; i++) {
    assert_true(fabsf(here[i] - dlogits[i]) <= 2 * unit(dlogits[i], 7));
    bias += here[i] - dlogits[i];
    size += fabs(dlogits[i]);
  }
  assert_true(size > 0 && fabs(bias) < 1e-4 * size); /* truncation would show as 4e-3 */
  test_free(w), test_free(dw), test_free(out[0]), test_free(out[1]), test_free(logits);
  test_free(dlogits), test_free(here), test_free(s);
}
static void masks_read_compact_logits(void **state) {
  (void)state;
  for_each_isa(check_masks);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(codes_come_back),
      cmocka_unit_test(rounding_keeps_the_mean),
      cmocka_unit_test(zero_is_zero_and_roots_are_not),
      cmocka_unit_test(a_step_is_adamws),
      cmocka_unit_test(nothing_leaps),
      cmocka_unit_test(small_steps_add_up),
      cmocka_unit_test(all_give_the_same_bits),
      cmocka_unit_test(masks_read_compact_logits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
