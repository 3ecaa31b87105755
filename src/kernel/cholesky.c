/* Upper Cholesky factor of the inverse: see cholesky.h. No state but one strip of memory.
 *
 * The inverse itself is never formed. With J the reversal of rows, let J A J = L L^T. Then
 * A = R R^T with R = J L J upper, and U = R^-1 = J L^-1 J satisfies A^-1 = U^T U: one factorisation
 * and one triangular inverse, both blocked so that the work is matrix products. The diagonal blocks
 * are done in fp64. */
#include "kernel/cholesky.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/gemm.h"

enum { BLOCK = 64, STRIP = 256 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Mirrors the n x n matrix about its centre: (i, j) and (n-1-i, n-1-j) change places. */
static void reverse(float *a, int64_t n) {
  for (int64_t i = 0, j = n * n - 1; i < j; i++, j--) {
    float t = a[i];
    a[i] = a[j];
    a[j] = t;
  }
}

/* J A J has in its lower triangle what A has in its upper one: copy the lower one up first. */
static void mirror_lower(float *a, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = i + 1; j < n; j++) a[i * n + j] = a[j * n + i];
}

/* Factors a diagonal block in place (lower triangle); `inverse` (BLOCK, BLOCK) gets its inverse. */
static bool factor_diagonal(float *a, int64_t n, int64_t size, double *inverse) {
  double l[BLOCK][BLOCK];
  for (int64_t i = 0; i < size; i++)
    for (int64_t j = 0; j <= i; j++) {
      double sum = a[i * n + j];
      for (int64_t p = 0; p < j; p++) sum -= l[i][p] * l[j][p];
      if (i == j && !(sum > 0 && isfinite(sum))) return false;
      l[i][j] = i == j ? sqrt(sum) : sum / l[j][j];
    }
  memset(inverse, 0, BLOCK * BLOCK * sizeof(double));
  for (int64_t j = 0; j < size; j++)
    for (int64_t i = j; i < size; i++) {
      double sum = i == j;
      for (int64_t p = j; p < i; p++) sum -= l[i][p] * inverse[p * BLOCK + j];
      inverse[i * BLOCK + j] = sum / l[i][i];
    }
  for (int64_t i = 0; i < size; i++)
    for (int64_t j = 0; j <= i; j++) a[i * n + j] = (float)l[i][j];
  return true;
}

static struct gemm_operand plain(const float *data, int64_t ld, bool transposed) {
  return (struct gemm_operand){data, DTYPE_F32, ld, transposed};
}

/* The factorisation, right-looking. `inverses` keeps the inverted diagonal blocks, fp32 (blocks,
 * BLOCK, BLOCK); panel: scratch (n, BLOCK). */
static bool factor(float *a, int64_t n, float *inverses, float *panel) {
  double inverse[BLOCK * BLOCK];
  for (int64_t k = 0; k < n; k += BLOCK) {
    int64_t size = least(BLOCK, n - k), below = n - k - size;
    if (!factor_diagonal(a + k * n + k, n, size, inverse)) return false;
    float *kept = inverses + k * BLOCK;
    for (int i = 0; i < BLOCK * BLOCK; i++) kept[i] = (float)inverse[i];
    if (!below) break;
    float *under = a + (k + size) * n + k; /* L21 = A21 L11^-T */
    gemm(below, size, size, 1, plain(under, n, false), plain(kept, BLOCK, true), 0, panel, BLOCK);
    for (int64_t i = 0; i < below; i++)
      memcpy(under + i * n, panel + i * BLOCK, (size_t)size * sizeof(float));
    for (int64_t j = 0; j < below; j += STRIP) /* A22 -= L21 L21^T, its lower part */
      gemm(below - j, least(STRIP, below - j), size, -1, plain(panel + j * BLOCK, BLOCK, false),
           plain(panel + j * BLOCK, BLOCK, true), 1, a + (k + size + j) * n + k + size + j, n);
  }
  return true;
}

/* L becomes its inverse, block row by block row: X_i = -L_ii^-1 (L_i X_above), X_ii = L_ii^-1. */
static void invert_lower(float *l, int64_t n, const float *inverses, float *strip) {
  for (int64_t k = 0; k < n; k += BLOCK) {
    int64_t size = least(BLOCK, n - k);
    const float *diagonal = inverses + k * BLOCK;
    for (int64_t j = 0; j < k; j += STRIP) { /* rows above j of these columns of X are zero */
      int64_t width = least(STRIP, k - j);
      gemm(size, width, k - j, 1, plain(l + k * n + j, n, false), plain(l + j * n + j, n, false), 0,
           strip + j, n);
    }
    if (k)
      gemm(size, k, size, -1, plain(diagonal, BLOCK, false), plain(strip, n, false), 0, l + k * n,
           n);
    for (int64_t i = 0; i < size; i++) {
      memcpy(l + (k + i) * n + k, diagonal + i * BLOCK, (size_t)(i + 1) * sizeof(float));
      memset(l + (k + i) * n + k + i + 1, 0, (size_t)(n - k - i - 1) * sizeof(float));
    }
  }
}

bool cholesky_inverse_upper(float *a, int64_t n, struct error *err) {
  int64_t blocks = (n + BLOCK - 1) / BLOCK;
  float *inverses = mem_alloc((size_t)blocks, BLOCK * BLOCK * sizeof(float), err);
  float *strip = mem_alloc((size_t)(n + BLOCK), BLOCK * sizeof(float), err);
  bool ok = inverses && strip;
  if (ok) {
    mirror_lower(a, n);
    reverse(a, n);
    ok = factor(a, n, inverses, strip);
    if (!ok)
      error_set(err, STATUS_REFUSED,
                "a matrix of %lld x %lld is not positive definite; more damping is needed",
                (long long)n, (long long)n);
  }
  if (ok) {
    invert_lower(a, n, inverses, strip);
    reverse(a, n);
  }
  mem_free(strip);
  mem_free(inverses);
  return ok;
}
