/* Learning on an emulated card: whole steps of every mode and family against the CPU's, the hard
 * masks and losses that follow, and checkpoints that go from one to the other. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/column.h"
#include "kernel/cuda/record.h"
#include "learn/checkpoint.h"
#include "learn/memory.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

static struct error err;
enum { TOKENS = 256, WINDOW = 16, STEPS = 2 };

static struct corpus corpus;
static struct windows windows;
static int64_t train[TOKENS / WINDOW], starts[TOKENS / WINDOW];

enum side { CPU, CARD, SIDES };
struct pair {
  struct model *model;
  struct learner side[SIDES];
};

static void make_text(int64_t vocab) {
  corpus.ids.items = malloc(TOKENS * sizeof(int32_t));
  corpus.ids.count = TOKENS;
  for (int i = 0; i < TOKENS; i++) corpus.ids.items[i] = (int32_t)((i * i + 3 * i) % vocab);
  for (int i = 0; i < TOKENS / WINDOW; i++) train[i] = i, starts[i] = i * WINDOW;
  windows = (struct windows){&corpus, WINDOW, TOKENS / WINDOW, starts};
}

static struct learn_settings tiny_settings(enum learn_mode mode, enum precision precision) {
  struct learn_settings s;
  learn_settings_unset(&s, mode);
  s.sparsity = mode == LEARN_MASKLLM ? 0.5 : 0.35;
  s.tokens = 64 * WINDOW;
  s.window = WINDOW;
  s.batch = 2;
  s.micro = 1;
  s.tile_rows = s.tile_cols = 16;
  s.two_four = (struct learn_anneal){100, 500, 4, 0.05};
  s.precision = precision;
  s.clip = 1e-3; /* clips */
  s.l2 = 3;
  return s;
}

/* Random logits, and random codes for tile mode: the same on both sides. */
static void fill(struct learner *l) {
  float logits[SPARSE_CANDIDATES];
  if (learn_uses_tiles(&l->settings)) fill_normal(l->tiles.logit, (size_t)l->tiles.count, 1, 0.01f);
  for (int i = 0; i < l->site_count; i++) {
    struct mask_matrix *m = &l->sites[i].mask;
    struct group_logits *g = &l->sites[i].groups;
    const size_t bytes = (size_t)mask_logit_count(m->rows, m->cols) * sizeof(float);
    float *made = mem_alloc(bytes, 1, &err);
    for (int64_t r = 0; r < m->rows; r++)
      for (int64_t k = 0; k < mask_group_count(m); k++) {
        fill_normal(logits, SPARSE_CANDIDATES, (uint64_t)(i * 1000003 + r * 1000 + k), 0.01f);
        groups_set(made, m->cols, r, k, logits);
        mask_set_code(m, r, k, sparse_candidate_code[(r * 7 + k * 5 + i) % 6]);
      }
    if (g->logit) must(groups_load(g, made, &err), err);
    mem_free(made);
  }
  learner_masks_changed(l);
}

static void pair_open(struct pair *p, const char *name, struct learn_settings s) {
  const struct backend *card = emulated_open(256 << 20);
  char path[64];
  snprintf(path, sizeof path, "models/%s", name);
  must(model_open(&p->model, golden(path), &err), err);
  make_text(model_config(p->model)->vocab_size);
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  bool *skip = mem_alloc((size_t)model_site_count(p->model), sizeof *skip, &err);
  skip[2] = true; /* one linear stays dense */
  for (int i = 0; i < SIDES; i++) {
    s.backend = i == CARD ? card : NULL;
    must(learner_init(&p->side[i], p->model, &s, skip, &err), err);
    fill(&p->side[i]);
  }
  mem_free(skip);
}

static void pair_close(struct pair *p) {
  for (int i = 0; i < SIDES; i++) learner_free(&p->side[i]);
  model_close(p->model);
  free(corpus.ids.items);
  assert_int_equal(emulated_card.bank_conflicts, 0);
  emulated_close();
}

static float *bring(const struct learner *l, const void *from, size_t count) {
  float *out = mem_alloc(count, sizeof *out, &err);
  if (!l->settings.compact) {
    must(l->ops->download(out, from, count * sizeof *out, &err), err);
    return out;
  }
  uint16_t *half = mem_alloc(count, sizeof *half, &err);
  must(l->ops->download(half, from, count * sizeof *half, &err), err);
  dtype_to_f32(DTYPE_BF16, half, (int64_t)count, out);
  mem_free(half);
  return out;
}

