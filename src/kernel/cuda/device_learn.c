/* The CUDA column's runtime on a card: launches, and dense products through cuBLASLt.
 *
 * State: the open card with its cuBLASLt handle and workspace, and for every shape of product that
 * was asked for the algorithm that cuBLASLt recommended. The same algorithm for the same shape
 * gives the same bits: those that split sums add them in a fixed order. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/column.h"
#include "kernel/cuda/device.h"
#include "kernel/cuda/device_graph.h"
#include "kernel/cuda/device_serve.h"
#include "kernel/cuda/open.h"

enum { ALIGNMENT_MAX = 256 };

/* What an algorithm depends on. */
struct product_key {
  int64_t m, n, k, stride[3]; /* of a, b, c */
  uint32_t transposed, bf16, accumulate;
  uint32_t alignment[3]; /* of a, b, c in bytes */
};
struct product_choice {
  struct product_key key;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, c;
  cublasLtMatmulAlgo_t algorithm;
};

static struct {
  struct gpu *gpu;
  cublasLtHandle_t handle;
  void *workspace;
  struct product_choice *choices;
  size_t choice_count, choice_capacity;
  struct cuda_runtime runtime;
} card;

static enum status check_cuda(cudaError_t code, const char *what, struct error *err) {
  if (code == cudaSuccess) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "the GPU could not %s: %s (%s)", what,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

static enum status check_blas(cublasStatus_t code, const char *what, struct error *err) {
  if (code == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "cuBLASLt could not %s: status %d", what, (int)code);
}

/* --- memory --- */

static enum status card_alloc(void *ctx, size_t bytes, void **out, struct error *err) {
  enum status status = gpu_alloc(ctx, bytes, out, err);
  if (status != STATUS_OK) return status;
  status = gpu_zero(ctx, *out, bytes, err);
  if (status != STATUS_OK) gpu_free(ctx, *out);
  return status;
}
static void card_free(void *ctx, void *memory) { gpu_free(ctx, memory); }
static enum status card_upload(void *ctx, void *to, const void *from, size_t bytes,
                               struct error *err) {
  return gpu_upload(ctx, to, from, bytes, err);
}
static enum status card_download(void *ctx, void *to, const void *from, size_t bytes,
                                 struct error *err) {
  return gpu_download(ctx, to, from, bytes, err);
}
static enum status card_copy(void *ctx, void *to, const void *from, size_t bytes,
                             struct error *err) {
  return check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu_stream(ctx)),
                    "copy memory", err);
}
static enum status card_clear(void *ctx, void *memory, size_t bytes, struct error *err) {
  return gpu_zero(ctx, memory, bytes, err);
}
static enum status card_wait(void *ctx, struct error *err) {
  const enum status status = gpu_wait(ctx, err);
  return status != STATUS_OK ? status : gpu_lanes_wait(err);
}

/* --- launches --- */

static enum status card_launch(void *ctx, enum learn_kernel kernel, uint32_t blocks,
                               uint32_t threads, uint32_t shared_bytes, const void *args,
                               struct error *err) {
  void *parameters[] = {(void *)args};
  return check_cuda(
      cudaLaunchKernel(learn_kernel(kernel), (dim3){blocks, 1, 1}, (dim3){threads, 1, 1},
                       parameters, shared_bytes, gpu_stream(ctx)),
      "start a kernel", err);
}

/* Attention's tiles take more shared memory than a block is given without asking. */
static enum status allow_shared(uint32_t bytes, struct error *err) {
#define MMA_KERNEL(name, ...) LEARN_##name,
  static const enum learn_kernel wide[] = {LEARN_attention_rows, LEARN_attention_back_q,
                                           LEARN_attention_back_kv,
                                           ATTENTION_MMA_KERNELS(MMA_KERNEL)};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < sizeof wide / sizeof *wide && status == STATUS_OK; i++)
    status =
        check_cuda(cudaFuncSetAttribute(learn_kernel(wide[i]),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                   "load the kernels of this build", err);
  return status;
}

