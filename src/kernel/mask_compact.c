/* Compact storage over whole matrices: see mask_compact.h. No state but scratch.
 *
 * An item is a strip of rows; their logits are widened one row at a time where a kernel reads
 * fp32. */
#include "kernel/mask_compact.h"

#include "base/parallel.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { STRIP_ROWS = 32 };

struct strips {
  int64_t rows, cols, blocks;
  const uint16_t *values; /* logits to harden, or gradients to square */
  uint8_t *codes;         /* or NULL */
  double *squares;        /* (items), of sums */
  int64_t *changed;       /* (items), of steps and hardening */
  /* of a step */
  const struct mask_compact *state;
  struct mask_adamw_factors factors;
  struct mask_rounding rounding;
  uint32_t step;
};

static struct strips strips_make(int64_t rows, int64_t cols) {
  return (struct strips){.rows = rows, .cols = cols, .blocks = mask_row_blocks(cols)};
}
static int64_t item_count(const struct strips *s) {
  return (s->rows + STRIP_ROWS - 1) / STRIP_ROWS;
}
static int64_t item_end(const struct strips *s, int64_t item) {
  const int64_t end = (item + 1) * STRIP_ROWS;
  return end < s->rows ? end : s->rows;
}

/* A row of five planes a block, widened; (blocks, 16) floats of scratch follow it. */
static float *widened(const struct strips *s, const uint16_t *values, int64_t row) {
  const int64_t count = s->blocks * MASK_STORED * MASK_BLOCK;
  float *out = kernel_scratch(SCRATCH_MASK, (size_t)(count + s->blocks * MASK_BLOCK));
  kernel_table()->widen(DTYPE_BF16, values + row * count, count, out);
  return out;
}

static int64_t harden_row(const struct strips *s, const uint16_t *logits, int64_t row) {
  float *wide = widened(s, logits, row);
  void *after = wide + s->blocks * MASK_STORED * MASK_BLOCK;
  return mask_harden_row(wide, s->cols, after, s->codes + row * ((s->cols + 7) / 8));
}

static void harden_item(void *ctx, int64_t item, int worker) {
  const struct strips *s = ctx;
  (void)worker;
  int64_t changed = 0;
  for (int64_t row = item * STRIP_ROWS; row < item_end(s, item); row++)
    changed += harden_row(s, s->values, row);
  s->changed[item] = changed;
}

static void squares_item(void *ctx, int64_t item, int worker) {
  const struct strips *s = ctx;
  (void)worker;
  double sum = 0;
  for (int64_t row = item * STRIP_ROWS; row < item_end(s, item); row++)
    sum += kernel_table()->mask.gradient_squares(widened(s, s->values, row), s->blocks);
  s->squares[item] = sum;
}

/* One row of the matrix's storage. */
static struct mask_compact row_of(const struct mask_compact *m, int64_t row, int64_t blocks) {
  const int64_t five = row * blocks * MASK_STORED, six = row * blocks * (MASK_STORED + 1);
  return (struct mask_compact){.gradient = m->gradient + five * MASK_BLOCK,
                               .logits = m->logits + five * MASK_BLOCK,
                               .first = m->first + five * MASK_BLOCK,
                               .second = m->second + six * MASK_BLOCK,
                               .first_scale = m->first_scale + five,
                               .second_scale = m->second_scale + six};
}

static void step_item(void *ctx, int64_t item, int worker) {
  const struct strips *s = ctx;
  (void)worker;
  int64_t changed = 0;
  for (int64_t row = item * STRIP_ROWS; row < item_end(s, item); row++) {
    const struct mask_compact_row r = {.state = row_of(s->state, row, s->blocks),
                                       .rounding = s->rounding,
                                       .slot = (uint64_t)(row * s->blocks * MASK_BLOCK),
                                       .blocks = s->blocks};
    kernel_table()->mask.compact_step(&s->factors, s->step, &r);
    if (s->codes) changed += harden_row(s, s->state->logits, row);
  }
  s->changed[item] = changed;
}

static int64_t run_counting(struct strips *s, void (*item)(void *ctx, int64_t item, int worker)) {
  const int64_t items = item_count(s);
  int64_t sum = 0;
  s->changed = (int64_t *)kernel_scratch(SCRATCH_LINEAR, (size_t)(2 * items));
  parallel_for(items, item, s);
  for (int64_t i = 0; i < items; i++) sum += s->changed[i];
  return sum;
}

int64_t mask_compact_harden(const uint16_t *logits, int64_t rows, int64_t cols, uint8_t *codes) {
  struct strips s = strips_make(rows, cols);
  s.values = logits;
  s.codes = codes;
  return run_counting(&s, harden_item);
}

double mask_compact_squares(const uint16_t *gradient, int64_t rows, int64_t cols) {
  struct strips s = strips_make(rows, cols);
  const int64_t items = item_count(&s);
  double sum = 0;
  s.values = gradient;
  s.squares = (double *)kernel_scratch(SCRATCH_LINEAR, (size_t)(2 * items));
  parallel_for(items, squares_item, &s);
  for (int64_t i = 0; i < items; i++) sum += s.squares[i];
  return sum;
}

int64_t mask_compact_step(const struct mask_adamw *settings, const struct mask_rounding *rounding,
                          int64_t rows, int64_t cols, const struct mask_compact *state,
                          uint8_t *codes) {
  struct strips s = strips_make(rows, cols);
  s.codes = codes;
  s.state = state;
  s.factors = mask_adamw_factors_of(settings);
  s.rounding = *rounding;
  s.step = (uint32_t)settings->step;
  return run_counting(&s, step_item);
}
