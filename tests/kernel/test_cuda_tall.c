/* kernel/cuda: the product of two strips a block under the emulator: against fp64 at ragged sizes
 * with any cut of the work, no bank conflicts, the bytes that docs/GPU.md counts, the same bits in
 * any order, and planted mistakes. */
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/tall_kernels.h"
#include "kernel/cuda_cluster.h"

static void run_well(struct cluster_case *c, uint32_t order, struct simt_report *report) {
  static void (*const kernels[2][3])(const void *) = {
#define TALL_ENTRY(kind, pair, name, tokens) [pair][FRAGMENT_##kind] = name,
      TALL_KERNELS(TALL_ENTRY)};
  const bool pair = c->product.activation != PAIR_NONE;
  const int64_t wrong =
      cluster_case_run(c, kernels[pair][c->product.fragments.form.kind], order, report);
  if (report->failed) fail_msg("%s", report->text);
  assert_int_equal(wrong, 0);
  assert_int_equal(report->bank_conflicts, 0);
}

static void products_match_fp64(void **state) {
  (void)state;
  /* rows, cols, share of dense tiles, tokens, panel, blocks, stages, bias, residual */
  static const struct product_shape shapes[] = {
      {256, 128, 0, 128, 128, 1, 2, false, false}, {256, 128, 1, 70, 128, 1, 3, false, true},
      {1, 7, 1, 3, 128, 1, 2, true, true},         {300, 390, 0.5, 140, 128, 2, 3, true, false},
      {520, 777, 0.4, 65, 128, 7, 3, true, true},
  };
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_tall(&c, shapes[i], 20 * i);
    run_well(&c, (uint32_t)i, &report);
    for (size_t o = 0; o < product_plan_counters(&c.plan); o++)
      assert_int_equal(c.product.counters[o], 0);
    cluster_case_free(&c);
  }
}

/* Every form of integers; what the reference multiplies are the weights rounded to bf16, or, where
 * a row has one scale, the weights themselves. */
static void integers_match_fp64(void **state) {
  (void)state;
  static const struct product_shape shapes[] = {
      {300, 390, 0.5, 70, 128, 2, 3, true, false},
      {129, 520, 0.3, 131, 128, 5, 2, false, true},
  };
  for (size_t i = 0; i < 2 * QUANT_FORMS; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_quant(&c, shapes[i % 2], TALL_STRIPS, &quant_forms[i / 2], i % 3 ? 128 : 0,
                            i);
    cluster_case_be_tall(&c);
    run_well(&c, (uint32_t)i, &report);
    cluster_case_free(&c);
  }
}

static void pairs_match_fp64(void **state) {
  (void)state;
  static const struct {
    struct product_shape shape;
    const struct quant_form *form;
  } cases[] = {
      {{300, 390, 0.5, 70, 128, 1, 3, true, false}, NULL},
      {{200, 777, 0.5, 140, 128, 7, 2, false, false}, NULL},
      {{140, 260, 0.5, 130, 128, 2, 3, true, false}, &quant_forms[0]},
      {{140, 390, 0.5, 130, 128, 3, 3, false, false}, &quant_forms[4]},
      {{1, 7, 0.5, 65, 128, 1, 2, true, false}, &quant_forms[1]},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_pair(&c, cases[i].shape, TALL_STRIPS, cases[i].form,
                           i % 2 ? PAIR_SILU : PAIR_GELU_TANH, i);
    cluster_case_be_tall(&c);
    run_well(&c, (uint32_t)i, &report);
    cluster_case_free(&c);
  }
}

