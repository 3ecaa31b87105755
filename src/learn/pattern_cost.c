/* Timing of soft masks of any n:m: see pattern_cost.h. No state. */
#include "learn/pattern_cost.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "learn/pattern.h"

enum { ROWS = 128, COLS = 1024, TRIES = 3 };

struct trial {
  struct pattern_logits logits; /* empty in tile mode */
  float *weight, *masked, *tile_soft;
  double *tile_gradient;
  uint8_t *bits;
};

static enum status trial_init(struct trial *t, const struct learn_settings *s, struct error *err) {
  const size_t count = (size_t)ROWS * COLS;
  const size_t tiles = (size_t)(((ROWS + s->tile_rows - 1) / s->tile_rows) *
                                ((COLS + s->tile_cols - 1) / s->tile_cols));
  t->weight = mem_alloc(count, sizeof(float), err);
  t->masked = mem_alloc(count, sizeof(float), err);
  t->tile_soft = mem_alloc(tiles, sizeof(float), err);
  t->tile_gradient = mem_alloc(tiles, sizeof(double), err);
  t->bits = mem_alloc(count / 8, 1, err);
  if (!t->weight || !t->masked || !t->tile_soft || !t->tile_gradient || !t->bits)
    return STATUS_FAILED;
  for (size_t i = 0; i < count; i++) t->weight[i] = (float)(i % 17) - 8;
  for (size_t i = 0; i < tiles; i++) t->tile_soft[i] = 0.5f;
  memset(t->bits, 0x5a, count / 8);
  return learn_uses_groups(s) ? pattern_logits_init(&t->logits, s, ROWS, COLS, err) : STATUS_OK;
}

static void trial_free(struct trial *t) {
  mem_free(t->weight);
  mem_free(t->masked);
  mem_free(t->tile_soft);
  mem_free(t->tile_gradient);
  mem_free(t->bits);
  pattern_logits_free(&t->logits);
}

/* As in a step's middle: see pattern_step.c. */
static struct pattern_cost run(struct trial *t, const struct learn_settings *s) {
  struct mask_pattern table;
  INVARIANT(mask_pattern_make(&table, s->keep, s->of));
  const struct matrix_view w = {t->weight, DTYPE_F32, ROWS, COLS};
  const struct mask_adamw adamw = {1e-3f, 0.9f, 0.95f, 1e-8f, 0, 1, 1};
  const struct pattern_source source = {
      .pattern = &table,
      .rows = ROWS,
      .cols = COLS,
      .tile_rows = s->tile_rows,
      .tile_cols = s->tile_cols,
      .logits = t->logits.logit,
      .bits = t->logits.logit ? NULL : t->bits,
      .tile_soft = learn_uses_tiles(s) ? t->tile_soft : NULL,
      .kappa = (float)s->two_four.kappa_first,
      .tau = (float)s->two_four.tau_first,
      .noise = s->noise != NOISE_NONE,
  };
  const double start = clock_seconds();
  pattern_sample(&source, w, DTYPE_F32, t->masked);
  pattern_backward(&source, w, t->weight, 0, false, t->logits.gradient,
                   learn_uses_tiles(s) ? t->tile_gradient : NULL, DTYPE_F32, t->masked);
  const double drawn = clock_seconds();
  if (t->logits.logit)
    pattern_adamw_step(&table, &adamw, ROWS, COLS, t->logits.gradient, t->logits.logit,
                       t->logits.moment1, t->logits.moment2, t->bits);
  return (struct pattern_cost){(drawn - start) / (ROWS * COLS),
                               (clock_seconds() - drawn) / (ROWS * COLS)};
}

/* The best of a few, of which the first, which touches fresh memory, does not count. */
struct pattern_cost pattern_cost_measure(const struct learn_settings *settings) {
  struct pattern_cost best = {0};
  struct trial t = {0};
  struct error err;
  enum status status = trial_init(&t, settings, &err);
  for (int i = 0; i <= TRIES && status == STATUS_OK; i++) {
    const struct pattern_cost now = run(&t, settings);
    if (i == 0) continue;
    if (i == 1 || now.micro_batch < best.micro_batch) best.micro_batch = now.micro_batch;
    if (i == 1 || now.step < best.step) best.step = now.step;
  }
  trial_free(&t);
  return best;
}
