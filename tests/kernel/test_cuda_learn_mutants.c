/* The emulator must see what is wrong with the kernels of learning: they are compiled once, in a
 * vocabulary in which one word at a time can be made wrong, and every such mistake must be reported
 * or show in the result. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "support/simt.h"

enum mutation {
  RIGHT,
  NO_BARRIER,     /* block_barrier does nothing */
  LATE_BARRIER,   /* one warp leaves a barrier out */
  WRONG_LANE,     /* a butterfly's steps are half as wide */
  WRONG_SOURCE,   /* a shuffle takes the next lane's value */
  LAST_TOO_EARLY, /* the last block but one adds the sums */
  MISALIGNED,     /* 16 bytes from an address 4 bytes on */
  LANE_ALONE,     /* a lane does not come to a shuffle */
  PAST_THE_END,   /* stores one element further */
  STALE_PART,     /* reads one element further, where others' sums are */
  EVEN_STRIDE,    /* rows of attention's tiles an even number of quads apart */
  FLAT_ROWS,      /* chunks of bf16 tiles where they would lie without the swizzle */
  NOT_TRANSPOSED, /* ldmatrix as it is where its transpose is meant */
  NO_WAIT,        /* a tile is used before its copies have arrived */
  STAGE_TOO_SOON, /* a copy goes to the stage that is being read */
  MUTATIONS
};
static const char *const mutation_name[MUTATIONS] = {
    "right",          "no barrier", "late barrier",   "wrong lane",   "wrong source",
    "last too early", "misaligned", "lane alone",     "past the end", "stale part",
    "even stride",    "flat rows",  "not transposed", "no wait",      "stage too soon"};
static enum mutation mutation;

static inline uint32_t add_mutated(uint32_t *counter, uint32_t value) {
  return global_add(counter, value) + (mutation == LAST_TOO_EARLY);
}
#undef block_barrier
#define block_barrier()                                                             \
  (mutation == NO_BARRIER || (mutation == LATE_BARRIER && thread_index() / 32 == 1) \
       ? (void)0                                                                    \
       : simt_barrier(0, 0, __LINE__))
#undef shuffle_xor
#define shuffle_xor(value, mask)                                                                   \
  (mutation == LANE_ALONE && thread_index() % 32 == 7                                              \
       ? (value)                                                                                   \
       : simt_shuffle(value, thread_index() % 32 ^ (mutation == WRONG_LANE ? (mask) / 2 : (mask)), \
                      __LINE__))
#undef shuffle_from
#define shuffle_from(value, lane) \
  simt_shuffle(value, mutation == WRONG_SOURCE ? ((lane) + 1) % 32 : (lane), __LINE__)
#undef shared_load16
#define shared_load16(address) \
  simt_shared_load16((address) + (mutation == MISALIGNED ? 4u : 0u), __LINE__)
/* Rows of 128 bytes, as those of heads of 64: the swizzle undone. */
static inline uint32_t flat(uint32_t address) {
  return mutation == FLAT_ROWS ? address ^ (address >> 7 & 7) << 4 : address;
}
/* The second stage of the job below begins here; it is where the first one is. */
enum { OWN_BYTES = 128 * 128, STAGE_BYTES = 2 * 64 * 128 };
static inline uint32_t copied_to(uint32_t address) {
  return mutation == STAGE_TOO_SOON && address >= OWN_BYTES + STAGE_BYTES ? address - STAGE_BYTES
                                                                          : flat(address);
}
#undef load_matrices
#define load_matrices(address) simt_load_matrices(flat(address), __LINE__)
#undef load_matrices_transposed
#define load_matrices_transposed(address)                             \
  (mutation == NOT_TRANSPOSED ? simt_load_matrices(address, __LINE__) \
                              : simt_load_transposed(flat(address), __LINE__))
#undef async_copy16
#define async_copy16(to, from, bytes) simt_async_copy16(copied_to(to), from, bytes, __LINE__)
#define async_wait(pending) (mutation == NO_WAIT ? (void)0 : async_wait(pending))
#undef global_store
#define global_store(pointer, value)                                                   \
  (simt_check_global((pointer) + (mutation == PAST_THE_END), sizeof *(pointer), true), \
   (pointer)[mutation == PAST_THE_END] = (value))
