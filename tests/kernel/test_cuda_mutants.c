/* The emulator must see what is wrong: the product kernel is compiled again and again with one
 * mistake each, of the kinds that cost days on a real card, and every one must be caught, in the
 * way that says what it is. */
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/panel.h"
#include "kernel/cuda_product.h"

#define PRODUCT_NAME right
#include "kernel/cuda_mutant.h"

/* Waits for one group of copies too few. */
#pragma push_macro("async_wait")
#define async_wait(pending) async_wait((pending) + 1)
#define PRODUCT_NAME waits_too_little
#include "kernel/cuda_mutant.h"
#pragma pop_macro("async_wait")

/* Never closes a group, so that waiting waits for nothing. */
#pragma push_macro("async_commit")
#define async_commit() ((void)0)
#define PRODUCT_NAME never_commits
#include "kernel/cuda_mutant.h"
#pragma pop_macro("async_commit")

/* Each thread waits for its own copies and believes that the others' have arrived. */
#pragma push_macro("block_barrier")
#undef block_barrier
#define block_barrier() ((void)0)
#define PRODUCT_NAME has_no_barrier
#include "kernel/cuda_mutant.h"
#pragma pop_macro("block_barrier")

#pragma push_macro("async_wait")
#pragma push_macro("block_barrier")
#define async_wait(pending) (simt_barrier(0, 0, __LINE__), async_wait(pending))
#undef block_barrier
#define block_barrier() ((void)0)
#define PRODUCT_NAME waits_after_the_barrier
#include "kernel/cuda_mutant.h"
#pragma pop_macro("block_barrier")
#pragma pop_macro("async_wait")

#pragma push_macro("block_barrier")
#undef block_barrier
#define block_barrier() (thread_index() == 77 ? (void)0 : simt_barrier(0, 0, __LINE__))
#define PRODUCT_NAME skips_a_barrier
#include "kernel/cuda_mutant.h"
#pragma pop_macro("block_barrier")

/* Right results, four to eight times slower. */
#pragma push_macro("panel_offset")
#define panel_offset(row, chunk) ((row)*PRODUCT_PANEL_ROW_BYTES + 16 * (chunk))
#define PRODUCT_NAME does_not_swizzle
#include "kernel/cuda_mutant.h"
#pragma pop_macro("panel_offset")

#pragma push_macro("load_matrices")
#undef load_matrices
#define load_matrices(address) simt_load_matrices((address) ^ 16, __LINE__)
#define PRODUCT_NAME swaps_columns
#include "kernel/cuda_mutant.h"
#pragma pop_macro("load_matrices")

#pragma push_macro("load_matrices")
#undef load_matrices
#define load_matrices(address) \
  (thread_index() % 32 == 9 ? (struct words4){{0}} : simt_load_matrices(address, __LINE__))
#define PRODUCT_NAME diverges
#include "kernel/cuda_mutant.h"
#pragma pop_macro("load_matrices")

#pragma push_macro("mma_sparse_high")
#undef mma_sparse_high
#define mma_sparse_high(d, a, b, meta) mma_sparse_low(d, a, b, meta)
#define PRODUCT_NAME selects_the_wrong_metadata
#include "kernel/cuda_mutant.h"
#pragma pop_macro("mma_sparse_high")

#pragma push_macro("shared_load16")
#undef shared_load16
#define shared_load16(address) simt_shared_load16((address) + 4, __LINE__)
#define PRODUCT_NAME loads_misaligned
#include "kernel/cuda_mutant.h"
#pragma pop_macro("shared_load16")

/* Takes what lies behind the last column for activations. */
#pragma push_macro("async_copy16")
#undef async_copy16
#define async_copy16(to, from, bytes) simt_async_copy16(to, from, (bytes) ? 16 : 0, __LINE__)
#define PRODUCT_NAME reads_past_the_edge
#include "kernel/cuda_mutant.h"
#pragma pop_macro("async_copy16")

/* Adds the slots when the last but one arrives. */
#pragma push_macro("global_add")
#define global_add(counter, value) (global_add(counter, value) + 1)
#define PRODUCT_NAME adds_too_early
#include "kernel/cuda_mutant.h"
#pragma pop_macro("global_add")

