/* Soft masks of any n:m: see pattern_ops.h. No state but scratch.
 *
 * An item is up to STRIP_ROWS rows of one tile row, so that sums per tile are made in an order that
 * the shape fixes: per row in fp64, then over a strip's rows and over the strips. */
#include "kernel/pattern_ops.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { STRIP_ROWS = 32, UNIFORMS = 6 };
static const float NEVER = -1e30f; /* the exponent of a candidate that takes no part */

/* --- patterns --- */

static int64_t candidates_of(int keep, int of) {
  int64_t count = 1;
  for (int i = 1; i <= keep; i++) count = count * (of - keep + i) / i;
  return count;
}

/* The next larger number with as many bits (Gosper). */
static uint32_t next_choice(uint32_t x) {
  const uint32_t low = x & -x, ripple = x + low;
  return ripple | (((x ^ ripple) >> 2) / low);
}

static uint32_t reversed(uint32_t x, int bits) {
  uint32_t out = 0;
  for (int i = 0; i < bits; i++) out |= (x >> i & 1) << (bits - 1 - i);
  return out;
}

bool mask_pattern_make(struct mask_pattern *p, int keep, int of) {
  *p = (struct mask_pattern){.keep = keep, .of = of};
  if (of < 2 || of > PATTERN_GROUP_MAX || keep < 1 || keep >= of) return false;
  if (candidates_of(keep, of) > PATTERN_CANDIDATES_MAX) return false;
  p->count = (int)candidates_of(keep, of);
  /* columns count from the left: the largest number, read with column 0 in front, comes first */
  uint32_t choice = (1u << keep) - 1;
  for (int k = p->count - 1; k >= 0; k--, choice = next_choice(choice))
    p->kept[k] = reversed(choice, of);
  return true;
}

bool mask_pattern_fits(const struct mask_pattern *p, int k, int64_t width) {
  if (width < p->keep) return k == 0;
  return width >= p->of || !(p->kept[k] >> width);
}

/* --- one group --- */

/* The row that a pass works on. */
struct group_row {
  const struct pattern_source *s;
  int64_t row, groups, total; /* groups of a row, of the matrix */
};

/* Numbers of a row's candidates, rounded up to what vector kernels take. */
static int64_t row_candidates(const struct pattern_source *s) {
  const int64_t count = pattern_groups(s->pattern, s->cols) * s->pattern->count;
  return (count + MASK_BLOCK - 1) / MASK_BLOCK * MASK_BLOCK;
}

/* Minus Gumbel noise of a row's candidates: z (groups, candidates), padded. */
static void row_noise(const struct group_row *r, float *z) {
  const struct pattern_source *s = r->s;
  const int count = s->pattern->count;
  for (int64_t g = 0; g < r->groups; g++) {
    const uint32_t element = (uint32_t)(r->row * r->groups + g);
    for (int k = 0; k < count; k += UNIFORMS) {
      const uint32_t counter[4] = {element + (uint32_t)(k / UNIFORMS * r->total), 0, s->tensor,
                                   s->draw};
      uint32_t words[4];
      float u[UNIFORMS];
      philox4x32(s->key, counter, words);
      rng_six_uniforms(words, u);
      for (int i = 0; i < UNIFORMS && k + i < count; i++) z[g * count + k + i] = u[i];
    }
  }
  for (int64_t i = r->groups * count; i < row_candidates(s); i++) z[i] = 0.5f;
  kernel_table()->minus_gumbel(z, row_candidates(s));
}

/* Exponents of one group, the largest of them 0. */
static void center_group(const struct mask_pattern *p, int64_t width, float *y) {
  float top = -INFINITY;
  for (int k = 0; k < p->count; k++) {
    if (width < p->of && !mask_pattern_fits(p, k, width)) y[k] = NEVER;
    if (y[k] > top) top = y[k];
  }
  for (int k = 0; k < p->count; k++) y[k] -= top;
}