/* The activations once for every two strips. */
static void bytes_are_those_of_the_model(void **state) {
  (void)state;
  struct cluster_case c;
  struct simt_report report;
  cluster_case_make_tall(&c, (struct product_shape){512, 384, 0.5, 128, 128, 2, 3, false, false},
                         1);
  run_well(&c, 0, &report);
  const struct fragment_matrix *f = &c.product.fragments;
  const uint64_t tiles = (uint64_t)(f->strips * f->tiles_per_strip);
  uint64_t sparse = 0;
  for (int64_t s = 0; s < f->strips; s++) sparse += f->strip[s].sparse_tiles;
  assert_int_equal(report.copied_bytes, f->tile_bytes + tiles / 2 * FRAGMENT_TILE_COLS * 128 * 2);
  assert_int_equal(report.mma_sparse, sparse * 8 * 16 * 4);
  assert_int_equal(report.mma_dense, (tiles - sparse) * 8 * 16 * 8);
  cluster_case_free(&c);
  /* int4: 7 and 9 KiB a tile. */
  const struct quant_form form = {QUANT_I4, 32, false};
  cluster_case_make_quant(&c, (struct product_shape){512, 384, 0.5, 128, 128, 2, 3, false, false},
                          TALL_STRIPS, &form, 128, 1);
  cluster_case_be_tall(&c);
  run_well(&c, 0, &report);
  assert_int_equal(f->tile_bytes, sparse * 7168 + (tiles - sparse) * 9216);
  assert_int_equal(report.copied_bytes, f->tile_bytes + tiles / 2 * FRAGMENT_TILE_COLS * 128 * 2);
  assert_int_equal(report.mma_sparse, sparse * 8 * 16 * 4);
  cluster_case_free(&c);
}

static void any_order_gives_the_same_bits(void **state) {
  (void)state;
  struct cluster_case c;
  struct simt_report report;
  cluster_case_make_tall(&c, (struct product_shape){300, 700, 0.5, 11, 128, 5, 3, true, false}, 2);
  assert_true(c.plan.slots > 2);
  const size_t bytes = c.product.shape.tokens * c.product.args.y_stride * 2;
  uint16_t *first = test_malloc(bytes);
  for (uint32_t order = 0; order < 3; order++) {
    run_well(&c, order, &report);
    if (!order) memcpy(first, c.product.y, bytes);
    assert_memory_equal(first, c.product.y, bytes);
  }
  test_free(first);
  cluster_case_free(&c);
}

/* --- mistakes --- */

#pragma push_macro("async_wait")
#define async_wait(pending) async_wait((pending) + 1)
#define PRODUCT_NAME waits_too_little
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("async_wait")

#pragma push_macro("block_barrier")
#undef block_barrier
#define block_barrier() ((void)0)
#define PRODUCT_NAME has_no_barrier
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("block_barrier")

#pragma push_macro("panel_offset")
#define panel_offset(row, chunk) ((row)*PRODUCT_PANEL_ROW_BYTES + 16 * (chunk))
#define PRODUCT_NAME does_not_swizzle
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("panel_offset")

#pragma push_macro("global_add")
#define global_add(counter, value) (global_add(counter, value) + 1)
#define PRODUCT_NAME adds_too_early
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("global_add")

/* Takes a byte for unsigned. */
#pragma push_macro("permute_bytes")
#define permute_bytes(a, b, selector) permute_bytes((a) ^ 0x80808080, b, selector)
#define QUANT_BITS 8
#define PRODUCT_NAME takes_bytes_for_unsigned
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("permute_bytes")

/* The power of two of bytes for that of nibbles. */
#pragma push_macro("permute_bytes")
#define permute_bytes(a, b, selector) permute_bytes(a, (b) + (4u << 24), selector)
#define QUANT_BITS 4
#define PRODUCT_NAME takes_another_power
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("permute_bytes")

/* Scales of row g + 8 for those of row g. */
#pragma push_macro("f16_widen")
#define f16_widen(x) f16_widen((uint16_t)(x) == (uint16_t)scales ? (uint16_t)(scales >> 16) : (x))
#define QUANT_BITS 8
#define PRODUCT_NAME takes_the_other_scale
#include "kernel/cuda_tall_mutant.h"
#define QUANT_BITS 4
#define PRODUCT_NAME takes_the_other_scale_4
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("f16_widen")

#pragma push_macro("bf16_pair")
#define bf16_pair(low, high) bf16_pair(high, low)
#define QUANT_BITS 4
#define PRODUCT_NAME swaps_the_halves_of_a_register
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("bf16_pair")

/* Forgets the minimums. */
#pragma push_macro("multiply_add")
#define multiply_add(a, b, c) multiply_add(a, b, (a) < 0 ? 0 : (c))
#define QUANT_BITS 4
#define PRODUCT_NAME forgets_minimums
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("multiply_add")

