/* The losses that a teacher gives, under every instruction set: against PyTorch's autograd in fp64,
 * against their definitions and finite differences of these at ragged lengths, and at the ends of
 * what floats hold. Forward KL at every length is in test_ops.c. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "io/json.h"
#include "kernel/distill.h"
#include "support/isa.h"

static struct error err;

static void assert_near(const char *what, double got, double want, double tolerance) {
  if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
    fail_msg("%s %s: %.9g, not %.9g", kernel_table()->isa, what, got, want);
}

/* --- golden values --- */

enum { FLOATS_MOST = 64 };

static int64_t integer(const json_t *o, const char *key) {
  return (int64_t)json_integer_value(json_object_get(o, key));
}

static double number(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

static void floats(const json_t *o, const char *key, float *out) {
  const json_t *list = json_object_get(o, key);
  const size_t count = json_array_size(list);
  assert_true(count > 0 && count <= FLOATS_MOST);
  for (size_t i = 0; i < count; i++) out[i] = (float)json_number_value(json_array_get(list, i));
}

static void check_floats(const json_t *o, const char *key, const float *got) {
  float want[FLOATS_MOST];
  floats(o, key, want);
  for (size_t i = 0; i < json_array_size(json_object_get(o, key)); i++)
    assert_near(key, got[i], want[i], 2e-6);
}

static enum distill_kind kind_named(const char *name) {
  int kind = 0;
  while (kind < DISTILL_KINDS && strcmp(distill_kind_name[kind], name)) kind++;
  assert_true(kind < DISTILL_KINDS);
  return (enum distill_kind)kind;
}

static json_t *file;

static void check_case(const json_t *o, const int32_t *targets) {
  const struct distill_rule rule = {kind_named(json_string_value(json_object_get(o, "kind"))),
                                    integer(o, "k"), number(o, "weight")};
  float logits[FLOATS_MOST], teacher[FLOATS_MOST], nll[FLOATS_MOST], kl[FLOATS_MOST];
  floats(o, "logits", logits);
  floats(o, "teacher", teacher);
  distill_loss(logits, teacher, targets, integer(file, "rows"), integer(file, "vocab"), rule,
               (float)number(file, "scale"), nll, kl, logits); /* in place */
  check_floats(o, "nll", nll);
  check_floats(o, "kl", kl);
  check_floats(o, "gradient", logits);
}

static void golden_cases(void) {
  const json_t *list = json_object_get(file, "targets"), *o;
  int32_t targets[FLOATS_MOST];
  size_t i;
  json_array_foreach(list, i, o) targets[i] = (int32_t)json_integer_value(o);
  json_array_foreach(json_object_get(file, "cases"), i, o) check_case(o, targets);
  assert_true(i >= 6);
  float here[FLOATS_MOST], there[FLOATS_MOST], distance[FLOATS_MOST] = {0};
  o = json_object_get(file, "states");
  floats(o, "here", here);
  floats(o, "there", there);
  match_rows(here, there, targets, integer(file, "rows"), integer(file, "width"),
             (float)number(file, "share"), (float)number(file, "scale"), distance);
  check_floats(o, "distance", distance);
  check_floats(o, "gradient", there);
}

static void golden_values(void **state) {
  (void)state;
  file = json_read_file(golden("distill.json"), 1 << 20, &err);
  if (!file) fail_msg("%s", err.text);
  for_each_isa(golden_cases);
  json_decref(file);
}

/* --- definitions, and their finite differences --- */

enum { N_MOST = 700 };

static void log_softmax(const double *x, int64_t n, double *out) {
  double top = x[0], sum = 0;
  for (int64_t i = 1; i < n; i++) top = fmax(top, x[i]);
  for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
  for (int64_t i = 0; i < n; i++) out[i] = x[i] - top - log(sum);
}

/* How many of the teacher's logits are larger. */
static int64_t place(const double *teacher, int64_t n, int64_t i) {
  int64_t before = 0;
  for (int64_t k = 0; k < n; k++) before += teacher[k] > teacher[i];
  return before;
}

static double divergence(struct distill_rule rule, const double *logits, const double *teacher,
                         const bool *chosen, int64_t n) {
  double p[N_MOST], q[N_MOST], sum = 0, p_rest = 0, q_rest = 0;
  log_softmax(teacher, n, p);
  log_softmax(logits, n, q);
  for (int64_t i = 0; i < n; i++) {
    if (rule.kind == DISTILL_REVERSE) {
      sum += exp(q[i]) * (q[i] - p[i]);
    } else if (rule.kind == DISTILL_FORWARD || chosen[i]) {
      sum += exp(p[i]) * (p[i] - q[i]);
    } else {
      p_rest += exp(p[i]);
      q_rest += exp(q[i]);
    }
  }
  return sum + (p_rest > 0 ? p_rest * log(p_rest / q_rest) : 0);
}

static double loss(struct distill_rule rule, const double *logits, const double *teacher,
                   const bool *chosen, int64_t n, int64_t target) {
  double q[N_MOST];
  log_softmax(logits, n, q);
  return -(1 - rule.weight) * q[target] +
         rule.weight * divergence(rule, logits, teacher, chosen, n);
}

static void check_row(struct distill_rule rule, int64_t n, uint64_t seed) {
  enum { SAMPLES = 9 };
  const float scale = 0.5f;
  const double h = 1e-4;
  float logits[N_MOST], teacher[N_MOST], d[N_MOST], nll, kl;
  double s[N_MOST], t[N_MOST], q[N_MOST];
  bool chosen[N_MOST];
  const int32_t target = (int32_t)(n - 1);
  fill_normal(logits, (size_t)n, seed, 3);
  fill_normal(teacher, (size_t)n, seed + 1, 3);
  for (int64_t i = 0; i < n; i++) {
    s[i] = logits[i];
    t[i] = teacher[i];
  }
  for (int64_t i = 0; i < n; i++) chosen[i] = place(t, n, i) < rule.top;
  memcpy(d, logits, sizeof d);
  distill_loss(d, teacher, &target, 1, n, rule, scale, &nll, &kl, d);
  log_softmax(s, n, q);
  assert_near("nll", nll, -q[target], 1e-6);
  assert_near("kl", kl, divergence(rule, s, t, chosen, n), 3e-6);
  for (int64_t k = 0; k < SAMPLES + 1; k++) {
    const int64_t i = k == SAMPLES ? target : k * n / SAMPLES;
    const double keep = s[i];
    s[i] = keep + h;
    const double up = loss(rule, s, t, chosen, n, target);
    s[i] = keep - h;
    const double down = loss(rule, s, t, chosen, n, target);
    s[i] = keep;
    assert_near(distill_kind_name[rule.kind], d[i], scale * (up - down) / (2 * h), 1e-6);
  }
}

static void row_cases(void) {
  static const int64_t lengths[] = {1, 2, 7, 16, 17, 63, 100, 333, 700};
  static const double weights[] = {0.3, 1, 0};
  static const int64_t tops[] = {1, 5, 64, 1024};
  for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
    for (int w = 0; w < 3; w++) {
      check_row((struct distill_rule){DISTILL_FORWARD, 0, weights[w]}, lengths[l], 30 + l);
      check_row((struct distill_rule){DISTILL_REVERSE, 0, weights[w]}, lengths[l], 40 + l);
      for (int k = 0; k < 4; k++)
        check_row((struct distill_rule){DISTILL_TOP, tops[k], weights[w]}, lengths[l], 50 + l);
    }
}
static void rows_are_right(void **state) {
  (void)state;
  for_each_isa(row_cases);
}

/* --- ends --- */

/* A teacher that is followed teaches nothing; rows without a target, too. */
static void still_case(void) {
  enum { N = 100 };
  static const int32_t targets[2] = {3, -1};
  float teacher[2 * N], d[2 * N], nll[2], kl[2];
  fill_normal(teacher, 2 * N, 60, 4);
  for (int kind = 0; kind < DISTILL_KINDS; kind++) {
    const struct distill_rule rule = {(enum distill_kind)kind, 8, 1};
    distill_loss(teacher, teacher, targets, 2, N, rule, 1, nll, kl, d);
    for (int i = 0; i < N; i++) assert_true(fabsf(d[i]) < 1e-6f && d[N + i] == 0);
    assert_true(fabsf(kl[0]) < 1e-6f && kl[1] == 0 && nll[1] == 0);
  }
}

/* A model that gives the teacher's other tokens nothing that a float holds, and one that gives the
 * teacher's likely tokens nothing: all stays finite. */
static void far_case(void) {
  enum { N = 50 };
  const int32_t target = 1;
  float logits[N], teacher[N], d[N], nll, kl;
  for (int kind = 0; kind < DISTILL_KINDS; kind++)
    for (int swap = 0; swap < 2; swap++) {
      const struct distill_rule rule = {(enum distill_kind)kind, 3, 0.5};
      for (int i = 0; i < N; i++) {
        logits[i] = (i < 3) != swap ? 3e4f : -3e4f;
        teacher[i] = i < 3 ? 1 : 0;
      }
      distill_loss(logits, teacher, &target, 1, N, rule, 1, &nll, &kl, d);
      assert_true(isfinite(nll) && isfinite(kl) && kl > 0.01f);
      for (int i = 0; i < N; i++) assert_true(isfinite(d[i]));
    }
  teacher[0] = NAN;
  const struct distill_rule top = {DISTILL_TOP, 3, 0.5};
  distill_loss(logits, teacher, &target, 1, N, top, 1, &nll, &kl, d);
  assert_true(isnan(kl) && !isnan(nll));
}

static void ends_are_right(void **state) {
  (void)state;
  for_each_isa(still_case);
  for_each_isa(far_case);
}

static int falling(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

static void thresholds(void **state) {
  enum { N = 2000 };
  static const int64_t tops[] = {1, 2, 3, 64, 100, 1023, 1024};
  static float x[N], sorted[N];
  (void)state;
  for (int ties = 0; ties < 2; ties++) {
    fill_normal(x, N, 70, 3);
    if (ties)
      for (int i = 0; i < N; i++) x[i] = floorf(x[i]);
    memcpy(sorted, x, sizeof x);
    qsort(sorted, N, sizeof *sorted, falling);
    for (size_t k = 0; k < sizeof tops / sizeof *tops; k++)
      assert_true(distill_threshold(x, N, tops[k]) == sorted[tops[k] - 1]);
  }
  assert_true(distill_threshold(x, 5, 5) == -INFINITY);
}

static void states_without_a_target_or_energy(void **state) {
  enum { WIDTH = 5 };
  static const int32_t targets[3] = {-1, 1, 1};
  const float x[3 * WIDTH] = {1, 2, 3, 4, 5, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2};
  float d[3 * WIDTH] = {5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1}, distance[3] = {0, 0, 0.5f};
  (void)state;
  match_rows(x, d, targets, 3, WIDTH, 0.5f, 2, distance);
  for (int i = 0; i < 2 * WIDTH; i++) assert_true(d[i] == 0);
  for (int i = 2 * WIDTH; i < 3 * WIDTH; i++) assert_near("gradient", d[i], 0.4, 1e-6);
  assert_true(distance[0] == 0 && distance[1] == 0 && distance[2] == 1);
}

static void threads_do_not_show(void **state) {
  enum { ROWS = 37, N = 301 };
  static float logits[ROWS * N], teacher[ROWS * N], d[2][ROWS * N], nll[2][ROWS], kl[2][ROWS];
  static int32_t targets[ROWS];
  (void)state;
  fill_normal(logits, ROWS * N, 80, 3);
  fill_normal(teacher, ROWS * N, 81, 3);
  for (int i = 0; i < ROWS; i++) targets[i] = i % 5 - 1;
  for (int kind = 0; kind < DISTILL_KINDS; kind++) {
    const struct distill_rule rule = {(enum distill_kind)kind, 7, 0.4};
    for (int i = 0; i < 2; i++) {
      parallel_set_threads(i ? 3 : 1);
      distill_loss(logits, teacher, targets, ROWS, N, rule, 1, nll[i], kl[i], d[i]);
    }
    assert_memory_equal(d[0], d[1], sizeof d[0]);
    assert_memory_equal(kl[0], kl[1], sizeof kl[0]);
    assert_memory_equal(nll[0], nll[1], sizeof nll[0]);
  }
  parallel_set_threads(0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(golden_values),
      cmocka_unit_test(rows_are_right),
      cmocka_unit_test(ends_are_right),
      cmocka_unit_test(thresholds),
      cmocka_unit_test(states_without_a_target_or_energy),
      cmocka_unit_test(threads_do_not_show),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