/* --- products --- */

static uint32_t alignment_of(const void *pointer) {
  uint32_t alignment = 1;
  while (alignment < ALIGNMENT_MAX && (uintptr_t)pointer % (2 * alignment) == 0) alignment *= 2;
  return alignment;
}

static struct product_key key_of(const struct dense_product *p) {
  struct product_key key;
  memset(&key, 0, sizeof key); /* keys are compared byte by byte */
  key.m = p->m;
  key.n = p->n;
  key.k = p->k;
  key.stride[0] = product_a_stride(p);
  key.stride[1] = product_b_stride(p);
  key.stride[2] = product_c_stride(p);
  key.transposed = (p->a_transposed ? 1u : 0u) | (p->b_transposed ? 2u : 0u);
  key.bf16 = p->bf16;
  key.accumulate = p->accumulate;
  key.alignment[0] = alignment_of(p->a);
  key.alignment[1] = alignment_of(p->b);
  key.alignment[2] = alignment_of(p->c);
  return key;
}

static enum status make_layout(cublasLtMatrixLayout_t *out, cudaDataType_t type, int64_t rows,
                               int64_t cols, int64_t stride, struct error *err) {
  return check_blas(cublasLtMatrixLayoutCreate(out, type, (uint64_t)rows, (uint64_t)cols, stride),
                    "describe a matrix", err);
}

/* cuBLASLt counts by columns: a row-major C is its transpose, op(B)^T op(A)^T. What is stored as
 * (k, n) by rows is (n, k) by columns, which is op(B)^T already. */
static enum status describe(struct product_choice *c, struct error *err) {
  const struct product_key *key = &c->key;
  const cudaDataType_t type = key->bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const bool a_transposed = key->transposed & 1, b_transposed = key->transposed & 2;
  const cublasOperation_t first = b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  enum status status =
      check_blas(cublasLtMatmulDescCreate(&c->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                 "describe a product", err);
  if (status == STATUS_OK)
    status = check_blas(cublasLtMatmulDescSetAttribute(c->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                       &first, sizeof first),
                        "describe a product", err);
  if (status == STATUS_OK)
    status = check_blas(cublasLtMatmulDescSetAttribute(c->operation, CUBLASLT_MATMUL_DESC_TRANSB,
                                                       &second, sizeof second),
                        "describe a product", err);
  if (status == STATUS_OK)
    status = make_layout(&c->b, type, b_transposed ? key->k : key->n,
                         b_transposed ? key->n : key->k, key->stride[1], err);
  if (status == STATUS_OK)
    status = make_layout(&c->a, type, a_transposed ? key->m : key->k,
                         a_transposed ? key->k : key->m, key->stride[0], err);
  return status == STATUS_OK ? make_layout(&c->c, CUDA_R_32F, key->n, key->m, key->stride[2], err)
                             : status;
}

static enum status ask(struct product_choice *c, struct error *err) {
  static const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
  const uint32_t *by = c->key.alignment, alignment[4] = {by[1], by[0], by[2], by[2]};
  const uint64_t workspace = CUDA_WORKSPACE_BYTES;
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  enum status status =
      check_blas(cublasLtMatmulPreferenceCreate(&preference), "prefer an algorithm", err);
  if (status != STATUS_OK) return status;
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace, sizeof workspace);
  for (int i = 0; i < 4; i++)
    cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &alignment[i],
                                         sizeof alignment[i]);
  status = check_blas(cublasLtMatmulAlgoGetHeuristic(card.handle, c->operation, c->b, c->a, c->c,
                                                     c->c, preference, 1, &result, &found),
                      "find an algorithm", err);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status == STATUS_OK && !found)
    status = error_set(err, STATUS_FAILED,
                       "cuBLASLt has no algorithm for a product of %lld x %lld x %lld",
                       (long long)c->key.m, (long long)c->key.n, (long long)c->key.k);
  c->algorithm = result.algo;
  return status;
}

