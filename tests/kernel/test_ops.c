/* The row-wise operations against fp64 formulas and finite differences, under every instruction
 * set; the Cholesky factor; and the same bits at any number of threads. */
#include <math.h>

#include "base/parallel.h"
#include "kernel/cholesky.h"
#include "kernel/distill.h"
#include "kernel/ops.h"
#include "support/isa.h"

enum { N_MOST = 700, ROWS = 3 };

static void assert_near(const char *what, double got, double want, double tolerance) {
  if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
    fail_msg("%s %s: %.9g, not %.9g", kernel_table()->isa, what, got, want);
}

static const int64_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 63, 64, 100, 333, 700};
enum { LENGTHS = sizeof lengths / sizeof lengths[0] };

/* --- rmsnorm --- */

static double rmsnorm_at(const float *x, const float *w, bool one, double eps, int64_t n,
                         int64_t i) {
  double sum = 0;
  for (int64_t j = 0; j < n; j++) sum += (double)x[j] * x[j];
  return x[i] / sqrt(sum / (double)n + eps) * ((double)w[i] + one);
}

static void rmsnorm_cases(void) {
  float x[ROWS * N_MOST], w[N_MOST], y[ROWS * N_MOST], inverse[ROWS], dy[ROWS * N_MOST],
      dx[ROWS * N_MOST];
  for (int l = 0; l < LENGTHS; l++) {
    int64_t n = lengths[l];
    bool one = l % 2;
    fill_normal(x, (size_t)(ROWS * n), 1, 2);
    fill_normal(w, (size_t)n, 2, 1);
    fill_normal(dy, (size_t)(ROWS * n), 3, 1);
    rmsnorm_forward(x, w, one, 1e-5, ROWS, n, y, inverse);
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t i = 0; i < n; i++)
        assert_near("rmsnorm", y[r * n + i], rmsnorm_at(x + r * n, w, one, 1e-5, n, i), 1e-6);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
      for (int64_t i = 0; i < ROWS * n; i++) dx[i] = 0.25f;
      rmsnorm_backward(dy, x, w, one, inverse, ROWS, n, dx, accumulate);
      for (int64_t i = 0; i < n; i += 1 + n / 9) { /* finite differences, last row */
        float *xr = x + 2 * n, keep = xr[i];
        double h = 1e-3, change = 0;
        xr[i] = (float)(keep + h);
        double up = xr[i];
        for (int64_t j = 0; j < n; j++)
          change += dy[2 * n + j] * rmsnorm_at(xr, w, one, 1e-5, n, j);
        xr[i] = (float)(keep - h);
        for (int64_t j = 0; j < n; j++)
          change -= dy[2 * n + j] * rmsnorm_at(xr, w, one, 1e-5, n, j);
        double slope = change / (up - xr[i]);
        xr[i] = keep;
        assert_near("rmsnorm_backward", dx[2 * n + i], slope + 0.25 * accumulate, 2e-4);
      }
    }
    rmsnorm_forward(x, w, one, 1e-5, ROWS, n, x, NULL); /* in place */
    assert_memory_equal(x, y, (size_t)(ROWS * n) * 4);
  }
}
static void rmsnorm_is_right(void **state) {
  (void)state;
  for_each_isa(rmsnorm_cases);
}

/* --- rope --- */

static void rope_cases(void) {
  enum { ROPE_ROWS = 6, LENGTH = 3, HEADS = 2 };
  static const int64_t starts[] = {2, 5};
  for (int64_t hd = 2; hd <= 80; hd += hd < 8 ? 2 : 24) {
    float x[ROPE_ROWS * HEADS * 80], before[ROPE_ROWS * HEADS * 80], cs[8 * 40], sn[8 * 40];
    fill_normal(x, (size_t)(ROPE_ROWS * HEADS * hd), 1, 1);
    memcpy(before, x, sizeof x);
    for (int64_t p = 0; p < 8; p++)
      for (int64_t i = 0; i < hd / 2; i++) {
        cs[p * hd / 2 + i] = (float)cos((double)(p * (i + 1)));
        sn[p * hd / 2 + i] = (float)sin((double)(p * (i + 1)));
      }
    rope_apply(x, ROPE_ROWS, LENGTH, starts, HEADS, hd, cs, sn, 1);
    for (int64_t r = 0; r < ROPE_ROWS; r++)
      for (int64_t h = 0; h < HEADS; h++)
        for (int64_t i = 0; i < hd / 2; i++) {
          const float *b = before + (r * HEADS + h) * hd, *a = x + (r * HEADS + h) * hd;
          double angle = (double)((starts[r / LENGTH] + r % LENGTH) * (i + 1));
          assert_near("rope", a[i], b[i] * cos(angle) - b[i + hd / 2] * sin(angle), 1e-6);
          assert_near("rope", a[i + hd / 2], b[i + hd / 2] * cos(angle) + b[i] * sin(angle), 1e-6);
        }
    rope_apply(x, ROPE_ROWS, LENGTH, starts, HEADS, hd, cs, sn, -1);
    assert_true(largest_difference(x, before, (size_t)(ROPE_ROWS * HEADS * hd)) < 1e-6);
  }
}
static void rope_rotates_and_back(void **state) {
  (void)state;
  for_each_isa(rope_cases);
}

