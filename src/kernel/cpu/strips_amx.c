/* Batches over strips of bf16 weights with AMX.
 *
 * A dense chunk is a B tile as it lies; a 2:4 chunk is spread to one with its zeros, in the
 * first-level cache, by byte shuffles that its codes choose. Activations are A tiles: fp32 ones are
 * cut into three bf16 parts that add up to them exactly (24 bits = 8 + 8 + 8), a row of the tile
 * for each part, so that the products are exact and only the fp32 sums round, as with fp32
 * multiply-adds. Three times the work is free as long as memory cannot deliver weights any faster.
 *
 * Two strips, read abreast, and two A tiles at a time: four products for four tile loads. A batch
 * of up to three A tiles goes once from the front of both strips to their end. A larger one comes
 * back to each piece of sixteen chunks, which is gone through for all strips of an item before
 * the next, so that its activations are read from the second-level cache. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "base/error.h"
#include "kernel/cpu/tables.h"
#include "kernel/strip_batch.h"

enum {
  PIECE = 16, /* chunks between loads and stores of C, for batches that come back to them */
  PAIR = 2,
  TILE_ROWS = 16,
  PASS_ROWS = 2 * TILE_ROWS, /* that meet a chunk at a time, */
  ONCE_ROWS = 3 * TILE_ROWS, /* or when there are no more */
  TILES_AHEAD_BYTES = 2048
};

struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

/* Tiles 4 and 5 are B, unless there are three A tiles; the others C and A. Rows of A that are not
 * there cost no time. */
static void configure(int64_t rows) {
  struct tile_config c __attribute__((aligned(64))) = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = 64;
    c.rows[i] = i == 4 || i == 5 || rows > TILE_ROWS ? TILE_ROWS : (uint8_t)rows;
  }
  _tile_loadconfig(&c);
}

/* --- 2:4 chunks to B tiles --- */

/* For each code the bytes of its two kept weights that make a group's columns 0 and 1, and those
 * that make columns 2 and 3; 0x80 makes a zero. */
static const uint32_t left_bytes[16] __attribute__((aligned(64))) = {
    0x80800100, 0x01000302, 0x80800302, 0x80800302, 0x03020100, 0x01008080, 0x03028080, 0x03028080,
    0x80800100, 0x01008080, 0x80808080, 0x80808080, 0x80800100, 0x01008080, 0x80808080, 0x80808080};
static const uint32_t right_bytes[16] __attribute__((aligned(64))) = {
    0x80808080, 0x80808080, 0x80800100, 0x01008080, 0x80808080, 0x80808080, 0x80800100, 0x01008080,
    0x80800302, 0x80800302, 0x80800100, 0x01000302, 0x03028080, 0x03028080, 0x03020100, 0x01008080};

static void spread_chunk(const uint8_t *at, uint8_t *out) {
  const __m512i low = _mm512_load_si512(left_bytes), high = _mm512_load_si512(right_bytes);
  const __m512i lane =
      _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  __m512i code = _mm512_load_si512(at);
#pragma GCC unroll 8
  for (int g = 0; g < STRIP_GROUPS; g++, out += 2 * STRIP_LINE_BYTES) {
    const __m512i kept = _mm512_load_si512(at + (1 + g) * STRIP_LINE_BYTES);
    const __m512i first = _mm512_or_si512(_mm512_permutexvar_epi32(code, low), lane);
    const __m512i second = _mm512_or_si512(_mm512_permutexvar_epi32(code, high), lane);
    _mm512_store_si512(out, _mm512_shuffle_epi8(kept, first));
    _mm512_store_si512(out + STRIP_LINE_BYTES, _mm512_shuffle_epi8(kept, second));
    code = _mm512_srli_epi32(code, 4);
  }
}

/* --- walking a strip --- */

struct cursor {
  const uint8_t *at;
  const struct strip_run *run;
  int64_t left; /* chunks of this run */
};

static struct cursor cursor_of(const struct strip_matrix *w, int64_t strip) {
  const struct strip_run *run = w->runs + w->first_run[strip];
  return (struct cursor){w->data + w->offset[strip], run, run->chunks};
}

static const uint8_t zeros[STRIP_DENSE_BYTES] __attribute__((aligned(64)));

/* The next chunk's B tile, in memory or, when it is 2:4, in `buffer`. */
static inline const uint8_t *next_tile(struct cursor *c, uint8_t *buffer) {
  while (!c->left) c->left = (++c->run)->chunks;
  const enum strip_kind kind = c->run->kind;
  const int64_t bytes = strip_kind_bytes(kind);
  const uint8_t *at = c->at;
  for (int64_t b = 0; b < bytes; b += STRIP_LINE_BYTES)
    _mm_prefetch(at + TILES_AHEAD_BYTES + b, _MM_HINT_T0);
  c->at += bytes;
  c->left--;
  if (kind == STRIP_EMPTY) return zeros;
  if (kind == STRIP_DENSE) return at;
  spread_chunk(at, buffer);
  return buffer;
}