/* Of a pair. */
#pragma push_macro("exp_fast")
#define exp_fast(x) exp_fast(-(x))
#define PRODUCT_PAIR 1
#define PRODUCT_NAME turns_the_activation_round
#include "kernel/cuda_tall_mutant.h"
#pragma pop_macro("exp_fast")

static void every_mutant_of_integers_is_caught(void **state) {
  (void)state;
  static const struct quant_form i4 = {QUANT_I4, 32, true}, i8 = {QUANT_I8, 32, false};
  static const struct {
    const char *name;
    void (*kernel)(const void *);
    const struct quant_form *form;
  } mutants[] = {
      {"takes_bytes_for_unsigned", takes_bytes_for_unsigned, &i8},
      {"takes_another_power", takes_another_power, &i4},
      {"takes_the_other_scale", takes_the_other_scale, &i8},
      {"takes_the_other_scale", takes_the_other_scale_4, &i4},
      {"swaps_the_halves_of_a_register", swaps_the_halves_of_a_register, &i4},
      {"forgets_minimums", forgets_minimums, &i4},
  };
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_quant(&c, (struct product_shape){300, 300, 0.5, 30, 128, 3, 3, true, true},
                            TALL_STRIPS, mutants[i].form, 128, 5);
    cluster_case_be_tall(&c);
    const int64_t wrong = cluster_case_run(&c, mutants[i].kernel, 0, &report);
    if (wrong <= 0) fail_msg("%s: %lld wrong; %s", mutants[i].name, (long long)wrong, report.text);
    cluster_case_free(&c);
  }
}

static void every_mutant_of_pairs_is_caught(void **state) {
  (void)state;
  for (int mistake = 0; mistake < 3; mistake++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_pair(&c, (struct product_shape){200, 300, 0.5, 70, 128, 1, 3, true, false},
                           TALL_STRIPS, NULL, PAIR_SILU, 5);
    cluster_case_be_tall(&c);
    if (mistake == 1) c.args.product.activation = PAIR_GELU_TANH;
    const size_t row = c.args.tiles_per_strip;
    if (mistake == 2) memcpy(c.order, c.order + row, row * sizeof *c.order);
    assert_true(
        cluster_case_run(&c, mistake ? tall_pair_128 : turns_the_activation_round, 0, &report) > 0);
    cluster_case_free(&c);
  }
}

static void every_mutant_is_caught(void **state) {
  (void)state;
  static const struct {
    const char *name;
    void (*kernel)(const void *);
    const char *words; /* of the report; "": bank conflicts; NULL: a wrong result */
  } mutants[] = {
      {"waits_too_little", waits_too_little, "before the copy"},
      {"has_no_barrier", has_no_barrier, "shared memory at"},
      {"does_not_swizzle", does_not_swizzle, ""},
      {"adds_too_early", adds_too_early, NULL},
      {"both strips have the tiles of the first", tall_128, NULL},
  };
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_tall(&c, (struct product_shape){300, 700, 0.5, 30, 128, 5, 3, true, true}, 5);
    if (mutants[i].kernel == tall_128)
      memcpy(c.order + c.args.tiles_per_strip, c.order, c.args.tiles_per_strip * sizeof *c.order);
    const int64_t wrong = cluster_case_run(&c, mutants[i].kernel, 0, &report);
    const char *words = mutants[i].words;
    const bool caught = !words   ? wrong > 0
                        : *words ? report.failed && strstr(report.text, words)
                                 : report.bank_conflicts > 0;
    if (!caught) fail_msg("%s: %lld wrong; %s", mutants[i].name, (long long)wrong, report.text);
    cluster_case_free(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_match_fp64),
      cmocka_unit_test(integers_match_fp64),
      cmocka_unit_test(pairs_match_fp64),
      cmocka_unit_test(bytes_are_those_of_the_model),
      cmocka_unit_test(any_order_gives_the_same_bits),
      cmocka_unit_test(every_mutant_is_caught),
      cmocka_unit_test(every_mutant_of_integers_is_caught),
      cmocka_unit_test(every_mutant_of_pairs_is_caught),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
