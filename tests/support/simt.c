/* Fibers, meeting points, and the instructions of a warp. Shared memory is in simt_memory.c.
 *
 * A fiber is made by ucontext and switched by _setjmp and _longjmp, which, unlike swapcontext, make
 * no system call. A launch that fails leaves its fibers where they stand; the next one makes new
 * ones on the same stacks. */
/* The checked longjmp refuses to leave one stack for another. */
#undef _FORTIFY_SOURCE
#include "support/simt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

#include "base/rng.h"
#include "support/simt_memory.h"
#include "support/support.h"

enum { STACK_BYTES = 1 << 17, COPIES_MAX = 512 };
enum lane_state { LANE_READY, LANE_IN_WARP, LANE_AT_BARRIER, LANE_DONE };
enum operation {
  OP_LOAD4,
  OP_LOAD16,
  OP_STORE4,
  OP_MATRICES,
  OP_COPY,
  OP_DENSE,
  OP_SPARSE_LOW,
  OP_SPARSE_HIGH,
  OP_SHUFFLE
};
static const char *const operation_name[] = {"a 4-byte load", "a 16-byte load", "a store",
                                             "ldmatrix",      "a copy",         "mma",
                                             "mma.sp, low",   "mma.sp, high",   "a shuffle"};

/* What a lane brings to a meeting point of its warp. */
struct call {
  enum operation op;
  int line;
  uint32_t address, value, bytes;
  const void *from;
  float *d;
  const struct words4 *a;
  struct words4 b, out;
};

struct copy {
  uint32_t to, bytes, group;
  const void *from;
};

struct lane {
  enum lane_state state;
  int line; /* where it waits */
  jmp_buf context;
  struct call call;
  struct copy copies[COPIES_MAX]; /* not yet waited for, oldest first */
  uint32_t copy_count, group;     /* group: the one that is open */
};

static struct {
  struct lane lanes[SIMT_THREADS_MAX];
  char *stacks;
  const struct simt_launch *launch;
  struct simt_report *report;
  void (*kernel)(const void *);
  const void *args;
  uint32_t block;
  int current, at_barrier, arrived[SIMT_THREADS_MAX / SIMT_WARP];
  jmp_buf scheduler;
  ucontext_t start;
} simt;

uint32_t thread_index(void) { return (uint32_t)simt.current; }
uint32_t block_index(void) { return simt.block; }

/* --- fibers --- */

static void leave_fiber(void) {
  if (!_setjmp(simt.lanes[simt.current].context)) _longjmp(simt.scheduler, 1);
}

_Noreturn void simt_fail(int line, const char *format, ...) {
  struct simt_report *report = simt.report;
  va_list args;
  if (!report->failed) {
    int used = snprintf(report->text, sizeof report->text,
                        "block %u, thread %d, line %d: ", simt.block, simt.current, line);
    va_start(args, format);
    vsnprintf(report->text + used, sizeof report->text - (size_t)used, format, args);
    va_end(args);
  }
  report->failed = true;
  _longjmp(simt.scheduler, 1);
}

static void fiber_main(void) {
  simt.kernel(simt.args);
  struct lane *lane = &simt.lanes[simt.current];
  if (lane->copy_count) simt_fail(0, "ends with asynchronous copies that nobody waited for");
  lane->state = LANE_DONE;
  _longjmp(simt.scheduler, 1);
}

/* Runs a lane until it waits or ends. */
static void resume(int thread, bool fresh) {
  simt.current = thread;
  if (_setjmp(simt.scheduler)) return;
  if (!fresh) _longjmp(simt.lanes[thread].context, 1);
  ucontext_t fiber;
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = simt.stacks + (size_t)thread * STACK_BYTES;
  fiber.uc_stack.ss_size = STACK_BYTES;
  fiber.uc_link = NULL;
  makecontext(&fiber, fiber_main, 0);
  setcontext(&fiber);
}

/* --- the instructions of a warp, once all its lanes are there --- */

