/* SparseGPT on a card: the part of gpu_learn that has no counterpart in the
 * backend's table on the CPU. */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gpu_learn.h"
#include "kernel/cholesky.h"
#include "kernel/sparsegpt.h"
#include "prune/far_sparsegpt.h"
#include "prune/sparsegpt.h"

enum { FEATURES = 1000, ROWS = 500, TOKENS = 1500 };

static struct error err;

static float *must_floats(int64_t count) {
  float *memory = mem_alloc((size_t)count, sizeof *memory, &err);
  learn_must(memory ? STATUS_OK : STATUS_FAILED, &err);
  return memory;
}

static float *normals(int64_t count, uint64_t seed) {
  struct rng rng = rng_make(seed, 5);
  float *out = must_floats(count);
  for (int64_t i = 0; i < count; i++) out[i] = (float)rng_normal(&rng);
  return out;
}

/* Sums of products of `tokens` random inputs, on the card and, with `here`, on the host. */
static float *sums(const struct backend *card, int64_t n, int64_t tokens, float *here) {
  float *x = normals(tokens * n, 1), *far_x, *out;
  const size_t bytes = (size_t)(tokens * n) * sizeof *x, all = (size_t)(n * n) * sizeof *x;
  learn_must(card->alloc(bytes, (void **)&far_x, &err), &err);
  learn_must(card->alloc(all, (void **)&out, &err), &err);
  learn_must(card->upload(far_x, x, bytes, &err), &err);
  card->linear_backward_weight(far_x, far_x, tokens, n, n, PRECISION_FP32, out, false);
  if (here) learn_must(card->download(here, out, all, &err), &err);
  learn_must(card->wait(&err), &err);
  card->free(far_x);
  mem_free(x);
  return out;
}

/* --- right? --- */

static int check_factor(const struct gpu_learn *run, FILE *ledger, struct far_sparsegpt *s,
                        float *u) {
  const int64_t n = FEATURES;
  const size_t bytes = (size_t)(n * n) * sizeof *u;
  float *again = must_floats(n * n), *cpu = must_floats(n * n);
  float *far = sums(run->card, n, TOKENS, cpu);
  uint32_t failed[2];
  for (int i = 0; i < 2; i++) {
    run->card->clear(s->failed, sizeof *s->failed);
    run->card->sparsegpt->factor(far, n, 2.0 / TOKENS, 0.02, s->factor, s->failed);
    learn_must(run->card->download(i ? again : u, s->factor, bytes, &err), &err);
    learn_must(run->card->download(&failed[i], s->failed, sizeof *failed, &err), &err);
  }
  for (int64_t i = 0; i < n * n; i++)
    cpu[i] = (float)(2.0 / TOKENS * cpu[i] + (i % (n + 1) ? 0 : 0.02));
  const bool positive = cholesky_inverse_upper(cpu, n, &err);
  const bool same = !memcmp(u, again, bytes) && !failed[0] && !failed[1];
  int failures = learn_report(run, ledger, "SparseGPT's factor", "1000 features",
                              positive ? learn_relative(u, cpu, n * n) : 1, 1e-4);
  failures += learn_report(run, ledger, "SparseGPT's factor", "the same bits again", !same, 0);
  run->card->free(far);
  mem_free(again);
  mem_free(cpu);
  return failures;
}

static double masks_differ(const struct mask_matrix *a, const struct mask_matrix *b) {
  int64_t differ = 0;
  float *kept[2] = {must_floats(a->cols), must_floats(a->cols)};
  for (int64_t r = 0; r < a->rows; r++) {
    mask_row(a, r, kept[0]);
    mask_row(b, r, kept[1]);
    for (int64_t c = 0; c < a->cols; c++) differ += kept[0][c] != kept[1][c];
  }
  mem_free(kept[0]);
  mem_free(kept[1]);
  return (double)differ / (double)(a->rows * a->cols);
}

