/* Factorisations of symmetric positive definite matrices, for SparseGPT. fp32 storage, row-major,
 * n x n; blocked so that the work is matrix products. */
#ifndef TSR_KERNEL_CHOLESKY_H
#define TSR_KERNEL_CHOLESKY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* In place: A (its lower triangle is read) becomes U, the upper Cholesky factor of A^-1 = U^T U,
 * with zeros below the diagonal. false with STATUS_REFUSED when A is not positive definite, with
 * STATUS_FAILED when memory lacks; A is destroyed either way. */
bool cholesky_inverse_upper(float *a, int64_t n, struct error *err);

#endif
