/* The kernels over strips (sparse/strips.h) in the vector vocabulary: included by strips_avx2.c and
 * strips_avx512.c after their vec_*.h. Contracts: kernel/select.h.
 *
 * Lanes are output rows, so that nothing is summed across lanes. A dense line meets two activations
 * that all rows share; a 2:4 line meets in each lane those two of a group's four that the row's
 * code names, picked out of a register. A weight is loaded and widened once for all tokens. */
#include "kernel/select.h"
#include "sparse/strips.h"

enum {
  HALVES = STRIP_ROWS / VL,
  TOKENS_MOST = VL == 16 ? 8 : 4, /* whose sums stay in registers */
  SUMS_APART = VL == 16 ? 8 : 2,  /* tokens up to which low and high weights have sums of their own,
                                     so that two chains of multiply-adds run side by side */
  PIECE = 4, /* chunks that stay in the first-level cache for the next tokens */
  STRIP_AHEAD_BYTES = VL == 16 ? 4096 : 8192
};

/* Adds `chunks` dense chunks at `at` to sums (tokens, STRIP_ROWS). x: the first chunk's activations
 * (tokens, STRIP_COLS); the next chunk's are `step` floats on. */
INLINE void dense_chunks(enum dtype dtype, const int tokens, const uint8_t *at, int64_t chunks,
                         const float *x, int64_t step, float *sums) {
  vf low[TOKENS_MOST][HALVES], high[TOKENS_MOST][HALVES];
  const bool apart = tokens <= SUMS_APART;
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++) {
      low[t][h] = vf_load(sums + t * STRIP_ROWS + h * VL);
      high[t][h] = vf_zero();
    }
  for (; chunks > 0; chunks--, x += step)
#pragma GCC unroll 4
    for (int p = 0; p < STRIP_PAIRS; p++, at += STRIP_LINE_BYTES) {
      vf even[HALVES], odd[HALVES];
      __builtin_prefetch(at + STRIP_AHEAD_BYTES);
      for (int h = 0; h < HALVES; h++) vf_load_pairs(dtype, at + 4 * h * VL, &even[h], &odd[h]);
#pragma GCC unroll 8
      for (int t = 0; t < tokens; t++) {
        vf first = vf_set(x[t * STRIP_COLS + 2 * p]),
           second = vf_set(x[t * STRIP_COLS + 2 * p + 1]);
        for (int h = 0; h < HALVES; h++) {
          low[t][h] = vf_fma(even[h], first, low[t][h]);
          if (apart)
            high[t][h] = vf_fma(odd[h], second, high[t][h]);
          else
            low[t][h] = vf_fma(odd[h], second, low[t][h]);
        }
      }
    }
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++)
      vf_store(sums + t * STRIP_ROWS + h * VL, apart ? vf_add(low[t][h], high[t][h]) : low[t][h]);
}

