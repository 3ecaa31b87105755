/* SparseGPT on an emulated card: the factor against the CPU's, and whole matrices, which are the
 * CPU's to the bit where the factor is the same. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kernel/cholesky.h"
#include "kernel/sparsegpt.h"
#include "prune/far_sparsegpt.h"
#include "prune/sparsegpt.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

enum { ROWS = 19, COLS = 301, TOKENS = 400 };

static struct error err;

/* Sums of products of `tokens` random inputs of n features, the last of which never occurs where
 * `dead`. */
static float *make_products(int64_t n, int64_t tokens, bool dead) {
  struct rng rng = rng_make((uint64_t)n, 1);
  float *h = mem_alloc((size_t)(n * n), sizeof *h, &err),
        *x = mem_alloc((size_t)n, sizeof *x, &err);
  assert_non_null(h);
  for (int64_t t = 0; t < tokens; t++) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(&rng) + (i ? 0.5f * x[i - 1] : 0);
    if (dead) x[n - 1] = 0;
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) h[i * n + j] += x[i] * x[j];
  }
  mem_free(x);
  return h;
}

static void *on_card(const struct backend *card, const void *from, size_t bytes) {
  void *memory;
  must(card->alloc(bytes, &memory, &err), err);
  must(card->upload(memory, from, bytes, &err), err);
  return memory;
}

/* The card's factor of `products`, here; whether it has one. */
static bool factor_of(const struct backend *card, const float *products, int64_t n, double added,
                      float *out) {
  const size_t bytes = (size_t)(n * n) * sizeof *out;
  float *far = on_card(card, products, bytes), *u = on_card(card, products, bytes);
  uint32_t failed = 0, *flag = on_card(card, &failed, sizeof failed);
  card->sparsegpt->factor(far, n, 0.01, added, u, flag);
  must(card->download(out, u, bytes, &err), err);
  must(card->download(&failed, flag, sizeof failed, &err), err);
  card->free(far);
  card->free(u);
  card->free(flag);
  return !failed;
}

static void factors_are_the_cpus(void **state) {
  static const int64_t sizes[] = {1, 33, 130};
  const struct backend *card = emulated_open(16 << 20);
  (void)state;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const int64_t n = sizes[i];
    float *products = make_products(n, 2 * n + 8, n > 1);
    float *cpu = mem_alloc((size_t)(n * n), sizeof *cpu, &err);
    float *here = mem_alloc((size_t)(n * n), sizeof *here, &err);
    double difference = 0, norm = 0;
    for (int64_t e = 0; e < n * n; e++) {
      const bool diagonal = e % (n + 1) == 0;
      const double h = diagonal && products[e] == 0 ? 1 : 0.01 * products[e];
      cpu[e] = (float)(h + (diagonal ? 0.002 : 0));
    }
    assert_true(cholesky_inverse_upper(cpu, n, &err));
    assert_true(factor_of(card, products, n, 0.002, here));
    for (int64_t e = 0; e < n * n; e++) {
      difference += pow((double)here[e] - cpu[e], 2);
      norm += (double)cpu[e] * cpu[e];
      if (e / n > e % n) assert_true(here[e] == 0);
    }
    assert_true(sqrt(difference / norm) < 1e-5);
    /* what is not positive definite is seen, wherever it is */
    products[n * n - 1] = -1;
    assert_false(factor_of(card, products, n, 0.002, here));
    mem_free(products);
    mem_free(cpu);
    mem_free(here);
  }
  assert_int_equal(emulated_card.bank_conflicts, 0);
  emulated_close();
}

/* --- matrices --- */

struct matrix {
  float *w;
  struct mask_matrix mask;
};

static float *make_weights(void) {
  struct rng rng = rng_make(5, 2);
  float *w = mem_alloc(ROWS * COLS, sizeof *w, &err);
  for (int i = 0; i < ROWS * COLS; i++) w[i] = i % 50 ? (float)rng_normal(&rng) : 0; /* and ties */
  return w;
}

static void same_matrices(const struct matrix *a, const struct matrix *b) {
  const struct mask_matrix *m = &a->mask;
  assert_int_equal(m->kind, b->mask.kind);
  assert_memory_equal(a->w, b->w, ROWS * COLS * sizeof *a->w);
  assert_memory_equal(mask_groups(m), mask_groups(&b->mask), mask_groups_bytes(m));
  if (m->tile_scores)
    assert_memory_equal(m->tile_scores, b->mask.tile_scores,
                        (size_t)mask_tile_count(m) * sizeof *m->tile_scores);
}

static void free_matrix(struct matrix *m) {
  mem_free(m->w);
  mask_matrix_free(&m->mask);
}

static struct matrix prune_there(struct far_sparsegpt *s, const struct prune_rule *rule,
                                 int64_t block) {
  struct matrix out = {.w = make_weights()};
  must(far_sparsegpt_prune(s, rule, "w", out.w, ROWS, COLS, block, &out.mask, &err), err);
  return out;
}