#undef global_load_fresh
#define global_load_fresh(pointer)                                                    \
  (simt_check_global((pointer) + (mutation == STALE_PART), sizeof *(pointer), false), \
   (pointer)[mutation == STALE_PART])
#define global_add(counter, value) add_mutated(counter, value)

/* needs the vocabulary above */
#include "kernel/cuda/learn_kernels.h"
#include "support/support.h"

enum fault { FAULT_NONE, FAULT_REPORTED, FAULT_WRONG, FAULT_CONFLICTS };
static const char *const fault_name[] = {"nothing", "a report", "a wrong result", "bank conflicts"};

/* A launch with its arguments and the output that tells. */
struct job {
  void (*kernel)(const void *args);
  const void *args;
  struct simt_launch launch;
  float *output;
  size_t count;
};

/* Runs the job under `which`; *output (count) gets the result. */
static enum fault run_job(struct job *job, enum mutation which, const float *expected, char *text) {
  struct simt_report report;
  mutation = which;
  simt_run(&job->launch, job->kernel, job->args, &report);
  mutation = RIGHT;
  snprintf(text, sizeof report.text, "%s", report.text);
  if (report.failed) return FAULT_REPORTED;
  if (expected && memcmp(job->output, expected, job->count * sizeof *expected)) return FAULT_WRONG;
  return report.bank_conflicts ? FAULT_CONFLICTS : FAULT_NONE;
}

/* --- jobs: one at a time has the pool --- */

static _Alignas(64) float pool[1 << 15];
static size_t pool_used;

static float *normals(size_t count, uint64_t seed) {
  float *out = pool + pool_used;
  pool_used += (count + 15) / 16 * 16;
  assert_true(pool_used <= sizeof pool / sizeof *pool);
  fill_normal(out, count, seed, 1);
  return out;
}

enum { LOSS_ROWS = 2, VOCAB = 300 };
static struct job loss_job(void) {
  static struct loss_args args;
  static int32_t targets[LOSS_ROWS] = {3, 299};
  pool_used = 0;
  float *logits = normals(LOSS_ROWS * VOCAB, 1), *nll = normals(LOSS_ROWS, 2);
  float *dlogits = normals(LOSS_ROWS * VOCAB, 3);
  args = (struct loss_args){.logits = logits,
                            .targets = targets,
                            .nll = nll,
                            .dlogits = dlogits,
                            .rows = LOSS_ROWS,
                            .vocab = VOCAB,
                            .scale = 1};
  struct job job = {loss_rows,
                    &args,
                    {.blocks = LOSS_ROWS, .threads = 256, .shared_bytes = 96},
                    dlogits,
                    LOSS_ROWS * VOCAB};
  simt_buffer(&job.launch, logits, LOSS_ROWS * VOCAB * 4, false);
  simt_buffer(&job.launch, targets, sizeof targets, false);
  simt_buffer(&job.launch, nll, LOSS_ROWS * 4, true);
  simt_buffer(&job.launch, dlogits, LOSS_ROWS * VOCAB * 4, true);
  return job;
}

enum { LENGTH = 70, HEAD = 32, MMA_LENGTH = 100, MMA_HEAD = 40 };
static struct job attention_job(uint32_t stride) {
  static struct attention_args args;
  pool_used = 0;
  float *q = normals(LENGTH * HEAD, 1), *k = normals(LENGTH * HEAD, 2);
  float *v = normals(LENGTH * HEAD, 3), *out = normals(LENGTH * HEAD, 4);
  args = (struct attention_args){.q = q,
                                 .k = k,
                                 .v = v,
                                 .out = out,
                                 .sequences = 1,
                                 .length = LENGTH,
                                 .heads = 1,
                                 .kv_heads = 1,
                                 .head_dim = HEAD,
                                 .row_blocks = 3,
                                 .warps = 8,
                                 .stride = stride,
                                 .scale = 0.2f};
  struct job job = {attention_rows,
                    &args,
                    {.blocks = 3, .threads = 256, .shared_bytes = 4 * 96 * stride},
                    out,
                    LENGTH * HEAD};
  simt_buffer(&job.launch, q, LENGTH * HEAD * 4, false);
  simt_buffer(&job.launch, k, LENGTH * HEAD * 4, false);
  simt_buffer(&job.launch, v, LENGTH * HEAD * 4, false);
  simt_buffer(&job.launch, out, LENGTH * HEAD * 4, true);
  return job;
}

