/* The kernels of the products in the vector vocabulary: included by product_avx2.c and
 * product_avx512.c after their vec_*.h. Contracts: kernel/select.h. */
#include "base/error.h"
#include "kernel/select.h"

enum { TILE_COLS = TILE_VECTORS * VL };

/* --- the tile of C --- */

/* `rows` is a constant at every call. The sums stay in registers: TILE_ROWS x TILE_VECTORS of them,
 * enough to keep both multiply-add units busy over their latency. */
INLINE void tile_of(const int rows, int64_t k, const float *a, int64_t row_step, int64_t k_step,
                    const float *b, float alpha, float *c, int64_t ldc, int cols, bool add) {
  vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) {
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + TILE_COLS - 1, 1);
    sum[i][0] = sum[i][1] = vf_zero();
  }
  /* One pointer for three rows, which the address modes reach with a step or two: with one pointer
   * for all, twelve offsets do not fit the registers and are reloaded in every turn. */
  const float *at[4];
  for (int i = 0; i < 4; i++) at[i] = a + (3 * i < rows ? 3 * i : 0) * row_step;
  for (int64_t p = 0; p < k; p++) {
    vf b0 = vf_load(b), b1 = vf_load(b + VL);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
      vf x = vf_set(at[i / 3][i % 3 * row_step]);
      sum[i][0] = vf_fma(x, b0, sum[i][0]);
      sum[i][1] = vf_fma(x, b1, sum[i][1]);
    }
    for (int i = 0; i < 4; i++) at[i] += k_step;
    b += TILE_COLS;
  }
  vf factor = vf_set(alpha);
  int64_t left = cols < VL ? cols : VL, right = cols - left;
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++, c += ldc) {
    vf x0 = vf_mul(factor, sum[i][0]), x1 = vf_mul(factor, sum[i][1]);
    if (cols == TILE_COLS) {
      vf_store(c, add ? vf_add(vf_load(c), x0) : x0);
      vf_store(c + VL, add ? vf_add(vf_load(c + VL), x1) : x1);
    } else {
      vf_store_part(c, left, add ? vf_add(vf_load_part(c, left), x0) : x0);
      vf_store_part(c + VL, right, add ? vf_add(vf_load_part(c + VL, right), x1) : x1);
    }
  }
}

static void tile(int64_t k, const float *a, int64_t row_step, int64_t k_step, const float *b,
                 float alpha, float *c, int64_t ldc, int rows, int cols, bool add) {
#define TILE_CASE(n)                                                 \
  case n:                                                            \
    tile_of(n, k, a, row_step, k_step, b, alpha, c, ldc, cols, add); \
    break
  switch (rows) {
    TILE_CASE(1);
    TILE_CASE(2);
    TILE_CASE(3);
    TILE_CASE(4);
    TILE_CASE(5);
    TILE_CASE(6);
#if TILE_ROWS == 12
    TILE_CASE(7);
    TILE_CASE(8);
    TILE_CASE(9);
    TILE_CASE(10);
    TILE_CASE(11);
    TILE_CASE(12);
#endif
    default:
      INVARIANT(rows >= 1 && rows <= TILE_ROWS);
  }
#undef TILE_CASE
}

/* --- packing --- */

/* Four columns of VL rows: 4 x 4 transposes in each 128-bit lane give VL contiguous rows. */
INLINE void transpose_quad(const float *source, int64_t ld, int64_t width, float *out) {
  vf x[4];
  for (int i = 0; i < 4; i++) x[i] = vf_load_quads(source + i * ld, ld);
  vf_transpose_quads(x);
  for (int i = 0; i < 4; i++) vf_store(out + i * width, x[i]);
}

/* The rows from `first` on, fewer than VL or fewer columns than four: by way of a block of VL rows
 * in which what is missing is zero. */
static void pack_ragged(const float *source, int64_t ld, int64_t first, int64_t count, int64_t k0,
                        int64_t k, int64_t width, float *out) {
  enum { STEPS = 64 };
  float block[VL * STEPS] = {0};
  int64_t lanes = width - first < VL ? width - first : VL;
  for (int64_t p0 = k0; p0 < k; p0 += STEPS) {
    int64_t steps = k - p0 < STEPS ? k - p0 : STEPS;
    for (int64_t i = 0; i < VL && first + i < count; i++)
      memcpy(block + i * STEPS, source + (first + i) * ld + p0, (size_t)steps * sizeof(float));
    for (int64_t p = 0; p < steps; p += 4) {
      vf x[4];
      for (int i = 0; i < 4; i++) x[i] = vf_load_quads(block + i * STEPS + p, STEPS);
      vf_transpose_quads(x);
      for (int64_t i = 0; i < 4 && p + i < steps; i++)
        vf_store_part(out + (p0 + p + i) * width + first, lanes, x[i]);
    }
  }
}