static void normalize_group(int count, float *y) {
  float sum = 0;
  for (int k = 0; k < count; k++) sum += y[k];
  const float factor = 1 / sum;
  for (int k = 0; k < count; k++) y[k] *= factor;
}

/* Softmax over the candidates of every group of a row: y (groups, candidates), padded; z is scratch
 * of the same size. */
static void row_probabilities(const struct group_row *r, float *y, float *z) {
  const struct pattern_source *s = r->s;
  const struct mask_pattern *p = s->pattern;
  const int64_t count = r->groups * p->count, padded = row_candidates(s);
  const float *logits = s->logits + r->row * count;
  const float slope = s->kappa / s->tau, inverse_tau = 1.0f / s->tau;
  for (int64_t i = 0; i < count; i++) y[i] = logits[i] * slope;
  for (int64_t i = count; i < padded; i++) y[i] = 0;
  if (s->noise) {
    row_noise(r, z);
    for (int64_t i = 0; i < count; i++) y[i] -= z[i] * inverse_tau;
  }
  for (int64_t g = 0; g < r->groups; g++) center_group(p, s->cols - g * p->of, y + g * p->count);
  kernel_table()->exponential(y, padded);
  for (int64_t g = 0; g < r->groups; g++) normalize_group(p->count, y + g * p->count);
}

/* Mnm of one group: m (of), from its probabilities y (candidates), or from the fixed bits. */
static void group_mask(const struct group_row *r, int64_t group, const float *y, float *m) {
  const struct pattern_source *s = r->s;
  const struct mask_pattern *p = s->pattern;
  for (int c = 0; c < p->of; c++) m[c] = 0;
  if (!s->logits) {
    const uint8_t *bits = s->bits + r->row * ((s->cols + 7) / 8);
    for (int c = 0; c < p->of; c++) {
      const int64_t at = group * p->of + c;
      if (at < s->cols) m[c] = (float)(bits[at / 8] >> (at % 8) & 1);
    }
    return;
  }
  for (int k = 0; k < p->count; k++)
    for (uint32_t kept = p->kept[k]; kept; kept &= kept - 1) m[__builtin_ctz(kept)] += y[k];
}

/* d(logit)_k = slope * y_k * (dy_k - sum_j y_j dy_j), dy_k = sum of dMnm over its columns. */
static void group_logit_gradient(const struct group_row *r, const float *y, const float *dm,
                                 bool accumulate, float *dlogits) {
  const struct mask_pattern *p = r->s->pattern;
  const float slope = r->s->kappa / r->s->tau;
  float dy[PATTERN_CANDIDATES_MAX], mean = 0;
  for (int k = 0; k < p->count; k++) {
    dy[k] = 0;
    for (uint32_t kept = p->kept[k]; kept; kept &= kept - 1) dy[k] += dm[__builtin_ctz(kept)];
    mean += y[k] * dy[k];
  }
  for (int k = 0; k < p->count; k++) {
    const float d = slope * y[k] * (dy[k] - mean);
    dlogits[k] = accumulate ? dlogits[k] + d : d;
  }
}

/* --- strips of rows --- */

struct pass {
  const struct pattern_source *s;
  struct matrix_view w;
  int64_t groups, tile_cols, strips_per_tile, strips;
  enum dtype out_dtype;
  void *out;
  const float *dw;
  float decay;
  bool accumulate;
  float *dlogits;
  double *part; /* sample: (strips); backward: (strips, tile cols) */
};