static double logits_error(const struct pair *p, int site, bool gradients) {
  const struct group_logits *g[SIDES] = {&p->side[CPU].sites[site].groups,
                                         &p->side[CARD].sites[site].groups};
  const size_t count = (size_t)mask_logit_count(g[0]->rows, g[0]->cols);
  float *at[SIDES];
  for (int i = 0; i < SIDES; i++)
    at[i] = bring(&p->side[i], gradients ? g[i]->gradient : g[i]->logit, count);
  const double error = relative_error(at[CARD], at[CPU], count);
  mem_free(at[CPU]);
  mem_free(at[CARD]);
  return error;
}

static void check_close(const char *what, double card, double cpu, double most) {
  if (!(fabs(card - cpu) <= most * fabs(cpu) + 1e-9))
    fail_msg("%s: %.9g on the card, %.9g on the CPU", what, card, cpu);
}

static void check_gradients(const struct pair *p, double most) {
  const struct tile_logits *t[SIDES] = {&p->side[CPU].tiles, &p->side[CARD].tiles};
  if (t[CPU]->count) {
    const size_t count = (size_t)t[CPU]->count;
    const double error = relative_error(t[CARD]->gradient, t[CPU]->gradient, count);
    if (!(error < most)) fail_msg("gradients of tiles: relative error %g", error);
  }
  for (int i = 0; i < p->side[CPU].site_count && learn_uses_groups(&p->side[CPU].settings); i++) {
    const double error = logits_error(p, i, true);
    if (!(error < most)) fail_msg("gradients of linear %d: relative error %g", i, error);
  }
}

/* One step after the other. The gradients of the first are compared; then rounding may turn a
 * comparison here and there, so that what follows is held to less. */
static void check_steps(struct pair *p, double most) {
  for (int step = 0; step < STEPS; step++) {
    struct step_result r[SIDES];
    for (int i = 0; i < SIDES; i++)
      must(learner_step(&p->side[i], &windows, train, TOKENS / WINDOW, &r[i], &err), err);
    check_close("loss", r[CARD].loss, r[CPU].loss, most);
    check_close("kl", r[CARD].kl, r[CPU].kl, 10 * most);
    check_close("regularizer", r[CARD].regularizer, r[CPU].regularizer, most);
    check_close("gradient norm", r[CARD].gradient_norm, r[CPU].gradient_norm, 10 * most);
    assert_true(r[CPU].gradient_norm > p->side[CPU].settings.clip);
    const double flips = (double)r[CPU].flips_24;
    assert_true(fabs((double)r[CARD].flips_24 - flips) <= 0.02 * flips + 2);
    if (!step) check_gradients(p, most);
  }
}

static void check_hard_masks(struct pair *p, double most) {
  double loss[SIDES], dense[SIDES], density;
  int64_t moved;
  for (int i = 0; i < SIDES; i++) {
    must(learner_harden(&p->side[i], true, &density, &moved, &err), err);
    must(learner_loss(&p->side[i], &windows, train, 2, false, &loss[i], &err), err);
    must(learner_loss(&p->side[i], &windows, train, 2, true, &dense[i], &err), err);
  }
  check_close("dense loss", dense[CARD], dense[CPU], most);
  check_close("hard loss", loss[CARD], loss[CPU], 20 * most); /* a mask bit may differ */
}