/* From one factor. A choice between near equals may fall otherwise, and moves those behind it. */
static int check_matrices(const struct gpu_learn *run, FILE *ledger, struct far_sparsegpt *s,
                          const float *u) {
  static const struct {
    const char *name;
    struct prune_rule rule;
  } all[] = {
      {"2:4", {.pattern = PRUNE_2_4, .keep = 2, .of = 4, .tile_rows = 128, .tile_cols = 128}},
      {"4:8", {.pattern = PRUNE_N_M, .keep = 4, .of = 8, .tile_rows = 128, .tile_cols = 128}},
      {"unstructured", {.pattern = PRUNE_UNSTRUCTURED, .sparsity = 0.5}}};
  const int64_t count = (int64_t)ROWS * FEATURES;
  int failures = 0;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    float *w[3];
    struct mask_matrix mask[3];
    for (int k = 0; k < 3; k++) w[k] = normals(count, 2);
    learn_must(prune_sparsegpt(&all[i].rule, "w", w[0], ROWS, FEATURES, u, SPARSEGPT_BLOCK,
                               &mask[0], &err),
               &err);
    for (int k = 1; k < 3; k++)
      learn_must(far_sparsegpt_prune(s, &all[i].rule, "w", w[k], ROWS, FEATURES, SPARSEGPT_BLOCK,
                                     &mask[k], &err),
                 &err);
    const bool same =
        !memcmp(w[1], w[2], (size_t)count * sizeof **w) && !masks_differ(&mask[1], &mask[2]);
    failures += learn_report(run, ledger, "SparseGPT's masks, share that differs", all[i].name,
                             masks_differ(&mask[0], &mask[1]), 0.01);
    failures += learn_report(run, ledger, "SparseGPT", "the same bits again", !same, 0);
    for (int k = 0; k < 3; k++) {
      mem_free(w[k]);
      mask_matrix_free(&mask[k]);
    }
  }
  return failures;
}

int gpu_learn_check_prune(const struct gpu_learn *run, FILE *ledger) {
  struct far_sparsegpt s;
  float *u = must_floats((int64_t)FEATURES * FEATURES);
  learn_must(far_sparsegpt_init(&s, run->card, FEATURES, &err), &err);
  int failures = check_factor(run, ledger, &s, u);
  /* the one that check_matrices walks with is the card's own, which `u` is */
  failures += check_matrices(run, ledger, &s, u);
  far_sparsegpt_free(&s);
  mem_free(u);
  return failures;
}

/* --- fast? --- */

void gpu_learn_time_prune(const struct gpu_learn *run, FILE *ledger) {
  static const struct {
    const char *where;
    int64_t rows, cols;
  } all[] = {{"8B gate", 14336, 4096}, {"8B down", 4096, 14336}};
  const struct prune_rule rule = {
      .pattern = PRUNE_2_4, .keep = 2, .of = 4, .tile_rows = 128, .tile_cols = 128};
  for (size_t i = 0; i < sizeof all / sizeof *all && clock_seconds() < run->deadline_s; i++) {
    const int64_t n = all[i].cols;
    struct far_sparsegpt s;
    struct mask_matrix mask;
    uint32_t failed;
    float *w = normals(all[i].rows * n, 3), *far = sums(run->card, n, 2048, NULL);
    learn_must(far_sparsegpt_init(&s, run->card, n, &err), &err);
    const double start = clock_seconds();
    run->card->sparsegpt->factor(far, n, 2.0 / 2048, 0.02, s.factor, s.failed);
    learn_must(run->card->download(&failed, s.failed, sizeof failed, &err), &err);
    const double factored = clock_seconds();
    learn_must(far_sparsegpt_prune(&s, &rule, "w", w, all[i].rows, n, SPARSEGPT_BLOCK, &mask, &err),
               &err);
    const double walked = clock_seconds();
    fprintf(ledger, "%s,%s,kernel,sparsegpt factor,%s,,%.4f,,,\n", run->date, run->commit,
            all[i].where, (factored - start) * 1e3);
    fprintf(ledger, "%s,%s,kernel,sparsegpt matrix there and back,%s,,%.4f,,,\n", run->date,
            run->commit, all[i].where, (walked - factored) * 1e3);
    fflush(ledger);
    mask_matrix_free(&mask);
    far_sparsegpt_free(&s);
    run->card->free(far);
    mem_free(w);
  }
}