/* --- products --- */

enum { TILE_FLOATS = STRIP_ROWS * TILE_ROWS };

/* Two strips' next chunks: where their B tiles lie, and room for those of 2:4 chunks. */
struct piece {
  int64_t chunks;
  const uint8_t *b[PIECE][PAIR];
  uint8_t buffer[PIECE][PAIR][STRIP_DENSE_BYTES] __attribute__((aligned(64)));
};

static inline void take_chunk(struct piece *p, struct cursor cursors[PAIR], int64_t slot) {
  for (int s = 0; s < PAIR; s++) p->b[slot][s] = next_tile(&cursors[s], p->buffer[slot][s]);
}

/* C (strip, tile) += A B for one or two A tiles. a: the first chunk's; the next chunk's are `step`
 * bytes on. c: tiles of 16 token rows x STRIP_ROWS; the second strip's are `strip_step` floats on.
 * With cursors the chunks are taken from there, each while the tiles of the one before are
 * multiplied, into the first `slots` (a power of two) of the piece in turn; without, they are
 * there.
 */
static inline __attribute__((always_inline)) void multiply(const int tiles, struct cursor *cursors,
                                                           int64_t slots, struct piece *p,
                                                           const uint8_t *a, int64_t step, float *c,
                                                           int64_t strip_step) {
  float *d = c + strip_step;
  _tile_loadd(0, c, 64);
  _tile_loadd(1, d, 64);
  if (tiles > 1) {
    _tile_loadd(2, c + TILE_FLOATS, 64);
    _tile_loadd(3, d + TILE_FLOATS, 64);
  }
  if (cursors) take_chunk(p, cursors, 0);
  for (int64_t i = 0; i < p->chunks; i++, a += step) {
    const uint8_t *const *b = p->b[i & (slots - 1)];
    if (cursors && i + 1 < p->chunks) take_chunk(p, cursors, (i + 1) & (slots - 1));
    _tile_loadd(4, b[0], 64);
    _tile_loadd(6, a, 64);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, b[1], 64);
    _tile_dpbf16ps(1, 6, 5);
    if (tiles > 1) {
      _tile_loadd(7, a + 1024, 64);
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

/* The same for three A tiles, which leave room for one tile of each operand. */
static inline void multiply_three(struct cursor cursors[PAIR], struct piece *p, const uint8_t *a,
                                  int64_t step, float *c, int64_t strip_step) {
  float *d = c + strip_step;
  _tile_loadd(0, c, 64);
  _tile_loadd(1, c + TILE_FLOATS, 64);
  _tile_loadd(2, c + 2 * TILE_FLOATS, 64);
  _tile_loadd(3, d, 64);
  _tile_loadd(4, d + TILE_FLOATS, 64);
  _tile_loadd(5, d + 2 * TILE_FLOATS, 64);
  take_chunk(p, cursors, 0);
  for (int64_t i = 0; i < p->chunks; i++, a += step) {
    const uint8_t *const *b = p->b[i & 1];
    if (i + 1 < p->chunks) take_chunk(p, cursors, (i + 1) & 1);
    _tile_loadd(6, b[0], 64);
    _tile_loadd(7, a, 64);
    _tile_dpbf16ps(0, 7, 6);
    _tile_loadd(7, a + 1024, 64);
    _tile_dpbf16ps(1, 7, 6);
    _tile_loadd(7, a + 2048, 64);
    _tile_dpbf16ps(2, 7, 6);
    _tile_loadd(6, b[1], 64);
    _tile_dpbf16ps(5, 7, 6);
    _tile_loadd(7, a + 1024, 64);
    _tile_dpbf16ps(4, 7, 6);
    _tile_loadd(7, a, 64);
    _tile_dpbf16ps(3, 7, 6);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + TILE_FLOATS, 64);
  _tile_stored(2, c + 2 * TILE_FLOATS, 64);
  _tile_stored(3, d, 64);
  _tile_stored(4, d + TILE_FLOATS, 64);
  _tile_stored(5, d + 2 * TILE_FLOATS, 64);
}

/* All tokens times a piece: a (padded_rows) rows of its first chunk, sums (PAIR, padded_rows, 16).
 */
static void multiply_piece(const struct strip_batch *batch, struct cursor cursors[PAIR],
                           struct piece *p, const uint8_t *a, float *sums) {
  const int64_t rows = batch->padded_rows, step = rows * 64, strip_step = rows * STRIP_ROWS;
  if (rows <= TILE_ROWS)
    multiply(1, cursors, 2, p, a, step, sums, strip_step);
  else if (rows <= PASS_ROWS)
    multiply(2, cursors, 2, p, a, step, sums, strip_step);
  else if (rows <= ONCE_ROWS)
    multiply_three(cursors, p, a, step, sums, strip_step);
  else
    multiply(2, cursors, PIECE, p, a, step, sums, strip_step);
  int64_t row = rows <= ONCE_ROWS ? rows : PASS_ROWS;
  for (; row + PASS_ROWS <= rows; row += PASS_ROWS)
    multiply(2, NULL, PIECE, p, a + row * 64, step, sums + row * STRIP_ROWS, strip_step);
  if (row < rows)
    multiply(1, NULL, PIECE, p, a + row * 64, step, sums + row * STRIP_ROWS, strip_step);
}

/* Adds up the parts of each token, the smallest first. */
static void finish(const struct strip_batch *batch, int64_t strip, const float *sums, float *y,
                   int64_t ldy) {
  const int64_t left = batch->w->rows - strip * STRIP_ROWS;
  const int64_t rows = left < STRIP_ROWS ? left : STRIP_ROWS;
  const __mmask16 stored = (__mmask16)((1u << rows) - 1);
  for (int64_t t = 0; t < batch->tokens; t++) {
    __m512 sum = _mm512_setzero_ps();
    for (int p = batch->parts - 1; p >= 0; p--)
      sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + (p * batch->tokens + t) * STRIP_ROWS));
    _mm512_mask_storeu_ps(y + t * ldy, stored, sum);
  }
}

