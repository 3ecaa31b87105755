/* kernel/cuda: the product by wgmma under the emulator: bulk copies, mbarriers and clusters. Every
 * kernel against fp64 at ragged sizes, for clusters of 1, 2 and 4 blocks and any cut of the work;
 * no bank conflicts; the bytes that docs/GPU.md counts; the same bits in any order; the plans. Then
 * the same kernel with a mistake planted, again and again: every one must be caught. */
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/cluster_kernels.h"
#include "kernel/cuda_cluster.h"
#include "support/simt_internal.h"

static void run_well(struct cluster_case *c, uint32_t order, struct simt_report *report) {
  static void (*const kernels[2][3][2])(const void *) = {
#define CLUSTER_ENTRY(kind, pair, name, tokens) [pair][FRAGMENT_##kind][(tokens) / 256] = name,
      CLUSTER_KERNELS(CLUSTER_ENTRY)};
  const struct product_case *p = &c->product;
  const int64_t wrong = cluster_case_run(
      c, kernels[p->activation != PAIR_NONE][p->fragments.form.kind][p->shape.panel_tokens / 256],
      order, report);
  if (report->failed) fail_msg("%s", report->text);
  assert_int_equal(wrong, 0);
  assert_int_equal(report->bank_conflicts, 0);
}

static void products_match_fp64(void **state) {
  (void)state;
  /* rows, cols, share of dense tiles, tokens, panel, clusters, stages, bias, residual */
  static const struct {
    struct product_shape shape;
    uint32_t cluster;
  } cases[] = {
      {{128, 128, 0, 1, 128, 1, 2, false, false}, 1},
      {{128, 128, 1, 128, 128, 1, 3, false, false}, 1},
      {{1, 7, 1, 130, 128, 1, 2, true, true}, 1},
      {{300, 390, 0.5, 100, 128, 2, 4, true, true}, 2},
      {{130, 777, 0.5, 140, 128, 3, 3, false, true}, 2},
      {{600, 260, 0.4, 90, 128, 2, 6, true, false}, 4},
      {{200, 300, 0.5, 300, 256, 3, 2, true, true}, 1},
      {{140, 520, 0.5, 250, 256, 2, 4, true, false}, 2},
      {{128, 200, 0.5, 256, 256, 1, 3, false, true}, 4},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make(&c, cases[i].shape, cases[i].cluster, 20 * i);
    run_well(&c, (uint32_t)i, &report);
    for (size_t o = 0; o < product_plan_counters(&c.plan); o++)
      assert_int_equal(c.product.counters[o], 0);
    cluster_case_free(&c);
  }
}

static void integers_match_fp64(void **state) {
  (void)state;
  static const struct product_shape shapes[] = {
      {300, 390, 0.5, 70, 128, 2, 3, true, false},
      {129, 260, 0.3, 130, 256, 3, 2, false, true},
  };
  for (size_t i = 0; i < 2 * QUANT_FORMS; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_quant(&c, shapes[i % 2], 1u << i % 3, &quant_forms[i / 2], i % 5 ? 128 : 0,
                            i);
    run_well(&c, (uint32_t)i, &report);
    cluster_case_free(&c);
  }
}

static void pairs_match_fp64(void **state) {
  (void)state;
  /* The last has more clusters than outputs: every sum is shared. */
  static const struct {
    struct product_shape shape;
    uint32_t cluster;
    const struct quant_form *form;
  } cases[] = {
      {{300, 390, 0.5, 70, 128, 1, 3, true, false}, 2, NULL},
      {{300, 260, 0.4, 300, 256, 2, 2, false, false}, 4, NULL},
      {{200, 777, 0.5, 140, 128, 7, 3, true, false}, 4, NULL},
      {{140, 260, 0.5, 130, 128, 1, 4, true, false}, 2, &quant_forms[0]},
      {{140, 260, 0.5, 130, 256, 2, 2, false, false}, 4, &quant_forms[4]},
      {{1, 7, 0.5, 65, 128, 5, 2, true, false}, 2, &quant_forms[1]},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make_pair(&c, cases[i].shape, cases[i].cluster, cases[i].form,
                           i % 2 ? PAIR_SILU : PAIR_GELU_TANH, i);
    run_well(&c, (uint32_t)i, &report);
    cluster_case_free(&c);
  }
}

