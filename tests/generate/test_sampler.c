/* generate/sampler: each draw against a plain implementation of the definition, and the drawn
 * frequencies against the exact probabilities. Seeds are fixed, so the tests cannot flicker. */
#include "generate/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

enum { VOCAB = 23, DRAWS = 8000 };

static const float *test_logits(void) {
  static float logits[VOCAB];
  fill_normal(logits, VOCAB, 5, 2.0f);
  logits[7] = logits[11] = logits[3] + 0.5f; /* equal ones: ordered by id */
  return logits;
}

struct candidate {
  int id;
  double p;
};

static int likelier(const void *a, const void *b) {
  const struct candidate *x = a, *y = b;
  if (x->p != y->p) return x->p > y->p ? -1 : 1;
  return x->id - y->id;
}

/* The definition, with a full sort: probabilities after all filters, 0 for what is dropped. */
static void expected_distribution(const float *logits, const struct sampler_settings *s,
                                  double out[VOCAB]) {
  struct candidate c[VOCAB];
  double total = 0, kept_mass = 0;
  for (int i = 0; i < VOCAB; i++) c[i] = (struct candidate){i, exp(logits[i] / s->temperature)};
  qsort(c, VOCAB, sizeof *c, likelier);
  int kept = s->top_k > 0 && s->top_k < VOCAB ? (int)s->top_k : VOCAB;
  for (int i = 0; i < kept; i++) total += c[i].p;
  if (s->top_p < 1) {
    int n = 0;
    for (double mass = 0; n < kept && mass < s->top_p * total; n++) mass += c[n].p;
    kept = n;
  }
  while (kept > 1 && c[kept - 1].p < s->min_p * c[0].p) kept--;
  for (int i = 0; i < kept; i++) kept_mass += c[i].p;
  memset(out, 0, VOCAB * sizeof *out);
  for (int i = 0; i < kept; i++) out[c[i].id] = c[i].p / kept_mass;
}

/* Draws many times and compares the counts by Pearson's chi-square. Its mean is the number of
 * degrees of freedom and its variance twice that: 5 sigma is far outside of chance. */
static void check_distribution(struct sampler_settings settings) {
  struct error err = {0};
  struct sampler sampler;
  double expected[VOCAB];
  int count[VOCAB] = {0};
  expected_distribution(test_logits(), &settings, expected);
  must(sampler_init(&sampler, &settings, VOCAB, &err), err);
  for (int i = 0; i < DRAWS; i++) {
    float logits[VOCAB];
    memcpy(logits, test_logits(), sizeof logits);
    int32_t id = sampler_draw(&sampler, logits);
    assert_in_range(id, 0, VOCAB - 1);
    count[id]++;
  }
  double chi = 0;
  int kept = 0;
  for (int i = 0; i < VOCAB; i++) {
    if (expected[i] == 0) {
      if (count[i]) fail_msg("token %d was filtered, yet drawn %d times", i, count[i]);
      continue;
    }
    double e = expected[i] * DRAWS;
    chi += (count[i] - e) * (count[i] - e) / e;
    kept++;
  }
  double freedom = kept - 1;
  if (chi > freedom + 5 * sqrt(2 * freedom) + 1e-9)
    fail_msg("chi-square %.1f with %g degrees of freedom", chi, freedom);
  sampler_release(&sampler);
}

static void draws_follow_the_distribution(void **state) {
  (void)state;
  struct sampler_settings s = sampler_settings_default();
  s.seed = 11;
  const double temperature[] = {0.3, 1.0, 2.5};
  for (int t = 0; t < 3; t++) {
    s.temperature = temperature[t];
    check_distribution(s);
  }
}

static void filters_keep_what_they_should(void **state) {
  (void)state;
  const int64_t top_k[] = {0, 1, 2, 5, VOCAB, 1000};
  const double top_p[] = {1.0, 0.999, 0.8, 0.3, 1e-9}, min_p[] = {0, 0.05, 0.4, 1.0};
  for (int k = 0; k < 6; k++)
    for (int p = 0; p < 5; p++)
      for (int m = 0; m < 4; m++)
        check_distribution((struct sampler_settings){.temperature = 0.9,
                                                     .top_k = top_k[k],
                                                     .top_p = top_p[p],
                                                     .min_p = min_p[m],
                                                     .repetition_penalty = 1,
                                                     .seed = 100 + (uint64_t)k});
}

static void greedy_takes_the_first_of_the_largest(void **state) {
  (void)state;
  struct error err = {0};
  struct sampler sampler;
  struct sampler_settings settings = sampler_settings_default();
  must(sampler_init(&sampler, &settings, 6, &err), err);
  float logits[] = {-1, 3, 2, 3, 3, -INFINITY};
  assert_int_equal(sampler_draw(&sampler, logits), 1);
  sampler_release(&sampler);
}

