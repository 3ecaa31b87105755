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
  VECTORS_MOST = VL == 16 ? 16 : 8, /* of sums, that stay in registers */
  VECTORS_TWICE = VL == 16 ? 8 : 4, /* up to which low and high weights have sums of their own, so
                                       that twice as many multiply-adds run side by side */
  TOKENS_MOST = 8,
  DENSE_TOKENS = VECTORS_MOST < HALVES * TOKENS_MOST ? VECTORS_MOST / HALVES : TOKENS_MOST,
  UNFOLDS = VL == 8, /* picks are worth preparing */
  PIECE = 4,         /* chunks that stay in the first-level cache for the next tokens */
  STRIP_AHEAD_BYTES = 2048
};

/* n, of which, with more than two tokens, the compiler knows nothing: a loop of so many turns stays
 * one. Unrolled, what one turn loads would be kept for the next in registers that are not there. */
INLINE int turns(const int tokens, int n) {
  if (tokens > 2) __asm__("" : "+r"(n));
  return n;
}

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

/* Sums of the vectors at hand: of `halves` halves of each strip's rows. */
struct vectors {
  vf low[2][TOKENS_MOST][HALVES], high[2][TOKENS_MOST][HALVES];
};

INLINE void load_sums(struct vectors *v, const int strips, const int tokens, const int halves,
                      struct sums from) {
#pragma GCC unroll 2
  for (int s = 0; s < strips; s++)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
      for (int h = 0; h < halves; h++) {
        v->low[s][t][h] = vf_load(from.of[s] + t * STRIP_ROWS + h * VL);
        v->high[s][t][h] = vf_zero();
      }
}

INLINE void store_sums(const struct vectors *v, const int strips, const int tokens,
                       const int halves, bool twice, struct sums to) {
#pragma GCC unroll 2
  for (int s = 0; s < strips; s++)
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
      for (int h = 0; h < halves; h++)
        vf_store(to.of[s] + t * STRIP_ROWS + h * VL,
                 twice ? vf_add(v->low[s][t][h], v->high[s][t][h]) : v->low[s][t][h]);
}

INLINE void dense_chunks(struct stretch c, enum dtype dtype, const int strips, const int tokens,
                         struct sums sums) {
  struct vectors v;
  const bool twice = strips * tokens * HALVES <= VECTORS_TWICE;
  load_sums(&v, strips, tokens, HALVES, sums);
  for (; c.chunks > 0; c.chunks--, c.x += c.x_step)
#pragma GCC unroll 4
    for (int p = 0; p < STRIP_PAIRS; p++, c.at += STRIP_LINE_BYTES)
#pragma GCC unroll 2
      for (int s = 0; s < strips; s++) {
        const uint8_t *line = c.at + s * c.apart;
        vf even[HALVES], odd[HALVES];
        __builtin_prefetch(line + STRIP_AHEAD_BYTES);
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) vf_load_pairs(dtype, line + 4 * h * VL, &even[h], &odd[h]);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
          const float *x = c.x + t * STRIP_COLS + 2 * p;
          const vf first = vf_set(x[0]), second = vf_set(x[1]);
#pragma GCC unroll 2
          for (int h = 0; h < HALVES; h++) {
            vf *high = twice ? &v.high[s][t][h] : &v.low[s][t][h];
            v.low[s][t][h] = vf_fma(even[h], first, v.low[s][t][h]);
            *high = vf_fma(odd[h], second, *high);
          }
        }
      }
  store_sums(&v, strips, tokens, HALVES, twice, sums);
}

/* c.at and sums: of the first of `halves` halves. */
INLINE void sparse_chunks(struct stretch c, enum dtype dtype, const int strips, const int tokens,
                          const int halves, struct sums sums) {
  struct vectors v;
  const bool twice = strips * tokens * halves <= VECTORS_TWICE;
  load_sums(&v, strips, tokens, halves, sums);
  for (; c.chunks > 0; c.chunks--, c.x += c.x_step) {
    vi code[2][HALVES];
#pragma GCC unroll 2
    for (int s = 0; s < strips; s++) {
      __builtin_prefetch(c.at + s * c.apart + STRIP_AHEAD_BYTES);
#pragma GCC unroll 2
      for (int h = 0; h < halves; h++)
        code[s][h] = vi_load((const int32_t *)(const void *)(c.at + s * c.apart) + h * VL);
    }
    c.at += STRIP_LINE_BYTES;
    const int groups = turns(strips * tokens, STRIP_GROUPS);
    for (int g = 0; g < groups; g++, c.at += STRIP_LINE_BYTES)
#pragma GCC unroll 2
      for (int s = 0; s < strips; s++) {
        const uint8_t *line = c.at + s * c.apart;
        vf even[HALVES], odd[HALVES];
        vi next[HALVES];
        __builtin_prefetch(line + STRIP_AHEAD_BYTES);
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) {
          vf_load_pairs(dtype, line + 4 * h * VL, &even[h], &odd[h]);
          next[h] = vi_shr(code[s][h], 2);
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
          const vf group = vf_broadcast4(c.x + t * STRIP_COLS + 4 * g);
#pragma GCC unroll 2
          for (int h = 0; h < halves; h++) {
            vf *high = twice ? &v.high[s][t][h] : &v.low[s][t][h];
            v.low[s][t][h] = vf_fma(even[h], vf_pick4(group, code[s][h]), v.low[s][t][h]);
            *high = vf_fma(odd[h], vf_pick4(group, next[h]), *high);
          }
        }
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) code[s][h] = vi_shr(next[h], 2);
      }
  }
  store_sums(&v, strips, tokens, halves, twice, sums);
}

