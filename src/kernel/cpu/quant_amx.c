/* Batches over quantized strips with AMX.
 *
 * A group of 32 columns and 16 rows is widened to a B tile of bf16 in the first-level cache, scaled
 * on the way, so that sums over all groups stay in their tile; where rows have one scale the
 * integers themselves are widened, exactly, and y is scaled. Integer tiles take twice the columns
 * in the time but have to be emptied after each group, which took three times as long.
 *
 * An integer becomes fp32 without a conversion: as the upper bits of a mantissa it is 256 + u (of
 * eight bits) or 16 + u (of four), and the multiply-add that scales it takes that off exactly.
 *
 * Two strips and two A tiles at a time: four products for four tile loads. A piece of four chunks
 * is gone through for all strips of an item before the next, so that its activations stay in the
 * caches; each B tile is made while the tiles of the one before are multiplied. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "base/error.h"
#include "kernel/cpu/tables.h"
#include "kernel/quant_x.h"

#define INLINE static inline __attribute__((always_inline))

enum {
  PIECE = 4,                          /* chunks between loads and stores of C */
  TILES = PIECE * QUANT_CHUNK_GROUPS, /* B tiles of a strip's piece */
  PAIR = 2,
  TILE_BYTES = 1024,
  TILE_FLOATS = STRIP_ROWS * 16,
  AHEAD_BYTES = 4096
};

struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

static void configure(void) {
  struct tile_config c __attribute__((aligned(64))) = {.palette = 1};
  for (int i = 0; i < 8; i++) c.row_bytes[i] = 64, c.rows[i] = 16;
  _tile_loadconfig(&c);
}

/* --- B tiles --- */

/* How the integers of a group become weights: the bits of a mantissa that they take, what is put
 * around them, and then w = x * scale + offset. */
struct widening {
  __m512i bits, around;
  __m512 scale, offset;
};