static struct pass pass_make(const struct pattern_source *s, struct matrix_view w,
                             enum dtype out_dtype, void *out) {
  const struct mask_pattern *p = s->pattern;
  INVARIANT((s->logits || s->bits) && dtype_is_native(w.dtype));
  INVARIANT(w.rows == s->rows && w.cols == s->cols && s->tile_cols % p->of == 0);
  INVARIANT(out_dtype == DTYPE_F32 || out_dtype == DTYPE_BF16);
  struct pass pass = {.s = s, .w = w, .out_dtype = out_dtype, .out = out};
  pass.groups = pattern_groups(p, s->cols);
  INVARIANT(s->rows <= UINT32_MAX / pass.groups / (p->count / UNIFORMS + 1));
  pass.tile_cols = (s->cols + s->tile_cols - 1) / s->tile_cols;
  pass.strips_per_tile = (s->tile_rows + STRIP_ROWS - 1) / STRIP_ROWS;
  pass.strips = (s->rows + s->tile_rows - 1) / s->tile_rows * pass.strips_per_tile;
  return pass;
}

/* Rows [*first, *end) of a strip; empty past the last row. */
static void strip_rows(const struct pass *p, int64_t strip, int64_t *first, int64_t *end) {
  const int64_t top = strip / p->strips_per_tile * p->s->tile_rows;
  int64_t bottom = top + p->s->tile_rows;
  if (bottom > p->s->rows) bottom = p->s->rows;
  *first = top + strip % p->strips_per_tile * STRIP_ROWS;
  *end = *first + STRIP_ROWS < bottom ? *first + STRIP_ROWS : bottom;
}

/* T of a group's tile. */
static float tile_of(const struct pass *p, int64_t row, int64_t group) {
  const struct pattern_source *s = p->s;
  if (!s->tile_soft) return 0;
  return s->tile_soft[row / s->tile_rows * p->tile_cols + group * s->pattern->of / s->tile_cols];
}

/* A row of w in fp32: as it lies, or widened into `buffer`. */
static const float *row_weights(const struct pass *p, int64_t row, float *buffer) {
  const struct matrix_view *w = &p->w;
  if (w->dtype == DTYPE_F32) return (const float *)w->data + row * w->cols;
  kernel_table()->widen(w->dtype, (const uint16_t *)w->data + row * w->cols, w->cols, buffer);
  return buffer;
}

static void put_row(const struct pass *p, int64_t row, const float *made) {
  const int64_t cols = p->s->cols, at = row * cols;
  if (p->out_dtype == DTYPE_BF16)
    kernel_table()->bf16.round(made, cols, (uint16_t *)p->out + at);
  else
    memcpy((float *)p->out + at, made, (size_t)cols * sizeof *made);
}

/* Scratch of a strip. */
struct room {
  float *out, *w; /* (cols) */
  float *y, *z;   /* (row_candidates) */
};

static struct room room_make(const struct pass *p) {
  const int64_t cols = p->s->cols, candidates = p->s->logits ? row_candidates(p->s) : 0;
  float *at = kernel_scratch(SCRATCH_MASK, (size_t)(2 * cols + 2 * candidates));
  return (struct room){at, at + cols, at + 2 * cols, at + 2 * cols + candidates};
}

static double sample_row(const struct pass *p, int64_t row, const float *w, struct room room) {
  const struct pattern_source *s = p->s;
  const struct group_row r = {s, row, p->groups, s->rows * p->groups};
  const int of = s->pattern->of, count = s->pattern->count;
  float m[PATTERN_GROUP_MAX] = {0}, *out = room.out;
  double sum = 0;
  if (s->logits) row_probabilities(&r, room.y, room.z);
  for (int64_t g = 0; g < p->groups; g++) {
    const float tile = tile_of(p, row, g);
    group_mask(&r, g, room.y + g * count, m);
    for (int64_t c = g * of; c < (g + 1) * of && c < s->cols; c++) {
      out[c] = w[c] * (tile + (1 - tile) * m[c - g * of]);
      sum += (double)out[c] * out[c];
    }
  }
  return sum;
}

