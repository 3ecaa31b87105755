/* The whole mask path on a tiny model: from a logit through W * M and the model to the loss and
 * back, against finite differences; and that following the gradient makes the loss smaller. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "learn/cost.h"
#include "learn/learner.h"
#include "learn/memory.h"
#include "learn/plan.h"
#include "support/support.h"

static struct error err;
enum { TOKENS = 512, WINDOW = 16 };

/* A corpus without text: the model's own ids, in a pattern that can be learned. */
static struct corpus corpus;
static struct windows windows;
static int64_t train[TOKENS / WINDOW];
static struct model *model;

static int open_all(void **state) {
  if (model_open(&model, golden("models/llama"), &err) != STATUS_OK) return -1;
  int64_t vocab = model_config(model)->vocab_size;
  corpus.ids.items = malloc(TOKENS * sizeof(int32_t));
  corpus.ids.count = TOKENS;
  for (int i = 0; i < TOKENS; i++) corpus.ids.items[i] = (int32_t)((i * i + 3 * i) % vocab);
  windows = (struct windows){&corpus, WINDOW, TOKENS / WINDOW, train};
  static int64_t start[TOKENS / WINDOW];
  for (int i = 0; i < TOKENS / WINDOW; i++) {
    start[i] = i * WINDOW;
    train[i] = i;
  }
  windows.start = start;
  return 0;
}

static int close_all(void **state) {
  free(corpus.ids.items);
  model_close(model);
  return 0;
}

static struct learn_settings tiny_settings(enum learn_mode mode) {
  struct learn_settings s;
  learn_settings_unset(&s, mode);
  s.sparsity = mode == LEARN_MASKLLM ? 0.5 : 0.35;
  s.tokens = 64 * WINDOW;
  s.window = WINDOW;
  s.batch = 4;
  s.micro = 2;
  s.tile_rows = s.tile_cols = 8;
  s.two_four = (struct learn_anneal){100, 500, 4, 0.05}; /* soft enough for finite differences */
  s.regularizer = REGULARIZER_PAPER;
  s.l2 = 3;
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  return s;
}

static size_t logit_count(const struct group_logits *g) {
  return (size_t)mask_logit_count(g->rows, g->cols);
}

static void fill_groups(struct group_logits *g, uint64_t seed) {
  float logits[SPARSE_CANDIDATES];
  for (int64_t row = 0; row < g->rows; row++)
    for (int64_t i = 0; i < mask_row_groups(g->cols); i++) {
      fill_normal(logits, SPARSE_CANDIDATES, seed * 1000003 + (uint64_t)(row * 1000 + i), 0.01f);
      groups_set(g->logit, g->cols, row, i, logits);
    }
}

/* Random logits and frozen masks under another pattern. */
static void fill_pattern(struct learn_site *site, const struct learn_settings *s, uint64_t seed) {
  struct pattern_logits *p = &site->pattern;
  const size_t count = (size_t)pattern_logit_count(&p->table, site->mask.rows, site->mask.cols);
  float *logits = mem_alloc(count, sizeof *logits, &err);
  fill_normal(logits, count, seed, 0.01f);
  pattern_harden(&p->table, logits, site->mask.rows, site->mask.cols, site->mask.bits);
  if (learn_uses_groups(s)) memcpy(p->logit, logits, count * sizeof *logits);
  mem_free(logits);
}

/* A learner with random logits and, for tile mode, random frozen codes. */
static void make_learner(struct learner *l, const struct learn_settings *s) {
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  must(learner_init(l, model, s, skip, &err), err);
  mem_free(skip);
  if (learn_uses_tiles(s)) fill_normal(l->tiles.logit, (size_t)l->tiles.count, 1, 0.01f);
  for (int i = 0; i < l->site_count; i++) {
    struct learn_site *site = &l->sites[i];
    if (!learn_is_24(s)) {
      fill_pattern(site, s, (uint64_t)i + 10);
      continue;
    }
    if (learn_uses_groups(s)) fill_groups(&site->groups, (uint64_t)i + 10);
    for (int64_t r = 0; r < site->mask.rows; r++)
      for (int64_t g = 0; g < mask_group_count(&site->mask); g++)
        mask_set_code(&site->mask, r, g, sparse_candidate_code[(r * 7 + g * 5 + i) % 6]);
  }
}