static void count_conflicts(const struct call *const calls[SIMT_WARP], int lanes_per_pass,
                            uint32_t bytes) {
  uint32_t addresses[SIMT_WARP];
  for (int first = 0; first < SIMT_WARP; first += lanes_per_pass) {
    for (int i = 0; i < lanes_per_pass; i++) addresses[i] = calls[first + i]->address;
    simt.report->bank_conflicts += (uint64_t)bank_conflicts(addresses, lanes_per_pass, bytes);
  }
}

static void load_shared(struct call *const calls[SIMT_WARP], int first_thread, uint32_t bytes) {
  for (int l = 0; l < SIMT_WARP; l++)
    shared_read(first_thread + l, calls[l]->address, bytes, calls[l]->out.w, calls[l]->line);
  simt.report->shared_bytes += SIMT_WARP * bytes;
}

static void load_rows(struct call *const calls[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++) {
    uint32_t row[4];
    shared_read(SHARED_WARP, calls[l]->address, 16, row, calls[l]->line);
    for (int i = 0; i < 4; i++) calls[4 * (l % 8) + i]->out.w[l / 8] = row[i];
  }
  simt.report->shared_bytes += SIMT_WARP * 16;
}

static float half_of(uint32_t word, int half) { return bf16_to_f32((uint16_t)(word >> 16 * half)); }

/* Row `row` of operand A, stored column `col` below 16. */
static float a_element(struct call *const calls[SIMT_WARP], int row, int col) {
  const struct call *call = calls[4 * (row % 8) + col % 8 / 2];
  return half_of(call->a->w[row / 8 + 2 * (col / 8)], col % 2);
}

/* The operand of the four columns' code: group `group` of the 32 columns, row `row`. */
static uint32_t code_of(struct call *const calls[SIMT_WARP], int row, int group, int selector) {
  const struct call *call = calls[4 * (row % 8) + 2 * selector + group / 4];
  const uint32_t code = call->value >> (16 * (row / 8) + 4 * (group % 4)) & 15;
  if ((code & 3) >= code >> 2)
    simt_fail(call->line,
              "metadata of row %d, group %d is %u: the first position must be below "
              "the second",
              row, group, code);
  return code;
}

/* Sums run in fp64 within an instruction and are rounded once: what the tensor cores lose inside
 * is bounded, but not documented. */
static void multiply(struct call *const calls[SIMT_WARP], bool sparse, int selector) {
  float a[16][16], b[32][8];
  int column[16][16];
  for (int row = 0; row < 16; row++)
    for (int col = 0; col < 16; col++) {
      a[row][col] = a_element(calls, row, col);
      column[row][col] = col;
      if (!sparse) continue;
      const uint32_t code = code_of(calls, row, col / 2, selector);
      column[row][col] = col / 2 * 4 + (int)(col % 2 ? code >> 2 : code & 3);
    }
  for (int l = 0; l < SIMT_WARP; l++)
    for (int r = 0; r < (sparse ? 4 : 2); r++)
      for (int half = 0; half < 2; half++)
        b[2 * (l % 4) + 8 * r + half][l / 4] = half_of(calls[l]->b.w[r], half);
  for (int l = 0; l < SIMT_WARP; l++)
    for (int r = 0; r < 4; r++) {
      const int row = l / 4 + 8 * (r / 2), token = 2 * (l % 4) + r % 2;
      double sum = calls[l]->d[r];
      for (int col = 0; col < 16; col++) sum += (double)a[row][col] * b[column[row][col]][token];
      calls[l]->d[r] = (float)sum;
    }
}

static void copy_chunk(struct lane *lane, int thread) {
  const struct call *call = &lane->call;
  shared_expect(thread, call->address, call->line);
  if (call->bytes > 16) simt_fail(call->line, "a copy of %u bytes", call->bytes);
  if ((uintptr_t)call->from % 16) simt_fail(call->line, "a copy from a misaligned address");
  if (call->bytes) simt_check_global(call->from, call->bytes, false);
  if (lane->copy_count == COPIES_MAX) simt_fail(call->line, "more copies than the emulator holds");
  lane->copies[lane->copy_count++] =
      (struct copy){call->address, call->bytes, lane->group, call->from};
  simt.report->copied_bytes += call->bytes;
}