static void pack_transposed(const float *source, int64_t ld, int64_t count, int64_t k,
                            int64_t width, float *out) {
  int64_t whole = count / VL * VL, quads = k / 4 * 4;
  for (int64_t p = 0; p < quads; p += 4)
    for (int64_t i = 0; i < whole; i += VL)
      transpose_quad(source + i * ld + p, ld, width, out + p * width + i);
  for (int64_t i = 0; i < whole && quads < k; i += VL)
    pack_ragged(source, ld, i, count, quads, k, width, out);
  for (int64_t i = whole; i < width; i += VL) pack_ragged(source, ld, i, count, 0, k, width, out);
}

INLINE vf load_lanes(const float *from, int64_t count) {
  return count >= VL ? vf_load(from) : vf_load_part(from, count);
}

/* A row of `count` floats as `width`. With `over`, whole vectors are written even where the last
 * one reaches into the row behind: a store by mask costs some ten times as much on AVX2. */
INLINE void copy_row(const float *from, int64_t count, int64_t width, const bool over, float *to) {
  for (int64_t i = 0; i < width; i += VL) {
    const int64_t lanes = width - i < VL ? width - i : VL, left = count - i < 0 ? 0 : count - i;
    const vf x = load_lanes(from + i, left < lanes ? left : lanes);
    if (over || lanes == VL)
      vf_store(to + i, x);
    else
      vf_store_part(to + i, lanes, x);
  }
}

static void pack_copied(const float *source, int64_t ld, int64_t count, int64_t k, int64_t width,
                        float *out) {
  const bool room = width >= VL - width % VL; /* a row has room for what the one before writes */
  for (int64_t p = 0; p + 1 < k; p++, source += ld, out += width)
    if (room)
      copy_row(source, count, width, true, out);
    else
      copy_row(source, count, width, false, out);
  if (k > 0) copy_row(source, count, width, false, out);
}

INLINE const void *element(enum dtype dtype, const void *base, int64_t index) {
  return (const char *)base + index * (dtype == DTYPE_F32 ? 4 : 2);
}

/* The first n < VL elements, widened; the rest zero. */
INLINE vf load_part_as(enum dtype dtype, const void *p, int64_t n) {
  if (dtype == DTYPE_F32) return vf_load_part(p, n);
  uint16_t half[VL] = {0};
  for (int64_t i = 0; i < n; i++) half[i] = ((const uint16_t *)p)[i];
  return vf_load_as(dtype, half);
}

INLINE void widen_as(enum dtype dtype, const void *source, int64_t count, float *out) {
  int64_t i = 0;
  for (; i + VL <= count; i += VL) vf_store(out + i, vf_load_as(dtype, element(dtype, source, i)));
  if (i < count)
    vf_store_part(out + i, count - i, load_part_as(dtype, element(dtype, source, i), count - i));
}

/* Calls fn with the dtype as a constant. */
#define FOR_DTYPE(dtype, fn, ...)  \
  do {                             \
    if ((dtype) == DTYPE_F32)      \
      fn(DTYPE_F32, __VA_ARGS__);  \
    else if ((dtype) == DTYPE_F16) \
      fn(DTYPE_F16, __VA_ARGS__);  \
    else                           \
      fn(DTYPE_BF16, __VA_ARGS__); \
  } while (0)

static void widen(enum dtype dtype, const void *source, int64_t count, float *out) {
  FOR_DTYPE(dtype, widen_as, source, count, out);
}

/* 2 * VL bits of nibbles from nibble `first` on; VL / 2 of them exist. */
INLINE uint32_t codes_at(const uint8_t *codes, int64_t first) {
  uint32_t word = 0;
  const uint8_t *p = codes + first / 2;
  memcpy(&word, p, VL / 4);
  if (first % 2) word = word >> 4 | (uint32_t)p[VL / 4] << (2 * VL - 4);
  return word;
}

