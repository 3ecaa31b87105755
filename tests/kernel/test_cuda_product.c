/* kernel/cuda: the hybrid product under the emulator. Every kernel against fp64 at ragged sizes,
 * with any cut of the work; no bank conflicts; the bytes that docs/GPU.md counts; the same bits in
 * any order of the blocks; and the plans. */
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/product_kernels.h"
#include "kernel/cuda_product.h"

struct kernel {
  uint32_t panel_tokens, threads;
  void (*run)(const void *);
};
static const struct kernel kernels[] = {
#define KERNEL_ENTRY(tokens, threads) {tokens, threads, product_##tokens},
    PRODUCT_KERNELS(KERNEL_ENTRY)};
enum { KERNELS = sizeof kernels / sizeof *kernels };

static void run_well(struct product_case *c, const struct kernel *kernel, uint32_t order,
                     struct simt_report *report) {
  const int64_t wrong = product_case_run(c, kernel->run, kernel->threads, order, report);
  if (report->failed) fail_msg("%s", report->text);
  assert_int_equal(wrong, 0);
  assert_int_equal(report->bank_conflicts, 0);
}

/* rows, cols, share of dense tiles, tokens, panel, blocks, stages, bias, residual */
static const struct product_shape shapes[] = {
    {128, 128, 0, 1, 8, 1, 2, false, false},      {128, 128, 1, 8, 8, 1, 3, false, false},
    {300, 520, 0.5, 5, 8, 3, 4, true, true},      {129, 1000, 0.3, 19, 8, 2, 3, true, false},
    {260, 777, 0.5, 16, 16, 4, 6, false, true},   {1, 7, 1, 3, 16, 1, 2, true, true},
    {300, 390, 0.4, 27, 32, 5, 4, true, true},    {200, 260, 0.5, 64, 64, 2, 3, true, true},
    {140, 300, 0.5, 70, 64, 7, 5, false, true},   {256, 200, 0.5, 100, 128, 2, 3, true, true},
    {130, 256, 0.5, 140, 128, 3, 2, true, false}, {200, 300, 0.5, 300, 256, 3, 2, true, true},
};

static void products_match_fp64(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    struct product_case c;
    struct simt_report report;
    product_case_make(&c, shapes[i], 10 * i);
    for (int k = 0; k < KERNELS; k++)
      if (kernels[k].panel_tokens == shapes[i].panel_tokens)
        run_well(&c, &kernels[k], (uint32_t)i, &report);
    for (uint32_t o = 0; o < c.plan.outputs; o++) assert_int_equal(c.counters[o], 0);
    product_case_free(&c);
  }
}

/* The weights once, the activations once for each of their steps: nothing else is copied. */
static void bytes_are_those_of_the_model(void **state) {
  (void)state;
  struct product_case c;
  struct simt_report report;
  product_case_make(&c, (struct product_shape){384, 640, 0.5, 8, 8, 5, 4, false, false}, 1);
  run_well(&c, &kernels[0], 0, &report);
  const uint64_t tiles = 3 * 5, activations = tiles * FRAGMENT_TILE_COLS * 8 * 2;
  uint64_t sparse = 0;
  for (int64_t s = 0; s < 3; s++) sparse += c.fragments.strip[s].sparse_tiles;
  assert_int_equal(report.copied_bytes, c.fragments.tile_bytes + activations);
  /* A 2:4 tile takes half of a dense tile's instructions: 4 and 8 for each of 8 row blocks. */
  assert_int_equal(report.mma_sparse, sparse * 8 * 4);
  assert_int_equal(report.mma_dense, (tiles - sparse) * 8 * 8);
  product_case_free(&c);
}

static void blocks_in_any_order_give_the_same_bits(void **state) {
  (void)state;
  struct product_case c;
  struct simt_report report;
  product_case_make(&c, (struct product_shape){300, 900, 0.5, 11, 16, 7, 4, true, false}, 2);
  assert_true(c.plan.slots > 6);
  const size_t bytes = c.shape.tokens * c.args.y_stride * 2;
  uint16_t *first = test_malloc(bytes);
  for (uint32_t order = 0; order < 4; order++) {
    run_well(&c, &kernels[1], order, &report);
    if (!order) memcpy(first, c.y, bytes);
    assert_memory_equal(first, c.y, bytes);
  }
  test_free(first);
  product_case_free(&c);
}

/* y may be the residual. */
static void residual_in_place(void **state) {
  (void)state;
  struct product_case c;
  struct simt_report report;
  product_case_make(&c, (struct product_shape){200, 300, 0.5, 9, 16, 3, 3, false, true}, 3);
  const size_t bytes = c.shape.tokens * c.args.y_stride * 2;
  memcpy(c.y, c.residual, bytes);
  c.args.residual = c.y;
  run_well(&c, &kernels[1], 0, &report);
  product_case_free(&c);
}

