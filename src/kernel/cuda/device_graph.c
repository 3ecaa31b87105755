/* See device_graph.h. State: the two lanes with their events. */
#include "kernel/cuda/device_graph.h"

#include <cuda_runtime_api.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/record.h"

static struct {
  struct gpu *gpu;
  const struct cuda_runtime *runtime;
  cudaStream_t up, down;
  cudaEvent_t arrived[BACKEND_BUFFERS]; /* on the way up */
  cudaEvent_t left[BACKEND_BUFFERS];    /* on the way down */
  cudaEvent_t ready;                    /* of the work that a put waits for */
  cudaEvent_t aside;                    /* of what is copied aside, on the way down */
} lanes;

static enum status check(cudaError_t code, const char *what, struct error *err) {
  if (code == cudaSuccess) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "the GPU could not %s: %s (%s)", what,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

/* --- pinned memory --- */

static enum status alloc_host(void *ctx, size_t bytes, void **out, struct error *err) {
  (void)ctx;
  const cudaError_t code = cudaMallocHost(out, bytes ? bytes : 1);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError(); /* an allocation that failed does not spoil what follows */
    return error_set(err, STATUS_FAILED,
                     "the host has no %.1f MiB more that a GPU can copy from (pinned memory)",
                     (double)bytes / 1048576);
  }
  const enum status status = check(code, "pin memory of the host", err);
  if (status == STATUS_OK) memset(*out, 0, bytes);
  return status;
}
static void free_host(void *ctx, void *memory) {
  (void)ctx;
  cudaFreeHost(memory);
}

/* --- lanes --- */

static enum status fetch(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                         struct error *err) {
  (void)ctx;
  /* an event that was never recorded is not waited for */
  enum status status =
      check(cudaStreamWaitEvent(lanes.up, lanes.left[buffer], 0), "wait for a copy", err);
  if (status == STATUS_OK)
    status = check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, lanes.up),
                   "take data from the host", err);
  if (status == STATUS_OK)
    status = check(cudaEventRecord(lanes.arrived[buffer], lanes.up), "mark a copy", err);
  return status;
}

static enum status arrive(void *ctx, int buffer, struct error *err) {
  return check(cudaStreamWaitEvent(gpu_stream(ctx), lanes.arrived[buffer], 0), "wait for a copy",
               err);
}

/* To the host once what was queued is done; `event` is recorded when it is there. */
static enum status bring_down(void *ctx, void *to, const void *from, size_t bytes,
                              cudaEvent_t event, struct error *err) {
  enum status status = check(cudaEventRecord(lanes.ready, gpu_stream(ctx)), "mark its work", err);
  if (status == STATUS_OK)
    status = check(cudaStreamWaitEvent(lanes.down, lanes.ready, 0), "wait for its work", err);
  if (status == STATUS_OK)
    status = check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, lanes.down),
                   "bring data to the host", err);
  if (status == STATUS_OK) status = check(cudaEventRecord(event, lanes.down), "mark a copy", err);
  return status;
}

static enum status put(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                       struct error *err) {
  return bring_down(ctx, to, from, bytes, lanes.left[buffer], err);
}
static enum status copy_aside(void *ctx, void *to, const void *from, size_t bytes,
                              struct error *err) {
  return bring_down(ctx, to, from, bytes, lanes.aside, err);
}
/* An event that was never recorded is not waited for. */
static enum status await_aside(void *ctx, struct error *err) {
  return check(cudaStreamWaitEvent(gpu_stream(ctx), lanes.aside, 0), "wait for a copy", err);
}

enum status gpu_lanes_wait(struct error *err) {
  enum status status = check(cudaStreamSynchronize(lanes.up), "finish its copies", err);
  return status != STATUS_OK ? status
                             : check(cudaStreamSynchronize(lanes.down), "finish its copies", err);
}

/* --- graphs --- */

struct card_graph {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaGraphNode_t *nodes; /* (count) of launches; others unset */
  void *staging;          /* pinned, what uploads read */
  cudaEvent_t done;       /* the last run, which may still read the staging */
};

/* The node that was captured last. */
static enum status last_node(cudaStream_t stream, cudaGraphNode_t *out, struct error *err) {
  enum cudaStreamCaptureStatus capturing;
  const cudaGraphNode_t *nodes = NULL;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t code =
      cudaStreamGetCaptureInfo(stream, &capturing, NULL, NULL, &nodes, NULL, &count);
#else
  const cudaError_t code =
      cudaStreamGetCaptureInfo_v2(stream, &capturing, NULL, NULL, &nodes, &count);
#endif
  enum status status = check(code, "say what it captured", err);
  if (status == STATUS_OK && count != 1)
    status = error_set(err, STATUS_FAILED, "a graph of the GPU branches: leave --graphs away");
  if (status == STATUS_OK) *out = nodes[0];
  return status;
}

static enum status capture_one(void *ctx, const struct record_operation *o,
                               struct card_graph *graph, cudaGraphNode_t *node, struct error *err) {
  const struct cuda_runtime *rt = lanes.runtime;
  const cudaStream_t stream = gpu_stream(ctx);
  enum status status;
  switch (o->kind) {
    case RECORD_LAUNCH:
      status = rt->launch(ctx, o->launch.kernel, o->launch.blocks, o->launch.threads,
                          o->launch.shared_bytes, o->arguments, err);
      return status != STATUS_OK ? status : last_node(stream, node, err);
    case RECORD_MULTIPLY:
      return rt->multiply(ctx, &o->product, err);
    case RECORD_COPY:
      return rt->copy(ctx, o->copy.to, o->copy.from, o->copy.bytes, err);
    case RECORD_CLEAR:
      return rt->clear(ctx, o->copy.to, o->copy.bytes, err);
    default:
      return check(cudaMemcpyAsync(o->copy.to, (char *)graph->staging + o->copy.at, o->copy.bytes,
                                   cudaMemcpyHostToDevice, stream),
                   "take data from the host", err);
  }
}

