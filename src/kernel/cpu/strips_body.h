/* The kernels over strips (sparse/strips.h) in the vector vocabulary: included by strips_avx2.c and
 * strips_avx512.c after their vec_*.h. Contracts: kernel/select.h.
 *
 * Lanes are output rows, so that nothing is summed across lanes. A dense line meets two activations
 * that all rows share; a 2:4 line meets in each lane those two of a group's four that the row's
 * code names, picked out of a register. A weight is loaded and widened once for all tokens. Two
 * strips are read abreast: two streams keep more of memory's answers under way than one, and share
 * what is loaded of the activations. */
#include "kernel/select.h"
#include "sparse/strips.h"

enum {
  HALVES = STRIP_ROWS / VL,
  TOKENS_MOST = VL == 16 ? 8 : 4,   /* tokens, */
  VECTORS_MOST = VL == 16 ? 16 : 8, /* and vectors of sums, that stay in registers */
  VECTORS_TWICE = VL == 16 ? 8 : 4, /* up to which low and high weights have sums of their own, so
                                       that twice as many multiply-adds run side by side */
  PIECE = 4, /* chunks that stay in the first-level cache for the next tokens */
  STRIP_AHEAD_BYTES = 2048
};

/* Chunks of one kind, so many of each strip: where those of the first begin, how far behind them
 * those of the second do, and the activations of the first (tokens, STRIP_COLS), those of the next
 * lying x_step floats on. */
struct stretch {
  enum dtype dtype;
  enum strip_kind kind;
  int64_t chunks;
  const uint8_t *at;
  ptrdiff_t apart;
  const float *x;
  int64_t x_step;
};

/* The sums of one strip or two, (tokens, STRIP_ROWS) each. */
struct sums {
  float *of[2];
};

struct vectors {
  vf low[2][TOKENS_MOST][HALVES], high[2][TOKENS_MOST][HALVES];
};

INLINE void load_sums(struct vectors *v, const int strips, const int tokens, struct sums from) {
  for (int s = 0; s < strips; s++)
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < HALVES; h++) {
        v->low[s][t][h] = vf_load(from.of[s] + t * STRIP_ROWS + h * VL);
        v->high[s][t][h] = vf_zero();
      }
}

INLINE void store_sums(const struct vectors *v, const int strips, const int tokens, bool twice,
                       struct sums to) {
  for (int s = 0; s < strips; s++)
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < HALVES; h++)
        vf_store(to.of[s] + t * STRIP_ROWS + h * VL,
                 twice ? vf_add(v->low[s][t][h], v->high[s][t][h]) : v->low[s][t][h]);
}

INLINE void dense_chunks(struct stretch c, enum dtype dtype, const int strips, const int tokens,
                         struct sums sums) {
  struct vectors v;
  const bool twice = strips * tokens * HALVES <= VECTORS_TWICE;
  load_sums(&v, strips, tokens, sums);
  for (; c.chunks > 0; c.chunks--, c.x += c.x_step)
#pragma GCC unroll 4
    for (int p = 0; p < STRIP_PAIRS; p++, c.at += STRIP_LINE_BYTES)
#pragma GCC unroll 2
      for (int s = 0; s < strips; s++) {
        const uint8_t *line = c.at + s * c.apart;
        vf even[HALVES], odd[HALVES];
        __builtin_prefetch(line + STRIP_AHEAD_BYTES);
        for (int h = 0; h < HALVES; h++) vf_load_pairs(dtype, line + 4 * h * VL, &even[h], &odd[h]);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
          const float *x = c.x + t * STRIP_COLS + 2 * p;
          const vf first = vf_set(x[0]), second = vf_set(x[1]);
          for (int h = 0; h < HALVES; h++) {
            vf *high = twice ? &v.high[s][t][h] : &v.low[s][t][h];
            v.low[s][t][h] = vf_fma(even[h], first, v.low[s][t][h]);
            *high = vf_fma(odd[h], second, *high);
          }
        }
      }
  store_sums(&v, strips, tokens, twice, sums);
}

INLINE void sparse_chunks(struct stretch c, enum dtype dtype, const int strips, const int tokens,
                          struct sums sums) {
  struct vectors v;
  const bool twice = strips * tokens * HALVES <= VECTORS_TWICE;
  load_sums(&v, strips, tokens, sums);
  for (; c.chunks > 0; c.chunks--, c.x += c.x_step) {
    vi code[2][HALVES];
    for (int s = 0; s < strips; s++) {
      __builtin_prefetch(c.at + s * c.apart + STRIP_AHEAD_BYTES);
      for (int h = 0; h < HALVES; h++)
        code[s][h] = vi_load((const int32_t *)(const void *)(c.at + s * c.apart) + h * VL);
    }
    c.at += STRIP_LINE_BYTES;
#pragma GCC unroll 4
    for (int g = 0; g < STRIP_GROUPS; g++, c.at += STRIP_LINE_BYTES)
#pragma GCC unroll 2
      for (int s = 0; s < strips; s++) {
        const uint8_t *line = c.at + s * c.apart;
        vf even[HALVES], odd[HALVES];
        vi next[HALVES];
        __builtin_prefetch(line + STRIP_AHEAD_BYTES);
        for (int h = 0; h < HALVES; h++) {
          vf_load_pairs(dtype, line + 4 * h * VL, &even[h], &odd[h]);
          next[h] = vi_shr(code[s][h], 2);
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
          const vf group = vf_broadcast4(c.x + t * STRIP_COLS + 4 * g);
          for (int h = 0; h < HALVES; h++) {
            vf *high = twice ? &v.high[s][t][h] : &v.low[s][t][h];
            v.low[s][t][h] = vf_fma(even[h], vf_pick4(group, code[s][h]), v.low[s][t][h]);
            *high = vf_fma(odd[h], vf_pick4(group, next[h]), *high);
          }
        }
        for (int h = 0; h < HALVES; h++) code[s][h] = vi_shr(next[h], 2);
      }
  }
  store_sums(&v, strips, tokens, twice, sums);
}

