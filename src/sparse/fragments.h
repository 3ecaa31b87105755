/* A matrix in fragment-major form: weights, bf16 or integers, in the order in which tensor cores
 * take them.
 *
 * Strips of 128 rows; in each, first the 2:4 tiles and then the dense ones, both by ascending
 * column, each tile contiguous (fragment_layout.h). One form serves mma.sp (sm_80 to sm_90) and
 * wgmma.sp (sm_90a), whose lanes take the same words. It is made at load from the neutral packed
 * form, on any machine: nothing here knows CUDA.
 *
 * Edges are padded: rows and columns past the matrix are zeros with code 1100, so that every tile
 * is whole. Whoever multiplies must bring zeros for the columns past the edge. */
#ifndef TSR_SPARSE_FRAGMENTS_H
#define TSR_SPARSE_FRAGMENTS_H

#include "sparse/fragment_layout.h"
#include "sparse/quant.h"

/* Tile numbers and counts are 16 bits wide. */
enum { FRAGMENT_COLS_MAX = 65535 * FRAGMENT_TILE_COLS };

struct fragment_strip {
  uint64_t offset;       /* bytes from `tiles` to the strip's first tile */
  uint32_t sparse_tiles; /* the rest of the strip's tiles is dense */
};

struct fragment_matrix {
  int64_t rows, cols;
  int64_t strips, tiles_per_strip;
  struct fragment_strip *strip; /* (strips) */
  uint16_t *columns; /* (strips, tiles_per_strip): which 128 columns the strip's i-th tile covers */
  uint8_t *tiles;    /* (tile_bytes), 64-byte aligned */
  size_t tile_bytes;
  struct fragment_form form;
  float *row_scales; /* (strips * 128) of integers that a row has one scale for; else NULL */
};

/* Packs a hybrid matrix (tiles of any size, dtype bf16, f16 or f32; fp32 and fp16 are rounded to
 * nearest even). A tile of 128 x 128 becomes 2:4 when all of it is; else it is stored dense, zeros
 * included. Needs hybrid_index. All threads. Owns new arrays; fragment_release frees them. */
enum status fragment_pack_hybrid(struct fragment_matrix *out, const struct hybrid_matrix *h,
                                 struct error *err);
/* Packs a dense matrix of a native dtype: every tile dense. */
enum status fragment_pack_dense(struct fragment_matrix *out, struct matrix_view w,
                                struct error *err);
/* Packs a quantized matrix; its integers and scales are kept exactly. Where a 2:4 tile of the
 * matrix lies in a tile that is stored dense, its dropped weights become the integer of zero;
 * STATUS_REFUSED when minimums leave it none, or a group is no multiple of 32. Needs quant_index.
 */
enum status fragment_pack_quant(struct fragment_matrix *out, const struct quant_matrix *q,
                                struct error *err);
/* The strips of `first`, then those of `second`, which has the same columns and form: for a product
 * of both at once. Rows of the second begin at the next multiple of 128. Copies. */
enum status fragment_join(struct fragment_matrix *out, const struct fragment_matrix *first,
                          const struct fragment_matrix *second, struct error *err);
void fragment_release(struct fragment_matrix *f);

/* Row `row` expanded to fp32, zeros included: out (cols). */
void fragment_row(const struct fragment_matrix *f, int64_t row, float *out);

/* Where the tiles lie for a kernel that takes every strip from left to right: out
 * (fragment_order_strips, tiles_per_strip), by column; strips past the last repeat it, so that
 * kernels that take several at a time find them all; bit 0: the tile is 2:4; the other bits: its
 * first byte, from `tiles`, over FRAGMENT_OFFSET_UNIT. STATUS_REFUSED past 2 TiB. */
static inline int64_t fragment_order_strips(const struct fragment_matrix *f) {
  return (f->strips + FRAGMENT_ORDER_STRIPS - 1) / FRAGMENT_ORDER_STRIPS * FRAGMENT_ORDER_STRIPS;
}
enum status fragment_order(const struct fragment_matrix *f, uint32_t *out, struct error *err);

/* Where the strip's i-th tile begins, in bytes from `tiles`. */
static inline uint64_t fragment_tile_offset(const struct fragment_matrix *f, int64_t strip,
                                            int64_t i) {
  const struct fragment_strip *s = &f->strip[strip];
  const int64_t sparse = i < (int64_t)s->sparse_tiles ? i : (int64_t)s->sparse_tiles;
  return s->offset + (uint64_t)sparse * fragment_tile_bytes(f->form, true) +
         (uint64_t)(i - sparse) * fragment_tile_bytes(f->form, false);
}

#endif
