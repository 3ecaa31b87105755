/* Compact storage on the emulated card: a step gives the CPU's bits whatever the grid, soft masks
 * read bf16 logits, and their gradients are rounded by the same noise. */
#include <math.h>
#include <string.h>

#include "kernel/backend.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

/* Ragged: padded blocks of groups, a narrow last group, more slots than a block of threads. */
enum { ROWS = 21, COLS = 150, BLOCKS = ROWS * 3, FIVE = BLOCKS * 16 * 5, SIX_ = BLOCKS * 16 * 6 };
enum { CODE_BYTES = ROWS * 19, TILES = 3 * 5, WEIGHTS = ROWS * COLS };

/* All of a state in one piece of memory, so that it moves and compares as one. */
struct store {
  uint64_t flips;
  double squares, dtile[TILES];
  float w[WEIGHTS], dw[WEIGHTS], out[WEIGHTS], soft[TILES + 1];
  uint16_t gradient[FIVE], logits[FIVE];
  uint8_t first[FIVE], second[SIX_], first_scale[BLOCKS * 5], second_scale[BLOCKS * 6];
  uint8_t codes[CODE_BYTES];
};

static struct error err;

/* Values over ten powers of ten; zero in padding. */
static void fill(uint16_t *out, uint64_t seed, float scale, bool wide) {
  float *values = test_malloc(2 * FIVE * sizeof *values);
  fill_normal(values, 2 * FIVE, seed, 1);
  for (int64_t row = 0; row < ROWS; row++)
    for (int64_t group = 0; group < mask_row_groups(COLS); group++)
      for (int k = 0; k < 5; k++) {
        const int64_t at = mask_logit_index(COLS, row, group, k);
        const float size = wide ? powf(10, -2.5f * fabsf(values[FIVE + at])) : 1;
        out[at] = bf16_from_f32(scale * size * values[at]);
      }
  test_free(values);
}

static void make(struct store *s) {
  memset(s, 0, sizeof *s);
  fill(s->gradient, 1, 1, true);
  fill(s->logits, 2, 0.05f, false);
  fill_normal(s->w, WEIGHTS, 3, 1);
  fill_normal(s->dw, WEIGHTS, 4, 1);
  for (int i = 0; i < TILES; i++) s->soft[i] = (float)(i % 7) / 6;
}

static void run_steps(const struct backend *on, struct store *s) {
  const struct mask_rounding rounding = {{7, 2}, 3};
  const struct mask_compact view = {s->gradient, s->logits,      s->first,
                                    s->second,   s->first_scale, s->second_scale};
  struct mask_adamw o = {.rate = 0.01f,
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .epsilon = 1e-15f,
                         .weight_decay = 0.1f,
                         .gradient_scale = 0.5f};
  for (o.step = 1; o.step < 4; o.step++)
    on->mask_compact_step(&o, &rounding, ROWS, COLS, &view, o.step == 2 ? NULL : s->codes,
                          &s->flips);
  on->mask_gradient_squares(s->gradient, DTYPE_BF16, ROWS, COLS, &s->squares);
}

static void run_masks(const struct backend *on, struct store *s) {
  struct mask_source source = {.rows = ROWS,
                               .cols = COLS,
                               .tile_rows = 8,
                               .tile_cols = 32,
                               .logits = s->logits,
                               .logit_dtype = DTYPE_BF16,
                               .tile_soft = s->soft,
                               .kappa = 60,
                               .tau = 1.5f,
                               .noise = true,
                               .key = {11, 12},
                               .tensor = 5,
                               .draw = 77};
  const struct matrix_view view = {s->w, DTYPE_F32, ROWS, COLS};
  on->mask_sample(&source, view, DTYPE_F32, s->out, &s->squares);
  for (source.pass = 0; source.pass < 2; source.pass++)
    on->mask_backward(&source, view, s->dw, (struct mask_decay){0.3, NULL}, source.pass > 0,
                      s->gradient, s->dtile, DTYPE_F32, s->out);
  on->mask_harden(s->logits, DTYPE_BF16, ROWS, COLS, s->codes, &s->flips);
}

/* Runs `job` on the CPU and on the card, whose blocks come in `order`. */
static void run_both(void (*job)(const struct backend *on, struct store *s), uint32_t order,
                     struct store *cpu, struct store *card) {
  const struct backend *far = emulated_open(16 << 20);
  struct store *there;
  emulated_card.order = order;
  make(cpu);
  must(far->alloc(sizeof *there, (void **)&there, &err), err);
  must(far->upload(there, cpu, sizeof *cpu, &err), err);
  job(backend_cpu(), cpu);
  job(far, there);
  must(far->download(card, there, sizeof *card, &err), err);
  assert_int_equal(emulated_card.bank_conflicts, 0);
  far->free(there);
  emulated_close();
}

static void steps_have_the_cpus_bits(void **state) {
  (void)state;
  struct store *cpu = test_malloc(sizeof *cpu), *card = test_malloc(sizeof *card);
  for (uint32_t order = 0; order < 2; order++) {
    run_both(run_steps, order, cpu, card);
    assert_true(cpu->flips > 100 && fabs(card->squares / cpu->squares - 1) < 1e-6);
    card->squares = cpu->squares;
    assert_memory_equal(card, cpu, sizeof *cpu);
  }
  test_free(cpu), test_free(card);
}

/* Softmax is computed in two ways, so a gradient may round to the neighbour; seldom, for the noise
 * is the same. */
static void masks_match_the_cpu(void **state) {
  (void)state;
  struct store *cpu = test_malloc(sizeof *cpu), *card = test_malloc(sizeof *card);
  float *a = test_malloc(FIVE * sizeof *a), *b = test_malloc(FIVE * sizeof *b);
  int differ = 0;
  run_both(run_masks, 0, cpu, card);
  assert_true(relative_error(card->out, cpu->out, WEIGHTS) < 1e-5);
  for (int i = 0; i < TILES; i++) assert_true(fabs(card->dtile[i] - cpu->dtile[i]) < 1e-3);
  dtype_to_f32(DTYPE_BF16, card->gradient, FIVE, a);
  dtype_to_f32(DTYPE_BF16, cpu->gradient, FIVE, b);
  assert_true(relative_error(a, b, FIVE) < 1e-3);
  for (int i = 0; i < FIVE; i++) differ += card->gradient[i] != cpu->gradient[i];
  if (differ > FIVE / 50) fail_msg("%d of %d gradients are rounded another way", differ, (int)FIVE);
  assert_memory_equal(card->codes, cpu->codes, CODE_BYTES);
  assert_int_equal(card->flips, cpu->flips);
  test_free(cpu), test_free(card), test_free(a), test_free(b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(steps_have_the_cpus_bits),
      cmocka_unit_test(masks_match_the_cpu),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
