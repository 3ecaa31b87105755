/* General fp32 matrix product: C (m, n) = alpha * op(A) (m, k) op(B) (k, n) + beta * C.
 *
 * An operand is row-major with leading dimension `ld` (elements); `transposed` means that op(A) is
 * the transpose of what is stored. f16 and bf16 operands are widened while they are packed.
 * k is summed in an order fixed by the shapes alone. beta is 0 (C need not be initialised) or 1.
 * Runs on all threads, or on the caller's alone inside a parallel section. */
#ifndef TSR_KERNEL_GEMM_H
#define TSR_KERNEL_GEMM_H

#include "tensor/dtype.h"

struct gemm_operand {
  const void *data;
  enum dtype dtype; /* f32, f16, bf16 */
  int64_t ld;
  bool transposed;
};

void gemm(int64_t m, int64_t n, int64_t k, float alpha, struct gemm_operand a,
          struct gemm_operand b, float beta, float *c, int64_t ldc);

#endif