static void steps_match_the_cpu(void **state) {
  (void)state;
  static const struct {
    const char *model;
    enum learn_mode mode;
    int noise, regularizer;
    double distill;
  } cases[] = {
      {"llama", LEARN_JOINT, NOISE_STEP, REGULARIZER_REFERENCE, 0},
      {"gemma3", LEARN_JOINT, NOISE_MICRO, REGULARIZER_PAPER, 0.5},
      {"qwen2", LEARN_TILE, NOISE_STEP, REGULARIZER_REFERENCE, 0.5},
      {"qwen3", LEARN_MASKLLM, NOISE_MICRO, REGULARIZER_MASKLLM, 0},
      {"mistral", LEARN_TILE, NOISE_NONE, REGULARIZER_PAPER, 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct pair p;
    struct learn_settings s = tiny_settings(cases[i].mode, PRECISION_FP32);
    s.noise = cases[i].noise;
    s.regularizer = cases[i].regularizer;
    s.distill = cases[i].distill;
    s.recompute = i % 2;
    if (s.regularizer == REGULARIZER_MASKLLM) s.l2 = 1e-3;
    pair_open(&p, cases[i].model, s);
    check_steps(&p, 1e-3);
    check_hard_masks(&p, 1e-4);
    pair_close(&p);
  }
}

/* Every family in every mode, one window: in fp32, and in bf16, where attention runs on the tensor
 * cores. */
static void gradients_match_in_every_mode(void **state) {
  (void)state;
  static const char *const names[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};
  for (size_t f = 0; f < sizeof names / sizeof *names; f++)
    for (int mode = 0; mode < LEARN_MODES; mode++) {
      struct pair p;
      struct step_result r[SIDES];
      const bool bf16 = (f + (size_t)mode) % 2;
      struct learn_settings s =
          tiny_settings((enum learn_mode)mode, bf16 ? PRECISION_BF16 : PRECISION_FP32);
      s.batch = 1;
      if (mode == LEARN_MASKLLM) s.l2 = 1e-3;
      pair_open(&p, names[f], s);
      for (int i = 0; i < SIDES; i++)
        must(learner_gradient(&p.side[i], &windows, train, TOKENS / WINDOW, &r[i], &err), err);
      check_close(names[f], r[CARD].loss, r[CPU].loss, bf16 ? 2e-3 : 1e-4);
      check_gradients(&p, bf16 ? 2e-2 : 1e-3);
      assert_true((emulated_card.launches[LEARN_attention_mma_64] > 0) == bf16);
      pair_close(&p);
    }
}

/* Compact storage: gradients are rounded by the same noise on both sides. */
static void compact_steps_match_the_cpu(void **state) {
  (void)state;
  struct pair p;
  struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_FP32);
  s.compact = true;
  pair_open(&p, "qwen2", s);
  check_steps(&p, 3e-3);
  check_hard_masks(&p, 1e-4);
  pair_close(&p);
}

/* bf16 products: both sides round operands, attention's too. */
static void bf16_steps_stay_near(void **state) {
  (void)state;
  struct pair p;
  struct step_result r[SIDES];
  pair_open(&p, "llama", tiny_settings(LEARN_JOINT, PRECISION_BF16));
  for (int i = 0; i < SIDES; i++)
    must(learner_gradient(&p.side[i], &windows, train, TOKENS / WINDOW, &r[i], &err), err);
  check_close("loss", r[CARD].loss, r[CPU].loss, 2e-3);
  for (int i = 0; i < p.side[CPU].site_count; i++) assert_true(logits_error(&p, i, true) < 2e-2);
  pair_close(&p);
}

/* The same step twice gives the same bits, in whatever order blocks run. */
static void the_same_bits_again(void **state) {
  (void)state;
  float *first = NULL;
  for (uint32_t order = 0; order < 2; order++) {
    struct pair p;
    struct step_result r;
    pair_open(&p, "qwen2", tiny_settings(LEARN_JOINT, PRECISION_BF16));
    emulated_card.order = order;
    must(learner_step(&p.side[CARD], &windows, train, TOKENS / WINDOW, &r, &err), err);
    const struct group_logits *g = &p.side[CARD].sites[3].groups;
    const size_t count = (size_t)mask_logit_count(g->rows, g->cols);
    float *here = bring(&p.side[CARD], g->logit, count);
    if (!first)
      first = here;
    else {
      assert_memory_equal(first, here, count * sizeof *here);
      mem_free(here);
    }
    pair_close(&p);
  }
  mem_free(first);
}

/* A run that began on one goes on on the other. */
static void check_either_way(bool compact) {
  struct pair p;
  struct step_result r;
  struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_FP32);
  s.compact = compact;
  pair_open(&p, "llama", s);
  for (int from = 0; from < SIDES; from++) {
    struct learner *l = &p.side[from], *other = &p.side[1 - from];
    struct run_state saved = {.best_step = 1}, loaded = {0};
    bool found = false;
    saved.best = mem_alloc((size_t)l->site_count, sizeof *saved.best, &err);
    for (int i = 0; i < l->site_count; i++) saved.best[i] = l->sites[i].mask;
    loaded.best = saved.best;
    must(learner_step(l, &windows, train, TOKENS / WINDOW, &r, &err), err);
    must(checkpoint_save(l, &saved, "{}", scratch(), &err), err);
    must(checkpoint_load(other, &loaded, "{}", scratch(), &found, &err), err);
    assert_true(found && other->step == l->step);
    for (int i = 0; i < l->site_count; i++) assert_true(logits_error(&p, i, false) == 0);
    /* moments too: the next update is the same */
    must(learner_step(l, &windows, train, TOKENS / WINDOW, &r, &err), err);
    must(learner_step(other, &windows, train, TOKENS / WINDOW, &r, &err), err);
    for (int i = 0; i < l->site_count; i++) assert_true(logits_error(&p, i, false) < 2e-2);
    mem_free(saved.best);
  }
  pair_close(&p);
}
static void checkpoints_go_either_way(void **state) {
  (void)state;
  check_either_way(false);
  check_either_way(true);
}