/* --- gated units --- */

static double activation(bool gelu, double x) {
  if (!gelu) return x / (1 + exp(-x));
  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static void glu_cases(void) {
  float gate[N_MOST], up[N_MOST], dout[N_MOST], out[N_MOST];
  for (int gelu = 0; gelu < 2; gelu++)
    for (int l = 0; l < LENGTHS; l++) {
      int64_t n = lengths[l];
      fill_normal(gate, (size_t)n, 1, 3);
      fill_normal(up, (size_t)n, 2, 1);
      fill_normal(dout, (size_t)n, 3, 1);
      if (n > 4) gate[0] = 90, gate[1] = -90, gate[2] = 0, gate[3] = 1e-4f;
      glu_forward(gelu, gate, up, n, out);
      float g[N_MOST], u[N_MOST];
      memcpy(g, gate, sizeof g);
      memcpy(u, up, sizeof u);
      glu_backward(gelu, g, u, dout, n, g, u); /* overwriting its inputs */
      for (int64_t i = 0; i < n; i++) {
        double h = 1e-4, x = gate[i];
        double slope = (activation(gelu, x + h) - activation(gelu, x - h)) / (2 * h);
        assert_near("glu", out[i], activation(gelu, gate[i]) * up[i], 1e-6);
        assert_near("dgate", g[i], dout[i] * up[i] * slope, 3e-6);
        assert_near("dup", u[i], dout[i] * activation(gelu, gate[i]), 1e-6);
      }
    }
}
static void gated_units_are_right(void **state) {
  (void)state;
  for_each_isa(glu_cases);
}

/* --- losses --- */

static double log_softmax_at(const float *x, int64_t n, int64_t i) {
  double max = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n; j++) max = fmax(max, x[j]);
  for (int64_t j = 0; j < n; j++) sum += exp(x[j] - max);
  return x[i] - max - log(sum);
}

static void loss_cases(void) {
  float logits[ROWS * N_MOST], other[ROWS * N_MOST], d[ROWS * N_MOST], nll[ROWS], kl[ROWS];
  uint8_t agree[ROWS];
  for (int l = 1; l < LENGTHS; l++) {
    int64_t n = lengths[l];
    int32_t targets[ROWS] = {0, -1, (int32_t)(n - 1)};
    fill_normal(logits, (size_t)(ROWS * n), 5, 8);
    fill_normal(other, (size_t)(ROWS * n), 6, 2);
    for (int64_t i = 0; i < n; i++) other[i] = logits[i] + 0.01f * other[i];
    cross_entropy(logits, targets, ROWS, n, 0.5f, nll, d);
    assert_true(nll[1] == 0);
    for (int r = 0; r < ROWS; r += 2)
      assert_near("nll", nll[r], -log_softmax_at(logits + r * n, n, targets[r]), 1e-6);
    for (int64_t i = 0; i < n; i++) {
      assert_true(d[n + i] == 0);
      double p = exp(log_softmax_at(logits, n, i));
      assert_near("dlogits", d[i], 0.5 * (p - (i == targets[0])), 2e-7);
    }
    float nll_only[ROWS];
    cross_entropy(logits, targets, ROWS, n, 0.5f, nll_only, NULL);
    assert_memory_equal(nll, nll_only, sizeof nll);
    softmax_kl(logits, other, ROWS, n, kl, agree);
    for (int r = 0; r < ROWS; r++) {
      double want = 0;
      int64_t top = 0, other_top = 0;
      for (int64_t i = 0; i < n; i++) {
        double p = log_softmax_at(logits + r * n, n, i), q = log_softmax_at(other + r * n, n, i);
        want += exp(p) * (p - q);
        if (logits[r * n + i] > logits[r * n + top]) top = i;
        if (other[r * n + i] > other[r * n + other_top]) other_top = i;
      }
      assert_near("kl", kl[r], want, 2e-6);
      assert_int_equal(agree[r], top == other_top);
    }
    cross_entropy(logits, targets, ROWS, n, 0.5f, nll, logits); /* in place */
    assert_memory_equal(logits, d, (size_t)(ROWS * n) * 4);
  }
}
static void losses_are_right(void **state) {
  (void)state;
  for_each_isa(loss_cases);
}