/* The step's whole objective, from its own report. */
static double objective(struct learner *l) {
  struct step_result r;
  must(learner_gradient(l, &windows, train, TOKENS / WINDOW, &r, &err), err);
  const double share = l->settings.distill, match = l->settings.match;
  double total = (1 - match) * ((1 - share) * r.loss + share * r.kl) + match * r.distance -
                 schedule_regularizer(&l->settings, l->step) * r.regularizer;
  if (l->settings.density == DENSITY_SOFT && learn_uses_tiles(&l->settings))
    total += l->settings.l1 * tiles_density_error(&l->tiles);
  return total;
}

/* The derivative along `direction` (count) of the logits at `p`, by differences of two sizes. */
static void check_direction(struct learner *l, float *p, const float *gradient,
                            const float *direction, int64_t count, double step) {
  float *kept = mem_alloc((size_t)count, sizeof *kept, &err);
  memcpy(kept, p, (size_t)count * sizeof *kept);
  double analytic = 0, high, low;
  for (int64_t i = 0; i < count; i++) analytic += (double)gradient[i] * direction[i];
  for (int64_t i = 0; i < count; i++) p[i] = kept[i] + (float)step * direction[i];
  high = objective(l);
  for (int64_t i = 0; i < count; i++) p[i] = kept[i] - (float)step * direction[i];
  low = objective(l);
  memcpy(p, kept, (size_t)count * sizeof *kept);
  double numeric = (high - low) / (2 * step);
  if (fabs(numeric - analytic) > 0.02 * fabs(numeric) + 1e-4)
    fail_msg("derivative %g, by differences %g", analytic, numeric);
  assert_true(fabs(numeric) > 1e-3); /* else nothing was tested */
  mem_free(kept);
}

/* Along the gradient itself, normalised: a large number, well above rounding. */
static void check_along_gradient(struct learner *l, float *p, const float *at, int64_t count,
                                 double step) {
  float *gradient = mem_alloc((size_t)count, sizeof *gradient, &err);
  float *direction = mem_alloc((size_t)count, sizeof *direction, &err);
  double squares = 0;
  objective(l);
  memcpy(gradient, at, (size_t)count * sizeof *gradient);
  for (int64_t i = 0; i < count; i++) squares += (double)gradient[i] * gradient[i];
  for (int64_t i = 0; i < count; i++) direction[i] = (float)(gradient[i] / sqrt(squares));
  check_direction(l, p, gradient, direction, count, step);
  mem_free(gradient);
  mem_free(direction);
}

static void whole_path_matches_differences(void **state) {
  for (int mode = 0; mode < LEARN_MODES; mode++)
    for (int rule = 0; rule < DENSITY_RULES; rule++)
      for (int noise = 0; noise < NOISE_RULES; noise++) {
        struct learn_settings s = tiny_settings((enum learn_mode)mode);
        s.density = rule;
        s.precision = PRECISION_FP32; /* rounding has no derivative */
        s.noise = noise;
        s.distill = noise == NOISE_STEP ? 0 : noise == NOISE_MICRO ? 0.6 : 1;
        s.distill_kind = noise == NOISE_MICRO ? DISTILL_REVERSE : DISTILL_TOP;
        s.distill_k = 5;
        s.match = noise == NOISE_MICRO ? 0 : 0.3;
        s.regularizer = 1 + (mode + rule + noise) % 3;
        if (s.regularizer == REGULARIZER_MASKLLM) s.l2 = 1e-3;
        struct learner l;
        make_learner(&l, &s);
        if (learn_uses_tiles(&s))
          check_along_gradient(&l, l.tiles.logit, l.tiles.gradient, l.tiles.count, 4e-3);
        if (learn_uses_groups(&s))
          for (int i = 0; i < l.site_count; i += 5) {
            struct group_logits *g = &l.sites[i].groups;
            check_along_gradient(&l, g->logit, g->gradient, (int64_t)logit_count(g), 2e-2);
          }
        learner_free(&l);
        if (mode == LEARN_MASKLLM && rule == 0 && noise == NOISE_RULES - 1) break;
      }
}

static struct learn_settings pattern_settings(enum learn_mode mode, int keep, int of) {
  struct learn_settings s = tiny_settings(mode);
  s.keep = keep;
  s.of = of;
  s.sparsity = mode == LEARN_MASKLLM ? NAN : 0.6 * (1 - (double)keep / of);
  s.precision = PRECISION_FP32;
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  return s;
}

