/* Decoding on a card: launches, products whose sums pass through one shared workspace, dense
 * products through cuBLASLt, and records as CUDA graphs.
 *
 * State: the open card's workspace, and cuBLASLt's handle. A workspace that had to grow has moved:
 * the epoch says so to those who keep graphs. */
#include <cublasLt.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/column_serve.h"
#include "kernel/cuda/device_internal.h"
#include "kernel/cuda/device_serve.h"

/* In serve.cu. */
const void *serve_kernel(int which);

enum { BLAS_WORKSPACE_BYTES = 32 << 20 };

struct serve_product {
  struct gpu_product packed; /* or, where `dense` is not NULL: */
  const uint16_t *dense;     /* bf16 (rows, cols) */
  int64_t rows, cols;
  struct dense_plan { /* what cuBLASLt was asked for last */
    uint32_t tokens;
    uint64_t x_stride, y_stride;
    bool wide, bias;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
  } plan;
};

struct serve_record {
  cudaGraphExec_t graph;
};

static struct {
  cublasLtHandle_t blas;
  void *blas_workspace, *partials, *counters;
  size_t partial_bytes, counter_bytes;
  uint64_t epoch;
  cudaEvent_t laps[2];
  bool lapped;
} serve;

static enum status check_blas(cublasStatus_t code, const char *what, struct error *err) {
  if (code == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "cuBLASLt could not %s: status %d", what, (int)code);
}

/* --- launches --- */

static enum status launch(void *ctx, enum serve_kernel kernel, uint32_t blocks, uint32_t threads,
                          uint32_t shared_bytes, const void *args, struct error *err) {
  const struct gpu *gpu = ctx;
  void *parameters[] = {(void *)(uintptr_t)args};
  return gpu_check(err,
                   cudaLaunchKernel(serve_kernel((int)kernel), (dim3){blocks, 1, 1},
                                    (dim3){threads, 1, 1}, parameters, shared_bytes, gpu->stream),
                   "start a kernel");
}

/* --- dense products --- */

static void forget_plan(struct dense_plan *d) {
  if (d->operation) cublasLtMatmulDescDestroy(d->operation);
  if (d->w) cublasLtMatrixLayoutDestroy(d->w);
  if (d->x) cublasLtMatrixLayoutDestroy(d->x);
  if (d->y) cublasLtMatrixLayoutDestroy(d->y);
  *d = (struct dense_plan){0};
}

/* cuBLASLt counts by columns: y^T (rows, tokens) = W x^T. */
static enum status describe(const struct serve_product *p, struct dense_plan *d,
                            struct error *err) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  const cudaDataType_t bias_type = CUDA_R_16BF, y_type = d->wide ? CUDA_R_32F : CUDA_R_16BF;
  const char *what = "describe a product";
  enum status status = check_blas(
      cublasLtMatmulDescCreate(&d->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), what, err);
  if (!status)
    status = check_blas(cublasLtMatmulDescSetAttribute(d->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                       &transposed, sizeof transposed),
                        what, err);
  if (!status && d->bias)
    status = check_blas(cublasLtMatmulDescSetAttribute(d->operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                       &epilogue, sizeof epilogue),
                        what, err);
  if (!status && d->bias)
    status =
        check_blas(cublasLtMatmulDescSetAttribute(d->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                                  &bias_type, sizeof bias_type),
                   what, err);
  if (!status)
    status = check_blas(cublasLtMatrixLayoutCreate(&d->w, CUDA_R_16BF, (uint64_t)p->cols,
                                                   (uint64_t)p->rows, p->cols),
                        what, err);
  if (!status)
    status = check_blas(cublasLtMatrixLayoutCreate(&d->x, CUDA_R_16BF, (uint64_t)p->cols, d->tokens,
                                                   (int64_t)d->x_stride),
                        what, err);
  if (!status)
    status = check_blas(cublasLtMatrixLayoutCreate(&d->y, y_type, (uint64_t)p->rows, d->tokens,
                                                   (int64_t)d->y_stride),
                        what, err);
  return status;
}

static enum status find_algorithm(struct dense_plan *d, struct error *err) {
  const uint64_t workspace = BLAS_WORKSPACE_BYTES;
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  enum status status =
      check_blas(cublasLtMatmulPreferenceCreate(&preference), "prefer an algorithm", err);
  if (status) return status;
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace, sizeof workspace);
  status = check_blas(cublasLtMatmulAlgoGetHeuristic(serve.blas, d->operation, d->w, d->x, d->y,
                                                     d->y, preference, 1, &result, &found),
                      "find an algorithm", err);
  cublasLtMatmulPreferenceDestroy(preference);
  if (!status && !found)
    return error_set(err, STATUS_FAILED, "cuBLASLt has no algorithm for a product of %u tokens",
                     d->tokens);
  d->algorithm = result.algo;
  return status;
}