/* The same for 2:4 chunks. */
INLINE void sparse_chunks(enum dtype dtype, const int tokens, const uint8_t *at, int64_t chunks,
                          const float *x, int64_t step, float *sums) {
  vf low[TOKENS_MOST][HALVES], high[TOKENS_MOST][HALVES];
  const bool apart = tokens <= SUMS_APART;
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++) {
      low[t][h] = vf_load(sums + t * STRIP_ROWS + h * VL);
      high[t][h] = vf_zero();
    }
  for (; chunks > 0; chunks--, x += step) {
    vi code[HALVES];
    __builtin_prefetch(at + STRIP_AHEAD_BYTES);
    for (int h = 0; h < HALVES; h++) code[h] = vi_load((const int32_t *)(const void *)at + h * VL);
    at += STRIP_LINE_BYTES;
#pragma GCC unroll 4
    for (int g = 0; g < STRIP_GROUPS; g++, at += STRIP_LINE_BYTES) {
      vf even[HALVES], odd[HALVES];
      vi next[HALVES];
      __builtin_prefetch(at + STRIP_AHEAD_BYTES);
      for (int h = 0; h < HALVES; h++) {
        vf_load_pairs(dtype, at + 4 * h * VL, &even[h], &odd[h]);
        next[h] = vi_shr(code[h], 2);
      }
#pragma GCC unroll 8
      for (int t = 0; t < tokens; t++) {
        vf group = vf_broadcast4(x + t * STRIP_COLS + 4 * g);
        for (int h = 0; h < HALVES; h++) {
          low[t][h] = vf_fma(even[h], vf_pick4(group, code[h]), low[t][h]);
          if (apart)
            high[t][h] = vf_fma(odd[h], vf_pick4(group, next[h]), high[t][h]);
          else
            low[t][h] = vf_fma(odd[h], vf_pick4(group, next[h]), low[t][h]);
        }
      }
      for (int h = 0; h < HALVES; h++) code[h] = vi_shr(next[h], 2);
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++)
      vf_store(sums + t * STRIP_ROWS + h * VL, apart ? vf_add(low[t][h], high[t][h]) : low[t][h]);
}

INLINE void chunks_of_kind(enum dtype dtype, const int tokens, enum strip_kind kind,
                           const uint8_t *at, int64_t chunks, const float *x, int64_t step,
                           float *sums) {
  if (kind == STRIP_DENSE)
    dense_chunks(dtype, tokens, at, chunks, x, step, sums);
  else
    sparse_chunks(dtype, tokens, at, chunks, x, step, sums);
}

/* `tokens` <= TOKENS_MOST becomes a constant. */
static void few_tokens(enum dtype dtype, int tokens, enum strip_kind kind, const uint8_t *at,
                       int64_t chunks, const float *x, int64_t step, float *sums) {
#define TOKENS_CASE(n)                                                \
  case n:                                                             \
    if (n <= TOKENS_MOST && dtype == DTYPE_BF16)                      \
      chunks_of_kind(DTYPE_BF16, n, kind, at, chunks, x, step, sums); \
    else if (n <= TOKENS_MOST)                                        \
      chunks_of_kind(DTYPE_F16, n, kind, at, chunks, x, step, sums);  \
    break
  switch (tokens) {
    TOKENS_CASE(1);
    TOKENS_CASE(2);
    TOKENS_CASE(3);
    TOKENS_CASE(4);
#if TILE_ROWS > 6 /* as many registers as AVX-512 has */
    TOKENS_CASE(5);
    TOKENS_CASE(6);
    TOKENS_CASE(7);
    TOKENS_CASE(8);
#endif
  }
}

static void run_chunks(enum dtype dtype, int64_t tokens, enum strip_kind kind, const uint8_t *at,
                       int64_t chunks, const float *x, float *sums) {
  const int64_t step = tokens * STRIP_COLS, piece = tokens <= TOKENS_MOST ? chunks : PIECE;
  for (int64_t c = 0; c < chunks; c += piece) {
    int64_t count = chunks - c < piece ? chunks - c : piece;
    for (int64_t t = 0; t < tokens; t += TOKENS_MOST)
      few_tokens(dtype, (int)(tokens - t < TOKENS_MOST ? tokens - t : TOKENS_MOST), kind,
                 at + c * strip_kind_bytes(kind), count, x + c * step + t * STRIP_COLS, step,
                 sums + t * STRIP_ROWS);
  }
}