/* An odd strip out is paired with itself; its second sums are thrown away. */
static void strip_batch(const struct strip_batch *batch, int64_t first, int64_t count, float *y,
                        int64_t ldy, float *sums) {
  const struct strip_matrix *w = batch->w;
  const int64_t strip_floats = batch->padded_rows * STRIP_ROWS;
  const int64_t most = batch->padded_rows <= ONCE_ROWS ? w->chunks : PIECE;
  struct piece piece;
  struct cursor cursors[STRIP_BATCH_STRIPS];
  const int64_t even = (count + 1) / PAIR * PAIR;
  INVARIANT(even <= STRIP_BATCH_STRIPS);
  for (int64_t s = 0; s < even; s++) cursors[s] = cursor_of(w, first + (s < count ? s : count - 1));
  memset(sums, 0, (size_t)(even * strip_floats) * sizeof *sums);
  configure(batch->padded_rows);
  for (int64_t chunk = 0; chunk < w->chunks; chunk += most) {
    const int64_t left = w->chunks - chunk;
    const uint8_t *a = (const uint8_t *)batch->x + chunk * batch->padded_rows * 64;
    piece.chunks = left < most ? left : most;
    for (int64_t s = 0; s < even; s += PAIR)
      multiply_piece(batch, cursors + s, &piece, a, sums + s * strip_floats);
  }
  _tile_release();
  for (int64_t s = 0; s < count; s++)
    finish(batch, first + s, sums + s * strip_floats, y + s * STRIP_ROWS, ldy);
}

/* --- activations --- */

static inline __m512 widen(__m256bh x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16));
}

/* One token's columns of a chunk, cut into parts that lie `apart` bytes from each other. */
static void put_parts(const float *x, int64_t cols, int parts, uint8_t *out, int64_t apart) {
  for (int64_t half = 0; half < STRIP_COLS; half += 16, out += 32) {
    const int64_t left = cols - half;
    const __mmask16 there = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
    __m512 rest = _mm512_maskz_loadu_ps(there, x + half);
    for (int p = 0; p < parts; p++) {
      const __m256bh part = _mm512_cvtneps_pbh(rest);
      _mm256_storeu_si256((__m256i *)(void *)(out + p * apart), (__m256i)part);
      rest = _mm512_sub_ps(rest, widen(part));
    }
  }
}

static void strip_parts(const struct strip_batch *batch, const float *x, int64_t chunk) {
  const int64_t rows = batch->padded_rows, used = batch->parts * batch->tokens;
  const int64_t col = chunk * STRIP_COLS, cols = batch->w->cols;
  uint8_t *out = (uint8_t *)batch->x + chunk * rows * 64;
  for (int64_t t = 0; t < batch->tokens; t++)
    put_parts(x + t * cols + col, cols - col, batch->parts, out + t * 64, batch->tokens * 64);
  memset(out + used * 64, 0, (size_t)(rows - used) * 64);
}

void strips_fill_amx(struct kernel_table *table) {
  table->strip_batch = strip_batch;
  table->strip_parts = strip_parts;
}
#endif
