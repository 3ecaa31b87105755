/* The CUDA column of kernel/backend.h, over a runtime that launches kernels and multiplies dense
 * matrices: that of a card (runtime.c), or the emulator of the tests, where device memory is the
 * host's. What a launch looks like is decided here, in plain C, and is the same for both.
 *
 * One device a process: the column holds the runtime it was opened over, scratch memory that grows
 * to what the largest call needed and then stays, and the first error of what was queued. */
#ifndef TSR_KERNEL_CUDA_COLUMN_H
#define TSR_KERNEL_CUDA_COLUMN_H

#include "kernel/backend.h"
#include "kernel/cuda/learn.h"

/* What the column and its products take beside what they are asked for: logits that exist at a time
 * (512 MiB), and cuBLASLt's workspace. */
enum { CUDA_LOGIT_ELEMENTS = 1 << 27, CUDA_WORKSPACE_BYTES = 32 << 20 };

/* C (m, n) = or += (or -=) op(A) (m, k) op(B) (k, n), all row-major; op transposes what is stored
 * as (k, m), or (n, k). C is fp32, sums are fp32. */
struct dense_product {
  int64_t m, n, k;
  const void *a, *b;
  bool a_transposed, b_transposed, accumulate;
  bool bf16;     /* both operands; else fp32 */
  bool negative; /* the product is subtracted, or C = -op(A) op(B) */
  float *c;
  int64_t a_stride, b_stride, c_stride; /* elements from row to row as stored; 0: no gaps */
};
static inline int64_t product_a_stride(const struct dense_product *p) {
  return p->a_stride ? p->a_stride : p->a_transposed ? p->m : p->k;
}
static inline int64_t product_b_stride(const struct dense_product *p) {
  return p->b_stride ? p->b_stride : p->b_transposed ? p->k : p->n;
}
static inline int64_t product_c_stride(const struct dense_product *p) {
  return p->c_stride ? p->c_stride : p->n;
}

struct serve_runtime; /* column_serve.h */

struct record_operation;

struct cuda_runtime {
  void *ctx; /* the first argument of all below */
  uint32_t multiprocessors, block_shared_bytes;
  enum status (*alloc)(void *ctx, size_t bytes, void **out, struct error *err); /* zeroed */
  void (*free)(void *ctx, void *memory);
  enum status (*upload)(void *ctx, void *to, const void *from, size_t bytes, struct error *err);
  enum status (*download)(void *ctx, void *to, const void *from, size_t bytes, struct error *err);
  enum status (*copy)(void *ctx, void *to, const void *from, size_t bytes, struct error *err);
  enum status (*clear)(void *ctx, void *memory, size_t bytes, struct error *err);
  enum status (*wait)(void *ctx, struct error *err);
  enum status (*launch)(void *ctx, enum learn_kernel kernel, uint32_t blocks, uint32_t threads,
                        uint32_t shared_bytes, const void *args, struct error *err);
  enum status (*multiply)(void *ctx, const struct dense_product *product, struct error *err);
  /* kernel/backend.h: pinned memory, and copies beside the work */
  enum status (*alloc_host)(void *ctx, size_t bytes, void **out, struct error *err); /* zeroed */
  void (*free_host)(void *ctx, void *memory);
  enum status (*fetch)(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                       struct error *err);
  enum status (*arrive)(void *ctx, int buffer, struct error *err);
  enum status (*put)(void *ctx, int buffer, void *to, const void *from, size_t bytes,
                     struct error *err);
  enum status (*copy_aside)(void *ctx, void *to, const void *from, size_t bytes, struct error *err);
  enum status (*await_aside)(void *ctx, struct error *err);
  /* record.h. A graph of operations, which upload from `staged` bytes of its own; run takes new
   * arguments of the operations that are marked as changed, and what is to be uploaded. */
  enum status (*graph_make)(void *ctx, const struct record_operation *operations, int count,
                            size_t staged, void **out, struct error *err);
  enum status (*graph_run)(void *ctx, void *graph, const struct record_operation *operations,
                           int count, const void *staging, size_t staged, struct error *err);
  void (*graph_free)(void *ctx, void *graph);
  const struct serve_runtime *serve; /* decoding; or NULL */
};

/* The column over `runtime`, which must stay until it is closed. */
const struct backend *cuda_column_open(const struct cuda_runtime *runtime);
void cuda_column_close(void);

#endif