typedef void chunks_fn(struct stretch c, struct sums sums);

/* One function for each kind, type, number of strips and of tokens. Where both halves of the sums
 * of 2:4 chunks are too many for the registers, one half goes through all chunks and then the
 * other. */
#define DENSE(dtype, strips, n)                                                    \
  static void dense_##dtype##_##strips##_##n(struct stretch c, struct sums sums) { \
    dense_chunks(c, DTYPE_##dtype, strips, n, sums);                               \
  }
#define SPARSE(dtype, strips, n)                                                    \
  static void sparse_##dtype##_##strips##_##n(struct stretch c, struct sums sums) { \
    const int halves = n <= 2 ? HALVES : 1;                                         \
    for (int h = turns(n, HALVES / halves); h > 0; h--, c.at += 4 * VL) {           \
      sparse_chunks(c, DTYPE_##dtype, strips, n, halves, sums);                     \
      sums.of[0] += VL;                                                             \
    }                                                                               \
  }
#define BOTH(make, strips, n) make(BF16, strips, n) make(F16, strips, n)
#define NAMES(make, strips, n) \
  { make##_BF16_##strips##_##n, make##_F16_##strips##_##n }
BOTH(DENSE, 1, 1)
BOTH(DENSE, 1, 2)
BOTH(DENSE, 1, 3)
BOTH(DENSE, 1, 4)
BOTH(DENSE, 2, 1)
BOTH(SPARSE, 1, 1)
BOTH(SPARSE, 1, 2)
BOTH(SPARSE, 1, 3)
BOTH(SPARSE, 1, 4)
BOTH(SPARSE, 1, 5)
BOTH(SPARSE, 1, 6)
BOTH(SPARSE, 1, 7)
BOTH(SPARSE, 1, 8)
BOTH(SPARSE, 2, 1)
BOTH(SPARSE, 2, 2)
#if TILE_ROWS > 6 /* as many registers as AVX-512 has */
BOTH(DENSE, 1, 5)
BOTH(DENSE, 1, 6)
BOTH(DENSE, 1, 7)
BOTH(DENSE, 1, 8)
#define MORE(make) \
  BOTH(make, 2, 3) \
  BOTH(make, 2, 4) BOTH(make, 2, 5) BOTH(make, 2, 6) BOTH(make, 2, 7) BOTH(make, 2, 8)
BOTH(DENSE, 2, 2)
MORE(DENSE)
MORE(SPARSE)
#define EIGHT(make, strips)                                                     \
  {                                                                             \
    NAMES(make, strips, 1), NAMES(make, strips, 2), NAMES(make, strips, 3),     \
        NAMES(make, strips, 4), NAMES(make, strips, 5), NAMES(make, strips, 6), \
        NAMES(make, strips, 7), NAMES(make, strips, 8)                          \
  }
static chunks_fn *const functions[2][2][TOKENS_MOST][2] = {{EIGHT(dense, 1), EIGHT(dense, 2)},
                                                           {EIGHT(sparse, 1), EIGHT(sparse, 2)}};
#else
static chunks_fn *const functions[2][2][TOKENS_MOST][2] = {
    {{NAMES(dense, 1, 1), NAMES(dense, 1, 2), NAMES(dense, 1, 3), NAMES(dense, 1, 4)},
     {NAMES(dense, 2, 1)}},
    {{NAMES(sparse, 1, 1), NAMES(sparse, 1, 2), NAMES(sparse, 1, 3), NAMES(sparse, 1, 4),
      NAMES(sparse, 1, 5), NAMES(sparse, 1, 6), NAMES(sparse, 1, 7), NAMES(sparse, 1, 8)},
     {NAMES(sparse, 2, 1), NAMES(sparse, 2, 2)}}};
#endif

/* For `tokens` at most DENSE_TOKENS or, of 2:4 chunks, TOKENS_MOST; NULL where sums of both strips
 * are too many for the registers. */
static chunks_fn *function_for(struct stretch c, int strips, int64_t tokens) {
  return functions[c.kind == STRIP_SPARSE][strips - 1][tokens - 1][c.dtype != DTYPE_BF16];
}

/* The strips are taken one after the other where there is no function for both. */
static void few_tokens(struct stretch c, int strips, int64_t tokens, struct sums sums) {
  chunks_fn *const both = function_for(c, strips, tokens), *const one = function_for(c, 1, tokens);
  if (both) {
    both(c, sums);
    return;
  }
  one(c, sums);
  c.at += c.apart;
  one(c, (struct sums){{sums.of[1]}});
}

/* --- 2:4 chunks and many tokens: what the codes say is worked out once for all of them --- */

/* For one half of a strip and each group of some chunks: the two kept weights of each row, widened,
 * and which of four activations they meet. */
struct unfolded {
  struct {
    vf weight[2];
    vi index[2];
  } group[HALVES][PIECE * STRIP_GROUPS];
};

INLINE void unfold(struct unfolded *out, enum dtype dtype, const uint8_t *at, int64_t chunks) {
  for (int64_t c = 0; c < chunks; c++, at += STRIP_SPARSE_BYTES)
    for (int h = 0; h < HALVES; h++) {
      vi code = vi_load((const int32_t *)(const void *)at + h * VL);
      for (int g = 0; g < STRIP_GROUPS; g++, code = vi_shr(code, 4)) {
        const uint8_t *line = at + (1 + g) * STRIP_LINE_BYTES + 4 * h * VL;
        vf *w = out->group[h][c * STRIP_GROUPS + g].weight;
        vi *index = out->group[h][c * STRIP_GROUPS + g].index;
        __builtin_prefetch(line + STRIP_AHEAD_BYTES);
        vf_load_pairs(dtype, line, &w[0], &w[1]);
        index[0] = vi_pick_index(code);
        index[1] = vi_pick_index(vi_shr(code, 2));
      }
    }
}

/* Adds to the sums (tokens, STRIP_ROWS) of TOKENS_MOST tokens and one half. */
static void meet_unfolded(const struct unfolded *u, int h, int64_t chunks, const float *x,
                          int64_t x_step, float *sums) {
  vf all[TOKENS_MOST];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS_MOST; t++) all[t] = vf_load(sums + t * STRIP_ROWS);
  for (int64_t c = 0; c < chunks; c++)
    for (int g = 0; g < turns(TOKENS_MOST, STRIP_GROUPS); g++) {
      const vf *w = u->group[h][c * STRIP_GROUPS + g].weight;
      const vi first = vi_held(u->group[h][c * STRIP_GROUPS + g].index[0]);
      const vi second = vi_held(u->group[h][c * STRIP_GROUPS + g].index[1]);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS_MOST; t++) {
        const vf group = vf_broadcast4(x + c * x_step + t * STRIP_COLS + 4 * g);
        all[t] = vf_fma(w[0], vf_pick_at(group, first), all[t]);
        all[t] = vf_fma(w[1], vf_pick_at(group, second), all[t]);
      }
    }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS_MOST; t++) vf_store(sums + t * STRIP_ROWS, all[t]);
}

