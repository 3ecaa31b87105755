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
  for (int64_t c = 0; c < m->cols; c++)
    out[c] = (float)sqrt(moments_square(m, c) / (double)(m->tokens ? m->tokens : 1));
}

/* The diagonal of H before anything is added: 1 for dead features. */
static double diagonal(const struct moments *m, double scale, int64_t c) {
  return moments_dead(m, c) ? 1.0 : scale * moments_square(m, c);
}

/* NaN or infinite when an input was. */
static double mean_diagonal(const struct moments *m, double scale) {
  double sum = 0;
  for (int64_t c = 0; c < m->cols; c++) sum += diagonal(m, scale, c);
  return sum / (double)m->cols;
}

enum status moments_damp(const struct moments *m, double damping, const struct factor_way *way,
                         struct factor_report *report, struct error *err) {
  const double scale = 2.0 / (double)(m->tokens ? m->tokens : 1);
  const double mean = mean_diagonal(m, scale);
  if (!isfinite(mean))
    return error_set(err, STATUS_REFUSED,
                     "calibration activations are not finite; the model or its weights are broken");
  *report = (struct factor_report){.damping = damping};
  for (;; report->retries++) {
    bool positive = true;
    enum status status = way->factor(way->ctx, scale, report->damping * mean, &positive, err);
    if (status != STATUS_OK || positive) return status;
    if (report->damping > 100) break;
    report->damping = report->damping > 0 ? 10 * report->damping : 1e-4;
  }
  report->diagonal_only = true;
  return way->diagonal(way->ctx, scale, damping * mean, err);
}

void moments_fill_diagonal(const struct moments *m, double scale, double added, float *u) {
  for (int64_t i = 0; i < m->cols; i++) u[i] = (float)(1 / sqrt(diagonal(m, scale, i) + added));
}

/* --- the factor on the host --- */

struct host_factor {
  const struct moments *m;
  float *u;
};

static void fill_hessian(const struct moments *m, double scale, double added, float *h) {
  const int64_t n = m->cols;
  for (int64_t r = 0; r < n; r++) {
    for (int64_t c = 0; c <= r; c++) h[r * n + c] = (float)(scale * m->products[r * n + c]);
    h[r * n + r] = (float)(diagonal(m, scale, r) + added);
  }
}

static enum status factor_here(void *ctx, double scale, double added, bool *positive,
                               struct error *err) {
  const struct host_factor *f = ctx;
  struct error reason = {0};
  fill_hessian(f->m, scale, added, f->u);
  *positive = cholesky_inverse_upper(f->u, f->m->cols, &reason);
  if (reason.status != STATUS_FAILED) return STATUS_OK;
  if (err) *err = reason;
  return STATUS_FAILED;
}

static enum status diagonal_here(void *ctx, double scale, double added, struct error *err) {
  const struct host_factor *f = ctx;
  const int64_t n = f->m->cols;
  float *diagonal_of_u = mem_alloc((size_t)n, sizeof *diagonal_of_u, err);
  if (!diagonal_of_u) return STATUS_FAILED;
  moments_fill_diagonal(f->m, scale, added, diagonal_of_u);
  memset(f->u, 0, (size_t)(n * n) * sizeof *f->u);
  for (int64_t i = 0; i < n; i++) f->u[i * n + i] = diagonal_of_u[i];
  mem_free(diagonal_of_u);
  return STATUS_OK;
}

enum status moments_factor(const struct moments *m, double damping, float *u,
                           struct factor_report *report, struct error *err) {
  struct host_factor here = {m, u};
  const struct factor_way way = {&here, factor_here, diagonal_here};
  return moments_damp(m, damping, &way, report, err);
}