static void other_patterns_match_differences(void **state) {
  static const int patterns[][2] = {{1, 4}, {4, 8}, {3, 4}};
  for (int mode = 0; mode < LEARN_MODES; mode++)
    for (int i = 0; i < 3; i++) {
      struct learn_settings s =
          pattern_settings((enum learn_mode)mode, patterns[i][0], patterns[i][1]);
      s.noise = (mode + i) % NOISE_RULES;
      s.regularizer = 1 + (mode + i) % 3;
      if (s.regularizer == REGULARIZER_MASKLLM) s.l2 = 1e-3;
      struct learner l;
      make_learner(&l, &s);
      if (learn_uses_tiles(&s))
        check_along_gradient(&l, l.tiles.logit, l.tiles.gradient, l.tiles.count, 4e-3);
      if (learn_uses_groups(&s))
        for (int k = 0; k < l.site_count; k += 5) {
          struct pattern_logits *p = &l.sites[k].pattern;
          check_along_gradient(&l, p->logit, p->gradient, p->count, 2e-2);
        }
      learner_free(&l);
    }
}

/* The density of other patterns is exact to a tile, and what is not dense obeys the pattern. */
static void other_patterns_are_projected(void **state) {
  struct learn_settings s = pattern_settings(LEARN_JOINT, 1, 4);
  struct learner l;
  struct step_result r;
  double density;
  int64_t moved, kept = 0;
  make_learner(&l, &s);
  for (int k = 0; k < 3; k++) {
    must(learner_step(&l, &windows, train, TOKENS / WINDOW, &r, &err), err);
    assert_true(fabs(r.density_soft - 0.55) < 1e-5);
  }
  must(learner_harden(&l, true, &density, &moved, &err), err);
  for (int i = 0; i < l.site_count; i++) {
    must(mask_check_groups(&l.sites[i].mask, 1, 4, &err), err);
    kept += mask_kept(&l.sites[i].mask);
  }
  assert_true(fabs((double)kept - 0.55 * (double)l.learned_weights) <= 8 * 8 * 3 / 4.0 / 2);
  learner_free(&l);
}

/* Masks of 70 candidates a group take longer than the products with so few tokens, and a plan must
 * know it. The bounds are wide: matrices are tiny here, and the machine may be shared. */
static void a_plan_knows_what_other_patterns_take(void **state) {
  enum { TIMED = 6 };
  struct learn_settings s = pattern_settings(LEARN_JOINT, 4, 8);
  struct learner l;
  struct step_result r;
  double best = INFINITY;
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  make_learner(&l, &s);
  for (int i = 0; i < TIMED; i++) {
    const double start = clock_seconds();
    must(learner_step(&l, &windows, train, TOKENS / WINDOW, &r, &err), err);
    best = fmin(best, clock_seconds() - start);
  }
  const double taken = best * (double)s.steps;
  const double planned = learn_plan_make(model, &s, skip, 0).learn_seconds;
  printf("%.4f s planned, %.4f s taken\n", planned, taken);
  assert_true(planned > taken / 5 && planned < taken * 5);
  mem_free(skip);
  learner_free(&l);
}

/* Fails when the mask gradient has the wrong sign: the loss would go up. */
static void learning_lowers_the_loss(void **state) {
  for (int mode = 0; mode < LEARN_MODES + 1; mode++) {
    struct learn_settings s = mode < LEARN_MODES ? tiny_settings((enum learn_mode)mode)
                                                 : pattern_settings(LEARN_MASKLLM, 4, 8);
    s.tokens = 60 * 4 * WINDOW;
    s.l2 = 0;
    s.noise = NOISE_NONE;
    s.lr_tile = s.lr_24 = 1e-2;
    must(learn_settings_resolve(&s, WINDOW, &err), err);
    struct learner l;
    struct step_result r;
    double before, after, density;
    int64_t moved;
    make_learner(&l, &s);
    must(learner_harden(&l, true, &density, &moved, &err), err);
    must(learner_loss(&l, &windows, train, TOKENS / WINDOW, false, &before, &err), err);
    while (l.step < s.steps)
      must(learner_step(&l, &windows, train, TOKENS / WINDOW, &r, &err), err);
    must(learner_harden(&l, true, &density, &moved, &err), err);
    must(learner_loss(&l, &windows, train, TOKENS / WINDOW, false, &after, &err), err);
    printf("%s %d:%d: %.4f -> %.4f\n", learn_mode_name[s.mode], s.keep, s.of, before, after);
    assert_true(after < before - 0.01);
    learner_free(&l);
  }
}