static void a_nan_stays_in_its_row_and_token(void **state) {
  (void)state;
  struct product_case c;
  struct simt_report report;
  product_case_make(&c, (struct product_shape){130, 200, 1, 3, 8, 2, 3, false, false}, 4);
  c.x[1 * c.args.x_stride + 150] = 0x7fc0;
  c.launch.threads = 256;
  simt_run(&c.launch, product_8, &c.args, &report);
  if (report.failed) fail_msg("%s", report.text);
  for (uint32_t t = 0; t < 3; t++)
    for (uint64_t row = 0; row < 130; row++)
      assert_int_equal(isnan(bf16_to_f32(c.y[t * c.args.y_stride + row])) != 0, t == 1);
  product_case_free(&c);
}

/* --- plans --- */

/* Every tile of every output is in one segment; slots and peers are right; block costs are level.
 */
static void check_plan(const struct fragment_matrix *f, const struct product_plan *plan,
                       struct product_costs costs) {
  const int64_t tiles = f->tiles_per_strip;
  uint8_t *seen = test_calloc((size_t)(plan->outputs * tiles), 1);
  uint32_t *peers = test_calloc(plan->outputs, sizeof *peers);
  uint8_t *slots = test_calloc(plan->slots + 1, 1);
  double total = 0, most = 0;
  assert_int_equal(plan->first_segment[0], 0);
  assert_int_equal(plan->first_segment[plan->blocks], plan->segments);
  for (uint32_t b = 0; b < plan->blocks; b++) {
    double cost = 0;
    for (uint32_t i = plan->first_segment[b]; i < plan->first_segment[b + 1]; i++) {
      const struct product_segment *s = &plan->segment[i];
      assert_int_equal(s->output, s->strip * plan->panels + s->panel);
      const int64_t first = s->column - s->strip * tiles, end = first + s->sparse + s->dense;
      assert_true(first >= 0 && first < end && end <= tiles);
      assert_int_equal(s->offset, fragment_tile_offset(f, s->strip, first));
      for (int64_t t = first; t < end; t++) {
        assert_int_equal(t < (int64_t)f->strip[s->strip].sparse_tiles, t < first + s->sparse);
        assert_false(seen[s->output * tiles + t]++);
      }
      peers[s->output]++;
      if (s->peers > 1) assert_false(slots[s->slot]++);
      cost += (double)s->sparse * costs.sparse_tile + (double)s->dense * costs.dense_tile;
    }
    total += cost;
    if (cost > most) most = cost;
  }
  for (uint32_t i = 0; i < plan->outputs * tiles; i++) assert_true(seen[i]);
  for (uint32_t i = 0; i < plan->segments; i++) {
    const struct product_segment *s = &plan->segment[i];
    assert_int_equal(peers[s->output], s->peers);
    if (s->peers > 1) assert_true(s->slot - s->first_slot < s->peers);
  }
  /* To half a tile at either end of a share. */
  assert_true(most <= total / plan->blocks + 2 * costs.dense_tile);
  test_free(seen);
  test_free(peers);
  test_free(slots);
}

static void plans_cover_everything_evenly(void **state) {
  (void)state;
  struct hybrid_case hybrid;
  struct fragment_matrix f;
  struct error err = {0};
  struct rng rng = rng_make(1, 1);
  const struct product_costs costs = {18432, 32768};
  hybrid_case_make(&hybrid, 1200, 1500, 128, 0.4, DTYPE_BF16, 6);
  must(fragment_pack_hybrid(&f, &hybrid.h, &err), err);
  for (int i = 0; i < 60; i++) {
    struct product_plan plan;
    const uint32_t tokens = 1 + (uint32_t)rng_below(&rng, 2000);
    const uint32_t panel = kernels[rng_below(&rng, KERNELS)].panel_tokens;
    const uint32_t blocks = 1 + (uint32_t)rng_below(&rng, i % 2 ? 8 : 300);
    must(product_plan_make(&plan, &f, tokens, panel, blocks, costs, &err), err);
    check_plan(&f, &plan, costs);
    product_plan_release(&plan);
  }
  fragment_release(&f);
  hybrid_case_free(&hybrid);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_match_fp64),
      cmocka_unit_test(bytes_are_those_of_the_model),
      cmocka_unit_test(blocks_in_any_order_give_the_same_bits),
      cmocka_unit_test(residual_in_place),
      cmocka_unit_test(a_nan_stays_in_its_row_and_token),
      cmocka_unit_test(plans_cover_everything_evenly),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