/* Writes the output of rows that do not exist. */
#pragma push_macro("global_store")
#undef global_store
#define global_store(pointer, value) \
  (simt_check_global((pointer) + 1, sizeof *(pointer), true), (pointer)[1] = (value))
#define PRODUCT_NAME writes_next_door
#include "kernel/cuda_mutant.h"
#pragma pop_macro("global_store")

enum fault { FAULT_NONE, FAULT_REPORTED, FAULT_WRONG, FAULT_CONFLICTS };

static const struct product_shape shape = {300, 522, 0.5, 13, 16, 7, 4, true, true};

static void check_caught(struct product_case *c, const char *name, void (*kernel)(const void *),
                         enum fault fault, const char *words) {
  struct simt_report report;
  const int64_t wrong = product_case_run(c, kernel, 256, 0, &report);
  const enum fault found = report.failed           ? FAULT_REPORTED
                           : wrong                 ? FAULT_WRONG
                           : report.bank_conflicts ? FAULT_CONFLICTS
                                                   : FAULT_NONE;
  if (found != fault) fail_msg("%s: fault %d, expected %d; %s", name, found, fault, report.text);
  if (words && !strstr(report.text, words)) fail_msg("%s: reported as \"%s\"", name, report.text);
}

static void every_mutant_is_caught(void **state) {
  (void)state;
  static const struct {
    const char *name;
    void (*kernel)(const void *);
    enum fault fault;
    const char *words;
  } mutants[] = {
      {"right", right, FAULT_NONE, NULL},
      {"waits_too_little", waits_too_little, FAULT_REPORTED, "before the copy"},
      {"never_commits", never_commits, FAULT_REPORTED, "before the copy"},
      {"has_no_barrier", has_no_barrier, FAULT_REPORTED, "shared memory at"},
      {"waits_after_the_barrier", waits_after_the_barrier, FAULT_REPORTED,
       "since the last barrier"},
      {"skips_a_barrier", skips_a_barrier, FAULT_REPORTED, "stands still"},
      {"does_not_swizzle", does_not_swizzle, FAULT_CONFLICTS, NULL},
      {"swaps_columns", swaps_columns, FAULT_WRONG, NULL},
      {"diverges", diverges, FAULT_REPORTED, "diverges"},
      {"selects_the_wrong_metadata", selects_the_wrong_metadata, FAULT_WRONG, NULL},
      {"loads_misaligned", loads_misaligned, FAULT_REPORTED, "misaligned"},
      {"reads_past_the_edge", reads_past_the_edge, FAULT_WRONG, NULL},
      {"adds_too_early", adds_too_early, FAULT_WRONG, NULL},
      {"writes_next_door", writes_next_door, FAULT_REPORTED, "no buffer"},
  };
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct product_case c;
    product_case_make(&c, shape, 5);
    check_caught(&c, mutants[i].name, mutants[i].kernel, mutants[i].fault, mutants[i].words);
    product_case_free(&c);
  }
}

/* Mistakes in what the host brings. */
static void wrong_inputs_are_caught(void **state) {
  (void)state;
  struct product_case c;
  product_case_make(&c, shape, 6);
  c.launch.shared_bytes -= 16;
  check_caught(&c, "too little shared memory", right, FAULT_REPORTED, "outside");
  product_case_free(&c);

  product_case_make(&c, shape, 6);
  assert_true(c.fragments.strip[0].sparse_tiles > 0);
  uint32_t meta;
  memcpy(&meta, c.fragments.tiles, 4);
  meta = (meta & ~0xfu) | (meta & 3) << 2 | (meta >> 2 & 3); /* i1 | i0 << 2 */
  memcpy(c.fragments.tiles, &meta, 4);
  check_caught(&c, "unordered metadata", right, FAULT_REPORTED, "must be below");
  product_case_free(&c);

  product_case_make(&c, shape, 6);
  c.launch.buffers[0].bytes -= 1;
  check_caught(&c, "a short buffer", right, FAULT_REPORTED, "no buffer");
  product_case_free(&c);

  product_case_make(&c, shape, 6);
  /* As a launch that was broken off would leave them. */
  for (uint32_t o = 0; o < c.plan.outputs; o++) c.counters[o] = 1;
  check_caught(&c, "a counter that does not start at zero", right, FAULT_WRONG, NULL);
  product_case_free(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_mutant_is_caught),
      cmocka_unit_test(wrong_inputs_are_caught),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