/* --- the same bits by other ways --- */

enum { WAY_STEPS = 4 };
struct way {
  bool compact, offload, graphs;
  bool lose_changes, late_fetch; /* mistakes */
};

/* All logits after some steps on the card. */
static float *logits_after(struct way way, size_t *count, struct record_counts *counts) {
  struct pair p;
  struct step_result r;
  struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_BF16);
  s.compact = way.compact;
  pair_open(&p, "llama", s);
  struct learner *l = &p.side[CARD];
  learner_free(l); /* the CPU's side has no such settings */
  s = p.side[CPU].settings;
  s.backend = emulated_backend();
  s.offload = way.offload;
  s.graphs = way.graphs;
  bool *skip = mem_alloc((size_t)model_site_count(p.model), sizeof *skip, &err);
  skip[2] = true;
  must(learner_init(l, p.model, &s, skip, &err), err);
  mem_free(skip);
  fill(l);
  emulated_card.lose_changes = way.lose_changes;
  emulated_card.late_fetch = way.late_fetch;
  for (int i = 0; i < WAY_STEPS; i++)
    must(learner_step(l, &windows, train, TOKENS / WINDOW, &r, &err), err);
  *counts = record_counts();
  assert_true(!way.offload || emulated_card.puts == WAY_STEPS * (uint64_t)l->site_count);
  *count = 0;
  for (int i = 0; i < l->site_count; i++)
    *count += (size_t)mask_logit_count(l->sites[i].mask.rows, l->sites[i].mask.cols);
  float *all = mem_alloc(*count, sizeof *all, &err);
  size_t at = 0;
  for (int i = 0; i < l->site_count; i++) {
    const struct group_logits *g = &l->sites[i].groups;
    const size_t here = (size_t)mask_logit_count(g->rows, g->cols);
    float *part = bring(l, g->logit, here);
    memcpy(all + at, part, here * sizeof *part);
    mem_free(part);
    at += here;
  }
  pair_close(&p);
  return all;
}

/* Moments that pass by and graphs change nothing; mistakes in either do. */
static void other_ways_give_the_same_bits(void **state) {
  (void)state;
  static const struct way ways[] = {
      {.offload = true},
      {.graphs = true},
      {.compact = true, .offload = true, .graphs = true},
      {.graphs = true, .lose_changes = true},
      {.offload = true, .late_fetch = true},
  };
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    size_t count, same_count;
    struct record_counts counts;
    float *plain = logits_after((struct way){.compact = ways[i].compact}, &count, &counts);
    assert_int_equal(counts.replayed, 0);
    float *other = logits_after(ways[i], &same_count, &counts);
    assert_int_equal(count, same_count);
    const bool same = !memcmp(plain, other, count * sizeof *plain);
    if (same == (ways[i].lose_changes || ways[i].late_fetch))
      fail_msg("way %zu: the bits are %s", i, same ? "the same" : "others");
    if (ways[i].graphs) {
      /* from the second or third step on; few arguments change */
      assert_true(counts.replayed > counts.plain / 2 && counts.changed > 0);
      assert_true(counts.changed < counts.replayed / 2);
    }
    mem_free(plain);
    mem_free(other);
  }
}