static void shuffle_lanes(struct call *const calls[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++) {
    if (calls[l]->address >= SIMT_WARP)
      simt_fail(calls[l]->line, "a shuffle from lane %u", calls[l]->address);
    calls[l]->out.w[0] = calls[calls[l]->address]->value;
  }
}

static void run_warp(int first_thread) {
  struct call *calls[SIMT_WARP];
  const struct call *const *view = (const struct call *const *)calls;
  for (int l = 0; l < SIMT_WARP; l++) calls[l] = &simt.lanes[first_thread + l].call;
  for (int l = 1; l < SIMT_WARP; l++)
    if (calls[l]->op != calls[0]->op || calls[l]->line != calls[0]->line)
      simt_fail(calls[l]->line, "the warp diverges: lane 0 is at %s of line %d, lane %d at %s",
                operation_name[calls[0]->op], calls[0]->line, l, operation_name[calls[l]->op]);
  switch (calls[0]->op) {
    case OP_LOAD4:
      count_conflicts(view, 32, 4);
      load_shared(calls, first_thread, 4);
      break;
    case OP_LOAD16: /* a quarter of a warp at a time: 128 bytes */
      count_conflicts(view, 8, 16);
      load_shared(calls, first_thread, 16);
      break;
    case OP_STORE4:
      break; /* done by the lanes: one alone may store */
    case OP_MATRICES:
      count_conflicts(view, 8, 16);
      load_rows(calls);
      break;
    case OP_COPY:
      count_conflicts(view, 8, 16);
      for (int l = 0; l < SIMT_WARP; l++)
        copy_chunk(&simt.lanes[first_thread + l], first_thread + l);
      break;
    case OP_DENSE:
      multiply(calls, false, 0);
      simt.report->mma_dense++;
      break;
    case OP_SPARSE_LOW:
    case OP_SPARSE_HIGH:
      multiply(calls, true, calls[0]->op == OP_SPARSE_HIGH);
      simt.report->mma_sparse++;
      break;
    case OP_SHUFFLE:
      shuffle_lanes(calls);
      break;
  }
}

/* Brings the lane's call to its warp and returns when the warp has executed it. */
static struct call *meet(struct call call) {
  struct lane *lane = &simt.lanes[simt.current];
  const int warp = simt.current / SIMT_WARP;
  lane->call = call;
  lane->line = call.line;
  if (++simt.arrived[warp] < SIMT_WARP) {
    lane->state = LANE_IN_WARP;
    leave_fiber();
    return &lane->call;
  }
  simt.arrived[warp] = 0;
  run_warp(warp * SIMT_WARP);
  for (int l = 0; l < SIMT_WARP; l++) simt.lanes[warp * SIMT_WARP + l].state = LANE_READY;
  return &lane->call;
}

uint32_t simt_shared_load4(uint32_t address, int line) {
  return meet((struct call){.op = OP_LOAD4, .line = line, .address = address})->out.w[0];
}
uint32_t simt_shuffle(uint32_t value, uint32_t lane, int line) {
  const struct call call = {.op = OP_SHUFFLE, .line = line, .address = lane, .value = value};
  return meet(call)->out.w[0];
}
struct words4 simt_shared_load16(uint32_t address, int line) {
  return meet((struct call){.op = OP_LOAD16, .line = line, .address = address})->out;
}
struct words4 simt_load_matrices(uint32_t address, int line) {
  return meet((struct call){.op = OP_MATRICES, .line = line, .address = address})->out;
}
void simt_async_copy16(uint32_t to, const void *from, uint32_t bytes, int line) {
  meet((struct call){.op = OP_COPY, .line = line, .address = to, .bytes = bytes, .from = from});
}
void simt_mma_dense(float d[4], const struct words4 *a, uint32_t b0, uint32_t b1, int line) {
  meet((struct call){.op = OP_DENSE, .line = line, .d = d, .a = a, .b = {{b0, b1, 0, 0}}});
}
void simt_mma_sparse(float d[4], const struct words4 *a, const struct words4 *b, uint32_t meta,
                     int selector, int line) {
  meet((struct call){.op = selector ? OP_SPARSE_HIGH : OP_SPARSE_LOW,
                     .line = line,
                     .value = meta,
                     .d = d,
                     .a = a,
                     .b = *b});
}