/* The student's logits in place, against fp64 formulas; a third of the weights is at an end. */
static void distill_cases(void) {
  float logits[ROWS * N_MOST], teacher[ROWS * N_MOST], d[ROWS * N_MOST], nll[ROWS], kl[ROWS];
  static const float weights[] = {0.3f, 1, 0};
  const float scale = 0.5f;
  for (int l = 0; l < LENGTHS; l++) {
    int64_t n = lengths[l];
    const float weight = weights[l % 3];
    int32_t targets[ROWS] = {0, -1, (int32_t)(n - 1)};
    fill_normal(logits, (size_t)(ROWS * n), 15, 4);
    fill_normal(teacher, (size_t)(ROWS * n), 16, 4);
    memcpy(d, logits, sizeof d);
    distill_loss(d, teacher, targets, ROWS, n, (struct distill_rule){.weight = weight}, scale, nll,
                 kl, d);
    assert_true(nll[1] == 0 && kl[1] == 0);
    for (int64_t r = 0; r < ROWS; r++) {
      const float *s = logits + r * n, *t = teacher + r * n;
      double want = 0;
      for (int64_t i = 0; i < n; i++) {
        double log_q = log_softmax_at(s, n, i), log_p = log_softmax_at(t, n, i);
        double text = exp(log_q) - (i == targets[r]), dense = exp(log_q) - exp(log_p);
        double slope = targets[r] < 0 ? 0 : scale * ((1 - weight) * text + weight * dense);
        assert_near("distilled dlogits", d[r * n + i], slope, 3e-7);
        want += exp(log_p) * (log_p - log_q);
      }
      if (targets[r] < 0) continue;
      assert_near("distilled nll", nll[r], -log_softmax_at(s, n, targets[r]), 1e-6);
      assert_near("distilled kl", kl[r], want, 2e-6);
    }
    distill_loss(logits, logits, targets, ROWS, n, (struct distill_rule){.weight = 1}, scale, nll,
                 kl, d);
    for (int64_t i = 0; i < ROWS * n; i++) assert_true(fabsf(d[i]) < 1e-7f);
    for (int r = 0; r < ROWS; r++) assert_true(fabsf(kl[r]) < 1e-6f);
  }
  teacher[0] = NAN;
  int32_t target = 1;
  distill_loss(logits, teacher, &target, 1, 700, (struct distill_rule){.weight = 0.5}, 1, nll, kl,
               d);
  assert_true(isnan(kl[0]) && !isnan(nll[0]));
}
static void distillation_is_right(void **state) {
  (void)state;
  for_each_isa(distill_cases);
}

/* A row with far outliers: nothing overflows, and ties go to the first. */
static void extreme_case(void) {
  float row[40], same[40], nll, kl;
  uint8_t agree;
  int32_t target = 3;
  for (int i = 0; i < 40; i++) row[i] = same[i] = i == 7 || i == 20 ? 3e4f : -3e4f;
  cross_entropy(row, &target, 1, 40, 1, &nll, NULL);
  assert_near("extreme nll", nll, 6e4 + log(2), 1e-6);
  softmax_kl(row, same, 1, 40, &kl, &agree);
  assert_true(kl == 0 && agree);
  same[7] = 0;
  softmax_kl(same, row, 1, 40, &kl, &agree);
  assert_true(!agree);
}
static void losses_survive_extremes(void **state) {
  (void)state;
  for_each_isa(extreme_case);
}

/* Rows of several thousand: ties far apart go to the first, the last element counts, and what is
 * not a number is never hidden. */
