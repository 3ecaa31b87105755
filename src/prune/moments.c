/* Sums over calibration tokens. The Hessian is symmetric, so only the blocks at and below its
 * diagonal are multiplied out; the Cholesky factorisation reads no others. */
#include "prune/moments.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/cholesky.h"
#include "kernel/gemm.h"

enum { PRODUCT_BLOCK = 256, SQUARE_BLOCK = 64 };

enum status moments_init(struct moments *m, int64_t cols, bool products, struct error *err) {
  *m = (struct moments){.cols = cols};
  if (products)
    m->products = mem_alloc((size_t)cols * (size_t)cols, sizeof *m->products, err);
  else
    m->squares = mem_alloc((size_t)cols, sizeof *m->squares, err);
  return m->products || m->squares ? STATUS_OK : STATUS_FAILED;
}

void moments_clear(struct moments *m) {
  m->tokens = 0;
  if (m->products) memset(m->products, 0, (size_t)(m->cols * m->cols) * sizeof *m->products);
  if (m->squares) memset(m->squares, 0, (size_t)m->cols * sizeof *m->squares);
}

void moments_free(struct moments *m) {
  mem_free(m->products);
  mem_free(m->squares);
  *m = (struct moments){0};
}

struct squares_job {
  struct moments *m;
  const float *x; /* (tokens, cols) */
  int64_t tokens;
};

static void add_squares(void *ctx, int64_t item, int worker) {
  const struct squares_job *job = ctx;
  const int64_t cols = job->m->cols, begin = item * SQUARE_BLOCK;
  const int64_t end = begin + SQUARE_BLOCK < cols ? begin + SQUARE_BLOCK : cols;
  for (int64_t t = 0; t < job->tokens; t++)
    for (int64_t c = begin; c < end; c++) {
      const double x = job->x[t * cols + c];
      job->m->squares[c] += x * x;
    }
}

void moments_add(struct moments *m, const float *x, int64_t tokens) {
  const int64_t cols = m->cols;
  m->tokens += tokens;
  if (!m->products) {
    struct squares_job job = {m, x, tokens};
    parallel_for((cols + SQUARE_BLOCK - 1) / SQUARE_BLOCK, add_squares, &job);
    return;
  }
  for (int64_t begin = 0; begin < cols; begin += PRODUCT_BLOCK) {
    const int64_t end = begin + PRODUCT_BLOCK < cols ? begin + PRODUCT_BLOCK : cols;
    gemm(end - begin, end, tokens, 1.0f, (struct gemm_operand){x + begin, DTYPE_F32, cols, true},
         (struct gemm_operand){x, DTYPE_F32, cols, false}, 1.0f, m->products + begin * cols, cols);
  }
}

void moments_norms(const struct moments *m, float *out) {
  for (int64_t c = 0; c < m->cols; c++) {
    const double sum = m->products ? (double)m->products[c * m->cols + c] : m->squares[c];
    out[c] = (float)sqrt(sum / (double)(m->tokens ? m->tokens : 1));
  }
}

/* Mean of the diagonal of H, ones for dead features; NaN or infinite when an input was. */
static double mean_diagonal(const struct moments *m, double scale) {
  double sum = 0;
  for (int64_t c = 0; c < m->cols; c++)
    sum += moments_dead(m, c) ? 1.0 : scale * (double)m->products[c * m->cols + c];
  return sum / (double)m->cols;
}

static void fill_hessian(const struct moments *m, double scale, double added, float *h) {
  const int64_t n = m->cols;
  for (int64_t r = 0; r < n; r++) {
    for (int64_t c = 0; c <= r; c++) h[r * n + c] = (float)(scale * m->products[r * n + c]);
    h[r * n + r] = (float)((moments_dead(m, r) ? 1.0 : scale * m->products[r * n + r]) + added);
  }
}

static void fill_diagonal(const struct moments *m, double scale, double added, float *u) {
  const int64_t n = m->cols;
  memset(u, 0, (size_t)(n * n) * sizeof *u);
  for (int64_t i = 0; i < n; i++) {
    const double h = moments_dead(m, i) ? 1.0 : scale * m->products[i * n + i];
    u[i * n + i] = (float)(1 / sqrt(h + added));
  }
}

enum status moments_factor(const struct moments *m, double damping, float *u,
                           struct factor_report *report, struct error *err) {
  const double scale = 2.0 / (double)(m->tokens ? m->tokens : 1);
  const double mean = mean_diagonal(m, scale);
  if (!isfinite(mean))
    return error_set(err, STATUS_REFUSED,
                     "calibration activations are not finite; the model or its weights are broken");
  *report = (struct factor_report){.damping = damping};
  for (;; report->retries++) {
    struct error reason = {0};
    fill_hessian(m, scale, report->damping * mean, u);
    if (cholesky_inverse_upper(u, m->cols, &reason)) return STATUS_OK;
    if (reason.status == STATUS_FAILED) {
      if (err) *err = reason;
      return STATUS_FAILED;
    }
    if (report->damping > 100) break;
    report->damping = report->damping > 0 ? 10 * report->damping : 1e-4;
  }
  report->diagonal_only = true;
  fill_diagonal(m, scale, damping * mean, u);
  return STATUS_OK;
}
