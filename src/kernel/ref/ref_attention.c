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

static float softmax_row(float *scores, int64_t low, int64_t high, int64_t n, float scale,
                         float softcap, float *max, float *sum, uint16_t *out) {
  float rescale = 1;
  if (low < high) rescale = attention_row(scores, low, high, n, scale, softcap, max, sum);
  for (int64_t j = 0; j < n; j++)
    out[j / BF16_STEP * BF16_CHUNK + j % BF16_STEP] =
        low < high ? bf16_from_f32(scores[j]) : (uint16_t)0;
  return rescale;
}

/* --- over a cache --- */

/* Element i of a cache. */
static float element(enum dtype dtype, const void *source, int64_t i) {
  float x;
  if (dtype == DTYPE_I8) return ((const int8_t *)source)[i];
  dtype_to_f32(dtype, (const char *)source + i * (dtype == DTYPE_F32 ? 4 : 2), 1, &x);
  return x;
}

static void kv_scores(enum dtype dtype, const void *keys, const float *scales, int64_t blocks,
                      int64_t head_dim, const float *q, int64_t group, float *scores, int64_t ld) {
  for (int64_t j = 0; j < blocks * KV_BLOCK; j++)
    for (int64_t g = 0; g < group; g++) {
      double sum = 0;
      int64_t at = j / KV_BLOCK * KV_BLOCK * head_dim + j % KV_BLOCK;
      for (int64_t i = 0; i < head_dim; i++)
        sum += (double)q[g * head_dim + i] * element(dtype, keys, at + i * KV_BLOCK);
      scores[g * ld + j] = (float)(scales ? sum * scales[j] : sum);
    }
}

static void kv_mix(enum dtype dtype, const void *values, int64_t count, int64_t n, const float *p,
                   int64_t ld, int64_t group, float *out) {
  for (int64_t j = 0; j < count; j++)
    for (int64_t i = 0; i < n; i++) {
      float value = element(dtype, values, j * n + i);
      for (int64_t g = 0; g < group; g++) out[g * n + i] += p[g * ld + j] * value;
    }
}

static void kv_widen(enum dtype dtype, const void *source, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i++) out[i] = element(dtype, source, i);
}

static float kv_round(enum dtype dtype, const float *x, int64_t n, void *out) {
  if (dtype != DTYPE_I8) {
    dtype_from_f32(dtype, x, n, out);
    return 1;
  }
  float most = 0;
  for (int64_t i = 0; i < n; i++)
    if (fabsf(x[i]) > most) most = fabsf(x[i]);
  float inverse = most > 0 ? 127 / most : 0;
  for (int64_t i = 0; i < n; i++) {
    float steps = rintf(x[i] * inverse); /* not a number where x is none or infinite */
    ((int8_t *)out)[i] = (int8_t)(steps >= -127 && steps <= 127 ? steps : -128);
  }
  return most / 127;
}

void ref_fill_attention(struct kernel_table *table) {
  table->attention_row = attention_row;
  table->attention_row_backward = attention_row_backward;
  table->bf16.softmax_row = softmax_row;
  table->kv_scores = kv_scores;
  table->kv_mix = kv_mix;
  table->kv_widen = kv_widen;
  table->kv_round = kv_round;
  table->scale = scale_row;
  table->dot = dot;
}