static void matrices_are_the_cpus(void **state) {
  enum { TILES = 2 * 19 };
  static uint8_t dense[TILES]; /* of 16 x 16; more than other tiles need */
  static const struct {
    struct prune_rule rule;
    int64_t block;
  } cases[] = {
      {{.pattern = PRUNE_2_4, .keep = 2, .of = 4, .tile_rows = 16, .tile_cols = 16}, 128},
      {{.pattern = PRUNE_2_4, .keep = 2, .of = 4, .tile_rows = 8, .tile_cols = 128}, 50},
      {{PRUNE_HYBRID, 2, 4, 0, 16, 16, dense}, 128},
      {{PRUNE_HYBRID, 4, 8, 0, 16, 16, dense}, 60},
      {{PRUNE_N_M, 2, 5, 0, 16, 16, NULL}, 128}, /* a bit mask: 5 does not divide 16 */
      {{PRUNE_N_M, 20, 64, 0, 64, 64, NULL}, 128},
      {{.pattern = PRUNE_UNSTRUCTURED, .sparsity = 0.6}, 128},
      {{.pattern = PRUNE_UNSTRUCTURED, .sparsity = 0.3}, 33},
  };
  const struct backend *card = emulated_open(16 << 20);
  struct far_sparsegpt s;
  float *products = make_products(COLS, TOKENS, true);
  float *u = mem_alloc(COLS * COLS, sizeof *u, &err);
  (void)state;
  for (int i = 0; i < TILES; i++) dense[i] = i % 3 == 1;
  must(far_sparsegpt_init(&s, card, COLS, &err), err);
  assert_true(factor_of(card, products, COLS, 0.02, u));
  must(card->upload(s.factor, u, COLS * COLS * sizeof *u, &err), err);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const struct prune_rule *rule = &cases[i].rule;
    struct matrix cpu = {.w = make_weights()};
    must(prune_sparsegpt(rule, "w", cpu.w, ROWS, COLS, u, cases[i].block, &cpu.mask, &err), err);
    emulated_card.order = 0;
    struct matrix here = prune_there(&s, rule, cases[i].block);
    emulated_card.order = 7; /* of blocks */
    struct matrix again = prune_there(&s, rule, cases[i].block);
    same_matrices(&cpu, &here);
    same_matrices(&here, &again);
    free_matrix(&cpu);
    free_matrix(&here);
    free_matrix(&again);
  }
  assert_int_equal(emulated_card.bank_conflicts, 0);
  mem_free(u);
  mem_free(products);
  far_sparsegpt_free(&s);
  emulated_close();
}

/* The Hessian that more damping does not save: its diagonal, as on the CPU. */
static void damping_and_the_diagonal_are_the_cpus(void **state) {
  enum { N = 9 };
  (void)state;
  for (int hopeless = 0; hopeless < 2; hopeless++) {
    const struct backend *card = emulated_open(4 << 20);
    struct moments cpu, m;
    struct far_moments far;
    struct far_sparsegpt s;
    struct factor_report reports[2];
    float *u[2] = {mem_alloc(N * N, sizeof **u, &err), mem_alloc(N * N, sizeof **u, &err)};
    must(moments_init(&cpu, N, true, &err), err);
    must(far_moments_init(&far, card, &m, N, true, 8, &err), err);
    must(far_sparsegpt_init(&s, card, N, &err), err);
    /* off the diagonal more than on it */
    for (int i = 0; i < N * N; i++) {
      const bool diagonal = i % (N + 1) == 0;
      cpu.products[i] = diagonal ? 1 : hopeless ? 1e6f : 1.5f;
    }
    cpu.tokens = m.tokens = 2;
    must(card->upload(far.products, cpu.products, N * N * sizeof *cpu.products, &err), err);
    must(far_moments_fetch(&far, &m, &err), err);
    must(moments_factor(&cpu, 0.01, u[0], &reports[0], &err), err);
    must(far_sparsegpt_factor(&s, &far, &m, 0.01, &reports[1], &err), err);
    must(card->download(u[1], s.factor, N * N * sizeof **u, &err), err);
    assert_true(reports[0].retries > 0 && reports[0].diagonal_only == hopeless);
    assert_int_equal(reports[0].retries, reports[1].retries);
    assert_int_equal(reports[0].diagonal_only, reports[1].diagonal_only);
    assert_true(reports[0].damping == reports[1].damping);
    for (int i = 0; i < N * N; i++) assert_true(fabsf(u[0][i] - u[1][i]) < 1e-5f);
    for (int i = 0; i < 2; i++) mem_free(u[i]);
    moments_free(&cpu);
    moments_free(&m);
    far_moments_free(&far);
    far_sparsegpt_free(&s);
    emulated_close();
  }
}

static void what_does_not_fit_is_said(void **state) {
  const struct backend *card = emulated_open(1 << 20);
  const struct prune_rule rule = {.pattern = PRUNE_UNSTRUCTURED, .sparsity = 0.5};
  struct far_sparsegpt s;
  struct mask_matrix mask = {0};
  float w[4] = {1, 2, 3, 4};
  (void)state;
  assert_int_equal(far_sparsegpt_init(&s, card, 1000, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "3.8 MiB on the card"));
  assert_non_null(strstr(err.text, "--calib-tokens"));
  far_sparsegpt_free(&s);
  must(far_sparsegpt_init(&s, card, 4, &err), err);
  assert_int_equal(far_sparsegpt_prune(&s, &rule, "w", w, 1, 4, 256, &mask, &err), STATUS_USAGE);
  assert_non_null(strstr(err.text, "--block 256"));
  far_sparsegpt_free(&s);
  emulated_close();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(factors_are_the_cpus),
      cmocka_unit_test(matrices_are_the_cpus),
      cmocka_unit_test(damping_and_the_diagonal_are_the_cpus),
      cmocka_unit_test(what_does_not_fit_is_said),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
