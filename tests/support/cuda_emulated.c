/* The emulated card: see cuda_emulated.h. One mapping holds all of its memory; it is opened for the
 * time of a call. Allocations are never given again, so that a stale pointer finds nothing. */
#include "support/cuda_emulated.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "kernel/cuda/column.h"
#include "kernel/cuda/record.h"
#include "kernel/gemm.h"
#include "support/cuda_emulated_internal.h"
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/learn_kernels.h"
#include "support/support.h"

enum { ALIGNMENT = 256 };

static void (*const kernels[LEARN_KERNEL_COUNT])(const void *) = {
#define KERNEL_ENTRY(name, type) [LEARN_##name] = name,
    LEARN_KERNELS(KERNEL_ENTRY)};

struct emulated_card emulated_card;
static const struct backend *column;

static struct {
  char *memory;
  size_t bytes, used, live;
  struct simt_launch launch; /* its buffers are the allocations */
} card;

void emulated_reach(bool open) {
  assert_int_equal(mprotect(card.memory, card.bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
}

enum status emulated_alloc(void *ctx, size_t bytes, void **out, struct error *err) {
  (void)ctx;
  const size_t whole = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  if (whole > card.bytes - card.used)
    return error_set(err, STATUS_FAILED, "the emulated GPU has no room for %zu bytes more", bytes);
  *out = card.memory + card.used;
  card.used += whole;
  card.live++;
  emulated_card.live_bytes += bytes;
  simt_buffer(&card.launch, *out, bytes, true);
  return STATUS_OK;
}

void emulated_free(void *ctx, void *memory) {
  (void)ctx;
  struct simt_launch *l = &card.launch;
  if (!memory) return;
  for (size_t i = 0; i < l->buffer_count; i++) {
    if (l->buffers[i].data != memory) continue;
    emulated_card.live_bytes -= l->buffers[i].bytes;
    l->buffers[i] = l->buffers[--l->buffer_count];
    card.live--;
    return;
  }
  fail_msg("memory is given back that was not taken");
}

static enum status card_move(void *to, const void *from, size_t bytes) {
  emulated_reach(true);
  memmove(to, from, bytes);
  emulated_reach(false);
  return STATUS_OK;
}

/* Copies beside the work, which happen as late as they may. */
struct pending {
  void *to;
  const void *from;
  size_t bytes;
};
enum { ASIDES_MAX = 512 };
static struct pending asides[ASIDES_MAX];
static int aside_count;
static bool asides_awaited; /* with late_aside: the next download finds them, too late */

static void finish(struct pending *p) {
  if (p->bytes) card_move(p->to, p->from, p->bytes);
  p->bytes = 0;
}
static void finish_asides(void) {
  for (int i = 0; i < aside_count; i++) finish(&asides[i]);
  aside_count = 0;
}

enum status emulated_upload(void *ctx, void *to, const void *from, size_t bytes,
                            struct error *err) {
  (void)ctx, (void)err;
  return card_move(to, from, bytes);
}
static enum status card_download(void *ctx, void *to, const void *from, size_t bytes,
                                 struct error *err) {
  (void)ctx, (void)err;
  emulated_card.downloads++;
  if (emulated_card.late_aside && asides_awaited) finish_asides();
  return card_move(to, from, bytes);
}
static enum status card_clear(void *ctx, void *memory, size_t bytes, struct error *err) {
  (void)ctx, (void)err;
  emulated_reach(true);
  memset(memory, 0, bytes);
  emulated_reach(false);
  return STATUS_OK;
}

void emulated_launch(void (*kernel)(const void *), const char *what, uint32_t blocks,
                     uint32_t threads, uint32_t shared_bytes, const void *args) {
  struct simt_report report;
  assert_true(shared_bytes <= emulated_card.block_shared_bytes);
  card.launch.blocks = blocks;
  card.launch.threads = threads;
  card.launch.shared_bytes = shared_bytes;
  card.launch.order = emulated_card.order;
  emulated_reach(true);
  simt_run(&card.launch, kernel, args, &report);
  emulated_reach(false);
  if (report.failed) fail_msg("%s: %s", what, report.text);
  emulated_card.bank_conflicts += report.bank_conflicts;
}

static enum status card_launch(void *ctx, enum learn_kernel kernel, uint32_t blocks,
                               uint32_t threads, uint32_t shared_bytes, const void *args,
                               struct error *err) {
  static const char *const names[] = {
#define KERNEL_NAME(name, type) #name,
      LEARN_KERNELS(KERNEL_NAME)};
  (void)ctx, (void)err;
  emulated_launch(kernels[kernel], names[kernel], blocks, threads, shared_bytes, args);
  emulated_card.launches[kernel]++;
  return STATUS_OK;
}

static enum status card_multiply(void *ctx, const struct dense_product *p, struct error *err) {
  (void)ctx, (void)err;
  const enum dtype dtype = p->bf16 ? DTYPE_BF16 : DTYPE_F32;
  const struct gemm_operand a = {p->a, dtype, product_a_stride(p), p->a_transposed};
  const struct gemm_operand b = {p->b, dtype, product_b_stride(p), p->b_transposed};
  emulated_reach(true);
  gemm(p->m, p->n, p->k, p->negative ? -1 : 1, a, b, p->accumulate ? 1 : 0, p->c,
       product_c_stride(p));
  emulated_reach(false);
  emulated_card.products++;
  return STATUS_OK;
}

/* --- beside the work --- */

static struct { struct pending fetched[BACKEND_BUFFERS], put[BACKEND_BUFFERS]; } lanes;

static enum status card_alloc_host(void *ctx, size_t bytes, void **out, struct error *err) {
  (void)ctx;
  if (emulated_card.no_pinned)
    return error_set(err, STATUS_FAILED, "the host has no %zu bytes to pin", bytes);
  *out = calloc(bytes + 1, 1);
  card.live++;
  return STATUS_OK;
}
static void card_free_host(void *ctx, void *memory) {
  (void)ctx;
  free(memory);
  card.live--;
}

/* Until it arrives, the buffer holds what nobody may use. */
static enum status card_fetch(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                              struct error *err) {
  (void)ctx, (void)err;
  finish(&lanes.put[buffer]);
  finish(&lanes.fetched[buffer]);
  emulated_reach(true);
  memset(to, 0x5a, bytes);
  emulated_reach(false);
  lanes.fetched[buffer] = (struct pending){to, from, bytes};
  return STATUS_OK;
}
static enum status card_arrive(void *ctx, int buffer, struct error *err) {
  (void)ctx, (void)err;
  if (!emulated_card.late_fetch) finish(&lanes.fetched[buffer]);
  return STATUS_OK;
}
static enum status card_put(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                            struct error *err) {
  (void)ctx, (void)err;
  emulated_card.puts++;
  for (int i = 0; i < BACKEND_BUFFERS; i++) finish(&lanes.put[i]); /* one lane, in order */
  lanes.put[buffer] = (struct pending){to, from, bytes};
  return STATUS_OK;
}
static enum status card_copy_aside(void *ctx, void *to, const void *from, size_t bytes,
                                   struct error *err) {
  (void)ctx, (void)err;
  assert_true(aside_count < ASIDES_MAX);
  asides_awaited = false;
  asides[aside_count++] = (struct pending){to, from, bytes};
  emulated_card.asides++;
  return STATUS_OK;
}
static enum status card_await_aside(void *ctx, struct error *err) {
  (void)ctx, (void)err;
  asides_awaited = true;
  if (!emulated_card.late_aside) finish_asides();
  return STATUS_OK;
}
static enum status card_wait(void *ctx, struct error *err) {
  (void)ctx, (void)err;
  finish_asides();
  for (int i = 0; i < BACKEND_BUFFERS; i++) {
    finish(&lanes.put[i]);
    finish(&lanes.fetched[i]);
  }
  return STATUS_OK;
}

/* --- graphs: a list of operations with arguments of its own --- */

struct emulated_graph {
  int count;
  struct record_operation *operations;
};

static enum status card_graph_make(void *ctx, const struct record_operation *operations, int count,
                                   size_t staged, void **out, struct error *err) {
  struct emulated_graph *graph = calloc(1, sizeof *graph);
  (void)ctx, (void)staged, (void)err;
  graph->count = count;
  graph->operations = calloc((size_t)count, sizeof *operations);
  memcpy(graph->operations, operations, (size_t)count * sizeof *operations);
  *out = graph;
  return STATUS_OK;
}

static enum status replay(void *ctx, const struct record_operation *o, const char *staging,
                          struct error *err) {
  switch (o->kind) {
    case RECORD_LAUNCH:
      return card_launch(ctx, o->launch.kernel, o->launch.blocks, o->launch.threads,
                         o->launch.shared_bytes, o->arguments, err);
    case RECORD_MULTIPLY:
      return card_multiply(ctx, &o->product, err);
    case RECORD_COPY:
      return emulated_upload(ctx, o->copy.to, o->copy.from, o->copy.bytes, err);
    case RECORD_CLEAR:
      return card_clear(ctx, o->copy.to, o->copy.bytes, err);
    default:
      return emulated_upload(ctx, o->copy.to, staging + o->copy.at, o->copy.bytes, err);
  }
}

static enum status card_graph_run(void *ctx, void *graph_memory,
                                  const struct record_operation *operations, int count,
                                  const void *staging, size_t staged, struct error *err) {
  struct emulated_graph *graph = graph_memory;
  enum status status = STATUS_OK;
  (void)staged;
  assert_int_equal(graph->count, count);
  for (int i = 0; i < count && status == STATUS_OK; i++) {
    if (operations[i].changed && !emulated_card.lose_changes)
      memcpy(graph->operations[i].arguments, operations[i].arguments, RECORD_ARGUMENT_BYTES);
    status = replay(ctx, &graph->operations[i], staging, err);
  }
  return status;
}
static void card_graph_free(void *ctx, void *graph_memory) {
  struct emulated_graph *graph = graph_memory;
  (void)ctx;
  free(graph->operations);
  free(graph);
}

const struct backend *emulated_open(size_t memory_bytes) {
  static const struct cuda_runtime template = {.multiprocessors = 1,
                                               .alloc = emulated_alloc,
                                               .free = emulated_free,
                                               .upload = emulated_upload,
                                               .download = card_download,
                                               .copy = emulated_upload,
                                               .clear = card_clear,
                                               .wait = card_wait,
                                               .launch = card_launch,
                                               .multiply = card_multiply,
                                               .alloc_host = card_alloc_host,
                                               .free_host = card_free_host,
                                               .fetch = card_fetch,
                                               .arrive = card_arrive,
                                               .put = card_put,
                                               .copy_aside = card_copy_aside,
                                               .await_aside = card_await_aside,
                                               .graph_make = card_graph_make,
                                               .graph_run = card_graph_run,
                                               .graph_free = card_graph_free};
  static struct cuda_runtime runtime;
  simt_need_fibers();
  emulated_card = (struct emulated_card){.block_shared_bytes = 99 << 10};
  runtime = template;
  memset(&lanes, 0, sizeof lanes);
  aside_count = 0;
  runtime.serve = emulated_serve();
  runtime.block_shared_bytes = emulated_card.block_shared_bytes;
  card.bytes = (memory_bytes + 4095) / 4096 * 4096;
  card.memory =
      mmap(NULL, card.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  assert_true(card.memory != MAP_FAILED);
  return column = cuda_column_open(&runtime);
}

const struct backend *emulated_backend(void) { return column; }

void emulated_close(void) {
  cuda_column_close();
  emulated_serve_close();
  assert_int_equal(card.live, 0); /* nothing leaks */
  munmap(card.memory, card.bytes);
  memset(&card, 0, sizeof card);
}