static void penalty_works_on_both_signs(void **state) {
  (void)state;
  struct error err = {0};
  struct sampler sampler;
  struct sampler_settings settings = sampler_settings_default();
  settings.repetition_penalty = 2;
  must(sampler_init(&sampler, &settings, 4, &err), err);
  sampler_see(&sampler, 0);
  sampler_see(&sampler, 3);
  sampler_see(&sampler, 4);  /* outside: ignored */
  sampler_see(&sampler, -1); /* outside: ignored */
  float logits[] = {3, 2, -4, -1};
  assert_int_equal(sampler_draw(&sampler, logits), 1);
  assert_true(logits[0] == 1.5f && logits[1] == 2 && logits[2] == -4 && logits[3] == -2);
  float again[] = {3, 2, -4, -1}; /* 1 has been drawn: now 1.5 against 1 */
  assert_int_equal(sampler_draw(&sampler, again), 0);
  assert_true(again[1] == 1);
  sampler_forget(&sampler);
  float fresh[] = {3, 4, -4, -1};
  assert_int_equal(sampler_draw(&sampler, fresh), 1);
  sampler_release(&sampler);
}

static void equal_seeds_draw_equal_tokens(void **state) {
  (void)state;
  struct error err = {0};
  struct sampler a, b, c;
  struct sampler_settings settings = {
      .temperature = 1, .top_p = 0.9, .repetition_penalty = 1, .seed = 3};
  must(sampler_init(&a, &settings, VOCAB, &err), err);
  must(sampler_init(&b, &settings, VOCAB, &err), err);
  settings.seed = 4;
  must(sampler_init(&c, &settings, VOCAB, &err), err);
  int differences = 0;
  for (int i = 0; i < 200; i++) {
    float x[VOCAB], y[VOCAB], z[VOCAB];
    memcpy(x, test_logits(), sizeof x);
    memcpy(y, test_logits(), sizeof y);
    memcpy(z, test_logits(), sizeof z);
    int32_t id = sampler_draw(&a, x);
    assert_int_equal(id, sampler_draw(&b, y));
    differences += id != sampler_draw(&c, z);
  }
  assert_true(differences > 20);
  sampler_release(&a);
  sampler_release(&b);
  sampler_release(&c);
}

static void broken_logits_are_told(void **state) {
  (void)state;
  struct error err = {0};
  for (int greedy = 0; greedy < 2; greedy++) {
    struct sampler sampler;
    struct sampler_settings settings = sampler_settings_default();
    settings.temperature = greedy ? 0 : 1;
    settings.top_p = 0.9;
    must(sampler_init(&sampler, &settings, 3, &err), err);
    float not_a_number[] = {1, NAN, 2}, infinite[] = {1, INFINITY, 2};
    float nothing[] = {-INFINITY, -INFINITY, -INFINITY}, one[] = {-INFINITY, -1e30f, -INFINITY};
    assert_int_equal(sampler_draw(&sampler, not_a_number), -1);
    assert_int_equal(sampler_draw(&sampler, infinite), -1);
    assert_int_equal(sampler_draw(&sampler, nothing), -1);
    assert_int_equal(sampler_draw(&sampler, one), 1);
    sampler_release(&sampler);
  }
}

static void settings_are_checked(void **state) {
  (void)state;
  struct sampler_settings bad[] = {
      {.temperature = -1, .top_p = 1, .repetition_penalty = 1},
      {.temperature = NAN, .top_p = 1, .repetition_penalty = 1},
      {.top_k = -1, .top_p = 1, .repetition_penalty = 1},
      {.top_p = 0, .repetition_penalty = 1},
      {.top_p = 1.1, .repetition_penalty = 1},
      {.top_p = 1, .min_p = 1.5, .repetition_penalty = 1},
      {.top_p = 1, .repetition_penalty = 0},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    struct error err = {0};
    struct sampler sampler;
    assert_int_equal(sampler_init(&sampler, &bad[i], 10, &err), STATUS_USAGE);
    assert_true(strlen(err.text) > 10);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_follow_the_distribution),
      cmocka_unit_test(filters_keep_what_they_should),
      cmocka_unit_test(greedy_takes_the_first_of_the_largest),
      cmocka_unit_test(penalty_works_on_both_signs),
      cmocka_unit_test(equal_seeds_draw_equal_tokens),
      cmocka_unit_test(broken_logits_are_told),
      cmocka_unit_test(settings_are_checked),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