/* Two tiles of keys for the second half of the queries. */
static struct job mma_job(void) {
  static struct attention_mma_args args;
  static _Alignas(16) uint16_t rows[3][MMA_LENGTH * 64];
  float values[64];
  pool_used = 0;
  float *out = normals(MMA_LENGTH * MMA_HEAD, 4);
  for (int t = 0; t < 3; t++)
    for (int r = 0; r < MMA_LENGTH; r++) {
      fill_normal(values, 64, (uint64_t)(1000 * t + r), 1);
      for (int c = 0; c < 64; c++) rows[t][64 * r + c] = c < MMA_HEAD ? bf16_round(values[c]) : 0;
    }
  args = (struct attention_mma_args){.a = {.out = out,
                                           .sequences = 1,
                                           .length = MMA_LENGTH,
                                           .heads = 1,
                                           .kv_heads = 1,
                                           .head_dim = MMA_HEAD,
                                           .row_blocks = 1,
                                           .scale = 0.2f},
                                     .q = rows[0],
                                     .k = rows[1],
                                     .v = rows[2]};
  const struct attention_form form = {64, 2, 64, 64};
  struct job job = {attention_mma_64,
                    &args,
                    {.blocks = 1,
                     .threads = ATTENTION_MMA_THREADS,
                     .shared_bytes = form_shared_bytes(&form, 1, false)},
                    out,
                    MMA_LENGTH * MMA_HEAD};
  simt_buffer(&job.launch, rows, sizeof rows, false);
  simt_buffer(&job.launch, out, MMA_LENGTH * MMA_HEAD * 4, true);
  return job;
}

/* One tile of two strips, from fixed codes: the sum over it is added to what is there. */
enum { MASK_ROWS = 60, MASK_COLS = 64 };
static struct job mask_job(double **dtile) {
  static struct mask_args args;
  static uint8_t codes[MASK_ROWS * MASK_COLS / 8];
  static float soft[1] = {0.25f};
  static double sum[1], parts[2];
  static uint32_t counters[2];
  pool_used = 0;
  float *w = normals(MASK_ROWS * MASK_COLS, 1), *dw = normals(MASK_ROWS * MASK_COLS, 2);
  float *out = normals(MASK_ROWS * MASK_COLS, 3);
  memset(codes, 0x84, sizeof codes);
  memset(counters, 0, sizeof counters);
  memset(parts, 0, sizeof parts);
  sum[0] = 1;
  *dtile = sum;
  args = (struct mask_args){.codes = codes,
                            .tile_soft = soft,
                            .w = w,
                            .dw = dw,
                            .rows = MASK_ROWS,
                            .cols = MASK_COLS,
                            .groups = MASK_COLS / 4,
                            .row_blocks = 1,
                            .code_stride = MASK_COLS / 8,
                            .tile_rows = 64,
                            .tile_groups = 16,
                            .tile_columns = 1,
                            .strips_per_tile = 2,
                            .blocks = 2,
                            .slope = 1,
                            .inverse_tau = 1,
                            .accumulate = true,
                            .dtile = sum,
                            .out = out,
                            .parts = parts,
                            .counters = counters};
  struct job job = {mask_back_tiles,
                    &args,
                    {.blocks = 2, .threads = 256, .shared_bytes = 64},
                    out,
                    MASK_ROWS * MASK_COLS};
  simt_buffer(&job.launch, codes, sizeof codes, false);
  simt_buffer(&job.launch, soft, sizeof soft, false);
  simt_buffer(&job.launch, w, MASK_ROWS * MASK_COLS * 4, false);
  simt_buffer(&job.launch, dw, MASK_ROWS * MASK_COLS * 4, false);
  simt_buffer(&job.launch, out, MASK_ROWS * MASK_COLS * 4, true);
  simt_buffer(&job.launch, sum, sizeof sum, true);
  simt_buffer(&job.launch, parts, sizeof parts, true);
  simt_buffer(&job.launch, counters, sizeof counters, true);
  return job;
}