static void check_threads(enum precision precision, int keep, int of) {
  struct learn_settings s = pattern_settings(LEARN_JOINT, keep, of);
  struct learner l[2];
  s.precision = precision;
  for (int i = 0; i < 2; i++) {
    parallel_set_threads(i ? 3 : 1);
    make_learner(&l[i], &s);
    struct step_result r;
    for (int k = 0; k < 3; k++)
      must(learner_step(&l[i], &windows, train, TOKENS / WINDOW, &r, &err), err);
  }
  assert_memory_equal(l[0].tiles.logit, l[1].tiles.logit, (size_t)l[0].tiles.count * sizeof(float));
  for (int i = 0; i < l[0].site_count; i++) {
    const struct group_logits *a = &l[0].sites[i].groups, *b = &l[1].sites[i].groups;
    if (of == 4) assert_memory_equal(a->logit, b->logit, logit_count(a) * sizeof(float));
    const struct pattern_logits *c = &l[0].sites[i].pattern, *d = &l[1].sites[i].pattern;
    if (of != 4) assert_memory_equal(c->logit, d->logit, (size_t)c->count * sizeof(float));
  }
  learner_free(&l[0]);
  learner_free(&l[1]);
  parallel_set_threads(0);
}

static void threads_do_not_show(void **state) {
  check_threads(PRECISION_FP32, 2, 4);
  check_threads(PRECISION_BF16, 2, 4);
  check_threads(PRECISION_BF16, 4, 8);
}

/* The same step in both precisions: not the same gradient, but nearly its direction. */
static void bf16_gives_nearly_the_same_gradient(void **state) {
  struct learn_settings s = tiny_settings(LEARN_TILE);
  struct learner l[2];
  struct step_result r;
  for (int i = 0; i < 2; i++) {
    s.precision = i ? PRECISION_BF16 : PRECISION_FP32;
    make_learner(&l[i], &s);
    must(learner_gradient(&l[i], &windows, train, TOKENS / WINDOW, &r, &err), err);
  }
  const float *a = l[0].tiles.gradient, *b = l[1].tiles.gradient;
  double aa = 0, bb = 0, ab = 0;
  for (int64_t i = 0; i < l[0].tiles.count; i++) {
    aa += (double)a[i] * a[i];
    bb += (double)b[i] * b[i];
    ab += (double)a[i] * b[i];
  }
  printf("cosine %.6f\n", ab / sqrt(aa * bb));
  assert_true(ab / sqrt(aa * bb) > 0.99);
  assert_true(memcmp(a, b, (size_t)l[0].tiles.count * sizeof *a) != 0);
  learner_free(&l[0]);
  learner_free(&l[1]);
}

static void every_step_has_the_density(void **state) {
  for (int per_block = 0; per_block < 2; per_block++) {
    struct learn_settings s = tiny_settings(LEARN_TILE);
    s.per_block = per_block;
    struct learner l;
    struct step_result r;
    make_learner(&l, &s);
    for (int k = 0; k < 8; k++) {
      must(learner_step(&l, &windows, train, TOKENS / WINDOW, &r, &err), err);
      assert_true(fabs(r.density_soft - 0.65) < 1e-5);
    }
    learner_free(&l);
  }
}

static size_t all_bytes(int64_t rows, int64_t cols, bool compact) {
  const struct groups_bytes b = groups_bytes(rows, cols, compact);
  return b.logits + b.gradients + b.moments;
}

