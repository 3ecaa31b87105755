/* Reference kernels over quantized strips: see kernel/quant_kernels.h for the contracts. */
#include <math.h>
#include <string.h>

#include "kernel/quant_x.h"
#include "kernel/ref/ref.h"

/* The larger magnitude by its bits, so that a NaN is the largest of all. */
static float larger(float a, float b) {
  uint32_t x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  x &= 0x7fffffff, y &= 0x7fffffff;
  if (y > x) x = y;
  memcpy(&a, &x, 4);
  return a;
}

static void round_group(const float *x, int64_t cols, int g, struct quant_x *out) {
  float most = 0;
  int32_t sum = 0;
  for (int64_t c = 0; c < cols; c++) most = larger(most, x[c]);
  const float inverse = most >= 0x1p-100f && most <= 0x1.fffffep+127f ? 127.0f / most : 0.0f;
  for (int64_t c = 0; c < QUANT_GROUP; c++) {
    const int near = c < cols && inverse != 0 ? (int)lrintf(x[c] * inverse) : 0;
    out->near[g * QUANT_GROUP + c] = (int8_t)near;
    out->raised[g * QUANT_GROUP + c] = (uint8_t)(near + 128);
    sum += near;
  }
  out->scale[g] = most >= 0x1p-100f || isnan(most) ? most / 127.0f : 0.0f;
  out->scale_16th[g] = out->scale[g] * 0.0625f;
  out->total[g] = out->scale[g] * (float)sum;
  out->raise[g] = -128 * sum;
  out->take_zero[g] = -8 * sum;
}

static void round_chunk(const float *x, int64_t ldx, int64_t cols, int64_t tokens,
                        struct quant_x *out) {
  for (int64_t t = 0; t < tokens; t++)
    for (int g = 0; g < QUANT_CHUNK_GROUPS; g++) {
      const int64_t first = (int64_t)g * QUANT_GROUP, left = cols - first;
      round_group(x + t * ldx + first,
                  left < 0             ? 0
                  : left < QUANT_GROUP ? left
                                       : QUANT_GROUP,
                  g, out + t);
    }
}

/* A row's part of one chunk, times the activations of one token. */
static float chunk_dot(const struct quant_chunk_row *w, const struct quant_x *x, float sum) {
  for (int g = 0; g < QUANT_CHUNK_GROUPS; g++) {
    int32_t products = 0, kept = 0;
    for (int c = g * QUANT_GROUP; c < (g + 1) * QUANT_GROUP; c++)
      if (w->kept[c]) {
        products += w->q[c] * x->near[c];
        kept += x->near[c];
      }
    sum += w->scale[g] * (x->scale[g] * (float)products);
    sum += w->min[g] * (x->scale[g] * (float)kept);
  }
  return sum;
}

static void strip_row_dot(const struct quant_strips *w, int64_t strip, int64_t lane,
                          const struct quant_x *x, int64_t tokens, float *y, int64_t ldy) {
  const uint8_t *at = w->data + w->offset[strip];
  for (int64_t t = 0; t < tokens; t++) y[t * ldy] = 0;
  for (int64_t r = w->first_run[strip]; r < w->first_run[strip + 1]; r++)
    for (int64_t i = 0; i < w->runs[r].chunks; i++, x += tokens) {
      struct quant_chunk_row row;
      quant_chunk_read(w, w->runs[r].kind, at, lane, &row);
      at += quant_chunk_bytes(w, w->runs[r].kind);
      for (int64_t t = 0; t < tokens; t++) y[t * ldy] = chunk_dot(&row, x + t, y[t * ldy]);
    }
  if (!w->row_scales) return;
  for (int64_t t = 0; t < tokens; t++) y[t * ldy] *= w->row_scales[strip * STRIP_ROWS + lane];
}

static void dot(const struct quant_strips *w, int64_t first, int64_t count, const struct quant_x *x,
                int64_t tokens, float *y, int64_t ldy, float *sums) {
  (void)sums;
  for (int64_t strip = first; strip < first + count; strip++, y += STRIP_ROWS)
    for (int64_t lane = 0; lane < STRIP_ROWS && strip * STRIP_ROWS + lane < w->rows; lane++)
      strip_row_dot(w, strip, lane, x, tokens, y + lane, ldy);
}

static void expand(const struct quant_strips *w, int64_t strip, int64_t chunk, int64_t cols,
                   int64_t width, float *out) {
  for (int64_t r = 0; r < STRIP_ROWS; r++)
    for (int64_t c = 0; c < cols; c++) {
      float *to = out + c * width + r;
      *to = 0;
      if (strip * STRIP_ROWS + r < w->rows)
        quant_strips_row(w, strip * STRIP_ROWS + r, chunk * QUANT_CHUNK_COLS + c, 1, to);
    }
}

void ref_fill_quant(struct kernel_table *table) {
  table->quant = (struct quant_kernels){.round = round_chunk, .dot = dot, .expand = expand};
}
