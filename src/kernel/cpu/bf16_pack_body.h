/* Rounding and packing for products of bf16 operands: included after a vec_*.h. Contracts and
 * packed forms: kernel/bf16_kernels.h.
 *
 * All is done in chunks of 16 x 32, which stay in the first-level cache while they are turned. A
 * file whose instruction set rounds to bf16 defines BF16_ROUNDS, and bf16_store and bf16_pairs of
 * its own, before it includes this. */
#include "kernel/bf16_kernels.h"
#include "kernel/select.h"

#ifndef BF16_ROUNDS
/* The nearest bf16, ties to even, in the high half of each lane; the low half is left over. NaN
 * gets its quiet bit instead, for carries could make a number of it. */
INLINE vi bf16_rounded(vf x) {
  vi bits = vi_of_bits(x), size = vi_and(bits, vi_set(0x7fffffff));
  vi nan = vi_sar(vi_sub(vi_set(0x7f800000), size), 31);
  vi up = vi_add(vi_and(vi_shr(bits, 16), vi_set(1)), vi_set(0x7fff));
  up = vi_and(up, vi_xor(nan, vi_set(-1)));
  return vi_or(vi_add(bits, up), vi_and(nan, vi_set(0x400000)));
}
INLINE void bf16_store(uint16_t *out, vf x) { vi_store_high_halves(out, bf16_rounded(x)); }
/* Lane by lane, the first in the low half. */
INLINE vi bf16_pairs(vf first, vf second) {
  return vi_or(vi_shr(bf16_rounded(first), 16),
               vi_and(bf16_rounded(second), vi_set((int32_t)0xffff0000)));
}
#endif

INLINE int64_t bytes_of(enum dtype dtype) { return dtype == DTYPE_F32 ? 4 : 2; }

/* 16 stored rows of 32 elements, `ld` bytes apart, as bf16: out (16, 32). */
INLINE void chunk_along(enum dtype dtype, const char *source, int64_t ld, uint16_t *out) {
  for (int64_t i = 0; i < BF16_SIDE; i++, source += ld, out += BF16_STEP) {
    if (dtype == DTYPE_BF16)
      memcpy(out, source, BF16_STEP * sizeof *out);
    else
      for (int64_t p = 0; p < BF16_STEP; p += VL)
        bf16_store(out + p, vf_load_as(dtype, source + p * bytes_of(dtype)));
  }
}

/* 32 stored rows of 16 elements as pairs of rows: out (16, 16). */
INLINE void chunk_across(enum dtype dtype, const char *source, int64_t ld, uint32_t *out) {
  for (int64_t p = 0; p < BF16_STEP; p += 2, source += 2 * ld)
    for (int64_t j = 0; j < BF16_SIDE; j += VL, out += VL) {
      const char *at = source + j * bytes_of(dtype);
      vi_store((int32_t *)out, bf16_pairs(vf_load_as(dtype, at), vf_load_as(dtype, at + ld)));
    }
}

/* The transpose of 16 x 16 words. They are moved as floats but never computed with. */
INLINE void turn(const uint32_t *from, uint32_t *to) {
  const float *in = (const void *)from;
  float *out = (void *)to;
  for (int64_t row = 0; row < BF16_SIDE; row += VL)
    for (int64_t col = 0; col < BF16_SIDE; col += 4) {
      vf x[4];
      for (int64_t i = 0; i < 4; i++)
        x[i] = vf_load_quads(in + (row + i) * BF16_SIDE + col, BF16_SIDE);
      vf_transpose_quads(x);
      for (int64_t i = 0; i < 4; i++) vf_store(out + (col + i) * BF16_SIDE + row, x[i]);
    }
}

/* What is there of a chunk at an edge, with zeros for the rest: (height, width) in room. */
static const char *completed(enum dtype dtype, const char *source, int64_t ld, int64_t rows,
                             int64_t cols, int64_t width, char *room) {
  memset(room, 0, BF16_CHUNK * sizeof(float));
  for (int64_t i = 0; i < rows; i++)
    memcpy(room + i * width * bytes_of(dtype), source + i * ld, (size_t)(cols * bytes_of(dtype)));
  return room;
}

INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