static void long_row_case(void) {
  enum { LONG = 5003 };
  float row[LONG], same[LONG], d[LONG], nll, kl;
  uint8_t agree;
  fill_normal(row, LONG, 9, 2);
  row[LONG - 1] = 20;
  memcpy(same, row, sizeof row);
  int32_t target = LONG - 1;
  cross_entropy(row, &target, 1, LONG, 1, &nll, d);
  assert_near("long nll", nll, -log_softmax_at(row, LONG, LONG - 1), 1e-6);
  double sum = 0;
  for (int i = 0; i < LONG; i++) sum += d[i];
  assert_near("sum of dlogits", sum, 0, 1e-6);
  same[1500] = 20; /* a tie, earlier: the two models no longer agree */
  softmax_kl(row, same, 1, LONG, &kl, &agree);
  assert_false(agree);
  row[1500] = 20;
  row[3000] = 20;
  softmax_kl(row, same, 1, LONG, &kl, &agree);
  assert_true(agree);
  row[777] = NAN;
  cross_entropy(row, &target, 1, LONG, 1, &nll, d);
  assert_true(isnan(nll) && isnan(d[0]));
  softmax_kl(same, row, 1, LONG, &kl, &agree);
  assert_true(isnan(kl));
}
static void long_rows_and_what_is_not_a_number(void **state) {
  (void)state;
  for_each_isa(long_row_case);
}

static void sum_cases(void) {
  static float x[100003], y[100003];
  fill_normal(x, 100003, 1, 1);
  memcpy(y, x, sizeof x);
  double want = 0, got[3];
  for (int i = 0; i < 100003; i++) want += (double)x[i] * x[i];
  for (int t = 0; t < 3; t++) {
    parallel_set_threads(t + 1);
    got[t] = sum_squares(x, 100003);
  }
  parallel_set_threads(0);
  assert_near("sum_squares", got[0], want, 1e-12);
  assert_true(got[0] == got[1] && got[1] == got[2]);
  add_inplace(x, y, 100003);
  for (int i = 0; i < 100003; i++) assert_true(x[i] == 2 * y[i]);
}
static void sums_are_exact_enough(void **state) {
  (void)state;
  for_each_isa(sum_cases);
}

/* --- Cholesky --- */

static void cholesky_cases(void) {
  static const int64_t sizes[] = {1, 5, 64, 65, 130, 333};
  static float a[333 * 333], h[333 * 333], x[400 * 333];
  for (int s = 0; s < 6; s++) {
    int64_t n = sizes[s];
    fill_normal(x, (size_t)(400 * n), 4, 1);
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) {
        double sum = i == j ? 4.0 : 0;
        for (int t = 0; t < 400; t++) sum += (double)x[t * n + i] * x[t * n + j] / 400;
        h[i * n + j] = a[i * n + j] = (float)sum;
        if (j > i) a[i * n + j] = NAN; /* only the lower triangle is read */
      }
    struct error err;
    if (!cholesky_inverse_upper(a, n, &err)) fail_msg("%s", err.text);
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < i; j++) assert_true(a[i * n + j] == 0);
    for (int64_t i = 0; i < n; i += 1 + n / 20) /* U H U^T is the identity */
      for (int64_t j = 0; j < n; j += 1 + n / 17) {
        double sum = 0;
        for (int64_t p = i; p < n; p++) {
          double inner = 0;
          for (int64_t q = j; q < n; q++) inner += (double)h[p * n + q] * a[j * n + q];
          sum += a[i * n + p] * inner;
        }
        assert_near("U H U^T", sum, i == j, 2e-5);
      }
    for (int64_t i = 0; i < n * n; i++) a[i] = h[i];
    a[(n - 1) * n + n - 1] = -1;
    assert_false(cholesky_inverse_upper(a, n, &err));
    assert_int_equal(err.status, STATUS_REFUSED);
  }
}
static void cholesky_of_the_inverse(void **state) {
  (void)state;
  for_each_isa(cholesky_cases);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rmsnorm_is_right),
      cmocka_unit_test(rope_rotates_and_back),
      cmocka_unit_test(gated_units_are_right),
      cmocka_unit_test(losses_are_right),
      cmocka_unit_test(distillation_is_right),
      cmocka_unit_test(losses_survive_extremes),
      cmocka_unit_test(sums_are_exact_enough),
      cmocka_unit_test(cholesky_of_the_inverse),
      cmocka_unit_test(long_rows_and_what_is_not_a_number),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
