/* Attention over a cache of keys and values: included after a vec_*.h. Contracts: kernel/select.h;
 * the layout: kernel/kv_cache.h.
 *
 * What bounds these is reading the cache, so each element is loaded and widened once for as many
 * query heads as fit the registers. */
#include <math.h>

#include "kernel/select.h"

enum {
  KV_VECTORS = KV_BLOCK / VL,
  KV_GROUP_MOST = VL == 16 ? 8 : 4, /* query heads at once */
  KV_MIX_MOST = 4,                  /* the same where values meet them */
  KV_MIX_VECTORS = VL == 16 ? 4 : 2,
  KV_MIX_ROWS = 32,     /* rows of values that stay in the first-level cache meanwhile */
  KV_AHEAD_BYTES = 4096 /* what is asked for ahead of its use */
};

INLINE int64_t kv_bytes(const enum dtype dtype) {
  return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_I8 ? 1 : 2;
}
INLINE vf kv_load(const enum dtype dtype, const char *p) {
  return dtype == DTYPE_I8 ? vf_load_bytes((const int8_t *)p) : vf_load_as(dtype, p);
}

/* Calls fn with the dtype as a constant. */
#define KV_FOR_DTYPE(dtype, fn, ...) \
  do {                               \
    if ((dtype) == DTYPE_F32)        \
      fn(DTYPE_F32, __VA_ARGS__);    \
    else if ((dtype) == DTYPE_F16)   \
      fn(DTYPE_F16, __VA_ARGS__);    \
    else if ((dtype) == DTYPE_BF16)  \
      fn(DTYPE_BF16, __VA_ARGS__);   \
    else                             \
      fn(DTYPE_I8, __VA_ARGS__);     \
  } while (0)

/* --- scores --- */

/* Sums over i, i + ways, .. of q[g][i] * k[i][lane]. */
INLINE void scores_steps(const enum dtype dtype, const int group, const int ways, int64_t i,
                         const char *keys, int64_t head_dim, const float *q,
                         vf sum[2][KV_GROUP_MOST][KV_VECTORS]) {
  for (int w = 0; w < ways; w++) {
    const char *at = keys + (i + w) * KV_BLOCK * kv_bytes(dtype);
    for (int v = 0; v < KV_VECTORS; v++) {
      vf k = kv_load(dtype, at + v * VL * kv_bytes(dtype));
      for (int g = 0; g < group; g++)
        sum[w][g][v] = vf_fma(vf_set(q[g * head_dim + i + w]), k, sum[w][g][v]);
    }
  }
}

/* One block of keys against `group` query heads, both constants: scores[g * ld + lane]. */
INLINE void scores_of(const enum dtype dtype, const int group, const char *keys,
                      const float *scales, int64_t head_dim, const float *q, float *scores,
                      int64_t ld) {
  /* two sums where registers allow, to keep both multiply-add units busy over their latency */
  const int ways = VL == 16 || group <= 2 ? 2 : 1;
  vf sum[2][KV_GROUP_MOST][KV_VECTORS];
  for (int w = 0; w < ways; w++)
    for (int g = 0; g < group; g++)
      for (int v = 0; v < KV_VECTORS; v++) sum[w][g][v] = vf_zero();
  int64_t i = 0;
  for (; i + 2 <= head_dim; i += 2) {
    const char *ahead = keys + i * KV_BLOCK * kv_bytes(dtype) + KV_AHEAD_BYTES;
    __builtin_prefetch(ahead);
    if (dtype == DTYPE_F32) __builtin_prefetch(ahead + 64);
    for (int w = 0; w < 2; w += ways)
      scores_steps(dtype, group, ways, i + w, keys, head_dim, q, sum);
  }
  if (i < head_dim) scores_steps(dtype, group, 1, i, keys, head_dim, q, sum);
  for (int g = 0; g < group; g++)
    for (int v = 0; v < KV_VECTORS; v++) {
      vf total = ways == 2 ? vf_add(sum[0][g][v], sum[1][g][v]) : sum[0][g][v];
      if (scales) total = vf_mul(total, vf_load(scales + v * VL));
      vf_store(scores + g * ld + v * VL, total);
    }
}

INLINE void scores_blocks(const enum dtype dtype, const int group, const char *keys,
                          const float *scales, int64_t blocks, int64_t head_dim, const float *q,
                          float *scores, int64_t ld) {
  for (int64_t b = 0; b < blocks; b++)
    scores_of(dtype, group, keys + b * head_dim * KV_BLOCK * kv_bytes(dtype),
              scales ? scales + b * KV_BLOCK : NULL, head_dim, q, scores + b * KV_BLOCK, ld);
}

INLINE void scores_as(const enum dtype dtype, const char *keys, const float *scales, int64_t blocks,
                      int64_t head_dim, const float *q, int64_t group, float *scores, int64_t ld) {
#define SCORES(n)                                                                         \
  case n:                                                                                 \
    scores_blocks(dtype, (n) < KV_GROUP_MOST ? (n) : KV_GROUP_MOST, keys, scales, blocks, \
                  head_dim, q, scores, ld);                                               \
    break
  for (; group > 0; group -= KV_GROUP_MOST) {
    switch (group < KV_GROUP_MOST ? group : KV_GROUP_MOST) {
      SCORES(1);
      SCORES(2);
      SCORES(3);
      SCORES(4);
      SCORES(5);
      SCORES(6);
      SCORES(7);
      SCORES(8);
    }
    q += KV_GROUP_MOST * head_dim;
    scores += KV_GROUP_MOST * ld;
  }
#undef SCORES
}