static void sample_item(void *ctx, int64_t strip, int worker) {
  const struct pass *p = ctx;
  int64_t first, end;
  (void)worker;
  strip_rows(p, strip, &first, &end);
  const struct room room = room_make(p);
  p->part[strip] = 0;
  for (int64_t row = first; row < end; row++) {
    p->part[strip] += sample_row(p, row, row_weights(p, row, room.w), room);
    put_row(p, row, room.out);
  }
}

/* Room for `count` sums. */
static void *part_scratch(int64_t count) {
  return kernel_scratch(SCRATCH_LINEAR, (size_t)(2 * count));
}

double pattern_sample(const struct pattern_source *source, struct matrix_view w,
                      enum dtype out_dtype, void *out) {
  struct pass p = pass_make(source, w, out_dtype, out);
  p.part = part_scratch(p.strips);
  parallel_for(p.strips, sample_item, &p);
  double sum = 0;
  for (int64_t i = 0; i < p.strips; i++) sum += p.part[i];
  return sum;
}

/* One row of the backward pass; adds to dtile (tile cols) and makes w M on the way. */
static void backward_row(const struct pass *p, int64_t row, const float *w, struct room room,
                         double *dtile) {
  const struct pattern_source *s = p->s;
  const struct group_row r = {s, row, p->groups, s->rows * p->groups};
  const int of = s->pattern->of, count = s->pattern->count;
  const float *dw = p->dw + row * s->cols;
  float m[PATTERN_GROUP_MAX] = {0}, dm[PATTERN_GROUP_MAX] = {0}, *out = room.out;
  if (s->logits) row_probabilities(&r, room.y, room.z);
  for (int64_t g = 0; g < p->groups; g++) {
    const float tile = tile_of(p, row, g), *y = room.y + g * count;
    double dt = 0;
    group_mask(&r, g, y, m);
    for (int64_t c = g * of; c < (g + 1) * of && c < s->cols; c++) {
      const float mask = tile + (1 - tile) * m[c - g * of];
      out[c] = w[c] * mask;
      const float d = w[c] * (dw[c] + p->decay * out[c]);
      dt += (double)d * (1 - m[c - g * of]);
      dm[c - g * of] = d * (1 - tile);
    }
    dtile[g * of / s->tile_cols] += dt;
    if (s->logits)
      group_logit_gradient(&r, y, dm, p->accumulate, p->dlogits + (row * p->groups + g) * count);
  }
}

static void backward_item(void *ctx, int64_t strip, int worker) {
  const struct pass *p = ctx;
  int64_t first, end;
  (void)worker;
  strip_rows(p, strip, &first, &end);
  const struct room room = room_make(p);
  double *dtile = p->part + strip * p->tile_cols;
  memset(dtile, 0, (size_t)p->tile_cols * sizeof *dtile);
  for (int64_t row = first; row < end; row++) {
    backward_row(p, row, row_weights(p, row, room.w), room, dtile);
    if (p->out) put_row(p, row, room.out);
  }
}

static void reduce_tiles(const struct pass *p, double *dtile) {
  const int64_t tile_rows = p->strips / p->strips_per_tile;
  if (!p->accumulate) memset(dtile, 0, (size_t)(tile_rows * p->tile_cols) * sizeof *dtile);
  for (int64_t strip = 0; strip < p->strips; strip++)
    for (int64_t c = 0; c < p->tile_cols; c++)
      dtile[strip / p->strips_per_tile * p->tile_cols + c] += p->part[strip * p->tile_cols + c];
}

void pattern_backward(const struct pattern_source *source, struct matrix_view w, const float *dw,
                      float decay, bool accumulate, float *dlogits, double *dtile,
                      enum dtype out_dtype, void *out) {
  struct pass p = pass_make(source, w, out_dtype, out);
  p.dw = dw;
  p.decay = decay;
  p.accumulate = accumulate;
  p.dlogits = dlogits;
  p.part = part_scratch(p.strips * p.tile_cols);
  parallel_for(p.strips, backward_item, &p);
  if (source->tile_soft) reduce_tiles(&p, dtile);
}