/* A product is asked for one number of tokens at a time, step after step. */
static enum status plan_dense(struct serve_product *p, const struct gpu_operands *o,
                              uint32_t tokens, struct error *err) {
  struct dense_plan *d = &p->plan;
  const bool wide = o->y_wide != NULL, bias = o->bias != NULL;
  if (d->operation && d->tokens == tokens && d->x_stride == o->x_stride &&
      d->y_stride == o->y_stride && d->wide == wide && d->bias == bias)
    return STATUS_OK;
  forget_plan(d);
  *d = (struct dense_plan){.tokens = tokens,
                           .x_stride = o->x_stride,
                           .y_stride = o->y_stride,
                           .wide = wide,
                           .bias = bias};
  enum status status = describe(p, d, err);
  if (!status) status = find_algorithm(d, err);
  if (status) forget_plan(d);
  return status;
}

static enum status run_dense(const struct gpu *gpu, struct serve_product *p,
                             const struct gpu_operands *o, uint32_t tokens, struct error *err) {
  const float one = 1, zero = 0;
  enum status status = plan_dense(p, o, tokens, err);
  void *y = o->y_wide ? (void *)o->y_wide : o->y;
  if (!status && o->bias)
    status = check_blas(
        cublasLtMatmulDescSetAttribute(p->plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                       &o->bias, sizeof o->bias),
        "take a bias", err);
  if (status) return status;
  return check_blas(cublasLtMatmul(serve.blas, p->plan.operation, &one, p->dense, p->plan.w, o->x,
                                   p->plan.x, &zero, y, p->plan.y, y, p->plan.y, &p->plan.algorithm,
                                   serve.blas_workspace, BLAS_WORKSPACE_BYTES, gpu->stream),
                    "multiply", err);
}

/* --- packed products --- */

static int variants(void *ctx, const struct gpu_matrix *m, uint32_t tokens,
                    char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX]) {
  struct gpu_variant found[GPU_VARIANTS_MAX];
  const int count = gpu_matrix_variants(ctx, m, tokens, found);
  int kept = 0;
  for (int i = 0; i < count; i++) {
    const bool small = !found[i].cluster && !found[i].tall;
    /* a pair in several small panels would read its weights for each */
    if (m->pair && small && tokens > PRODUCT_PAIR_PANEL_MAX) continue;
    gpu_variant_name(found[i], names[kept++]);
  }
  return kept;
}

static bool find_variant(struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                         const char *name, struct gpu_variant *out) {
  struct gpu_variant found[GPU_VARIANTS_MAX];
  char known[32];
  /* what runs for fewer tokens runs for more, in more panels */
  for (uint32_t most = tokens; most; most = most > 8 ? most / 2 : 0) {
    const int count = gpu_matrix_variants(gpu, m, most, found);
    for (int i = 0; i < count; i++) {
      gpu_variant_name(found[i], known);
      *out = found[i];
      if (!strcmp(known, name)) return true;
    }
  }
  return false;
}

static enum status grow(struct gpu *gpu, void **memory, size_t *bytes, size_t needed,
                        struct error *err) {
  if (needed <= *bytes) return STATUS_OK;
  enum status status = gpu_wait(gpu, err);
  if (status) return status;
  gpu_free(gpu, *memory);
  *memory = NULL;
  *bytes = 0;
  serve.epoch++;
  status = gpu_alloc(gpu, needed, memory, err);
  if (!status) *bytes = needed;
  return status ? status : gpu_zero(gpu, *memory, needed, err);
}

static enum status product_new(void *ctx, const struct gpu_matrix *m, const void *dense,
                               uint32_t tokens, const char *name, struct serve_product **out,
                               struct error *err) {
  struct gpu *gpu = ctx;
  struct gpu_variant variant;
  struct serve_product *p = mem_alloc(1, sizeof *p, err);
  if (!p) return STATUS_FAILED;
  p->rows = m->rows;
  p->cols = m->host.cols;
  if (!strcmp(name, SERVE_DENSE)) {
    INVARIANT(dense);
    p->dense = dense;
    *out = p;
    return STATUS_OK;
  }
  enum status status = STATUS_OK;
  if (!find_variant(gpu, m, tokens, name, &variant))
    status = error_set(err, STATUS_FAILED, "there is no kernel %s for %u tokens", name, tokens);
  if (!status) status = gpu_product_prepare(gpu, m, tokens, &variant, &p->packed, err);
  if (!status) {
    const struct product_plan *plan = &p->packed.plan;
    gpu_free(gpu, p->packed.partials);
    gpu_free(gpu, p->packed.counters);
    p->packed.partials = p->packed.counters = NULL;
    status = grow(gpu, &serve.partials, &serve.partial_bytes, product_plan_slot_bytes(plan), err);
    if (!status)
      status = grow(gpu, &serve.counters, &serve.counter_bytes,
                    product_plan_counters(plan) * sizeof(uint32_t), err);
  }
  if (status) {
    gpu_product_free(gpu, &p->packed);
    mem_free(p);
    return status;
  }
  *out = p;
  return STATUS_OK;
}

