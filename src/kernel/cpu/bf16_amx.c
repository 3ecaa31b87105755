/* The product of bf16 operands on AMX tiles; packing is that of AVX-512 BF16.
 *
 * Tiles 0 to 3 hold 32 x 32 of C, 4 and 5 two chunks of A, 6 and 7 two of B: each chunk that is
 * loaded meets two others, so that loads keep up with the products as long as B stays in the
 * first-level cache and A in the second. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"

enum { TILE_BYTES = 64, CHUNK_PAIRS = BF16_CHUNK / 2 };

struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} __attribute__((aligned(64)));

static const struct tile_config all_whole = {
    .palette = 1,
    .row_bytes = {TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES,
                  TILE_BYTES, TILE_BYTES},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

/* Part of C from a tile that could not be stored in place. */
static void merge(const struct bf16_block *x, const float *tile, int64_t i, int64_t j) {
  const vf alpha = vf_set(x->alpha);
  int64_t rows = x->rows - i < BF16_SIDE ? x->rows - i : BF16_SIDE;
  int64_t cols = x->cols - j < BF16_SIDE ? x->cols - j : BF16_SIDE;
  for (int64_t r = 0; r < rows; r++) {
    float *c = x->c + (i + r) * x->ldc + j;
    vf y = vf_mul(alpha, vf_load(tile + r * BF16_SIDE));
    vf_store_part(c, cols, x->add ? vf_add(vf_load_part(c, cols), y) : y);
  }
}

/* Tile numbers must be constants, so what is done to each of the four is a macro. */
#define C_OF(x, i, j) ((x)->c + (i) * (x)->ldc + (j))
#define TILE_BEGIN(t, i, j)                                          \
  do {                                                               \
    if (in_place && x->add)                                          \
      _tile_loadd(t, C_OF(x, i, j), (size_t)x->ldc * sizeof(float)); \
    else                                                             \
      _tile_zero(t);                                                 \
  } while (0)
#define TILE_END(t, i, j)                                             \
  do {                                                                \
    if (in_place && stream) {                                         \
      _tile_stored(t, room, TILE_BYTES);                              \
      stream_out(C_OF(x, i, j), x->ldc, room);                        \
    } else if (in_place) {                                            \
      _tile_stored(t, C_OF(x, i, j), (size_t)x->ldc * sizeof(float)); \
    } else {                                                          \
      _tile_stored(t, room, TILE_BYTES);                              \
      merge(x, room, i, j);                                           \
    }                                                                 \
  } while (0)

static bool is_aligned(const struct bf16_block *x) {
  return ((uintptr_t)x->c | (uintptr_t)x->ldc * sizeof(float)) % TILE_BYTES == 0;
}

/* A tile to C past the caches: C is written once and is too large to be found there later, and a
 * line that is written whole need not be read first. */
INLINE void stream_out(float *c, int64_t ldc, const float *tile) {
  for (int64_t r = 0; r < BF16_SIDE; r++)
    _mm512_stream_ps(c + r * ldc, _mm512_load_ps(tile + r * BF16_SIDE));
}

/* 16 or 32 rows times 16 or 32 columns of C from (i, j) on. */
INLINE void tiles_of(const int panels, const int strips, const bool in_place,
                     const struct bf16_block *x, int64_t i, int64_t j) {
  const uint16_t *a0 = x->a + i / BF16_SIDE * x->panel_step, *a1 = a0 + x->panel_step;
  const uint32_t *b0 = x->b + j / BF16_SIDE * x->strip_step, *b1 = b0 + x->strip_step;
  float room[BF16_SIDE * BF16_SIDE] __attribute__((aligned(64)));
  const bool stream = in_place && x->stream && !x->add && is_aligned(x);
  TILE_BEGIN(0, i, j);
  if (strips == 2) TILE_BEGIN(1, i, j + BF16_SIDE);
  if (panels == 2) TILE_BEGIN(2, i + BF16_SIDE, j);
  if (panels == 2 && strips == 2) TILE_BEGIN(3, i + BF16_SIDE, j + BF16_SIDE);
  for (int64_t p = 0; p < x->k; p += BF16_STEP) {
    _tile_loadd(6, b0, TILE_BYTES);
    _tile_loadd(4, a0, TILE_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    if (strips == 2) {
      _tile_loadd(7, b1, TILE_BYTES);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (panels == 2) {
      _tile_loadd(5, a1, TILE_BYTES);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (panels == 2 && strips == 2) _tile_dpbf16ps(3, 5, 7);
    a0 += BF16_CHUNK, a1 += BF16_CHUNK, b0 += CHUNK_PAIRS, b1 += CHUNK_PAIRS;
  }
  TILE_END(0, i, j);
  if (strips == 2) TILE_END(1, i, j + BF16_SIDE);
  if (panels == 2) TILE_END(2, i + BF16_SIDE, j);
  if (panels == 2 && strips == 2) TILE_END(3, i + BF16_SIDE, j + BF16_SIDE);
}

static void tiles_at(const struct bf16_block *x, int64_t i, int64_t j) {
  int64_t rows = x->rows - i, cols = x->cols - j;
  if (rows >= 2 * BF16_SIDE && cols >= 2 * BF16_SIDE && x->alpha == 1.0f)
    tiles_of(2, 2, true, x, i, j);
  else if (rows > BF16_SIDE && cols > BF16_SIDE)
    tiles_of(2, 2, false, x, i, j);
  else if (rows > BF16_SIDE)
    tiles_of(2, 1, false, x, i, j);
  else if (cols > BF16_SIDE)
    tiles_of(1, 2, false, x, i, j);
  else
    tiles_of(1, 1, false, x, i, j);
}

static void block(const struct bf16_block *x) {
  _tile_loadconfig(&all_whole);
  for (int64_t j = 0; j < x->cols; j += 2 * BF16_SIDE)
    for (int64_t i = 0; i < x->rows; i += 2 * BF16_SIDE) tiles_at(x, i, j);
  _mm_sfence();    /* streamed stores are in order with nothing else */
  _tile_release(); /* the state of idle tiles need not be saved when threads change */
}

void bf16_fill_amx(struct kernel_table *table) { table->bf16.block = block; }
#endif
