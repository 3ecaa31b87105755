/* Settings: defaults that scale with the budget, what is refused, schedules. */
#include <math.h>
#include <string.h>

#include "learn/schedule.h"
#include "support/support.h"

static struct error err;

static struct learn_settings resolved(enum learn_mode mode, int64_t tokens, int64_t context) {
  struct learn_settings s;
  learn_settings_unset(&s, mode);
  if (mode != LEARN_MASKLLM) s.sparsity = 0.45;
  s.tokens = tokens;
  must(learn_settings_resolve(&s, context, &err), err);
  return s;
}

static void budgets_are_spent(void **state) {
  static const int64_t tokens[] = {40, 1000, 20000, 123456, 5000000, 2097152000, 100000000000};
  static const int64_t contexts[] = {16, 64, 1000, 2048, 131072};
  for (int mode = 0; mode < LEARN_MODES; mode++)
    for (int t = 0; t < 7; t++)
      for (int c = 0; c < 5; c++) {
        struct learn_settings s = resolved((enum learn_mode)mode, tokens[t], contexts[c]);
        int64_t used = s.steps * s.batch * s.window;
        assert_true(used <= s.tokens && used + s.batch * s.window > s.tokens);
        assert_true(s.window <= contexts[c] && s.window <= 4096);
        assert_true(s.batch % s.micro == 0 && s.warmup_steps < s.steps + (s.steps == 0));
      }
}

/* The paper's run gets the paper's settings. */
static void the_papers_budget_gives_its_settings(void **state) {
  const int64_t tokens = 2000LL * 256 * 4096;
  struct learn_settings s = resolved(LEARN_JOINT, tokens, 32768);
  assert_int_equal(s.steps, 2000);
  assert_int_equal(s.window, 4096);
  assert_int_equal(s.batch, 256);
  assert_int_equal(s.warmup_steps, 5);
  assert_true(fabs(s.lr_tile - 1e-3) < 1e-12 && fabs(s.lr_24 - 1e-3) < 1e-12);
  assert_true(s.tile.kappa_first == 25 && s.tile.kappa_last == 350 && s.tile.tau_last == 0.05);
  assert_true(fabs(s.l2 - 10) < 1e-9 && s.l1 == 7 && s.prior_strength_24 == 3);
  s = resolved(LEARN_TILE, tokens, 32768);
  assert_true(fabs(s.lr_tile - 1e-4) < 1e-12 && s.tile.kappa_first == 100);
  s = resolved(LEARN_MASKLLM, tokens, 32768);
  assert_true(s.warmup_steps == 0 && s.lr_floor == 0.1 && s.sparsity == 0.5);
  assert_true(fabs(s.weight_decay - 0.1) < 1e-12 && s.regularizer == REGULARIZER_MASKLLM);
}

static void what_is_given_stays(void **state) {
  struct learn_settings s;
  learn_settings_unset(&s, LEARN_TILE);
  s.sparsity = 0.25;
  s.tokens = 20000;
  s.lr_tile = 0.123;
  s.window = 100;
  s.batch = 6;
  s.micro = 3;
  s.tile_rows = s.tile_cols = 64;
  s.density = DENSITY_SOFT;
  must(learn_settings_resolve(&s, 2048, &err), err);
  assert_true(s.lr_tile == 0.123 && s.window == 100 && s.batch == 6 && s.micro == 3);
  assert_true(s.tile_cols == 64 && s.density == DENSITY_SOFT && s.steps == 33);
  json_t *a = learn_settings_to_json(&s), *b;
  must(learn_settings_resolve(&s, 2048, &err), err); /* resolving again changes nothing */
  b = learn_settings_to_json(&s);
  assert_true(json_equal(a, b));
  json_decref(a);
  json_decref(b);
}

static void refused(const char *because, int kind, int64_t k, double share, double match) {
  struct learn_settings s;
  learn_settings_unset(&s, LEARN_TILE);
  s.sparsity = 0.25;
  s.tokens = 20000;
  s.distill = share;
  s.distill_kind = kind;
  s.distill_k = k;
  s.match = match;
  assert_int_equal(learn_settings_resolve(&s, 2048, &err), STATUS_USAGE);
  assert_non_null(strstr(err.text, because));
}

static void ways_to_distill(void **state) {
  struct learn_settings s;
  learn_settings_unset(&s, LEARN_TILE);
  s.sparsity = 0.25;
  s.tokens = 20000;
  s.distill = 0.5;
  s.distill_kind = DISTILL_TOP;
  s.match = 0.25;
  must(learn_settings_resolve(&s, 2048, &err), err);
  must(learn_settings_resolve(&s, 2048, &err), err);
  json_t *o = learn_settings_to_json(&s);
  assert_string_equal(json_string_value(json_object_get(o, "distill_kind")), "top-k");
  assert_int_equal(json_integer_value(json_object_get(o, "distill_k")), DISTILL_TOP_DEFAULT);
  assert_true(json_real_value(json_object_get(o, "match")) == 0.25);
  json_decref(o);
  s = resolved(LEARN_TILE, 20000, 2048); /* what runs of before these settings have */
  o = learn_settings_to_json(&s);
  assert_null(json_object_get(o, "distill_kind"));
  assert_null(json_object_get(o, "match"));
  json_decref(o);
  refused("give it a share", DISTILL_REVERSE, 0, 0, 0);
  refused("is for --distill-kind top-k", DISTILL_REVERSE, 5, 1, 0);
  refused("takes 1 to 1024", DISTILL_TOP, 1025, 1, 0);
  refused("match is 1.5", -1, 0, 0, 1.5);
}

static void schedules_begin_and_end_where_they_should(void **state) {
  struct learn_settings s = resolved(LEARN_TILE, 20000, 2048);
  struct relaxation first = schedule_relaxation(&s.tile, 0, s.steps);
  struct relaxation last = schedule_relaxation(&s.tile, s.steps - 1, s.steps);
  assert_true(first.kappa == s.tile.kappa_first && first.tau == s.tile.tau_first);
  assert_true(fabs(last.kappa - s.tile.kappa_last) < 1e-9 &&
              fabs(last.tau - s.tile.tau_last) < 1e-9);
  double before = 0;
  for (int64_t step = 0; step < s.steps; step++) {
    double rate = schedule_rate(&s, step);
    assert_true(rate > 0 && rate <= 1);
    assert_true(step < s.warmup_steps ? rate > before
                                      : rate <= before + 1e-12 || step == s.warmup_steps);
    before = rate;
  }
  assert_true(schedule_rate(&s, s.warmup_steps) == 1 && before < 0.05);
  s.regularizer = REGULARIZER_PAPER;
  s.l2 = 4;
  assert_true(schedule_regularizer(&s, 0) == 4);
  assert_true(schedule_regularizer(&s, s.steps / 2) < 2.2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(budgets_are_spent),
      cmocka_unit_test(the_papers_budget_gives_its_settings),
      cmocka_unit_test(what_is_given_stays),
      cmocka_unit_test(ways_to_distill),
      cmocka_unit_test(schedules_begin_and_end_where_they_should),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
