/* The cases of test_vec_math_*.c, included after a vec_*.h: every function against libm's fp64 over
 * its whole range, in units in the last place. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernel/select.h"
#include "support/support.h"

#include "kernel/cpu/vec_math.h"

static float exp_at(float x) {
  float y[VL];
  vf_store(y, vf_exp(vf_set(x)));
  return y[VL - 1];
}
static float log_at(float x) {
  float y[VL];
  vf_store(y, vf_log(vf_set(x)));
  return y[VL - 1];
}
static float tanh_at(float x) {
  float y[VL];
  vf_store(y, vf_tanh(vf_set(x)));
  return y[VL - 1];
}

/* |got - want| in units of the last place of a normal fp32 number as large as want. */
static double ulps(float got, double want) {
  int exponent;
  frexp(want, &exponent);
  if (exponent < -125) exponent = -125;
  return fabs(got - want) / ldexp(1.0, exponent - 24);
}

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Every `stride`-th float of [low, high], which have one sign. */
static void check_range(const char *what, float (*fn)(float), double (*oracle)(double), float low,
                        float high, uint32_t stride, double limit) {
  uint32_t from, to;
  memcpy(&from, &low, sizeof from);
  memcpy(&to, &high, sizeof to);
  double worst = 0, at = 0;
  for (uint32_t bits = from; bits <= to; bits += stride) {
    float x = float_of(bits);
    double error = ulps(fn(x), oracle(x));
    if (!(error <= worst)) {
      worst = error;
      at = x;
    }
  }
  printf("%s in [%g, %g]: at most %.3f ulp, at %g\n", what, low, high, worst, at);
  if (!(worst <= limit)) fail_msg("%s(%.9g) is off by %g ulp", what, at, worst);
}

static void accuracy(void **state) {
  (void)state;
  check_range("exp", exp_at, exp, 0x1p-126f, 88.3f, 509, 1);
  check_range("exp", exp_at, exp, -0x1p-126f, -87.3f, 509, 1);
  check_range("log", log_at, log, 0x1p-126f, 0.5f, 509, 1);
  check_range("log", log_at, log, 0.5f, 2.0f, 7, 1);
  check_range("log", log_at, log, 2.0f, 0x1.fffffep+127f, 509, 1);
  check_range("tanh", tanh_at, tanh, 0x1p-126f, INFINITY, 509, 1.5);
  check_range("tanh", tanh_at, tanh, -0x1p-126f, -INFINITY, 509, 1.5);
}

static void edges(void **state) {
  (void)state;
  assert_true(exp_at(0) == 1 && exp_at(-0.0f) == 1);
  assert_true(exp_at(-INFINITY) == 0 && exp_at(-1e30f) == 0 && exp_at(-89) == 0);
  assert_true(exp_at(INFINITY) == INFINITY && exp_at(1e30f) == INFINITY && exp_at(89) == INFINITY);
  for (float x = -89; x < -87; x += 1e-3f) assert_true(fabs(exp_at(x) - exp(x)) < 1e-38);
  assert_true(isnan(exp_at(NAN)) && isnan(tanh_at(NAN)));
  assert_true(log_at(1) == 0);
  assert_true(tanh_at(INFINITY) == 1 && tanh_at(-INFINITY) == -1 && tanh_at(0) == 0);
  assert_true(signbit(tanh_at(-0.0f)) && !signbit(tanh_at(0.0f)));
}

/* vec_math.h promises the same bits under every instruction set: a hash (FNV-1a) of what the
 * functions give, which all of test_vec_math_*.c share. */
static uint64_t hash_of(float (*fn)(float), float low, float high) {
  uint64_t hash = 0xcbf29ce484222325;
  uint32_t from, to, bits;
  memcpy(&from, &low, sizeof from);
  memcpy(&to, &high, sizeof to);
  for (uint32_t at = from; at <= to; at += 4099) {
    float y = fn(float_of(at));
    memcpy(&bits, &y, sizeof bits);
    hash = (hash ^ bits) * 0x100000001b3;
  }
  return hash;
}

static void same_bits(void **state) {
  (void)state;
  assert_int_equal(hash_of(exp_at, 0x1p-126f, 88), 0xd283c3b5f99729fb);
  assert_int_equal(hash_of(exp_at, -0x1p-126f, -87), 0xa32339bd1ff41cef);
  assert_int_equal(hash_of(log_at, 0x1p-126f, 0x1.fffffep+127f), 0x6c3aead3d15acfeb);
  assert_int_equal(hash_of(tanh_at, -0x1p-126f, -20), 0x3380161f134ecce4);
}

/* 32 x 32 -> 64 bit products, lane by lane. */
static void wide_products(void **state) {
  (void)state;
  int32_t a[VL], b[VL], high[VL], low[VL];
  uint32_t seed = 1;
  for (int round = 0; round < 1000; round++) {
    for (int i = 0; i < VL; i++) {
      a[i] = (int32_t)(seed = seed * 1664525u + 1013904223u);
      b[i] = (int32_t)(seed = seed * 1664525u + 1013904223u);
    }
    vi x = vi_load(a), y = vi_load(b);
    vi even = vi_mul_even(x, y), odd = vi_mul_even(vi_odd(x), vi_odd(y));
    vi_store(low, vi_interleave(even, odd));
    vi_store(high, vi_interleave(vi_odd(even), vi_odd(odd)));
    for (int i = 0; i < VL; i++) {
      uint64_t want = (uint64_t)(uint32_t)a[i] * (uint32_t)b[i];
      assert_true((uint32_t)high[i] == want >> 32 && (uint32_t)low[i] == (uint32_t)want);
    }
  }
}

static int run_cases(const char *isa) {
  static const struct CMUnitTest tests[] = {cmocka_unit_test(accuracy), cmocka_unit_test(edges),
                                            cmocka_unit_test(same_bits),
                                            cmocka_unit_test(wide_products)};
  if (!kernel_table_use(isa)) {
    printf("skip: this processor has no %s\n", isa);
    return 0;
  }
  return cmocka_run_group_tests(tests, NULL, NULL);
}