/* Each strip's weights once; the activations once a cluster, whatever its size. */
static void bytes_are_those_of_the_model(void **state) {
  (void)state;
  for (uint32_t cluster = 1; cluster <= 4; cluster *= 2) {
    struct cluster_case c;
    struct simt_report report;
    cluster_case_make(&c, (struct product_shape){512, 384, 0.5, 128, 128, 1, 4, false, false},
                      cluster, 1);
    run_well(&c, 0, &report);
    const struct fragment_matrix *f = &c.product.fragments;
    const uint64_t tiles = (uint64_t)(f->strips * f->tiles_per_strip);
    uint64_t sparse = 0;
    for (int64_t s = 0; s < f->strips; s++) sparse += f->strip[s].sparse_tiles;
    assert_int_equal(report.copied_bytes,
                     f->tile_bytes + tiles / cluster * FRAGMENT_TILE_COLS * 128 * 2);
    assert_int_equal(report.mma_sparse, sparse * 8 * 16 * 4);
    assert_int_equal(report.mma_dense, (tiles - sparse) * 8 * 16 * 8);
    cluster_case_free(&c);
  }
}

static void any_order_gives_the_same_bits(void **state) {
  (void)state;
  struct cluster_case c;
  struct simt_report report;
  cluster_case_make(&c, (struct product_shape){300, 700, 0.5, 11, 128, 3, 4, true, false}, 2, 2);
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

/* Every column of every output is in one segment; clusters cost the same to a column or two. */
static void plans_cover_every_column_evenly(void **state) {
  (void)state;
  struct hybrid_case hybrid;
  struct fragment_matrix f;
  struct error err = {0};
  struct rng rng = rng_make(1, 1);
  const struct product_costs costs = {9, 16};
  hybrid_case_make(&hybrid, 1200, 1500, 128, 0.3, DTYPE_BF16, 6);
  must(fragment_pack_hybrid(&f, &hybrid.h, &err), err);
  uint32_t *order =
      test_malloc((size_t)(fragment_order_strips(&f) * f.tiles_per_strip) * sizeof *order);
  must(fragment_order(&f, order, &err), err);
  for (int i = 0; i < 30; i++) {
    struct product_plan plan;
    const uint32_t clusters = 1 + (uint32_t)rng_below(&rng, i % 2 ? 8 : 60);
    const uint32_t cluster = 1u << rng_below(&rng, 3);
    must(product_plan_make_clusters(&plan, &f, order, 1 + (uint32_t)rng_below(&rng, 900), 256,
                                    clusters, cluster, costs, &err),
         err);
    uint8_t *seen = test_calloc((size_t)(plan.outputs * f.tiles_per_strip), 1);
    double total = 0, most = 0;
    for (uint32_t b = 0; b < clusters; b++) {
      double cost = 0;
      for (uint32_t s = plan.first_segment[b]; s < plan.first_segment[b + 1]; s++) {
        const struct product_segment *segment = &plan.segment[s];
        assert_int_equal(segment->strip, segment->output / plan.panels * cluster);
        assert_true(segment->sparse > 0 && segment->dense == 0);
        for (uint32_t t = segment->column; t < segment->column + segment->sparse; t++) {
          bool sparse = true;
          for (uint32_t k = segment->strip; k < segment->strip + cluster && k < f.strips; k++)
            sparse &= order[k * f.tiles_per_strip + t] & 1;
          cost += sparse ? 9 : 16;
          assert_false(seen[segment->output * f.tiles_per_strip + t]++);
        }
      }
      total += cost;
      if (cost > most) most = cost;
    }
    for (int64_t t = 0; t < plan.outputs * f.tiles_per_strip; t++) assert_true(seen[t]);
    assert_true(most <= total / clusters + 2 * 16);
    test_free(seen);
    product_plan_release(&plan);
  }
  test_free(order);
  fragment_release(&f);
  hybrid_case_free(&hybrid);
}

/* --- mistakes --- */

#define PRODUCT_NAME right
#include "kernel/cuda_cluster_mutant.h"

/* Reads a stage that may not have arrived. */
#pragma push_macro("mbarrier_wait")
#undef mbarrier_wait
#define mbarrier_wait(barrier, parity) \
  (thread_index() < 128 ? simt_mbarrier_wait(barrier, parity, __LINE__) : (void)0)
#define PRODUCT_NAME does_not_wait_for_full
#include "kernel/cuda_cluster_mutant.h"
#undef mbarrier_wait
/* Copies into a stage that may still be read. */
#define mbarrier_wait(barrier, parity) \
  (thread_index() < 128 ? (void)0 : simt_mbarrier_wait(barrier, parity, __LINE__))
#define PRODUCT_NAME does_not_wait_for_empty
#include "kernel/cuda_cluster_mutant.h"
#undef mbarrier_wait
#define mbarrier_wait(barrier, parity) simt_mbarrier_wait(barrier, (parity) ^ 1, __LINE__)
#define PRODUCT_NAME waits_for_the_other_parity
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("mbarrier_wait")

#pragma push_macro("mbarrier_expect")
#undef mbarrier_expect
#define mbarrier_expect(barrier, bytes) simt_mbarrier_expect(barrier, (bytes) + 16, __LINE__)
#define PRODUCT_NAME expects_too_much
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("mbarrier_expect")

/* Tells its own block alone that the stage is free. */
#pragma push_macro("mbarrier_release")
#undef mbarrier_release
#define mbarrier_release(barrier, blocks)       \
  (simt_mbarrier_release(barrier, 1, __LINE__), \
   (blocks) > 1 ? simt_mbarrier_release(barrier, 1, __LINE__) : (void)0)
#define PRODUCT_NAME releases_only_its_own_block
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("mbarrier_release")

/* Says that it is done while wgmma still reads. */
#pragma push_macro("wgmma_wait")
#pragma push_macro("mbarrier_release")
#undef wgmma_wait
#undef mbarrier_release
#define wgmma_wait() ((void)0)
#define mbarrier_release(barrier, blocks) \
  (simt_mbarrier_release(barrier, blocks, __LINE__), simt_wgmma_wait(__LINE__))
#define PRODUCT_NAME releases_too_early
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("mbarrier_release")
#define PRODUCT_NAME never_waits_for_wgmma
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("wgmma_wait")

#pragma push_macro("wgmma_fence")
#undef wgmma_fence
#define wgmma_fence() ((void)0)
#define PRODUCT_NAME has_no_fence
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("wgmma_fence")

#pragma push_macro("wgmma_sparse_high")
#undef wgmma_sparse_high
#define wgmma_sparse_high(d, octets, a, panel, meta) wgmma_sparse_low(d, octets, a, panel, meta)
#define PRODUCT_NAME selects_the_wrong_metadata
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("wgmma_sparse_high")

/* The second half of a step begins 64 bytes on, not 32. */
#pragma push_macro("wgmma_sparse_high")
#undef wgmma_sparse_high
#define wgmma_sparse_high(d, octets, a, panel, meta) \
  simt_wgmma(SIMT_WGMMA_SPARSE_HIGH, d, octets, a, (panel)-2, meta, __LINE__)
#define PRODUCT_NAME takes_the_wrong_columns
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("wgmma_sparse_high")

#pragma push_macro("panel_descriptor")
#define panel_descriptor(address) (panel_descriptor(address) ^ 3ull << 62)
#define PRODUCT_NAME describes_another_swizzle
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("panel_descriptor")

/* Leaves while the others of its cluster still arrive at its mbarriers. */
#pragma push_macro("cluster_barrier")
#undef cluster_barrier
#define cluster_barrier() (simt.cluster_epoch ? (void)0 : simt_cluster_barrier(__LINE__))
#define PRODUCT_NAME leaves_too_early
#include "kernel/cuda_cluster_mutant.h"
#undef cluster_barrier
/* Uses mbarriers that the others may not have made yet. */
#define cluster_barrier() ((void)0)
#define PRODUCT_NAME does_not_wait_for_mbarriers
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("cluster_barrier")

#pragma push_macro("bulk_copy_panel")
#undef bulk_copy_panel
#define bulk_copy_panel(to, map, col, token, barrier, blocks) \
  simt_bulk_copy_panel((to) + 128, map, col, token, barrier, blocks, __LINE__)
#define PRODUCT_NAME copies_a_row_too_far
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("bulk_copy_panel")

/* Adds the slots when the last but one arrives. */
#pragma push_macro("global_add")
#define global_add(counter, value) (global_add(counter, value) + 1)
#define PRODUCT_NAME adds_too_early
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("global_add")

/* Touches weights while wgmma is in flight. */
#pragma push_macro("wgmma_wait")
#undef wgmma_wait
#define wgmma_wait() ((void)0)
#define QUANT_BITS 8
#define PRODUCT_NAME never_waits_with_integers
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("wgmma_wait")

/* Reads what up's group has not written yet. */
#pragma push_macro("group_barrier")
#undef group_barrier
#define group_barrier(id, threads) ((void)0)
#define PRODUCT_PAIR 1
#define PRODUCT_NAME exchanges_without_barrier
#include "kernel/cuda_cluster_mutant.h"
#pragma pop_macro("group_barrier")

static void every_mutant_is_caught(void **state) {
  (void)state;
  static const struct {
    const char *name;
    void (*kernel)(const void *);
    const char *words; /* of the report; NULL: the launch ends, with a wrong result */
  } mutants[] = {
      {"does_not_wait_for_full", does_not_wait_for_full, "nobody has written"},
      {"does_not_wait_for_empty", does_not_wait_for_empty, "without saying"},
      {"waits_for_the_other_parity", waits_for_the_other_parity, ""},
      {"expects_too_much", expects_too_much, "stands still"},
      {"releases_only_its_own_block", releases_only_its_own_block, "without saying"},
      {"releases_too_early", releases_too_early, ""},
      {"never_waits_for_wgmma", never_waits_for_wgmma, ""},
      {"has_no_fence", has_no_fence, "without a fence"},
      {"selects_the_wrong_metadata", selects_the_wrong_metadata, NULL},
      {"takes_the_wrong_columns", takes_the_wrong_columns, NULL},
      {"describes_another_swizzle", describes_another_swizzle, "swizzle"},
      {"leaves_too_early", leaves_too_early, "has ended"},
      {"does_not_wait_for_mbarriers", does_not_wait_for_mbarriers, "mbarrier"},
      {"copies_a_row_too_far", copies_a_row_too_far, "not aligned"},
      {"adds_too_early", adds_too_early, NULL},
  };
  const struct product_shape shape = {300, 700, 0.5, 30, 128, 5, 3, true, true};
  struct cluster_case c;
  struct simt_report report;
  cluster_case_make(&c, shape, 2, 5);
  assert_int_equal(cluster_case_run(&c, right, 0, &report), 0);
  cluster_case_free(&c);
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    cluster_case_make(&c, shape, 2, 5);
    const int64_t wrong = cluster_case_run(&c, mutants[i].kernel, 0, &report);
    if (mutants[i].words ? !report.failed || !strstr(report.text, mutants[i].words) : wrong <= 0)
      fail_msg("%s: %lld wrong; %s", mutants[i].name, (long long)wrong, report.text);
    cluster_case_free(&c);
  }
  const struct quant_form i8 = {QUANT_I8, 32, false};
  cluster_case_make_quant(&c, shape, 2, &i8, 128, 5);
  cluster_case_run(&c, never_waits_with_integers, 0, &report);
  assert_true(report.failed);
  cluster_case_free(&c);
  cluster_case_make_pair(&c, (struct product_shape){200, 300, 0.5, 70, 128, 1, 3, true, false}, 2,
                         NULL, PAIR_SILU, 5);
  cluster_case_run(&c, exchanges_without_barrier, 0, &report);
  assert_true(report.failed && strstr(report.text, "shared memory at"));
  cluster_case_free(&c);
  /* Strips of up for those of the gate. */
  cluster_case_make_pair(&c, (struct product_shape){200, 300, 0.5, 70, 128, 1, 3, true, false}, 2,
                         NULL, PAIR_SILU, 5);
  c.args.product.gate_strips = 1;
  assert_true(cluster_case_run(&c, cluster_pair_128, 0, &report) > 0);
  cluster_case_free(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_match_fp64),
      cmocka_unit_test(integers_match_fp64),
      cmocka_unit_test(pairs_match_fp64),
      cmocka_unit_test(bytes_are_those_of_the_model),
      cmocka_unit_test(any_order_gives_the_same_bits),
      cmocka_unit_test(plans_cover_every_column_evenly),
      cmocka_unit_test(every_mutant_is_caught),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