static void check_job(struct job *job, enum mutation which, enum fault fault, const char *words) {
  char text[400];
  assert_int_equal(run_job(job, RIGHT, NULL, text), FAULT_NONE);
  float *expected = test_malloc(job->count * sizeof *expected);
  memcpy(expected, job->output, job->count * sizeof *expected);
  const enum fault found = run_job(job, which, expected, text);
  if (found != fault)
    fail_msg("%s: found %s, expected %s; %s", mutation_name[which], fault_name[found],
             fault_name[fault], text);
  if (words && !strstr(text, words)) fail_msg("%s: reported as \"%s\"", mutation_name[which], text);
  test_free(expected);
}

static void mistakes_in_losses_are_caught(void **state) {
  (void)state;
  static const struct {
    enum mutation mutation;
    enum fault fault;
    const char *words;
  } mutants[] = {{NO_BARRIER, FAULT_REPORTED, "since the last barrier"},
                 {LATE_BARRIER, FAULT_REPORTED, "shared memory"},
                 {WRONG_LANE, FAULT_WRONG, NULL},
                 {LANE_ALONE, FAULT_REPORTED, NULL},
                 {PAST_THE_END, FAULT_REPORTED, "no buffer"},
                 {STALE_PART, FAULT_REPORTED, "no buffer"}};
  simt_need_fibers();
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct job job = loss_job();
    check_job(&job, mutants[i].mutation, mutants[i].fault, mutants[i].words);
  }
}

static void mistakes_in_attention_are_caught(void **state) {
  (void)state;
  simt_need_fibers();
  struct job job = attention_job(attention_stride(HEAD));
  check_job(&job, WRONG_SOURCE, FAULT_WRONG, NULL);
  check_job(&job, MISALIGNED, FAULT_REPORTED, "misaligned");
  check_job(&job, NO_BARRIER, FAULT_REPORTED, "shared memory");
  char text[400];
  struct job even = attention_job(attention_stride(HEAD) + 4);
  assert_int_equal(run_job(&even, EVEN_STRIDE, NULL, text), FAULT_CONFLICTS);
}

static void mistakes_on_the_tensor_cores_are_caught(void **state) {
  (void)state;
  static const struct {
    enum mutation mutation;
    enum fault fault;
    const char *words;
  } mutants[] = {{NO_BARRIER, FAULT_REPORTED, "since the last barrier"},
                 {LATE_BARRIER, FAULT_REPORTED, NULL},
                 {WRONG_LANE, FAULT_WRONG, NULL},
                 {LANE_ALONE, FAULT_REPORTED, NULL},
                 {PAST_THE_END, FAULT_REPORTED, "no buffer"},
                 {FLAT_ROWS, FAULT_CONFLICTS, NULL},
                 {NOT_TRANSPOSED, FAULT_WRONG, NULL},
                 {NO_WAIT, FAULT_REPORTED, "before the copy"},
                 {STAGE_TOO_SOON, FAULT_REPORTED, NULL}};
  simt_need_fibers();
  for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
    struct job job = mma_job();
    check_job(&job, mutants[i].mutation, mutants[i].fault, mutants[i].words);
  }
}

/* A block that adds the sums before they are all there adds to what is there twice. */
static void sums_that_come_too_early_are_caught(void **state) {
  (void)state;
  char text[400];
  double *sum;
  simt_need_fibers();
  struct job job = mask_job(&sum);
  assert_int_equal(run_job(&job, RIGHT, NULL, text), FAULT_NONE);
  const double right = *sum;
  job = mask_job(&sum);
  assert_int_equal(run_job(&job, LAST_TOO_EARLY, NULL, text), FAULT_NONE);
  assert_true(isfinite(right) && fabs(right - *sum) > 1e-3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mistakes_in_losses_are_caught),
      cmocka_unit_test(mistakes_in_attention_are_caught),
      cmocka_unit_test(mistakes_on_the_tensor_cores_are_caught),
      cmocka_unit_test(sums_that_come_too_early_are_caught),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