static void product_free(void *ctx, struct serve_product *p) {
  if (!p->dense) gpu_product_free(ctx, &p->packed);
  forget_plan(&p->plan);
  mem_free(p);
}

static enum status product_run(void *ctx, struct serve_product *p, const struct gpu_operands *o,
                               uint32_t tokens, struct error *err) {
  if (p->dense) return run_dense(ctx, p, o, tokens, err);
  struct product_args *args = &p->packed.args.product;
  args->tokens = tokens;
  args->partials = serve.partials;
  args->counters = serve.counters;
  return gpu_product_run(ctx, &p->packed, o, err);
}

/* --- the clock, and whose it is --- */

static enum status lap(void *ctx, double *seconds, struct error *err) {
  const struct gpu *gpu = ctx;
  float ms = 0;
  const char *what = "take the time";
  enum status status = gpu_check(err, cudaEventRecord(serve.laps[1], gpu->stream), what);
  if (!status) status = gpu_check(err, cudaEventSynchronize(serve.laps[1]), what);
  if (!status && serve.lapped)
    status = gpu_check(err, cudaEventElapsedTime(&ms, serve.laps[0], serve.laps[1]), what);
  const cudaEvent_t now = serve.laps[1];
  serve.laps[1] = serve.laps[0];
  serve.laps[0] = now;
  serve.lapped = true;
  *seconds = ms / 1000.0;
  return status;
}

static void machine(void *ctx, char card[256], char text[512]) {
  const struct gpu *gpu = ctx;
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  snprintf(card, 256, "%s", gpu->facts.name);
  snprintf(text, 512, "%s, driver %d, CUDA %d, tessera %s", gpu->facts.name, driver, runtime,
           TSR_VERSION);
}

/* --- records: CUDA graphs --- */

static enum status record_begin(void *ctx, struct error *err) {
  const struct gpu *gpu = ctx;
  return gpu_check(err, cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal),
                   "record a step");
}

static enum status record_end(void *ctx, struct serve_record **out, struct error *err) {
  const struct gpu *gpu = ctx;
  cudaGraph_t graph = NULL;
  enum status status = gpu_check(err, cudaStreamEndCapture(gpu->stream, &graph), "record a step");
  struct serve_record *r = status ? NULL : mem_alloc(1, sizeof *r, err);
  if (!status && !r) status = STATUS_FAILED;
  if (!status)
    status = gpu_check(err, cudaGraphInstantiate(&r->graph, graph, 0), "make a graph of a step");
  if (graph) cudaGraphDestroy(graph);
  if (status)
    mem_free(r);
  else
    *out = r;
  return status;
}

static enum status record_run(void *ctx, const struct serve_record *r, struct error *err) {
  const struct gpu *gpu = ctx;
  return gpu_check(err, cudaGraphLaunch(r->graph, gpu->stream), "run a recorded step");
}

static void record_free(void *ctx, struct serve_record *r) {
  cudaGraphExecDestroy(r->graph);
  mem_free(r);
}

static uint64_t record_epoch(void *ctx) { return serve.epoch; }

/* --- opening --- */

enum status device_serve_open(struct gpu *gpu, const struct serve_runtime **out,
                              struct error *err) {
  static const struct serve_runtime runtime = {.launch = launch,
                                               .variants = variants,
                                               .product_new = product_new,
                                               .product_free = product_free,
                                               .product_run = product_run,
                                               .lap = lap,
                                               .machine = machine,
                                               .record_begin = record_begin,
                                               .record_end = record_end,
                                               .record_run = record_run,
                                               .record_free = record_free,
                                               .record_epoch = record_epoch};
  enum status status = check_blas(cublasLtCreate(&serve.blas), "be opened", err);
  if (!status) status = gpu_alloc(gpu, BLAS_WORKSPACE_BYTES, &serve.blas_workspace, err);
  for (int i = 0; i < 2 && !status; i++)
    status = gpu_check(err, cudaEventCreate(&serve.laps[i]), "take the time");
  if (!status) *out = &runtime;
  return status;
}

void device_serve_close(struct gpu *gpu) {
  gpu_free(gpu, serve.partials);
  gpu_free(gpu, serve.counters);
  gpu_free(gpu, serve.blas_workspace);
  for (int i = 0; i < 2; i++)
    if (serve.laps[i]) cudaEventDestroy(serve.laps[i]);
  if (serve.blas) cublasLtDestroy(serve.blas);
  memset(&serve, 0, sizeof serve);
}