static void kv_scores_of(enum dtype dtype, const void *keys, const float *scales, int64_t blocks,
                         int64_t head_dim, const float *q, int64_t group, float *scores,
                         int64_t ld) {
  KV_FOR_DTYPE(dtype, scores_as, keys, scales, blocks, head_dim, q, group, scores, ld);
}

/* --- values --- */

/* `group` heads times `vectors` vectors of columns, both constants, over `count` rows. */
INLINE void mix_of(const enum dtype dtype, const int group, const int vectors, const char *values,
                   int64_t count, int64_t n, const float *p, int64_t ld, float *out) {
  vf sum[KV_MIX_MOST][KV_MIX_VECTORS];
  for (int g = 0; g < group; g++)
    for (int v = 0; v < vectors; v++) sum[g][v] = vf_load(out + g * n + v * VL);
  for (int64_t j = 0; j < count; j++, values += n * kv_bytes(dtype)) {
    vf row[KV_MIX_VECTORS];
    for (int v = 0; v < vectors; v++) {
      row[v] = kv_load(dtype, values + v * VL * kv_bytes(dtype));
      if (v * VL * kv_bytes(dtype) % 64 == 0)
        __builtin_prefetch(values + v * VL * kv_bytes(dtype) + KV_AHEAD_BYTES);
    }
    for (int g = 0; g < group; g++) {
      vf weight = vf_set(p[g * ld + j]);
      for (int v = 0; v < vectors; v++) sum[g][v] = vf_fma(weight, row[v], sum[g][v]);
    }
  }
  for (int g = 0; g < group; g++)
    for (int v = 0; v < vectors; v++) vf_store(out + g * n + v * VL, sum[g][v]);
}

INLINE void mix_columns(const enum dtype dtype, const int vectors, const char *values,
                        int64_t count, int64_t n, const float *p, int64_t ld, int64_t group,
                        float *out) {
  for (; group > 0; group -= KV_MIX_MOST, p += KV_MIX_MOST * ld, out += KV_MIX_MOST * n)
    if (group >= KV_MIX_MOST)
      mix_of(dtype, KV_MIX_MOST, vectors, values, count, n, p, ld, out);
    else if (group == 3)
      mix_of(dtype, 3, vectors, values, count, n, p, ld, out);
    else if (group == 2)
      mix_of(dtype, 2, vectors, values, count, n, p, ld, out);
    else
      mix_of(dtype, 1, vectors, values, count, n, p, ld, out);
}

INLINE void mix_as(const enum dtype dtype, const char *values, int64_t count, int64_t n,
                   const float *p, int64_t ld, int64_t group, float *out) {
  for (int64_t j = 0; j < count; j += KV_MIX_ROWS) {
    int64_t rows = count - j < KV_MIX_ROWS ? count - j : KV_MIX_ROWS, i = 0;
    const char *at = values + j * n * kv_bytes(dtype);
    for (; i + KV_MIX_VECTORS * VL <= n; i += KV_MIX_VECTORS * VL)
      mix_columns(dtype, KV_MIX_VECTORS, at + i * kv_bytes(dtype), rows, n, p + j, ld, group,
                  out + i);
    for (; i < n; i += VL)
      mix_columns(dtype, 1, at + i * kv_bytes(dtype), rows, n, p + j, ld, group, out + i);
  }
}

static void kv_mix_of(enum dtype dtype, const void *values, int64_t count, int64_t n,
                      const float *p, int64_t ld, int64_t group, float *out) {
  KV_FOR_DTYPE(dtype, mix_as, values, count, n, p, ld, group, out);
}

/* --- in and out --- */

INLINE void widen_elements(const enum dtype dtype, const char *source, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i += VL)
    vf_store(out + i, kv_load(dtype, source + i * kv_bytes(dtype)));
}

static void kv_widen_row(enum dtype dtype, const void *source, int64_t n, float *out) {
  KV_FOR_DTYPE(dtype, widen_elements, source, n, out);
}

INLINE void round_lanes(const enum dtype dtype, vf x, vf inverse, char *out) {
  if (dtype == DTYPE_F16)
    vf_store_halves((uint16_t *)(void *)out, x);
  else
    vi_store_bytes((int8_t *)out, vi_of_float(vf_mul(x, inverse)));
}

INLINE void round_as(const enum dtype dtype, const float *x, int64_t n, vf inverse, char *out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL)
    round_lanes(dtype, vf_load(x + i), inverse, out + i * kv_bytes(dtype));
  if (i == n) return;
  char last[VL * sizeof(float)];
  round_lanes(dtype, vf_load_part(x + i, n - i), inverse, last);
  memcpy(out + i * kv_bytes(dtype), last, (size_t)((n - i) * kv_bytes(dtype)));
}

static float kv_round_row(enum dtype dtype, const float *x, int64_t n, void *out) {
  float scale = 1;
  vf inverse = vf_set(1);
  if (dtype == DTYPE_I8) {
    vf most = vf_zero();
    int64_t i = 0;
    for (; i + VL <= n; i += VL) most = vf_max(vf_abs(vf_load(x + i)), most);
    if (i < n) most = vf_max(vf_abs(vf_load_part(x + i, n - i)), most);
    float largest = vf_largest(most);
    scale = largest / 127;
    inverse = vf_set(largest > 0 ? 127 / largest : 0);
  }
  if (dtype == DTYPE_I8)
    round_as(DTYPE_I8, x, n, inverse, out);
  else if (dtype == DTYPE_F16)
    round_as(DTYPE_F16, x, n, inverse, out);
  else
    memcpy(out, x, (size_t)n * sizeof *x);
  return scale;
}

static void fill_kv(struct kernel_table *table) {
  table->kv_scores = kv_scores_of;
  table->kv_mix = kv_mix_of;
  table->kv_widen = kv_widen_row;
  table->kv_round = kv_round_row;
}