/* Does so for as many of at least twice TOKENS_MOST tokens as are a multiple of it; returns how
 * many. */
static int64_t unfolded_tokens(struct stretch c, int strips, int64_t tokens, const float *x,
                               struct sums sums) {
  struct unfolded u;
  if (!UNFOLDS || c.kind != STRIP_SPARSE || tokens < 2 * TOKENS_MOST) return 0;
  const int64_t count = tokens / TOKENS_MOST * TOKENS_MOST;
  for (int s = 0; s < strips; s++, c.at += c.apart) {
    if (c.dtype == DTYPE_BF16)
      unfold(&u, DTYPE_BF16, c.at, c.chunks);
    else
      unfold(&u, DTYPE_F16, c.at, c.chunks);
    for (int64_t t = 0; t < count; t += TOKENS_MOST)
      for (int h = 0; h < HALVES; h++)
        meet_unfolded(&u, h, c.chunks, x + t * STRIP_COLS, c.x_step,
                      sums.of[s] + t * STRIP_ROWS + h * VL);
  }
  return count;
}

static void all_tokens(struct stretch c, int strips, int64_t tokens, struct sums sums) {
  if (c.kind == STRIP_EMPTY) return;
  const int64_t most = c.kind == STRIP_SPARSE ? TOKENS_MOST : DENSE_TOKENS, chunks = c.chunks;
  const bool at_once = tokens <= most && function_for(c, strips, tokens);
  const int64_t piece = at_once ? chunks : PIECE;
  const float *x = c.x;
  for (int64_t done = 0; done < chunks; done += piece) {
    c.chunks = chunks - done < piece ? chunks - done : piece;
    for (int64_t t = unfolded_tokens(c, strips, tokens, x + done * c.x_step, sums); t < tokens;
         t += most) {
      const int64_t at = t * STRIP_ROWS;
      c.x = x + done * c.x_step + t * STRIP_COLS;
      few_tokens(c, strips, tokens - t < most ? tokens - t : most,
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

#include "kernel/cpu/strips_expand_body.h"

static void fill_strips(struct kernel_table *table) {
  table->strip_dot = strip_dot;
  table->strip_expand = strip_expand;
}