static void strip_dot(const struct strip_matrix *w, int64_t first, int64_t count, const float *x,
                      int64_t tokens, float *y, int64_t ldy, float *sums) {
  for (int64_t strip = first; strip < first + count; strip++, y += STRIP_ROWS) {
    const uint8_t *at = w->data + w->offset[strip];
    const float *from = x;
    memset(sums, 0, (size_t)(tokens * STRIP_ROWS) * sizeof(float));
    for (int64_t r = w->first_run[strip]; r < w->first_run[strip + 1]; r++) {
      const enum strip_kind kind = w->runs[r].kind;
      const int64_t chunks = w->runs[r].chunks;
      if (kind != STRIP_EMPTY) run_chunks(w->dtype, tokens, kind, at, chunks, from, sums);
      at += chunks * strip_kind_bytes(kind);
      from += chunks * tokens * STRIP_COLS;
    }
    const int64_t left = w->rows - strip * STRIP_ROWS, rows = left < STRIP_ROWS ? left : STRIP_ROWS;
    for (int64_t t = 0; t < tokens; t++)
      memcpy(y + t * ldy, sums + t * STRIP_ROWS, (size_t)rows * sizeof(float));
  }
}

/* --- expanding --- */

/* Up to STRIP_COLS columns of a chunk as rows of `width` floats. */
INLINE void expand_dense(enum dtype dtype, const uint8_t *at, int64_t cols, int64_t width,
                         float *out) {
  for (int64_t c = 0; c < cols; c += 2, at += STRIP_LINE_BYTES, out += 2 * width)
    for (int h = 0; h < HALVES; h++) {
      vf even, odd;
      vf_load_pairs(dtype, at + 4 * h * VL, &even, &odd);
      vf_store(out + h * VL, even);
      if (c + 1 < cols) vf_store(out + width + h * VL, odd);
    }
}

INLINE void expand_sparse(enum dtype dtype, const uint8_t *at, int64_t cols, int64_t width,
                          float *out) {
  for (int h = 0; h < HALVES; h++) {
    vi code = vi_load((const int32_t *)(const void *)at + h * VL);
    for (int64_t c = 0; c < cols; c += 4) {
      vf first, second;
      vf_load_pairs(dtype, at + STRIP_LINE_BYTES * (1 + c / 4) + 4 * h * VL, &first, &second);
      vi i0 = vi_and(code, vi_set(3)), i1 = vi_and(vi_shr(code, 2), vi_set(3));
      for (int i = 0; i < 4 && c + i < cols; i++) {
        vf x = vf_select(vi_equal(i0, vi_set(i)), first, vf_zero());
        vf_store(out + (c + i) * width + h * VL, vf_select(vi_equal(i1, vi_set(i)), second, x));
      }
      code = vi_shr(code, 4);
    }
  }
}

static void expand_chunk(enum dtype dtype, enum strip_kind kind, const uint8_t *at, int64_t cols,
                         int64_t width, float *out) {
  if (kind == STRIP_EMPTY) {
    for (int64_t c = 0; c < cols; c++) memset(out + c * width, 0, STRIP_ROWS * sizeof(float));
  } else if (kind == STRIP_DENSE) {
    if (dtype == DTYPE_BF16)
      expand_dense(DTYPE_BF16, at, cols, width, out);
    else
      expand_dense(DTYPE_F16, at, cols, width, out);
  } else {
    if (dtype == DTYPE_BF16)
      expand_sparse(DTYPE_BF16, at, cols, width, out);
    else
      expand_sparse(DTYPE_F16, at, cols, width, out);
  }
}

static void strip_expand(const struct strip_matrix *w, int64_t strip, int64_t chunk, int64_t cols,
                         int64_t width, float *out) {
  const uint8_t *at = w->data + w->offset[strip];
  for (int64_t r = w->first_run[strip], c = 0; cols > 0; r++) {
    const enum strip_kind kind = w->runs[r].kind;
    for (int64_t end = c + w->runs[r].chunks; c < end && cols > 0;
         c++, at += strip_kind_bytes(kind)) {
      if (c < chunk) continue;
      expand_chunk(w->dtype, kind, at, cols < STRIP_COLS ? cols : STRIP_COLS, width, out);
      out += STRIP_COLS * width;
      cols -= STRIP_COLS;
    }
  }
}

static void fill_strips(struct kernel_table *table) {
  table->strip_dot = strip_dot;
  table->strip_expand = strip_expand;
}