/* --- what a lane does alone --- */

void simt_shared_store4(uint32_t address, uint32_t value, int line) {
  shared_write(simt.current, address, 4, &value, line);
  simt.report->shared_bytes += 4;
}

void async_commit(void) { simt.lanes[simt.current].group++; }

/* Groups are numbered from 0; all but the last `pending` closed ones arrive now. */
void async_wait(uint32_t pending) {
  struct lane *lane = &simt.lanes[simt.current];
  uint32_t done = 0;
  for (; done < lane->copy_count; done++) {
    const struct copy *copy = &lane->copies[done];
    if (copy->group + pending >= lane->group) break;
    uint8_t chunk[16] = {0};
    if (copy->bytes) memcpy(chunk, copy->from, copy->bytes);
    shared_arrive(simt.current, copy->to, chunk);
  }
  lane->copy_count -= done;
  memmove(lane->copies, lane->copies + done, lane->copy_count * sizeof *lane->copies);
}

void simt_barrier(int line) {
  struct lane *lane = &simt.lanes[simt.current];
  lane->line = line;
  if (++simt.at_barrier < (int)simt.launch->threads) {
    lane->state = LANE_AT_BARRIER;
    leave_fiber();
    return;
  }
  simt.at_barrier = 0;
  for (uint32_t t = 0; t < simt.launch->threads; t++) {
    if (simt.lanes[t].line != line)
      simt_fail(line, "thread %u waits at another barrier, that of line %d", t, simt.lanes[t].line);
    simt.lanes[t].state = LANE_READY;
  }
  shared_barrier();
}

void simt_check_global(const void *pointer, size_t bytes, bool write) {
  static size_t last; /* accesses come in runs: the buffer of the one before is looked at first */
  const struct simt_launch *launch = simt.launch;
  if ((uintptr_t)pointer % bytes && bytes <= 8)
    simt_fail(0, "%zu bytes of global memory at a misaligned address", bytes);
  for (size_t i = 0; i <= launch->buffer_count; i++) {
    const size_t index = i ? i - 1 : last;
    if (index >= launch->buffer_count) continue;
    const struct simt_buffer *buffer = &launch->buffers[index];
    const uintptr_t at = (uintptr_t)pointer - (uintptr_t)buffer->data;
    if (at >= buffer->bytes || bytes > buffer->bytes - at) continue;
    if (write && !buffer->writable) simt_fail(0, "writes to a buffer that is only read");
    last = index;
    return;
  }
  simt_fail(0, "%s %zu bytes of global memory that belong to no buffer", write ? "writes" : "reads",
            bytes);
}

static void check_global16(const void *pointer, bool write) {
  if ((uintptr_t)pointer % 16) simt_fail(0, "16 bytes of global memory at a misaligned address");
  simt_check_global(pointer, 16, write);
}
struct words4 simt_global_load16(const void *pointer) {
  struct words4 value;
  check_global16(pointer, false);
  memcpy(&value, pointer, sizeof value);
  return value;
}
void simt_global_store16(void *pointer, struct words4 value) {
  check_global16(pointer, true);
  memcpy(pointer, &value, sizeof value);
}

/* --- launches --- */

static void shuffle(uint32_t *items, uint32_t count, uint32_t order, uint32_t stream) {
  struct rng rng = rng_make(order, stream);
  for (uint32_t i = 0; i < count; i++) items[i] = order == 1 ? count - 1 - i : i;
  for (uint32_t i = count; order > 1 && i > 1; i--) {
    const uint32_t j = (uint32_t)rng_below(&rng, i), kept = items[i - 1];
    items[i - 1] = items[j];
    items[j] = kept;
  }
}