INLINE uint8_t code_at(const uint8_t *codes, int64_t i) {
  return i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

INLINE void expand_as(enum dtype dtype, const void *values, const uint8_t *codes, int64_t nibble,
                      int64_t count, float *out) {
  int64_t c = 0;
  for (; c + 2 * VL <= count; c += 2 * VL)
    spread(vf_load_as(dtype, element(dtype, values, c / 2)), codes_at(codes, nibble + c / 4),
           out + c);
  for (; c < count; c += 4) {
    float group[4] = {0}, pair[2];
    uint8_t code = code_at(codes, nibble + c / 4);
    widen_as(dtype, element(dtype, values, c / 2), 2, pair);
    group[code & 3] = pair[0];
    group[code >> 2] = pair[1];
    memcpy(out + c, group, (size_t)(count - c < 4 ? count - c : 4) * sizeof(float));
  }
}

static void expand_groups(enum dtype dtype, const void *values, const uint8_t *codes,
                          int64_t nibble, int64_t count, float *out) {
  FOR_DTYPE(dtype, expand_as, values, codes, nibble, count, out);
}

/* --- few tokens --- */

/* `rows` rows times `tokens` tokens, both constants: each weight is loaded and widened once. The
 * next rows are asked for ahead of time, which the hardware's own prefetch does too late. */
INLINE void dot_block(enum dtype dtype, const int rows, const int tokens, const void *w, int64_t ld,
                      int64_t cols, const float *x, int64_t ldx, float *y, int64_t ldy) {
  vf sum[4][SKINNY_TOKENS_MAX];
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++) sum[r][t] = vf_zero();
  int64_t c = 0;
  for (; c + VL <= cols; c += VL)
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      const char *at = element(dtype, w, r * ld + c);
      __builtin_prefetch(at + rows * ld * (dtype == DTYPE_F32 ? 4 : 2));
      vf weight = vf_load_as(dtype, at);
#pragma GCC unroll 8
      for (int t = 0; t < tokens; t++)
        sum[r][t] = vf_fma(weight, vf_load(x + t * ldx + c), sum[r][t]);
    }
  for (int r = 0; r < rows; r++) {
    vf weight = vf_zero();
    if (c < cols) weight = load_part_as(dtype, element(dtype, w, r * ld + c), cols - c);
    for (int t = 0; t < tokens; t++) {
      if (c < cols) sum[r][t] = vf_fma(weight, vf_load_part(x + t * ldx + c, cols - c), sum[r][t]);
      y[t * ldy + r] = vf_sum(sum[r][t]);
    }
  }
}

INLINE void dot_tokens(enum dtype dtype, const int tokens, const void *w, int64_t ld, int64_t rows,
                       int64_t cols, const float *x, int64_t ldx, float *y, int64_t ldy) {
  const int together = tokens <= VL / 4 ? 4 : VL == 16 || tokens <= 4 ? 2 : 1;
  int64_t r = 0;
  for (; r + together <= rows; r += together)
    dot_block(dtype, together, tokens, element(dtype, w, r * ld), ld, cols, x, ldx, y + r, ldy);
  for (; r < rows; r++)
    dot_block(dtype, 1, tokens, element(dtype, w, r * ld), ld, cols, x, ldx, y + r, ldy);
}

/* Calls fn with the number of tokens as a constant. */
#define FOR_TOKENS(dtype, tokens, fn, ...) \
  switch (tokens) {                        \
    case 1:                                \
      fn(dtype, 1, __VA_ARGS__);           \
      break;                               \
    case 2:                                \
      fn(dtype, 2, __VA_ARGS__);           \
      break;                               \
    case 3:                                \
      fn(dtype, 3, __VA_ARGS__);           \
      break;                               \
    case 4:                                \
      fn(dtype, 4, __VA_ARGS__);           \
      break;                               \
    case 5:                                \
      fn(dtype, 5, __VA_ARGS__);           \
      break;                               \
    case 6:                                \
      fn(dtype, 6, __VA_ARGS__);           \
      break;                               \
    case 7:                                \
      fn(dtype, 7, __VA_ARGS__);           \
      break;                               \
    default:                               \
      fn(dtype, 8, __VA_ARGS__);           \
      break;                               \
  }

INLINE void dot_rows_as(enum dtype dtype, const void *w, int64_t ld, int64_t rows, int64_t cols,
                        const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy) {
  FOR_TOKENS(dtype, tokens, dot_tokens, w, ld, rows, cols, x, ldx, y, ldy);
}

static void dot_rows(enum dtype dtype, const void *w, int64_t ld, int64_t rows, int64_t cols,
                     const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy) {
  FOR_DTYPE(dtype, dot_rows_as, w, ld, rows, cols, x, ldx, tokens, y, ldy);
}

/* --- few tokens, hybrid --- */

/* How far ahead of the kept weights to ask for more: tiles are stored whole, so what comes next in
 * memory is what is read next. */
enum { AHEAD_BYTES = 4096 };

/* One row of a 2:4 tile: `groups` groups, nibbles from `nibble` on; x from the tile's first column.
 * sums (tokens, VL) are added to. */
