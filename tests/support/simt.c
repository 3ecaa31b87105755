/* Fibers, meeting points, and launches.
 *
 * A fiber is made by ucontext and switched by _setjmp and _longjmp, which, unlike swapcontext, make
 * no system call. A launch that fails leaves its fibers where they stand; the next one makes new
 * ones on the same stacks. */
/* The checked longjmp refuses to leave one stack for another. */
#undef _FORTIFY_SOURCE
#include "support/simt.h"

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
#include "support/simt_internal.h"
#include "support/support.h"

enum { STACK_BYTES = 1 << 17 };

struct simt_state simt;

uint32_t thread_index(void) { return (uint32_t)simt.current % simt.launch->threads; }
uint32_t block_index(void) { return simt.first_block + simt_lane_block((uint32_t)simt.current); }
uint32_t cluster_rank(void) { return simt_lane_block((uint32_t)simt.current); }
uint32_t cluster_index(void) { return simt.cluster; }
uint32_t cluster_count(void) { return simt.launch->blocks / simt.blocks; }

/* --- fibers --- */

void simt_leave_fiber(void) {
  if (!_setjmp(simt.lanes[simt.current].context)) _longjmp(simt.scheduler, 1);
}

_Noreturn void simt_fail(int line, const char *format, ...) {
  struct simt_report *report = simt.report;
  va_list args;
  if (!report->failed) {
    int used = snprintf(report->text, sizeof report->text,
                        "block %u, thread %u, line %d: ", block_index(), thread_index(), line);
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
  async_check_end((uint32_t)simt.current);
  lane->state = LANE_DONE;
  _longjmp(simt.scheduler, 1);
}

/* Runs a lane until it waits or ends. */
static void resume(uint32_t lane, bool fresh) {
  simt.current = (int)lane;
  shared_select(simt_lane_block(lane));
  if (_setjmp(simt.scheduler)) return;
  if (!fresh) _longjmp(simt.lanes[lane].context, 1);
  ucontext_t fiber;
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = simt.stacks + (size_t)lane * STACK_BYTES;
  fiber.uc_stack.ss_size = STACK_BYTES;
  fiber.uc_link = NULL;
  makecontext(&fiber, fiber_main, 0);
  setcontext(&fiber);
}

struct call *simt_meet(struct call call) {
  const uint32_t current = (uint32_t)simt.current, warp = current / SIMT_WARP;
  struct lane *lane = &simt.lanes[current];
  lane->call = call;
  lane->line = call.line;
  if (++simt.arrived[warp] < SIMT_WARP) {
    lane->state = LANE_IN_WARP;
    simt_leave_fiber();
    return &lane->call;
  }
  simt.arrived[warp] = 0;
  warp_run(warp * SIMT_WARP);
  for (uint32_t l = 0; l < SIMT_WARP; l++) simt.lanes[warp * SIMT_WARP + l].state = LANE_READY;
  return &lane->call;
}

uint32_t simt_shared_load4(uint32_t address, int line) {
  return simt_meet((struct call){.op = OP_LOAD4, .line = line, .address = address})->out.w[0];
}
struct words2 simt_shared_load8(uint32_t address, int line) {
  const struct words4 v =
      simt_meet((struct call){.op = OP_LOAD8, .line = line, .address = address})->out;
  return (struct words2){{v.w[0], v.w[1]}};
}
uint32_t simt_shuffle(uint32_t value, uint32_t lane, int line) {
  return simt_meet((struct call){.op = OP_SHUFFLE, .line = line, .address = lane, .value = value})
      ->out.w[0];
}
struct words4 simt_shared_load16(uint32_t address, int line) {
  return simt_meet((struct call){.op = OP_LOAD16, .line = line, .address = address})->out;
}
struct words4 simt_load_matrices(uint32_t address, int line) {
  return simt_meet((struct call){.op = OP_MATRICES, .line = line, .address = address})->out;
}
struct words4 simt_load_transposed(uint32_t address, int line) {
  return simt_meet((struct call){.op = OP_MATRICES_TRANSPOSED, .line = line, .address = address})
      ->out;
}
void simt_async_copy16(uint32_t to, const void *from, uint32_t bytes, int line) {
  simt_meet(
      (struct call){.op = OP_COPY, .line = line, .address = to, .bytes = bytes, .from = from});
}
void simt_mma_dense(float d[4], const struct words4 *a, uint32_t b0, uint32_t b1, int line) {
  simt_meet((struct call){
      .op = OP_DENSE, .line = line, .d = (float(*)[4])d, .a = a, .b = {{b0, b1, 0, 0}}});
}
void simt_mma_sparse(float d[4], const struct words4 *a, const struct words4 *b, uint32_t meta,
                     int selector, int line) {
  simt_meet((struct call){.op = selector ? OP_SPARSE_HIGH : OP_SPARSE_LOW,
                          .line = line,
                          .value = meta,
                          .d = (float(*)[4])d,
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

void simt_barrier(uint32_t id, uint32_t threads, int line) {
  struct lane *lane = &simt.lanes[simt.current];
  const uint32_t block = simt_lane_block((uint32_t)simt.current);
  if (!threads) threads = simt.launch->threads;
  if (id >= SIMT_BARRIERS_MAX || threads > simt.launch->threads || threads % SIMT_WARP)
    simt_fail(line, "a barrier %u of %u threads", id, threads);
  lane->line = line;
  lane->barrier = id;
  if (++simt.at_barrier[block][id] < threads) {
    lane->state = LANE_AT_BARRIER;
    simt_leave_fiber();
    return;
  }
  simt.at_barrier[block][id] = 0;
  for (uint32_t t = 0; t < simt.launch->threads; t++) {
    struct lane *other = &simt.lanes[block * simt.launch->threads + t];
    if (other->state != LANE_AT_BARRIER || other->barrier != id) continue;
    if (other->line != line)
      simt_fail(line, "thread %u waits at another barrier, that of line %d", t, other->line);
    other->state = LANE_READY;
  }
  shared_barrier();
}

void simt_cluster_barrier(int line) {
  struct lane *lane = &simt.lanes[simt.current];
  lane->line = line;
  if (++simt.at_cluster_barrier < simt.lane_count) {
    lane->state = LANE_AT_CLUSTER_BARRIER;
    simt_leave_fiber();
    return;
  }
  simt.at_cluster_barrier = 0;
  simt.cluster_epoch++;
  for (uint32_t l = 0; l < simt.lane_count; l++) {
    if (simt.lanes[l].line != line)
      simt_fail(line, "lane %u of the cluster waits elsewhere, at line %d", l, simt.lanes[l].line);
    simt.lanes[l].state = LANE_READY;
  }
  for (uint32_t b = 0; b < simt.blocks; b++) {
    shared_select(b);
    shared_barrier();
  }
  shared_select(simt_lane_block((uint32_t)simt.current));
}

void simt_check_global(const void *pointer, size_t bytes, bool write) {
  /* The buffer that was found last near such an address is looked at first. */
  static size_t found[256];
  size_t *last = &found[(uintptr_t)pointer / 1024 % 256];
  const struct simt_launch *launch = simt.launch;
  if ((uintptr_t)pointer % bytes && bytes <= 8)
    simt_fail(0, "%zu bytes of global memory at a misaligned address", bytes);
  for (size_t i = 0; i <= launch->buffer_count; i++) {
    const size_t index = i ? i - 1 : *last;
    if (index >= launch->buffer_count) continue;
    const struct simt_buffer *buffer = &launch->buffers[index];
    const uintptr_t at = (uintptr_t)pointer - (uintptr_t)buffer->data;
    if (at >= buffer->bytes || bytes > buffer->bytes - at) continue;
    if (write && !buffer->writable) simt_fail(0, "writes to a buffer that is only read");
    *last = index;
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
static void report_standstill(void) {
  const char *const where[] = {"ready",
                               "waits for its warp",
                               "waits at a barrier",
                               "waits for its cluster",
                               "waits at an mbarrier",
                               "has ended"};
  const uint32_t threads = simt.launch->threads;
  int first = -1;
  for (uint32_t l = 0; l < simt.lane_count; l++) {
    const struct lane *lane = &simt.lanes[l];
    if (first < 0) first = (int)l;
    if (lane->state == simt.lanes[first].state && lane->line == simt.lanes[first].line) continue;
    simt.report->failed = true;
    snprintf(simt.report->text, sizeof simt.report->text,
             "block %u stands still: thread %u %s (line %d), thread %u %s (line %d)",
             simt.first_block + l / threads, (uint32_t)first % threads,
             where[simt.lanes[first].state], simt.lanes[first].line, l % threads,
             where[lane->state], lane->line);
    return;
  }
  simt.report->failed = true;
  snprintf(simt.report->text, sizeof simt.report->text, "block %u stands still: all %s (line %d)",
           simt.first_block, where[simt.lanes[0].state], simt.lanes[0].line);
}

static void start_cluster(uint32_t cluster) {
  simt.cluster = cluster;
  simt.first_block = cluster * simt.blocks;
  simt.at_cluster_barrier = simt.cluster_epoch = 0;
  memset(simt.at_barrier, 0, sizeof simt.at_barrier);
  memset(simt.arrived, 0, sizeof simt.arrived);
  for (uint32_t b = 0; b < simt.blocks; b++) shared_reset(b, simt.launch->shared_bytes);
  async_reset();
  /* Frames that a fiber never returned from are still marked on its stack. */
  ASAN_UNPOISON_MEMORY_REGION(simt.stacks, (size_t)simt.lane_count * STACK_BYTES);
  for (uint32_t l = 0; l < simt.lane_count; l++) {
    struct lane *lane = &simt.lanes[l];
    lane->state = LANE_READY;
    lane->copy_count = lane->group = 0;
    lane->line = 0;
  }
}

static void run_cluster(uint32_t cluster) {
  const uint32_t warps = simt.lane_count / SIMT_WARP;
  static uint32_t order[SIMT_WARPS_MAX];
  static bool started[SIMT_LANES_MAX];
  start_cluster(cluster);
  memset(started, 0, sizeof started);
  shuffle(order, warps, simt.launch->order, cluster + 1);
  for (bool moved = true; moved && !simt.report->failed;) {
    moved = false;
    for (uint32_t i = 0; i < simt.lane_count && !simt.report->failed; i++) {
      const uint32_t l = order[i / SIMT_WARP] * SIMT_WARP + i % SIMT_WARP;
      struct lane *lane = &simt.lanes[l];
      if (lane->state == LANE_AT_MBARRIER && async_may_pass(lane)) lane->state = LANE_READY;
      if (lane->state != LANE_READY) continue;
      resume(l, !started[l]);
      started[l] = true;
      moved = true;
    }
  }
  for (uint32_t l = 0; l < simt.lane_count && !simt.report->failed; l++)
    if (simt.lanes[l].state != LANE_DONE) report_standstill();
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
  simt.blocks = launch->cluster ? launch->cluster : 1;
  assert_true(launch->threads % SIMT_WARP == 0 && launch->threads <= SIMT_THREADS_MAX);
  assert_true(simt.blocks <= SIMT_CLUSTER_MAX && launch->blocks % simt.blocks == 0);
  if (simt.stack_count < launch->threads * simt.blocks) {
    free(simt.stacks);
    simt.stack_count = launch->threads * simt.blocks;
    simt.stacks = malloc((size_t)simt.stack_count * STACK_BYTES);
  }
  const uint32_t count = launch->blocks / simt.blocks;
  uint32_t *clusters = malloc((count + 1) * sizeof *clusters);
  assert_true(simt.stacks && clusters);
  *report = (struct simt_report){0};
  simt.launch = launch;
  simt.kernel = kernel;
  simt.args = args;
  simt.report = report;
  simt.lane_count = launch->threads * simt.blocks;
  shuffle(clusters, count, launch->order, 0);
  for (uint32_t i = 0; i < count && !report->failed; i++) run_cluster(clusters[i]);
  free(clusters);
}