/* Nobody can run: says who waits where. */
static void report_standstill(uint32_t threads) {
  const char *const where[] = {"ready", "waits for its warp", "waits at a barrier", "has ended"};
  int first = -1;
  for (uint32_t t = 0; t < threads; t++) {
    const struct lane *lane = &simt.lanes[t];
    if (first < 0) first = (int)t;
    if (lane->state == simt.lanes[first].state && lane->line == simt.lanes[first].line) continue;
    simt.report->failed = true;
    snprintf(simt.report->text, sizeof simt.report->text,
             "block %u stands still: thread %d %s (line %d), thread %u %s (line %d)", simt.block,
             first, where[simt.lanes[first].state], simt.lanes[first].line, t, where[lane->state],
             lane->line);
    return;
  }
}

static void run_block(uint32_t block) {
  const uint32_t threads = simt.launch->threads, warps = threads / SIMT_WARP;
  uint32_t order[SIMT_THREADS_MAX / SIMT_WARP];
  bool fresh[SIMT_THREADS_MAX];
  simt.block = block;
  simt.at_barrier = 0;
  shared_reset(simt.launch->shared_bytes);
  /* Frames that a fiber never returned from are still marked on its stack. */
  ASAN_UNPOISON_MEMORY_REGION(simt.stacks, (size_t)threads * STACK_BYTES);
  shuffle(order, warps, simt.launch->order, block + 1);
  for (uint32_t t = 0; t < threads; t++) {
    struct lane *lane = &simt.lanes[t];
    lane->state = LANE_READY;
    lane->copy_count = lane->group = 0;
    lane->line = 0;
    fresh[t] = true;
    simt.arrived[t / SIMT_WARP] = 0;
  }
  for (bool moved = true; moved && !simt.report->failed;) {
    moved = false;
    for (uint32_t i = 0; i < threads && !simt.report->failed; i++) {
      const uint32_t t = order[i / SIMT_WARP] * SIMT_WARP + i % SIMT_WARP;
      if (simt.lanes[t].state != LANE_READY) continue;
      resume((int)t, fresh[t]);
      fresh[t] = false;
      moved = true;
    }
  }
  for (uint32_t t = 0; t < threads && !simt.report->failed; t++)
    if (simt.lanes[t].state != LANE_DONE) report_standstill(threads);
}

void simt_buffer(struct simt_launch *launch, const void *data, size_t bytes, bool writable) {
  assert_true(launch->buffer_count < SIMT_BUFFERS_MAX);
  if (data) launch->buffers[launch->buffer_count++] = (struct simt_buffer){data, bytes, writable};
}

static bool fibers_can_be_followed(void) {
#if defined(__SANITIZE_THREAD__)
  return false;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return false;
#endif
#endif
  return !getenv("TSR_VALGRIND");
}

void simt_need_fibers(void) {
  if (fibers_can_be_followed()) return;
  printf("skip: fibers are not followed by the thread sanitizer and valgrind\n");
  skip();
}

void simt_run(const struct simt_launch *launch, void (*kernel)(const void *), const void *args,
              struct simt_report *report) {
  assert_true(launch->threads % SIMT_WARP == 0 && launch->threads <= SIMT_THREADS_MAX);
  if (!simt.stacks) simt.stacks = malloc((size_t)SIMT_THREADS_MAX * STACK_BYTES);
  assert_non_null(simt.stacks);
  uint32_t *blocks = malloc((launch->blocks + 1) * sizeof *blocks);
  assert_non_null(blocks);
  *report = (struct simt_report){0};
  simt.launch = launch;
  simt.kernel = kernel;
  simt.args = args;
  simt.report = report;
  shuffle(blocks, launch->blocks, launch->order, 0);
  for (uint32_t i = 0; i < launch->blocks && !report->failed; i++) run_block(blocks[i]);
  free(blocks);
}