/* A checkpoint of moments that lie on the host. */
static void offloaded_moments_are_saved(void **state) {
  (void)state;
  struct pair p;
  struct step_result r;
  struct learner with;
  struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_FP32);
  s.compact = true;
  pair_open(&p, "llama", s);
  s = p.side[CARD].settings;
  s.offload = true;
  bool *skip = mem_alloc((size_t)model_site_count(p.model), sizeof *skip, &err);
  skip[2] = true;
  must(learner_init(&with, p.model, &s, skip, &err), err);
  mem_free(skip);
  fill(&with);
  struct learner *plain = &p.side[CARD];
  struct run_state saved = {.best_step = 1}, loaded = {0};
  bool found = false;
  saved.best = mem_alloc((size_t)with.site_count, sizeof *saved.best, &err);
  for (int i = 0; i < with.site_count; i++) saved.best[i] = with.sites[i].mask;
  loaded.best = saved.best;
  must(learner_step(&with, &windows, train, TOKENS / WINDOW, &r, &err), err);
  must(checkpoint_save(&with, &saved, "{}", scratch(), &err), err);
  must(checkpoint_load(plain, &loaded, "{}", scratch(), &found, &err), err);
  assert_true(found);
  must(learner_step(&with, &windows, train, TOKENS / WINDOW, &r, &err), err);
  must(learner_step(plain, &windows, train, TOKENS / WINDOW, &r, &err), err);
  for (int i = 0; i < with.site_count; i++) {
    const size_t count = (size_t)mask_logit_count(with.sites[i].mask.rows, with.sites[i].mask.cols);
    float *a = bring(&with, with.sites[i].groups.logit, count);
    float *b = bring(plain, plain->sites[i].groups.logit, count);
    assert_memory_equal(a, b, count * sizeof *a);
    mem_free(a);
    mem_free(b);
  }
  mem_free(saved.best);
  learner_free(&with);
  pair_close(&p);
}

/* The plan of a dry run is what a step takes. */
static void the_plan_is_what_is_taken(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    struct pair p;
    struct step_result r;
    struct learn_settings s =
        tiny_settings(i == 2 ? LEARN_TILE : LEARN_JOINT, i ? PRECISION_BF16 : PRECISION_FP32);
    s.recompute = i == 1;
    s.compact = i == 3;
    s.distill = i == 2 ? 0.5 : 0;
    pair_open(&p, i == 1 ? "gemma3" : "llama", s);
    must(learner_step(&p.side[CARD], &windows, train, TOKENS / WINDOW, &r, &err), err);
    bool *skip = mem_alloc((size_t)model_site_count(p.model), sizeof *skip, &err);
    skip[2] = true;
    const struct learn_memory plan = learn_memory_plan(p.model, &p.side[CARD].settings, skip);
    const double planned = learn_memory_total(&plan, MEMORY_CUDA) - CUDA_WORKSPACE_BYTES;
    const double taken = (double)emulated_card.live_bytes;
    if (!(fabs(planned - taken) < 0.05 * taken))
      fail_msg("%g bytes are planned, %g are taken", planned, taken);
    mem_free(skip);
    pair_close(&p);
  }
}

static void too_little_memory_is_said(void **state) {
  (void)state;
  struct model *model;
  struct learner l;
  struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_FP32);
  s.backend = emulated_open(1 << 18);
  must(model_open(&model, golden("models/llama"), &err), err);
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  assert_int_equal(learner_init(&l, model, &s, skip, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "no room"));
  assert_non_null(strstr(err.text, "--recompute"));
  assert_non_null(strstr(err.text, "--compact"));
  assert_non_null(strstr(err.text, "--offload"));
  mem_free(skip);
  model_close(model);
  emulated_close();
}

static void what_has_no_kernel_is_refused(void **state) {
  (void)state;
  struct model *model;
  struct learner l;
  must(model_open(&model, golden("models/llama"), &err), err);
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  for (int i = 0; i < 3; i++) {
    struct learn_settings s = tiny_settings(LEARN_JOINT, PRECISION_FP32);
    s.backend = emulated_open(256 << 20);
    if (i == 0) s.match = 0.5;
    if (i) s.distill = 0.5;
    if (i) s.distill_kind = i == 1 ? DISTILL_REVERSE : DISTILL_TOP;
    must(learn_settings_resolve(&s, WINDOW, &err), err);
    assert_int_equal(learner_init(&l, model, &s, skip, &err), STATUS_USAGE);
    assert_non_null(strstr(err.text, i ? "--distill-kind" : "--match"));
    assert_non_null(strstr(err.text, "on the CPU only"));
    emulated_close();
  }
  mem_free(skip);
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(steps_match_the_cpu),
      cmocka_unit_test(gradients_match_in_every_mode),
      cmocka_unit_test(compact_steps_match_the_cpu),
      cmocka_unit_test(other_ways_give_the_same_bits),
      cmocka_unit_test(offloaded_moments_are_saved),
      cmocka_unit_test(bf16_steps_stay_near),
      cmocka_unit_test(the_same_bits_again),
      cmocka_unit_test(checkpoints_go_either_way),
      cmocka_unit_test(too_little_memory_is_said),
      cmocka_unit_test(what_has_no_kernel_is_refused),
      cmocka_unit_test(the_plan_is_what_is_taken),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