/* docs/LEARNING.md: 21 bytes a weight where rows fill whole blocks of groups. */
static void bytes_per_weight_are_as_documented(void **state) {
  assert_int_equal(all_bytes(576, 576, false), 21 * 576 * 576);
  assert_int_equal(all_bytes(1536, 576, false), 21 * 1536 * 576);
  /* bf16 logits and gradients, a byte a moment, one for 16 of them */
  assert_int_equal(all_bytes(1536, 576, true), 1536 * 576 / 64 * 16 * (5 * 4 + 11) + 1536 * 9 * 11);
  struct learn_settings joint = tiny_settings(LEARN_JOINT), tile = tiny_settings(LEARN_TILE);
  int64_t groups = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    groups += (int64_t)all_bytes(linear_rows(w), linear_cols(w), false);
  }
  assert_int_equal(learner_bytes(model, &joint) - learner_bytes(model, &tile), groups);
  struct learn_settings eight = pattern_settings(LEARN_JOINT, 4, 8);
  struct learn_settings frozen = pattern_settings(LEARN_TILE, 4, 8);
  int64_t weights = 0;
  for (int i = 0; i < model_site_count(model); i++)
    weights +=
        linear_rows(&model_site(model, i)->weight) * linear_cols(&model_site(model, i)->weight);
  assert_int_equal(learner_bytes(model, &eight) - learner_bytes(model, &frozen), 140 * weights);
  tile.distill = 0;
  const int64_t plain = (int64_t)learner_bytes(model, &tile);
  tile.distill = 0.5;
  const int64_t tokens = tile.micro * WINDOW, vocab = model_config(model)->vocab_size;
  const int64_t more = tokens * (model_config(model)->hidden_size + vocab + 1) * 4;
  const int64_t got = (int64_t)learner_bytes(model, &tile) - plain;
  assert_true(got >= more && got < more + 3 * 64);
  const struct model_config *c = model_config(model);
  const int64_t states = tokens * (c->layers * c->hidden_size + 1) * 4;
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  struct learn_memory without = learn_memory_plan(model, &tile, skip);
  tile.match = 0.5;
  struct learn_memory with = learn_memory_plan(model, &tile, skip);
  const int64_t matched = (int64_t)learner_bytes(model, &tile) - plain - got;
  assert_true(matched >= states && matched < states + 2 * 64);
  assert_true(learn_memory_total(&with, MEMORY_CPU) - learn_memory_total(&without, MEMORY_CPU) ==
              (double)matched);
  mem_free(skip);
}

static void bad_numbers_stop_the_run(void **state) {
  struct learn_settings s = tiny_settings(LEARN_JOINT);
  struct learner l;
  struct step_result r;
  make_learner(&l, &s);
  ((float *)l.sites[0].groups.logit)[3] = NAN;
  float kept = l.tiles.logit[0];
  assert_int_equal(learner_step(&l, &windows, train, TOKENS / WINDOW, &r, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "lower --lr"));
  assert_true(l.step == 0 && l.tiles.logit[0] == kept);
  learner_free(&l);
}

/* A time target of invented costs: the second matrix of a block saves nothing when it is 2:4. */
static void speedups_are_held(void **state) {
  struct cost_table costs = {.head_ps = 5000};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    int64_t rows = linear_rows(w), cols = linear_cols(w);
    if (cost_of_shape(&costs, rows, cols)) continue;
    costs.shapes[costs.count] = (struct cost_shape){rows, cols, 10 * rows * cols, 6 * rows * cols};
    if (costs.count++ == 1) costs.shapes[1].sparse_ps = costs.shapes[1].dense_ps;
  }
  struct learn_settings s = tiny_settings(LEARN_TILE);
  struct learner l;
  double density;
  int64_t moved;
  s.speedup = 1.2;
  s.costs = &costs;
  make_learner(&l, &s);
  must(learner_harden(&l, true, &density, &moved, &err), err);
  double saved = 0, dense = (double)cost_dense_ps(&costs, model);
  for (int i = 0; i < l.site_count; i++) {
    const struct mask_matrix *m = &l.sites[i].mask;
    saved += cost_saved_per_weight(cost_of_shape(&costs, m->rows, m->cols)) *
             (double)(m->rows * m->cols - mask_kept(m));
  }
  /* half a tile: 8 x 8 weights of which half go, at 8 ps each */
  assert_true(fabs((dense - saved) - dense / 1.2) <= 8 * 8 / 2 * 8 / 2.0);
  learner_free(&l);
  s.speedup = 3;
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  assert_int_equal(learner_init(&l, model, &s, skip, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "speed-up of 3.000 cannot be reached"));
  mem_free(skip);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(whole_path_matches_differences),
      cmocka_unit_test(other_patterns_match_differences),
      cmocka_unit_test(other_patterns_are_projected),
      cmocka_unit_test(a_plan_knows_what_other_patterns_take),
      cmocka_unit_test(learning_lowers_the_loss),
      cmocka_unit_test(threads_do_not_show),
      cmocka_unit_test(bf16_gives_nearly_the_same_gradient),
      cmocka_unit_test(every_step_has_the_density),
      cmocka_unit_test(bytes_per_weight_are_as_documented),
      cmocka_unit_test(bad_numbers_stop_the_run),
      cmocka_unit_test(speedups_are_held),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