INLINE void sparse_row(enum dtype dtype, const int tokens, const void *values, const uint8_t *codes,
                       int64_t nibble, int64_t groups, const float *x, int64_t ldx, float *sums) {
  vf sum[SKINNY_TOKENS_MAX];
  for (int t = 0; t < tokens; t++) sum[t] = vf_load(sums + t * VL);
  int64_t g = 0;
  for (; g + VL / 2 <= groups; g += VL / 2) {
    const char *at = element(dtype, values, 2 * g);
    __builtin_prefetch(at + AHEAD_BYTES);
    vf weight = vf_load_as(dtype, at);
    vi index = pick_index(codes_at(codes, nibble + g));
    for (int t = 0; t < tokens; t++)
      sum[t] = vf_fma(weight, pick(x + t * ldx + 4 * g, index), sum[t]);
  }
  for (int t = 0; t < tokens; t++) vf_store(sums + t * VL, sum[t]);
  for (; g < groups; g++) {
    float pair[2];
    uint8_t code = code_at(codes, nibble + g);
    widen_as(dtype, element(dtype, values, 2 * g), 2, pair);
    for (int t = 0; t < tokens; t++) {
      const float *group = x + t * ldx + 4 * g;
      sums[t * VL] += pair[0] * group[code & 3];
      sums[t * VL + 1] += pair[1] * group[code >> 2];
    }
  }
}

INLINE void dense_row(enum dtype dtype, const int tokens, const void *w, int64_t cols,
                      const float *x, int64_t ldx, float *sums) {
  vf sum[SKINNY_TOKENS_MAX];
  for (int t = 0; t < tokens; t++) sum[t] = vf_load(sums + t * VL);
  int64_t c = 0;
  for (; c + VL <= cols; c += VL) {
    const char *at = element(dtype, w, c);
    __builtin_prefetch(at + AHEAD_BYTES);
    vf weight = vf_load_as(dtype, at);
    for (int t = 0; t < tokens; t++) sum[t] = vf_fma(weight, vf_load(x + t * ldx + c), sum[t]);
  }
  if (c < cols) {
    vf weight = load_part_as(dtype, element(dtype, w, c), cols - c);
    for (int t = 0; t < tokens; t++)
      sum[t] = vf_fma(weight, vf_load_part(x + t * ldx + c, cols - c), sum[t]);
  }
  for (int t = 0; t < tokens; t++) vf_store(sums + t * VL, sum[t]);
}

/* Tile by tile, as they lie in memory; each row's sums (tokens, VL) wait in `sums` meanwhile. */
INLINE void hybrid_rows(enum dtype dtype, const int tokens, const struct hybrid_matrix *h,
                        int64_t first, int64_t count, const float *x, int64_t ldx, float *y,
                        int64_t ldy, float *sums) {
  memset(sums, 0, (size_t)(count * tokens * VL) * sizeof(float));
  int64_t per_row = hybrid_tile_cols(h), begin = first / h->tile_rows * per_row;
  for (int64_t tile_index = begin; tile_index < begin + per_row; tile_index++) {
    struct tile_box box = hybrid_tile_box(h, tile_index);
    int64_t inner = first - box.row, offset = h->tile_offset[tile_index];
    int64_t groups = (box.cols + 3) / 4;
    const float *at = x + box.col;
    if (hybrid_tile_dense(h, tile_index))
      for (int64_t r = 0; r < count; r++)
        dense_row(dtype, tokens, element(dtype, h->dense, offset + (inner + r) * box.cols),
                  box.cols, at, ldx, sums + r * tokens * VL);
    else
      for (int64_t r = 0; r < count; r++)
        sparse_row(dtype, tokens, element(dtype, h->values, offset + 2 * (inner + r) * groups),
                   h->codes + h->code_offset[tile_index], (inner + r) * groups, groups, at, ldx,
                   sums + r * tokens * VL);
  }
  for (int64_t r = 0; r < count; r++)
    for (int t = 0; t < tokens; t++) y[t * ldy + r] = vf_sum(vf_load(sums + (r * tokens + t) * VL));
}

INLINE void hybrid_as(enum dtype dtype, const struct hybrid_matrix *h, int64_t first, int64_t count,
                      const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy,
                      float *sums) {
  FOR_TOKENS(dtype, tokens, hybrid_rows, h, first, count, x, ldx, y, ldy, sums);
}

static void hybrid_dot_rows(const struct hybrid_matrix *h, int64_t first, int64_t count,
                            const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy,
                            float *sums) {
  FOR_DTYPE(h->dtype, hybrid_as, h, first, count, x, ldx, tokens, y, ldy, sums);
}

static void fill_product(struct kernel_table *table) {
  table->tile_rows = TILE_ROWS;
  table->tile_cols = TILE_COLS;
  table->tile = tile;
  table->pack_transposed = pack_transposed;
  table->pack_copied = pack_copied;
  table->widen = widen;
  table->dot_rows = dot_rows;
  table->hybrid_dot_rows = hybrid_dot_rows;
  table->expand_groups = expand_groups;
}
