/* kernel/cuda: products of integers, and pairs with an activation, under the emulator: every kernel
 * against fp64 for every form of integers, at ragged sizes, with any cut of the work; no bank
 * conflicts; the bytes that the form has; planted mistakes. */
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/quant_kernels.h"
/* the kernels of pairs */
#include "kernel/cuda/product_kernels.h"
#include "kernel/cuda_product.h"

struct kernel {
  uint32_t bits, panel_tokens;
  void (*run)(const void *);
};
static const struct kernel quant_kernels[] = {
#define QUANT_ENTRY(bits, tokens) {bits, tokens, product_i##bits##_##tokens},
    QUANT_KERNELS(QUANT_ENTRY)};
static const struct kernel pair_kernels[] = {
#define PAIR_ENTRY(tokens, threads) {16, tokens, product_##tokens},
    PRODUCT_KERNELS(PAIR_ENTRY)};

static void run_well(struct product_case *c, void (*kernel)(const void *), uint32_t order,
                     struct simt_report *report) {
  const int64_t wrong = product_case_run(c, kernel, 256, order, report);
  if (report->failed) fail_msg("%s", report->text);
  assert_int_equal(wrong, 0);
  assert_int_equal(report->bank_conflicts, 0);
  for (uint32_t o = 0; o < c->plan.outputs; o++) assert_int_equal(c->counters[o], 0);
}