static __m512 halves(const uint8_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Kept integers are signed: two's complement plus half its range is the sign bit turned over. */
INLINE struct widening widening_of(const struct quant_strips *w, const bool wide, const bool kept,
                                   const uint8_t *chunk, int g) {
  struct widening to;
  const uint8_t *scales = chunk + 2 * g * STRIP_ROWS;
  const __m512 one = _mm512_set1_ps(1.0f);
  const int sign = kept ? 1 << 22 : 0;
  to.bits = _mm512_set1_epi32(wide ? 0xff << 15 : 0xf << 19);
  to.around = _mm512_set1_epi32((wide ? 0x43800000 : 0x41800000) ^ sign); /* 256 or 16 */
  to.scale = w->row_scales ? one : halves(scales);
  to.offset = _mm512_mul_ps(to.scale, _mm512_set1_ps(wide ? -256 - 128 : w->mins ? -16 : -16 - 8));
  if (w->mins) to.offset = _mm512_add_ps(to.offset, halves(scales + STRIP_LINE_BYTES));
  return to;
}

/* The integers that lie `up` bits below their place in the mantissa. */
INLINE __m512 widen(const struct widening *to, __m512i x, const int up) {
  x = up >= 0 ? _mm512_slli_epi32(x, (unsigned)(up & 31))
              : _mm512_srli_epi32(x, (unsigned)(-up & 31));
  x = _mm512_ternarylogic_epi32(x, to->bits, to->around, 0x6a); /* a & b ^ c */
  return _mm512_fmadd_ps(_mm512_castsi512_ps(x), to->scale, to->offset);
}

/* Two columns of the sixteen rows as a line of a B tile, to the nearest: half of what is cut off is
 * added first. vcvtne2ps2bf16 and a permutation take half as long again. */
INLINE __m512i pairs(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32((int)0xffff0000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32((__m512i)even, half), 16);
  return _mm512_ternarylogic_epi32(_mm512_add_epi32((__m512i)odd, half), high, low, 0xea);
}

INLINE __m512i load_line(const uint8_t *line) {
  _mm_prefetch((const char *)line + AHEAD_BYTES, _MM_HINT_T0);
  return _mm512_load_si512(line);
}

/* Four integers of each row, from bit `first` of every byte on, to two lines. */
INLINE void widen_four(const struct widening *to, __m512i x, const int place, const int first,
                       __m512i out[2]) {
  out[0] = pairs(widen(to, x, place - first), widen(to, x, place - first - 8));
  out[1] = pairs(widen(to, x, place - first - 16), widen(to, x, place - first - 24));
}

enum { WIDE_PLACE = 15, NARROW_PLACE = 19 };

INLINE void spread_dense(const struct quant_strips *w, const bool wide, const uint8_t *chunk, int g,
                         uint8_t *out) {
  const int count = wide ? 8 : 4;
  const uint8_t *lines = chunk + quant_scale_bytes(w) + g * count * STRIP_LINE_BYTES;
  const struct widening to = widening_of(w, wide, false, chunk, g);
#pragma GCC unroll 8
  for (int p = 0; p < count; p++) {
    const __m512i line = load_line(lines + p * STRIP_LINE_BYTES);
    for (int half = 0; half < (wide ? 1 : 2); half++, out += 2 * STRIP_LINE_BYTES) {
      __m512i two[2];
      widen_four(&to, line, wide ? WIDE_PLACE : NARROW_PLACE, 4 * half, two);
      _mm512_store_si512(out, two[0]);
      _mm512_store_si512(out + STRIP_LINE_BYTES, two[1]);
    }
  }
}

/* For the places of two kept weights, i0 + 4 * i1, the bytes of them that make a quad's columns 0
 * and 1, and those that make columns 2 and 3; 0x80 makes a zero. */
#define NONE 0x80808080
static const uint32_t left_bytes[16] __attribute__((aligned(64))) = {
    NONE,       NONE,       NONE, NONE, 0x03020100, NONE,       NONE,       NONE,
    0x80800100, 0x01008080, NONE, NONE, 0x80800100, 0x01008080, 0x80808080, NONE};
static const uint32_t right_bytes[16] __attribute__((aligned(64))) = {
    NONE,       NONE,       NONE, NONE, 0x80808080, NONE,       NONE,       NONE,
    0x80800302, 0x80800302, NONE, NONE, 0x03028080, 0x03028080, 0x03020100, NONE};

/* The pairs of one quad to its four columns, by two bits at `bit` of the codes and two 8 above. */
INLINE void spread_quad(__m512i kept, __m512i code, const int bit, uint8_t *out) {
  const __m512i left = _mm512_load_si512(left_bytes), right = _mm512_load_si512(right_bytes);
  const __m512i lane =
      _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  const __m512i low = _mm512_srli_epi32(code, (unsigned)bit);
  const __m512i high = _mm512_srli_epi32(code, (unsigned)bit + 6);
  /* the permutations look at four bits */
  const __m512i places = _mm512_ternarylogic_epi32(_mm512_set1_epi32(3), low, high, 0xca);
  const __m512i first = _mm512_or_si512(_mm512_permutexvar_epi32(places, left), lane);
  const __m512i second = _mm512_or_si512(_mm512_permutexvar_epi32(places, right), lane);
  _mm512_store_si512(out, _mm512_shuffle_epi8(kept, first));
  _mm512_store_si512(out + STRIP_LINE_BYTES, _mm512_shuffle_epi8(kept, second));
}

INLINE void spread_sparse(const struct quant_strips *w, const bool wide, const uint8_t *chunk,
                          int g, uint8_t *out) {
  const uint8_t *lines = chunk + quant_scale_bytes(w) + g * (wide ? 5 : 3) * STRIP_LINE_BYTES;
  const struct widening to = widening_of(w, wide, true, chunk, g);
  const __m512i code = load_line(lines);
  __m512i line = code;
#pragma GCC unroll 4
  for (int set = 0; set < QUANT_SETS; set++, out += 4 * STRIP_LINE_BYTES) {
    __m512i two[2];
    if (wide || set % 2 == 0) line = load_line(lines += STRIP_LINE_BYTES);
    widen_four(&to, line, wide ? WIDE_PLACE : NARROW_PLACE, wide ? 0 : 4 * (set % 2), two);
    spread_quad(two[0], code, 2 * set, out);
    spread_quad(two[1], code, 16 + 2 * set, out + 2 * STRIP_LINE_BYTES);
  }
}

/* The B tile of a group that is to be made. */
struct origin {
  int kind; /* STRIP_EMPTY: nothing is to be made */
  int group;
  const uint8_t *chunk;
  int64_t strip, column; /* of the chunk: its number in the strip */
};

/* Chunks that are stored twice are rare: tiles that do not fit chunks, with minimums. */
static void spread_twice(const struct quant_strips *w, const struct origin *from, uint8_t *out) {
  float columns[QUANT_CHUNK_COLS * STRIP_ROWS] __attribute__((aligned(64)));
  kernel_table()->quant.expand(w, from->strip, from->column, QUANT_CHUNK_COLS, STRIP_ROWS, columns);
  const float *x = columns + (int64_t)from->group * QUANT_GROUP * STRIP_ROWS;
  for (int p = 0; p < QUANT_GROUP / 2; p++, x += 2 * STRIP_ROWS)
    _mm512_store_si512(out + p * STRIP_LINE_BYTES,
                       pairs(_mm512_load_ps(x), _mm512_load_ps(x + STRIP_ROWS)));
}

static void spread(const struct quant_strips *w, const struct origin *from, uint8_t *out) {
  const bool wide = w->type == QUANT_I8, sparse = from->kind == STRIP_SPARSE;
  if (from->kind == STRIP_EMPTY) return;
  if (from->kind == QUANT_TWICE)
    spread_twice(w, from, out);
  else if (wide && sparse)
    spread_sparse(w, true, from->chunk, from->group, out);
  else if (sparse)
    spread_sparse(w, false, from->chunk, from->group, out);
  else if (wide)
    spread_dense(w, true, from->chunk, from->group, out);
  else
    spread_dense(w, false, from->chunk, from->group, out);
}

/* --- walking a strip --- */

struct cursor {
  const uint8_t *at;
  const struct strip_run *run;
  int64_t left; /* chunks of this run */
  int64_t strip, column;
};

static struct cursor cursor_of(const struct quant_strips *w, int64_t strip) {
  const struct strip_run *run = w->runs + w->first_run[strip];
  return (struct cursor){w->data + w->offset[strip], run, run->chunks, strip, 0};
}

static const uint8_t zeros[TILE_BYTES] __attribute__((aligned(64)));

/* Two strips' next chunks. */
struct piece {
  const struct quant_strips *w;
  int64_t tiles;
  struct origin from[PAIR][TILES];
  const uint8_t *b[PAIR][TILES]; /* where the B tiles lie, or will lie */
};

static void take_chunks(struct cursor *c, const struct quant_strips *w, int64_t chunks,
                        struct origin from[TILES], const uint8_t *b[TILES], uint8_t *buffer) {
  for (int64_t i = 0, tile = 0; i < chunks; i++, c->left--, c->column++) {
    while (!c->left) c->left = (++c->run)->chunks;
    const int kind = c->run->kind;
    for (int g = 0; g < QUANT_CHUNK_GROUPS; g++, tile++) {
      from[tile] = (struct origin){kind, g, c->at, c->strip, c->column};
      b[tile] = kind == STRIP_EMPTY ? zeros : buffer + tile * TILE_BYTES;
    }
    c->at += quant_chunk_bytes(w, kind);
  }
}

/* --- products --- */

static inline void spread_pair(const struct piece *p, int64_t tile) {
  for (int s = 0; s < PAIR; s++) spread(p->w, &p->from[s][tile], (uint8_t *)p->b[s][tile]);
}

/* C (strip, tile) += A B for one or two A tiles. a: the first B tile's; the next one's are `step`
 * bytes on. c: tiles of 16 tokens x STRIP_ROWS; the second strip's are `strip_step` floats on. The
 * `first` to pass over a piece makes its B tiles. */
INLINE void multiply(const int tiles, const bool first, const struct piece *p, const uint8_t *a,
                     int64_t step, float *c, int64_t strip_step) {
  float *d = c + strip_step;
  _tile_loadd(0, c, 64);
  _tile_loadd(1, d, 64);
  if (tiles > 1) {
    _tile_loadd(2, c + TILE_FLOATS, 64);
    _tile_loadd(3, d + TILE_FLOATS, 64);
  }
  if (first) spread_pair(p, 0);
  for (int64_t i = 0; i < p->tiles; i++, a += step) {
    if (first && i + 1 < p->tiles) spread_pair(p, i + 1);
    _tile_loadd(4, p->b[0][i], 64);
    _tile_loadd(6, a, 64);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, p->b[1][i], 64);
    _tile_dpbf16ps(1, 6, 5);
    if (tiles > 1) {
      _tile_loadd(7, a + TILE_BYTES, 64);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, d, 64);
  if (tiles > 1) {
    _tile_stored(2, c + TILE_FLOATS, 64);
    _tile_stored(3, d + TILE_FLOATS, 64);
  }
}

/* All tokens times a piece: a (padded_rows) rows of its first B tile, sums (PAIR, padded_rows, 16).
 */
static void multiply_piece(const struct quant_batch *batch, const struct piece *p, const uint8_t *a,
                           float *sums) {
  const int64_t rows = batch->padded_rows, step = rows * 64, strip_step = rows * STRIP_ROWS;
  if (rows < 32)
    multiply(1, true, p, a, step, sums, strip_step);
  else
    multiply(2, true, p, a, step, sums, strip_step);
  int64_t row = 32;
  for (; row + 32 <= rows; row += 32)
    multiply(2, false, p, a + row * 64, step, sums + row * STRIP_ROWS, strip_step);
  if (row < rows) multiply(1, false, p, a + row * 64, step, sums + row * STRIP_ROWS, strip_step);
}

static void finish(const struct quant_batch *batch, int64_t strip, const float *sums, float *y,
                   int64_t ldy) {
  const struct quant_strips *w = batch->w;
  const int64_t left = w->rows - strip * STRIP_ROWS, rows = left < STRIP_ROWS ? left : STRIP_ROWS;
  const __mmask16 stored = (__mmask16)((1u << rows) - 1);
  __m512 scale = _mm512_set1_ps(1.0f);
  if (w->row_scales) scale = _mm512_loadu_ps(w->row_scales + strip * STRIP_ROWS);
  for (int64_t t = 0; t < batch->tokens; t++)
    _mm512_mask_storeu_ps(y + t * ldy, stored,
                          _mm512_mul_ps(_mm512_loadu_ps(sums + t * STRIP_ROWS), scale));
}

/* An odd strip out is paired with itself; its second sums are thrown away. */
static void batch_dot(const struct quant_batch *batch, int64_t first, int64_t count, float *y,
                      int64_t ldy, float *sums) {
  const struct quant_strips *w = batch->w;
  const int64_t strip_floats = batch->padded_rows * STRIP_ROWS;
  const int64_t even = (count + 1) / PAIR * PAIR;
  uint8_t buffer[PAIR][TILES * TILE_BYTES] __attribute__((aligned(64)));
  struct cursor cursors[QUANT_BATCH_STRIPS];
  INVARIANT(even <= QUANT_BATCH_STRIPS);
  for (int64_t s = 0; s < even; s++) cursors[s] = cursor_of(w, first + (s < count ? s : count - 1));
  memset(sums, 0, (size_t)(even * strip_floats) * sizeof *sums);
  configure();
  for (int64_t chunk = 0; chunk < w->chunks; chunk += PIECE) {
    const int64_t left = w->chunks - chunk, chunks = left < PIECE ? left : PIECE;
    const uint8_t *a =
        (const uint8_t *)batch->x + chunk * QUANT_CHUNK_GROUPS * batch->padded_rows * 64;
    for (int64_t s = 0; s < even; s += PAIR) {
      struct piece piece;
      piece.w = w;
      piece.tiles = chunks * QUANT_CHUNK_GROUPS;
      for (int i = 0; i < PAIR; i++)
        take_chunks(&cursors[s + i], w, chunks, piece.from[i], piece.b[i], buffer[i]);
      multiply_piece(batch, &piece, a, sums + s * strip_floats);
    }
  }
  _tile_release();
  for (int64_t s = 0; s < count; s++)
    finish(batch, first + s, sums + s * strip_floats, y + s * STRIP_ROWS, ldy);
}

/* --- activations --- */

static void batch_round(const struct quant_batch *batch, const float *x, int64_t chunk) {
  const int64_t rows = batch->padded_rows, cols = batch->w->cols;
  for (int64_t g = 0; g < QUANT_CHUNK_GROUPS; g++) {
    const int64_t col = chunk * QUANT_CHUNK_COLS + g * QUANT_GROUP;
    uint8_t *out = (uint8_t *)batch->x + (chunk * QUANT_CHUNK_GROUPS + g) * rows * 64;
    for (int64_t t = 0; t < batch->tokens; t++)
      for (int64_t half = 0; half < 2; half++) {
        const int64_t at = col + 16 * half, left = cols - at;
        const __mmask16 there = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        const __m512 part = _mm512_maskz_loadu_ps(there, x + t * cols + at);
        _mm256_store_si256((__m256i *)(void *)(out + t * 64 + 32 * half),
                           (__m256i)_mm512_cvtneps_pbh(part));
      }
    memset(out + batch->tokens * 64, 0, (size_t)(rows - batch->tokens) * 64);
  }
}

void quant_fill_amx(struct kernel_table *table) {
  table->quant.batch_dot = batch_dot;
  table->quant.batch_round = batch_round;
}
#endif