INLINE void add_chunks(struct stretch c, const int strips, const int tokens, struct sums sums) {
  if (strips * tokens * HALVES > VECTORS_MOST) return; /* never asked for: see few_tokens */
  if (c.kind == STRIP_DENSE && c.dtype == DTYPE_BF16)
    dense_chunks(c, DTYPE_BF16, strips, tokens, sums);
  else if (c.kind == STRIP_DENSE)
    dense_chunks(c, DTYPE_F16, strips, tokens, sums);
  else if (c.dtype == DTYPE_BF16)
    sparse_chunks(c, DTYPE_BF16, strips, tokens, sums);
  else
    sparse_chunks(c, DTYPE_F16, strips, tokens, sums);
}

/* `tokens` <= TOKENS_MOST and `strips` become constants; the strips are taken one after the other
 * where the sums of both are too many. */
static void few_tokens(struct stretch c, int strips, int tokens, struct sums sums) {
  if (strips > 1 && tokens * strips * HALVES > VECTORS_MOST) {
    few_tokens(c, 1, tokens, sums);
    c.at += c.apart;
    few_tokens(c, 1, tokens, (struct sums){{sums.of[1]}});
    return;
  }
#define TOKENS_CASE(n)           \
  case n:                        \
    if (strips > 1)              \
      add_chunks(c, 2, n, sums); \
    else                         \
      add_chunks(c, 1, n, sums); \
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

static void all_tokens(struct stretch c, int strips, int64_t tokens, struct sums sums) {
  const int64_t chunks = c.chunks, piece = tokens <= TOKENS_MOST ? chunks : PIECE;
  const float *x = c.x;
  if (c.kind == STRIP_EMPTY) return;
  for (int64_t done = 0; done < chunks; done += piece) {
    c.chunks = chunks - done < piece ? chunks - done : piece;
    for (int64_t t = 0; t < tokens; t += TOKENS_MOST) {
      const int64_t at = t * STRIP_ROWS;
      c.x = x + done * c.x_step + t * STRIP_COLS;
      few_tokens(c, strips, (int)(tokens - t < TOKENS_MOST ? tokens - t : TOKENS_MOST),
                 (struct sums){{sums.of[0] + at, sums.of[1] + at}});
    }
    c.at += piece * strip_kind_bytes(c.kind);
  }
}

/* Where the reading of a strip is. */
struct cursor {
  const uint8_t *at;
  const struct strip_run *run;
  int64_t left; /* chunks of this run */
};

static void advance(struct cursor *c, int64_t chunks) {
  c->at += chunks * strip_kind_bytes(c->run->kind);
  c->left -= chunks;
}

static int64_t left_of_run(struct cursor *c) {
  if (!c->left) c->left = (++c->run)->chunks;
  return c->left;
}

/* The sums of strips `first` and, if there are two, `first` + 1, whose chunks are read abreast
 * where they are of one kind. */
static void strip_sums(const struct strip_matrix *w, int64_t first, int strips, const float *x,
                       int64_t tokens, float *sums) {
  const struct sums both = {{sums, sums + tokens * STRIP_ROWS}};
  struct cursor cursor[2];
  memset(sums, 0, (size_t)(strips * tokens * STRIP_ROWS) * sizeof(float));
  for (int s = 0; s < strips; s++) {
    const struct strip_run *run = w->runs + w->first_run[first + s];
    cursor[s] = (struct cursor){w->data + w->offset[first + s], run, run->chunks};
  }
  if (strips == 1) cursor[1] = cursor[0];
  for (int64_t done = 0, count; done < w->chunks; done += count) {
    const int64_t one = left_of_run(&cursor[0]), other = left_of_run(&cursor[1]);
    count = one < other ? one : other;
    const bool alike = cursor[0].run->kind == cursor[1].run->kind;
    struct stretch c = {
        w->dtype,           cursor[0].run->kind,         count,
        cursor[0].at,       cursor[1].at - cursor[0].at, x + done * tokens * STRIP_COLS,
        tokens * STRIP_COLS};
    all_tokens(c, alike ? strips : 1, tokens, both);
    if (!alike) {
      c.kind = cursor[1].run->kind, c.at = cursor[1].at;
      all_tokens(c, 1, tokens, (struct sums){{both.of[1], both.of[1]}});
    }
    for (int s = 0; s < 2; s++) advance(&cursor[s], count);
  }
}

static void strip_dot(const struct strip_matrix *w, int64_t first, int64_t count, const float *x,
                      int64_t tokens, float *y, int64_t ldy, float *sums) {
  for (int64_t strip = first; strip < first + count; strip += 2) {
    const int strips = first + count - strip < 2 ? 1 : 2;
    strip_sums(w, strip, strips, x, tokens, sums);
    for (int s = 0; s < strips; s++, y += STRIP_ROWS) {
      const int64_t left = w->rows - (strip + s) * STRIP_ROWS;
      const int64_t rows = left < STRIP_ROWS ? left : STRIP_ROWS;
      for (int64_t t = 0; t < tokens; t++)
        memcpy(y + t * ldy, sums + (s * tokens + t) * STRIP_ROWS, (size_t)rows * sizeof(float));
    }
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