/* rows, cols, share of dense tiles, tokens, panel, blocks, stages, bias, residual */
static const struct product_shape shapes[] = {
    {300, 520, 0.5, 5, 8, 3, 4, true, true},   {129, 390, 0.3, 19, 8, 2, 3, true, false},
    {1, 7, 1, 3, 16, 1, 2, true, true},        {260, 388, 0.5, 16, 16, 4, 8, false, true},
    {300, 260, 0.4, 27, 32, 5, 4, true, true}, {200, 300, 0.5, 70, 64, 2, 3, true, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void integers_match_fp64(void **state) {
  (void)state;
  for (int i = 0; i < SHAPES * QUANT_FORMS; i++) {
    const struct product_shape *shape = &shapes[i % SHAPES];
    const struct quant_form *form = &quant_forms[i / SHAPES];
    struct product_case c;
    struct simt_report report;
    product_case_make_quant(&c, *shape, form, i % 3 ? 128 : 0, (uint64_t)i);
    for (size_t k = 0; k < sizeof quant_kernels / sizeof *quant_kernels; k++)
      if (quant_kernels[k].panel_tokens == shape->panel_tokens &&
          quant_kernels[k].bits == (form->type == QUANT_I8 ? 8 : 4))
        run_well(&c, quant_kernels[k].run, (uint32_t)i, &report);
    product_case_free(&c);
  }
}

/* A tile's bytes are those of docs/GPU.md, and nothing else is copied. */
static void bytes_are_those_of_the_form(void **state) {
  (void)state;
  static const struct {
    struct quant_form form;
    uint32_t sparse, dense;
  } tiles[] = {{{QUANT_I8, 0, false}, 10240, 16384},
               {{QUANT_I8, 32, false}, 11264, 17408},
               {{QUANT_I4, 32, false}, 7168, 9216},
               {{QUANT_I4, 32, true}, 8192, 10240}};
  for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
    struct product_case c;
    struct simt_report report;
    product_case_make_quant(&c, (struct product_shape){256, 640, 0.5, 8, 8, 3, 4, false, false},
                            &tiles[i].form, 128, 1);
    run_well(&c, i < 2 ? product_i8_8 : product_i4_8, 0, &report);
    uint64_t sparse = 0;
    for (int64_t s = 0; s < 2; s++) sparse += c.fragments.strip[s].sparse_tiles;
    const uint64_t bytes = sparse * tiles[i].sparse + (10 - sparse) * tiles[i].dense;
    assert_int_equal(c.fragments.tile_bytes, bytes);
    assert_int_equal(report.copied_bytes, bytes + 10 * FRAGMENT_TILE_COLS * 8 * 2);
    product_case_free(&c);
  }
}

static void pairs_match_fp64(void **state) {
  (void)state;
  for (int i = 0; i < SHAPES; i++) {
    struct product_shape shape = shapes[i];
    struct product_case c;
    struct simt_report report;
    shape.residual = false;
    product_case_make_pair(&c, shape, i % 2 ? PAIR_SILU : PAIR_GELU_TANH, (uint64_t)i);
    for (size_t k = 0; k < sizeof pair_kernels / sizeof *pair_kernels; k++)
      if (pair_kernels[k].panel_tokens == shape.panel_tokens)
        run_well(&c, pair_kernels[k].run, (uint32_t)i, &report);
    product_case_free(&c);
  }
}

/* Whoever comes last. */
static void pairs_have_the_same_bits_in_any_order(void **state) {
  (void)state;
  struct product_case c;
  struct simt_report report;
  product_case_make_pair(&c, (struct product_shape){300, 700, 0.5, 11, 16, 7, 4, true, false},
                         PAIR_SILU, 3);
  const size_t bytes = c.shape.tokens * c.args.y_stride * 2;
  uint16_t *first = test_malloc(bytes);
  for (uint32_t order = 0; order < 4; order++) {
    run_well(&c, product_16, order, &report);
    if (!order) memcpy(first, c.y, bytes);
    assert_memory_equal(first, c.y, bytes);
  }
  test_free(first);
  product_case_free(&c);
}

/* --- mistakes --- */

#pragma push_macro("bf16_pair")
#define bf16_pair(low, high) bf16_pair((low) + 128, (high) + 128)
#define PRODUCT_NAME takes_bytes_for_unsigned_8
#define QUANT_BITS 8
#include "kernel/cuda_quant_mutant.h"
#define PRODUCT_NAME takes_bytes_for_unsigned_4
#define QUANT_BITS 4
#include "kernel/cuda_quant_mutant.h"
#pragma pop_macro("bf16_pair")

#pragma push_macro("bf16_pair_subtract")
#define bf16_pair_subtract(a, b) ((bf16_pair_subtract)((a) >> 16 | (a) << 16, b))
#define PRODUCT_NAME swaps_the_halves_of_a_register_8
#define QUANT_BITS 8
#include "kernel/cuda_quant_mutant.h"
#define PRODUCT_NAME swaps_the_halves_of_a_register_4
#define QUANT_BITS 4
#include "kernel/cuda_quant_mutant.h"
#pragma pop_macro("bf16_pair_subtract")

/* Scales of row g + 8 for those of row g. */
#pragma push_macro("f16_widen")
#define f16_widen(x) f16_widen((uint16_t)(x) == (uint16_t)scale ? (uint16_t)(scale >> 16) : (x))
#define PRODUCT_NAME takes_the_other_scale_8
#define QUANT_BITS 8
#include "kernel/cuda_quant_mutant.h"
#define PRODUCT_NAME takes_the_other_scale_4
#define QUANT_BITS 4
#include "kernel/cuda_quant_mutant.h"
#pragma pop_macro("f16_widen")

#pragma push_macro("shared_load8")
#undef shared_load8
#define shared_load8(address) simt_shared_load8((address) + 4, __LINE__)
#define PRODUCT_NAME loads_misaligned_8
#define QUANT_BITS 8
#include "kernel/cuda_quant_mutant.h"
#define PRODUCT_NAME loads_misaligned_4
#define QUANT_BITS 4
#include "kernel/cuda_quant_mutant.h"
#pragma pop_macro("shared_load8")

/* Up before the gate. */
#pragma push_macro("global_add")
#define global_add(counter, value) (global_add(counter, value) + 1)
#define PRODUCT_NAME adds_too_early_8
#define QUANT_BITS 8
#include "kernel/cuda_quant_mutant.h"
#define PRODUCT_NAME adds_too_early_4
#define QUANT_BITS 4
#include "kernel/cuda_quant_mutant.h"
#pragma pop_macro("global_add")

static void every_mutant_is_caught(void **state) {
  (void)state;
  static const struct quant_form i4 = {QUANT_I4, 32, true}, i8 = {QUANT_I8, 32, false};
  static const struct {
    const char *name;
    void (*kernel)(const void *);
    const struct quant_form *form;
    const char *words; /* of the report; NULL: a wrong result */
  } mutants[] = {
      {"takes_bytes_for_unsigned", takes_bytes_for_unsigned_8, &i8, NULL},
      {"swaps_the_halves_of_a_register", swaps_the_halves_of_a_register_4, &i4, NULL},
      {"takes_the_other_scale", takes_the_other_scale_8, &i8, NULL},
      {"takes_the_other_scale", takes_the_other_scale_4, &i4, NULL},
      {"loads_misaligned", loads_misaligned_8, &i8, "misaligned"},
      {"adds_too_early", adds_too_early_8, &i8, NULL},
  };
  const struct product_shape shape = {300, 522, 0.5, 13, 16, 7, 4, true, true};
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct product_case c;
    struct simt_report report;
    product_case_make_quant(&c, shape, mutants[i].form, 128, 5);
    const int64_t wrong = product_case_run(&c, mutants[i].kernel, 256, 0, &report);
    if (mutants[i].words ? !report.failed || !strstr(report.text, mutants[i].words) : wrong <= 0)
      fail_msg("%s: %lld wrong; %s", mutants[i].name, (long long)wrong, report.text);
    product_case_free(&c);
  }
}

/* What the host forgets about a pair. */
static void wrong_pairs_are_caught(void **state) {
  (void)state;
  const struct product_shape shape = {300, 522, 0.5, 13, 16, 7, 4, true, false};
  for (int mistake = 0; mistake < 3; mistake++) {
    struct product_case c;
    struct simt_report report;
    product_case_make_pair(&c, shape, PAIR_SILU, 5);
    if (mistake == 0) c.args.gate_strips = 2;
    if (mistake == 1) c.args.activation = PAIR_GELU_TANH;
    for (uint32_t i = 0; i < c.plan.segments && mistake == 2; i++)
      c.plan.segment[i].gate_peers = c.plan.segment[i].peers - c.plan.segment[i].gate_peers;
    assert_int_not_equal(product_case_run(&c, product_16, 256, 0, &report), 0);
    product_case_free(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(integers_match_fp64),
      cmocka_unit_test(bytes_are_those_of_the_form),
      cmocka_unit_test(pairs_match_fp64),
      cmocka_unit_test(pairs_have_the_same_bits_in_any_order),
      cmocka_unit_test(every_mutant_is_caught),
      cmocka_unit_test(wrong_pairs_are_caught),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
