/* Conjugate gradients for the rows of a matrix, a panel of rows at a time. A row's iterates depend
 * on no other row; only the product with h is shared. Owns the vectors of one panel. */
#include "prune/least_squares.h"

#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/gemm.h"

enum { PANEL_ROWS = 256 };

struct solver {
  const struct mask_matrix *mask;
  const float *w, *h, *c;
  double ridge;
  float *v;
  int64_t first, rows; /* of the panel */
  /* (panel, cols): which weights are kept; the residual of the normal equations; the direction and
   * its product with h + ridge */
  float *keep, *residual, *direction, *product;
  float *inverse;    /* (cols): of the diagonal of h + ridge */
  double *agreement; /* (panel): residual . inverse * residual, which falls to 0 */
};

static enum status solver_alloc(struct solver *s, struct error *err) {
  const size_t cols = (size_t)s->mask->cols;
  const size_t rows = (size_t)(s->mask->rows < PANEL_ROWS ? s->mask->rows : PANEL_ROWS);
  s->keep = mem_alloc(rows * cols, sizeof(float), err);
  s->residual = mem_alloc(rows * cols, sizeof(float), err);
  s->direction = mem_alloc(rows * cols, sizeof(float), err);
  s->product = mem_alloc(rows * cols, sizeof(float), err);
  s->inverse = mem_alloc(cols, sizeof(float), err);
  s->agreement = mem_alloc(rows, sizeof(double), err);
  return s->keep && s->residual && s->direction && s->product && s->inverse && s->agreement
             ? STATUS_OK
             : STATUS_FAILED;
}

static void solver_free(struct solver *s) {
  mem_free(s->keep);
  mem_free(s->residual);
  mem_free(s->direction);
  mem_free(s->product);
  mem_free(s->inverse);
  mem_free(s->agreement);
}

/* A feature that no token uses has nothing on the diagonal, and nothing to say. */
static void invert_diagonal(struct solver *s) {
  const int64_t cols = s->mask->cols;
  for (int64_t i = 0; i < cols; i++) {
    const double entry = (double)s->h[i * cols + i] + s->ridge;
    s->inverse[i] = entry > 0 ? (float)(1 / entry) : 0;
  }
}

/* Preconditions the residual; returns how large it is in that measure. */
static double precondition(const struct solver *s, const float *residual, float *out) {
  double sum = 0;
  for (int64_t i = 0; i < s->mask->cols; i++) {
    out[i] = residual[i] * s->inverse[i];
    sum += (double)residual[i] * (double)out[i];
  }
  return sum;
}

static void start_row(void *ctx, int64_t row, int worker) {
  struct solver *s = ctx;
  const int64_t cols = s->mask->cols, at = row * cols;
  (void)worker;
  for (int64_t i = 0; i < cols; i++) s->residual[at + i] *= s->keep[at + i];
  s->agreement[row] = precondition(s, s->residual + at, s->direction + at);
}

static void step_row(void *ctx, int64_t row, int worker) {
  struct solver *s = ctx;
  const int64_t cols = s->mask->cols;
  float *p = s->direction + row * cols, *q = s->product + row * cols;
  float *r = s->residual + row * cols, *v = s->v + (s->first + row) * cols;
  const float *keep = s->keep + row * cols;
  double curvature = 0;
  (void)worker;
  for (int64_t i = 0; i < cols; i++) {
    q[i] = keep[i] * q[i] + (float)s->ridge * p[i];
    curvature += (double)p[i] * (double)q[i];
  }
  if (!(curvature > 0 && s->agreement[row] > 0)) return; /* solved to the last bit */
  const float length = (float)(s->agreement[row] / curvature);
  for (int64_t i = 0; i < cols; i++) {
    v[i] += length * p[i];
    r[i] -= length * q[i];
  }
  const double before = s->agreement[row], after = precondition(s, r, q);
  const float turn = (float)(after / before);
  for (int64_t i = 0; i < cols; i++) p[i] = q[i] + turn * p[i];
  s->agreement[row] = after;
}

static void solve_panel(struct solver *s, int64_t iterations) {
  const int64_t cols = s->mask->cols;
  float *v = s->v + s->first * cols;
  const struct gemm_operand h = {s->h, DTYPE_F32, cols, false}, c = {s->c, DTYPE_F32, cols, false};
  for (int64_t r = 0; r < s->rows; r++) {
    mask_row(s->mask, s->first + r, s->keep + r * cols);
    for (int64_t i = 0; i < cols; i++) {
      const float w = s->w[(s->first + r) * cols + i];
      v[r * cols + i] = s->keep[r * cols + i] != 0 ? w : 0;
    }
  }
  gemm(s->rows, cols, cols, 1.0f,
       (struct gemm_operand){s->w + s->first * cols, DTYPE_F32, cols, false}, c, 0.0f, s->residual,
       cols);
  gemm(s->rows, cols, cols, -1.0f, (struct gemm_operand){v, DTYPE_F32, cols, false}, h, 1.0f,
       s->residual, cols);
  parallel_for(s->rows, start_row, s);
  for (int64_t k = 0; k < iterations; k++) {
    gemm(s->rows, cols, cols, 1.0f, (struct gemm_operand){s->direction, DTYPE_F32, cols, false}, h,
         0.0f, s->product, cols);
    parallel_for(s->rows, step_row, s);
  }
}

enum status least_squares_masked(const struct mask_matrix *mask, const float *w, const float *h,
                                 const float *c, double ridge, int64_t iterations, float *v,
                                 struct error *err) {
  struct solver s = {.mask = mask, .w = w, .h = h, .c = c, .ridge = ridge, .v = v};
  enum status status = solver_alloc(&s, err);
  if (!status) {
    invert_diagonal(&s);
    for (; s.first < mask->rows; s.first += PANEL_ROWS) {
      const int64_t left = mask->rows - s.first;
      s.rows = left < PANEL_ROWS ? left : PANEL_ROWS;
      solve_panel(&s, iterations);
    }
  }
  solver_free(&s);
  return status;
}