static void graph_free(void *ctx, void *memory) {
  struct card_graph *graph = memory;
  (void)ctx;
  if (graph->exec) cudaGraphExecDestroy(graph->exec);
  if (graph->graph) cudaGraphDestroy(graph->graph);
  if (graph->done) cudaEventDestroy(graph->done);
  cudaFreeHost(graph->staging);
  mem_free(graph->nodes);
  mem_free(graph);
}

static enum status graph_make(void *ctx, const struct record_operation *operations, int count,
                              size_t staged, void **out, struct error *err) {
  const cudaStream_t stream = gpu_stream(ctx);
  struct card_graph *graph = mem_alloc(1, sizeof *graph, err);
  if (!graph) return STATUS_FAILED;
  graph->nodes = mem_alloc((size_t)count, sizeof *graph->nodes, err);
  enum status status = graph->nodes ? STATUS_OK : STATUS_FAILED;
  if (status == STATUS_OK && staged) status = alloc_host(ctx, staged, &graph->staging, err);
  if (status == STATUS_OK)
    status =
        check(cudaEventCreateWithFlags(&graph->done, cudaEventDisableTiming), "make an event", err);
  if (status == STATUS_OK)
    status = check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                   "begin a graph", err);
  if (status != STATUS_OK) {
    graph_free(ctx, graph);
    return status;
  }
  for (int i = 0; i < count && status == STATUS_OK; i++)
    status = capture_one(ctx, &operations[i], graph, &graph->nodes[i], err);
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph->graph);
  if (status == STATUS_OK) status = check(ended, "end a graph", err);
  if (status == STATUS_OK)
    status = check(cudaGraphInstantiate(&graph->exec, graph->graph, 0), "make a graph", err);
  if (status != STATUS_OK)
    graph_free(ctx, graph);
  else
    *out = graph;
  return status;
}

static enum status take_arguments(struct card_graph *graph, int i, const struct record_operation *o,
                                  struct error *err) {
  void *parameters[] = {(void *)o->arguments};
  const struct cudaKernelNodeParams params = {.func = (void *)learn_kernel(o->launch.kernel),
                                              .gridDim = {o->launch.blocks, 1, 1},
                                              .blockDim = {o->launch.threads, 1, 1},
                                              .sharedMemBytes = o->launch.shared_bytes,
                                              .kernelParams = parameters};
  return check(cudaGraphExecKernelNodeSetParams(graph->exec, graph->nodes[i], &params),
               "change a graph", err);
}

static enum status graph_run(void *ctx, void *memory, const struct record_operation *operations,
                             int count, const void *staging, size_t staged, struct error *err) {
  struct card_graph *graph = memory;
  enum status status = STATUS_OK;
  for (int i = 0; i < count && status == STATUS_OK; i++)
    if (operations[i].changed) status = take_arguments(graph, i, &operations[i], err);
  if (status == STATUS_OK && staged) {
    status = check(cudaEventSynchronize(graph->done), "finish a graph", err);
    memcpy(graph->staging, staging, staged);
  }
  if (status == STATUS_OK)
    status = check(cudaGraphLaunch(graph->exec, gpu_stream(ctx)), "start a graph", err);
  return status != STATUS_OK
             ? status
             : check(cudaEventRecord(graph->done, gpu_stream(ctx)), "mark a graph", err);
}

/* --- opening --- */

enum status gpu_lanes_open(struct gpu *gpu, struct cuda_runtime *runtime, struct error *err) {
  lanes.gpu = gpu;
  lanes.runtime = runtime;
  runtime->alloc_host = alloc_host;
  runtime->free_host = free_host;
  runtime->fetch = fetch;
  runtime->arrive = arrive;
  runtime->put = put;
  runtime->copy_aside = copy_aside;
  runtime->await_aside = await_aside;
  runtime->graph_make = graph_make;
  runtime->graph_run = graph_run;
  runtime->graph_free = graph_free;
  enum status status =
      check(cudaStreamCreateWithFlags(&lanes.up, cudaStreamNonBlocking), "make a stream", err);
  if (status == STATUS_OK)
    status =
        check(cudaStreamCreateWithFlags(&lanes.down, cudaStreamNonBlocking), "make a stream", err);
  cudaEvent_t *events[2 * BACKEND_BUFFERS + 2] = {&lanes.ready, &lanes.aside};
  for (int i = 0; i < BACKEND_BUFFERS; i++) {
    events[2 + 2 * i] = &lanes.arrived[i];
    events[3 + 2 * i] = &lanes.left[i];
  }
  for (int i = 0; i < 2 * BACKEND_BUFFERS + 2 && status == STATUS_OK; i++)
    status =
        check(cudaEventCreateWithFlags(events[i], cudaEventDisableTiming), "make an event", err);
  return status;
}

void gpu_lanes_close(void) {
  if (!lanes.gpu) return;
  if (lanes.up) cudaStreamDestroy(lanes.up);
  if (lanes.down) cudaStreamDestroy(lanes.down);
  if (lanes.ready) cudaEventDestroy(lanes.ready);
  if (lanes.aside) cudaEventDestroy(lanes.aside);
  for (int i = 0; i < BACKEND_BUFFERS; i++) {
    if (lanes.arrived[i]) cudaEventDestroy(lanes.arrived[i]);
    if (lanes.left[i]) cudaEventDestroy(lanes.left[i]);
  }
  memset(&lanes, 0, sizeof lanes);
}
