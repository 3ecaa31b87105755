/* Reference kernels of the soft masks: see kernel/mask_ops.h for the formulas. */
#include <math.h>

#include "base/rng.h"
#include "kernel/compact_body.h"
#include "kernel/ref/ref.h"
#include "sparse/mask.h"

enum { LANES = MASK_BLOCK, STORED = MASK_STORED, GROUP = 4 };

/* Softmax of one group's exponents: y (6). */
static void group_probabilities(const struct mask_row *row, int64_t group, double *y) {
  int64_t block = group / LANES, lane = group % LANES;
  uint32_t words[4];
  float u[SPARSE_CANDIDATES];
  if (row->noise) {
    philox4x32(row->key, (uint32_t[4]){row->counter + (uint32_t)group, 0, row->tensor, row->draw},
               words);
    rng_six_uniforms(words, u);
  }
  double top = -INFINITY, sum = 0;
  for (int k = 0; k < SPARSE_CANDIDATES; k++) {
    double logit = k < STORED ? row->logits[(block * STORED + k) * LANES + lane] : 0;
    y[k] = logit * row->slope;
    if (row->noise) y[k] -= log(-log(u[k])) * row->inverse_tau;
    if (row->bias && block == row->blocks - 1) y[k] += row->bias[k * LANES + lane];
    if (y[k] > top) top = y[k];
  }
  for (int k = 0; k < SPARSE_CANDIDATES; k++) sum += y[k] = exp(y[k] - top);
  for (int k = 0; k < SPARSE_CANDIDATES; k++) y[k] /= sum;
}

/* M24 of one group: m (4); y (6) the probabilities behind it, of fixed codes untouched. */
static void group_mask(const struct mask_row *row, int64_t group, double *y, double *m) {
  memset(m, 0, GROUP * sizeof *m);
  if (!row->logits) {
    uint8_t pair = row->codes[group / 2], code = group % 2 ? pair >> 4 : pair & 15;
    m[code & 3] = m[code >> 2] = 1;
    return;
  }
  group_probabilities(row, group, y);
  for (int k = 0; k < SPARSE_CANDIDATES; k++)
    for (int c = 0; c < GROUP; c++) m[c] += y[k] * sparse_candidate_table[k][c];
}

static double sample(const struct mask_row *row, const float *w, float *out) {
  double y[SPARSE_CANDIDATES], m[GROUP], sum = 0;
  for (int64_t g = 0; g < row->blocks * LANES; g++) {
    double tile = row->tile[g];
    group_mask(row, g, y, m);
    for (int c = 0; c < GROUP; c++) {
      out[GROUP * g + c] = (float)(w[GROUP * g + c] * (tile + (1 - tile) * m[c]));
      sum += (double)out[GROUP * g + c] * out[GROUP * g + c];
    }
  }
  return sum;
}

/* d(logit)_k = slope * y_k * (dy_k - sum_j y_j dy_j), dy_k = sum of dM24 over its positions. */
static void group_logit_gradient(const struct mask_row *row, int64_t group, const double *y,
                                 const double *dm24, bool accumulate, float *dlogits) {
  double dy[SPARSE_CANDIDATES], mean = 0;
  for (int k = 0; k < SPARSE_CANDIDATES; k++) {
    dy[k] = 0;
    for (int c = 0; c < GROUP; c++) dy[k] += dm24[c] * sparse_candidate_table[k][c];
    mean += y[k] * dy[k];
  }
  for (int k = 0; k < STORED; k++) {
    float *to = dlogits + (group / LANES * STORED + k) * LANES + group % LANES;
    double d = row->slope * y[k] * (dy[k] - mean);
    *to = (float)(accumulate ? *to + d : d);
  }
}