/* Chunk after chunk of at most 16 rows along k: a panel, or turned a strip. */
INLINE void along_as(enum dtype dtype, const bool turned, const char *source, int64_t ld,
                     int64_t count, int64_t k, uint16_t *out) {
  char room[BF16_CHUNK * sizeof(float)] __attribute__((aligned(64)));
  uint16_t chunk[BF16_CHUNK] __attribute__((aligned(64)));
  for (int64_t p = 0; p < k; p += BF16_STEP, out += BF16_CHUNK) {
    const char *at = source + p * bytes_of(dtype);
    int64_t step = ld;
    if (count < BF16_SIDE || k - p < BF16_STEP) {
      at = completed(dtype, at, ld, count, at_most(k - p, BF16_STEP), BF16_STEP, room);
      step = BF16_STEP * bytes_of(dtype);
    }
    chunk_along(dtype, at, step, turned ? chunk : out);
    if (turned) turn((const uint32_t *)chunk, (uint32_t *)out);
  }
}

/* 32 rows of k at a time, over all columns: strips, or turned panels. `step` in words. */
INLINE void across_as(enum dtype dtype, const bool turned, const char *source, int64_t ld,
                      int64_t count, int64_t k, int64_t step, uint32_t *out) {
  char room[BF16_CHUNK * sizeof(float)] __attribute__((aligned(64)));
  uint32_t chunk[BF16_CHUNK / 2] __attribute__((aligned(64)));
  for (int64_t p = 0; p < k; p += BF16_STEP, out += BF16_CHUNK / 2)
    for (int64_t j = 0; j < count; j += BF16_SIDE) {
      const char *at = source + p * ld + j * bytes_of(dtype);
      uint32_t *to = out + j / BF16_SIDE * step;
      int64_t apart = ld;
      if (count - j < BF16_SIDE || k - p < BF16_STEP) {
        at = completed(dtype, at, ld, at_most(k - p, BF16_STEP), at_most(count - j, BF16_SIDE),
                       BF16_SIDE, room);
        apart = BF16_SIDE * bytes_of(dtype);
      }
      chunk_across(dtype, at, apart, turned ? chunk : to);
      if (turned) turn(chunk, to);
    }
}

/* Calls fn with the dtype as a constant. */
#define BF16_FOR_DTYPE(dtype, fn, ...) \
  do {                                 \
    if ((dtype) == DTYPE_F32)          \
      fn(DTYPE_F32, __VA_ARGS__);      \
    else if ((dtype) == DTYPE_F16)     \
      fn(DTYPE_F16, __VA_ARGS__);      \
    else                               \
      fn(DTYPE_BF16, __VA_ARGS__);     \
  } while (0)

static void panel_along(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        uint16_t *out) {
  BF16_FOR_DTYPE(dtype, along_as, false, source, ld * bytes_of(dtype), count, k, out);
}

static void strip_along(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        uint32_t *out) {
  BF16_FOR_DTYPE(dtype, along_as, true, source, ld * bytes_of(dtype), count, k, (uint16_t *)out);
}

static void panels_across(enum dtype dtype, const void *source, int64_t ld, int64_t count,
                          int64_t k, int64_t step, uint16_t *out) {
  BF16_FOR_DTYPE(dtype, across_as, true, source, ld * bytes_of(dtype), count, k, step / 2,
                 (uint32_t *)out);
}

static void strips_across(enum dtype dtype, const void *source, int64_t ld, int64_t count,
                          int64_t k, int64_t step, uint32_t *out) {
  BF16_FOR_DTYPE(dtype, across_as, false, source, ld * bytes_of(dtype), count, k, step, out);
}

static void round_row(const float *source, int64_t n, uint16_t *out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) bf16_store(out + i, vf_load(source + i));
  if (i == n) return;
  uint16_t last[VL];
  bf16_store(last, vf_load_part(source + i, n - i));
  memcpy(out + i, last, (size_t)(n - i) * sizeof *out);
}

static void fill_bf16_packing(struct bf16_kernels *table) {
  table->panel_along = panel_along;
  table->panels_across = panels_across;
  table->strip_along = strip_along;
  table->strips_across = strips_across;
  table->round = round_row;
}
