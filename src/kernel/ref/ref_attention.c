/* Reference kernels of attention's rows: see kernel/select.h for the contracts. */
#include <math.h>

#include "kernel/ref/ref.h"

static float capped(float score, float scale, float softcap) {
  float s = scale * score;
  return softcap > 0 ? softcap * tanhf(s / softcap) : s;
}

static float attention_row(float *scores, int64_t low, int64_t high, int64_t n, float scale,
                           float softcap, float *max, float *sum) {
  float top = *max, total = 0;
  for (int64_t j = low; j < high; j++) {
    scores[j] = capped(scores[j], scale, softcap);
    if (scores[j] > top) top = scores[j];
  }
  for (int64_t j = 0; j < n; j++) {
    scores[j] = j >= low && j < high ? expf(scores[j] - top) : 0.0f;
    total += scores[j];
  }
  float rescale = expf(*max - top);
  *sum = *sum * rescale + total;
  *max = top;
  return rescale;
}

static void attention_row_backward(float *scores, float *dscores, int64_t low, int64_t high,
                                   int64_t n, float scale, float softcap, float lse, float delta) {
  for (int64_t j = 0; j < n; j++) {
    if (j < low || j >= high) {
      scores[j] = dscores[j] = 0;
      continue;
    }
    float s = capped(scores[j], scale, softcap), t = softcap > 0 ? s / softcap : 0;
    scores[j] = expf(s - lse);
    dscores[j] = scores[j] * (dscores[j] - delta) * (1 - t * t) * scale;
  }
}

static void scale_row(float *x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static float dot(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
  return (float)sum;
}

static void mix(const float *p, const float *v, int64_t ld, int64_t count, int64_t n, float *out) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t i = 0; i < n; i++) out[i] += p[j] * v[j * ld + i];
}

void ref_fill_attention(struct kernel_table *table) {
  table->attention_row = attention_row;
  table->attention_row_backward = attention_row_backward;
  table->scale = scale_row;
  table->dot = dot;
  table->mix = mix;
}