static void backward(const struct mask_row *row, const float *w, const float *dw, float decay,
                     bool accumulate, float *dlogits, float *dtile, float *out) {
  double y[SPARSE_CANDIDATES], m[GROUP], dm24[GROUP];
  for (int64_t g = 0; g < row->blocks * LANES; g++) {
    double tile = row->tile[g], dt = 0;
    group_mask(row, g, y, m);
    for (int c = 0; c < GROUP; c++) {
      double weight = w[GROUP * g + c], mask = tile + (1 - tile) * m[c];
      if (out) out[GROUP * g + c] = (float)(weight * mask);
      double dm = weight * (dw[GROUP * g + c] + decay * weight * mask);
      dt += dm * (1 - m[c]);
      dm24[c] = dm * (1 - tile);
    }
    dtile[g] += (float)dt;
    if (row->logits) group_logit_gradient(row, g, y, dm24, accumulate, dlogits);
  }
}

/* All six gradients of a group, scaled. */
static void six_gradients(const float *block, int lane, double scale, double *g) {
  g[STORED] = 0;
  for (int k = 0; k < STORED; k++) {
    g[k] = scale * block[k * LANES + lane];
    g[STORED] -= g[k];
  }
}

static double gradient_squares(const float *gradient, int64_t blocks) {
  double g[SPARSE_CANDIDATES], sum = 0;
  for (int64_t b = 0; b < blocks; b++)
    for (int lane = 0; lane < LANES; lane++) {
      six_gradients(gradient + b * STORED * LANES, lane, 1, g);
      for (int k = 0; k < SPARSE_CANDIDATES; k++) sum += g[k] * g[k];
    }
  return sum;
}

/* Moves one group's moments and returns rate * m^_k / (sqrt(v^_k) + epsilon) in u (6). */
static void group_moments(const struct mask_adamw_factors *f, const double *g, float *first,
                          float *second, double *u) {
  double last = 0;
  for (int k = 0; k < SPARSE_CANDIDATES; k++) {
    double m = last;
    if (k < STORED) {
      m = f->beta1 * first[k * LANES] + (1 - f->beta1) * g[k];
      first[k * LANES] = (float)m;
      last -= m;
    }
    double v = f->beta2 * second[k * LANES] + (1 - f->beta2) * g[k] * g[k];
    second[k * LANES] = (float)v;
    u[k] = f->rate * m / (sqrt(v * f->second_scale) + f->epsilon);
  }
  if (u[STORED] > f->most) u[STORED] = f->most;
  if (u[STORED] < -f->most) u[STORED] = -f->most;
}

static void adamw(const struct mask_adamw_factors *f, int64_t blocks, const float *gradient,
                  float *logits, float *first, float *second) {
  double g[SPARSE_CANDIDATES], u[SPARSE_CANDIDATES];
  for (int64_t b = 0; b < blocks; b++)
    for (int lane = 0; lane < LANES; lane++) {
      int64_t at = b * STORED * LANES + lane;
      six_gradients(gradient + b * STORED * LANES, lane, f->gradient_scale, g);
      group_moments(f, g, first + at, second + b * SPARSE_CANDIDATES * LANES + lane, u);
      for (int k = 0; k < STORED; k++)
        logits[at + k * LANES] = (float)(f->keep * logits[at + k * LANES] - (u[k] - u[STORED]));
    }
}

static void choose(const float *logits, int64_t blocks, int32_t *code) {
  for (int64_t g = 0; g < blocks * LANES; g++) {
    const float *group = logits + g / LANES * (STORED * LANES) + g % LANES;
    float top = group[0];
    code[g] = sparse_candidate_code[0];
    for (int k = 1; k < SPARSE_CANDIDATES; k++) {
      float value = k < STORED ? group[k * LANES] : 0.0f;
      if (!(value > top)) continue;
      top = value;
      code[g] = sparse_candidate_code[k];
    }
  }
}

void ref_fill_mask(struct kernel_table *table) {
  table->mask = (struct mask_kernels){sample, backward,     gradient_squares, adamw,
                                      choose, compact_step, compact_round};
}