static void forget(struct product_choice *c) {
  if (c->operation) cublasLtMatmulDescDestroy(c->operation);
  if (c->a) cublasLtMatrixLayoutDestroy(c->a);
  if (c->b) cublasLtMatrixLayoutDestroy(c->b);
  if (c->c) cublasLtMatrixLayoutDestroy(c->c);
}

/* A model has some tens of shapes: a list will do. */
static enum status choose(const struct dense_product *p, const struct product_choice **out,
                          struct error *err) {
  struct product_choice made = {.key = key_of(p)};
  for (size_t i = 0; i < card.choice_count; i++)
    if (!memcmp(&card.choices[i].key, &made.key, sizeof made.key)) {
      *out = &card.choices[i];
      return STATUS_OK;
    }
  enum status status = mem_grow((void **)&card.choices, &card.choice_capacity,
                                card.choice_count + 1, sizeof *card.choices, err);
  if (status == STATUS_OK) status = describe(&made, err);
  if (status == STATUS_OK) status = ask(&made, err);
  if (status != STATUS_OK) {
    forget(&made);
    return status;
  }
  card.choices[card.choice_count] = made;
  *out = &card.choices[card.choice_count++];
  return STATUS_OK;
}

static enum status card_multiply(void *ctx, const struct dense_product *p, struct error *err) {
  const struct product_choice *c;
  const float alpha = p->negative ? -1 : 1, beta = p->accumulate ? 1 : 0;
  enum status status = choose(p, &c, err);
  if (status != STATUS_OK) return status;
  return check_blas(cublasLtMatmul(card.handle, c->operation, &alpha, p->b, c->b, p->a, c->a, &beta,
                                   p->c, c->c, p->c, c->c, &c->algorithm, card.workspace,
                                   CUDA_WORKSPACE_BYTES, gpu_stream(ctx)),
                    "multiply", err);
}

/* --- opening --- */

static enum status prepare(struct error *err) {
  const struct gpu_facts *facts = gpu_facts(card.gpu);
  enum status status = check_blas(cublasLtCreate(&card.handle), "be opened", err);
  if (status == STATUS_OK) status = gpu_alloc(card.gpu, CUDA_WORKSPACE_BYTES, &card.workspace, err);
  if (status == STATUS_OK) status = allow_shared(facts->block_shared_bytes, err);
  const struct serve_runtime *serve = NULL;
  if (status == STATUS_OK) status = device_serve_open(card.gpu, &serve, err);
  card.runtime = (struct cuda_runtime){.ctx = card.gpu,
                                       .multiprocessors = (uint32_t)facts->multiprocessors,
                                       .block_shared_bytes = facts->block_shared_bytes,
                                       .alloc = card_alloc,
                                       .free = card_free,
                                       .upload = card_upload,
                                       .download = card_download,
                                       .copy = card_copy,
                                       .clear = card_clear,
                                       .wait = card_wait,
                                       .launch = card_launch,
                                       .multiply = card_multiply,
                                       .serve = serve};
  if (status == STATUS_OK) status = gpu_lanes_open(card.gpu, &card.runtime, err);
  return status;
}

static void release(void) {
  for (size_t i = 0; i < card.choice_count; i++) forget(&card.choices[i]);
  free(card.choices);
  device_serve_close(card.gpu);
  gpu_lanes_close();
  gpu_free(card.gpu, card.workspace);
  if (card.handle) cublasLtDestroy(card.handle);
  gpu_close(card.gpu);
  memset(&card, 0, sizeof card);
}

enum status cuda_backend_open(const struct backend **out, int index, struct error *err) {
  enum status status = gpu_open(&card.gpu, index, err);
  if (status != STATUS_OK) return status;
  status = prepare(err);
  if (status == STATUS_OK)
    *out = cuda_column_open(&card.runtime);
  else
    release();
  return status;
}

void cuda_backend_close(void) {
  cuda_column_close();
  release();
}
