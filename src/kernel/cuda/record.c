/* See record.h. State: the runtime underneath, the segment that is being gathered, the graphs made
 * so far, and the shapes that were seen once. */
#include "kernel/cuda/record.h"

#include <string.h>

#include "base/mem.h"

struct segment {
  int count;
  size_t staged;                       /* bytes */
  struct record_operation *operations; /* (RECORD_OPERATIONS) */
  unsigned char *staging;              /* (RECORD_UPLOAD_BYTES) */
};

struct graph {
  uint64_t shape;
  int count;
  struct record_operation *operations; /* (count), as the graph holds them */
  void *made;                          /* the runtime's */
};

static struct {
  const struct cuda_runtime *under; /* NULL: not open */
  struct cuda_runtime runtime;
  struct segment segment;
  struct graph graphs[RECORD_GRAPHS];
  int graph_count;
  uint64_t seen[RECORD_GRAPHS]; /* shapes, in the order of their first coming */
  int seen_count;
  struct record_counts counts;
} recorder;

static const size_t argument_bytes[LEARN_KERNEL_COUNT] = {
#define ARGUMENT_BYTES(name, type) [LEARN_##name] = sizeof(type),
    LEARN_KERNELS(ARGUMENT_BYTES)
#undef ARGUMENT_BYTES
};
#define FITS(name, type) \
  _Static_assert(sizeof(type) <= RECORD_ARGUMENT_BYTES, #name " has too many arguments");
LEARN_KERNELS(FITS)
#undef FITS

/* --- shapes --- */

/* FNV-1a over words. */
static uint64_t mix(uint64_t hash, uint64_t word) {
  for (int i = 0; i < 8; i++) hash = (hash ^ (word >> (8 * i) & 0xff)) * 0x100000001b3u;
  return hash;
}

static uint64_t shape_of(const struct record_operation *o, uint64_t hash) {
  hash = mix(hash, (uint64_t)o->kind);
  switch (o->kind) {
    case RECORD_LAUNCH:
      hash = mix(hash, (uint64_t)o->launch.kernel << 32 | o->launch.blocks);
      return mix(hash, (uint64_t)o->launch.threads << 32 | o->launch.shared_bytes);
    case RECORD_MULTIPLY:
      hash = mix(mix(mix(hash, (uint64_t)o->product.m), (uint64_t)o->product.n),
                 (uint64_t)o->product.k);
      hash = mix(mix(mix(hash, (uintptr_t)o->product.a), (uintptr_t)o->product.b),
                 (uintptr_t)o->product.c);
      return mix(hash, (o->product.a_transposed ? 1u : 0u) | (o->product.b_transposed ? 2u : 0u) |
                           (o->product.accumulate ? 4u : 0u) | (o->product.bf16 ? 8u : 0u));
    default:
      hash = mix(mix(hash, (uintptr_t)o->copy.to), o->copy.bytes);
      return mix(hash, o->kind == RECORD_COPY ? (uintptr_t)o->copy.from : o->copy.at);
  }
}

/* The same to the letter, arguments of launches aside: hashes may meet. */
static bool same_shape(const struct record_operation *a, const struct record_operation *b) {
  if (a->kind != b->kind) return false;
  switch (a->kind) {
    case RECORD_LAUNCH:
      return a->launch.kernel == b->launch.kernel && a->launch.blocks == b->launch.blocks &&
             a->launch.threads == b->launch.threads &&
             a->launch.shared_bytes == b->launch.shared_bytes;
    case RECORD_MULTIPLY:
      return a->product.m == b->product.m && a->product.n == b->product.n &&
             a->product.k == b->product.k && a->product.a == b->product.a &&
             a->product.b == b->product.b && a->product.c == b->product.c &&
             a->product.a_transposed == b->product.a_transposed &&
             a->product.b_transposed == b->product.b_transposed &&
             a->product.accumulate == b->product.accumulate && a->product.bf16 == b->product.bf16 &&
             a->product.negative == b->product.negative &&
             a->product.a_stride == b->product.a_stride &&
             a->product.b_stride == b->product.b_stride &&
             a->product.c_stride == b->product.c_stride;
    default:
      return a->copy.to == b->copy.to && a->copy.bytes == b->copy.bytes &&
             (a->kind != RECORD_COPY || a->copy.from == b->copy.from) &&
             (a->kind != RECORD_UPLOAD || a->copy.at == b->copy.at);
  }
}

static uint64_t segment_shape(const struct segment *s) {
  uint64_t hash = mix(0xcbf29ce484222325u, (uint64_t)s->count);
  for (int i = 0; i < s->count; i++) hash = shape_of(&s->operations[i], hash);
  return hash;
}

static struct graph *find_graph(uint64_t shape) {
  const struct segment *s = &recorder.segment;
  for (int g = 0; g < recorder.graph_count; g++) {
    struct graph *graph = &recorder.graphs[g];
    bool same = graph->shape == shape && graph->count == s->count;
    for (int i = 0; same && i < s->count; i++)
      same = same_shape(&graph->operations[i], &s->operations[i]);
    if (same) return graph;
  }
  return NULL;
}

static bool seen_before(uint64_t shape) {
  for (int i = 0; i < recorder.seen_count; i++)
    if (recorder.seen[i] == shape) return true;
  if (recorder.seen_count < RECORD_GRAPHS) recorder.seen[recorder.seen_count++] = shape;
  return false;
}

/* --- the end of a segment --- */

static enum status queue_plain(const struct record_operation *o, const unsigned char *staging,
                               struct error *err) {
  const struct cuda_runtime *u = recorder.under;
  switch (o->kind) {
    case RECORD_LAUNCH:
      return u->launch(u->ctx, o->launch.kernel, o->launch.blocks, o->launch.threads,
                       o->launch.shared_bytes, o->arguments, err);
    case RECORD_MULTIPLY:
      return u->multiply(u->ctx, &o->product, err);
    case RECORD_COPY:
      return u->copy(u->ctx, o->copy.to, o->copy.from, o->copy.bytes, err);
    case RECORD_CLEAR:
      return u->clear(u->ctx, o->copy.to, o->copy.bytes, err);
    default:
      return u->upload(u->ctx, o->copy.to, staging + o->copy.at, o->copy.bytes, err);
  }
}

static enum status make_graph(uint64_t shape, struct graph **out, struct error *err) {
  const struct segment *s = &recorder.segment;
  const struct cuda_runtime *u = recorder.under;
  struct graph *graph = &recorder.graphs[recorder.graph_count];
  *graph = (struct graph){.shape = shape, .count = s->count};
  graph->operations = mem_alloc((size_t)s->count, sizeof *graph->operations, err);
  if (!graph->operations) return STATUS_FAILED;
  memcpy(graph->operations, s->operations, (size_t)s->count * sizeof *graph->operations);
  const enum status status =
      u->graph_make(u->ctx, graph->operations, s->count, s->staged, &graph->made, err);
  if (status != STATUS_OK) {
    mem_free(graph->operations);
    return status;
  }
  recorder.graph_count++;
  recorder.counts.graphs++;
  *out = graph;
  return STATUS_OK;
}

/* Takes over the arguments that differ from those the graph holds. */
static void compare_arguments(struct graph *graph) {
  for (int i = 0; i < graph->count; i++) {
    struct record_operation *held = &graph->operations[i];
    const struct record_operation *asked = &recorder.segment.operations[i];
    held->changed = false;
    if (held->kind != RECORD_LAUNCH) continue;
    const size_t bytes = argument_bytes[held->launch.kernel];
    held->changed = memcmp(held->arguments, asked->arguments, bytes) != 0;
    if (held->changed) memcpy(held->arguments, asked->arguments, bytes);
    recorder.counts.changed += held->changed;
  }
}

static enum status submit(struct error *err) {
  struct segment *s = &recorder.segment;
  const struct cuda_runtime *u = recorder.under;
  enum status status = STATUS_OK;
  if (!s->count) return STATUS_OK;
  const uint64_t shape = segment_shape(s);
  struct graph *graph = find_graph(shape);
  if (!graph && seen_before(shape) && recorder.graph_count < RECORD_GRAPHS)
    status = make_graph(shape, &graph, err);
  if (graph) {
    compare_arguments(graph);
    status = u->graph_run(u->ctx, graph->made, graph->operations, graph->count, s->staging,
                          s->staged, err);
    recorder.counts.replayed += (uint64_t)s->count;
  } else if (status == STATUS_OK) {
    for (int i = 0; i < s->count && status == STATUS_OK; i++)
      status = queue_plain(&s->operations[i], s->staging, err);
    recorder.counts.plain += (uint64_t)s->count;
  }
  s->count = 0;
  s->staged = 0;
  return status;
}

/* --- the runtime --- */

/* Room for one more operation. */
static enum status next(struct record_operation **out, enum record_kind kind, struct error *err) {
  struct segment *s = &recorder.segment;
  enum status status = s->count == RECORD_OPERATIONS ? submit(err) : STATUS_OK;
  if (status != STATUS_OK) return status;
  *out = &s->operations[s->count++];
  (*out)->kind = kind;
  (*out)->changed = false;
  return STATUS_OK;
}

static enum status record_launch(void *ctx, enum learn_kernel kernel, uint32_t blocks,
                                 uint32_t threads, uint32_t shared_bytes, const void *args,
                                 struct error *err) {
  struct record_operation *o;
  (void)ctx;
  enum status status = next(&o, RECORD_LAUNCH, err);
  if (status != STATUS_OK) return status;
  o->launch.kernel = kernel;
  o->launch.blocks = blocks;
  o->launch.threads = threads;
  o->launch.shared_bytes = shared_bytes;
  memcpy(o->arguments, args, argument_bytes[kernel]);
  return STATUS_OK;
}

static enum status record_multiply(void *ctx, const struct dense_product *product,
                                   struct error *err) {
  struct record_operation *o;
  (void)ctx;
  enum status status = next(&o, RECORD_MULTIPLY, err);
  if (status == STATUS_OK) o->product = *product;
  return status;
}

static enum status record_move(enum record_kind kind, void *to, const void *from, size_t bytes,
                               struct error *err) {
  struct record_operation *o;
  enum status status = next(&o, kind, err);
  if (status != STATUS_OK) return status;
  o->copy.to = to;
  o->copy.from = from;
  o->copy.bytes = bytes;
  return STATUS_OK;
}
static enum status record_copy(void *ctx, void *to, const void *from, size_t bytes,
                               struct error *err) {
  (void)ctx;
  return record_move(RECORD_COPY, to, from, bytes, err);
}
static enum status record_clear(void *ctx, void *memory, size_t bytes, struct error *err) {
  (void)ctx;
  return record_move(RECORD_CLEAR, memory, NULL, bytes, err);
}

static enum status record_upload(void *ctx, void *to, const void *from, size_t bytes,
                                 struct error *err) {
  enum { APART = 64 };
  struct segment *s = &recorder.segment;
  const struct cuda_runtime *u = recorder.under;
  const size_t room = (bytes + APART - 1) / APART * APART;
  enum status status = STATUS_OK;
  (void)ctx;
  if (room > RECORD_UPLOAD_BYTES - s->staged || s->count == RECORD_OPERATIONS) status = submit(err);
  if (status != STATUS_OK) return status;
  if (room > RECORD_UPLOAD_BYTES) return u->upload(u->ctx, to, from, bytes, err);
  struct record_operation *o;
  status = next(&o, RECORD_UPLOAD, err);
  if (status != STATUS_OK) return status;
  o->copy.to = to;
  o->copy.bytes = bytes;
  o->copy.at = s->staged;
  memcpy(s->staging + s->staged, from, bytes);
  s->staged += room;
  return STATUS_OK;
}

/* The rest ends the segment, then does what it does. */
static enum status record_alloc(void *ctx, size_t bytes, void **out, struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK ? status : recorder.under->alloc(recorder.under->ctx, bytes, out, err);
}
static void record_free(void *ctx, void *memory) {
  struct error err; /* what failed is said by the next wait: the device keeps it */
  (void)ctx;
  if (!memory) return;
  submit(&err);
  recorder.under->free(recorder.under->ctx, memory);
}
static enum status record_download(void *ctx, void *to, const void *from, size_t bytes,
                                   struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK ? status
                             : recorder.under->download(recorder.under->ctx, to, from, bytes, err);
}
static enum status record_wait(void *ctx, struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK ? status : recorder.under->wait(recorder.under->ctx, err);
}
static enum status record_fetch(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                                struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK
             ? status
             : recorder.under->fetch(recorder.under->ctx, buffer, to, from, bytes, err);
}
static enum status record_arrive(void *ctx, int buffer, struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK ? status : recorder.under->arrive(recorder.under->ctx, buffer, err);
}
static enum status record_put(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                              struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK
             ? status
             : recorder.under->put(recorder.under->ctx, buffer, to, from, bytes, err);
}

static enum status record_copy_aside(void *ctx, void *to, const void *from, size_t bytes,
                                     struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK
             ? status
             : recorder.under->copy_aside(recorder.under->ctx, to, from, bytes, err);
}
static enum status record_await_aside(void *ctx, struct error *err) {
  (void)ctx;
  const enum status status = submit(err);
  return status != STATUS_OK ? status : recorder.under->await_aside(recorder.under->ctx, err);
}

enum status record_open(const struct cuda_runtime **out, const struct cuda_runtime *runtime,
                        struct error *err) {
  INVARIANT(!recorder.under && runtime->graph_make);
  struct segment *s = &recorder.segment;
  s->operations = mem_alloc(RECORD_OPERATIONS, sizeof *s->operations, err);
  s->staging = mem_alloc(RECORD_UPLOAD_BYTES, 1, err);
  if (!s->operations || !s->staging) {
    mem_free(s->operations);
    mem_free(s->staging);
    return STATUS_FAILED;
  }
  recorder.under = runtime;
  recorder.runtime = *runtime;
  recorder.runtime.alloc = record_alloc;
  recorder.runtime.free = record_free;
  recorder.runtime.upload = record_upload;
  recorder.runtime.download = record_download;
  recorder.runtime.copy = record_copy;
  recorder.runtime.clear = record_clear;
  recorder.runtime.wait = record_wait;
  recorder.runtime.launch = record_launch;
  recorder.runtime.multiply = record_multiply;
  recorder.runtime.fetch = record_fetch;
  recorder.runtime.arrive = record_arrive;
  recorder.runtime.put = record_put;
  recorder.runtime.copy_aside = record_copy_aside;
  recorder.runtime.await_aside = record_await_aside;
  *out = &recorder.runtime;
  return STATUS_OK;
}

void record_close(void) {
  if (!recorder.under) return;
  for (int i = 0; i < recorder.graph_count; i++) {
    recorder.under->graph_free(recorder.under->ctx, recorder.graphs[i].made);
    mem_free(recorder.graphs[i].operations);
  }
  mem_free(recorder.segment.operations);
  mem_free(recorder.segment.staging);
  memset(&recorder, 0, sizeof recorder);
}

struct record_counts record_counts(void) {
  return recorder.counts;
}
