/* A hybrid matrix: the weights of a pruned linear in the packed, neutral form of docs/FORMAT.md.
 *
 * Tiles in row-major order, each stored whole, dense tiles and 2:4 tiles in two arrays. A dense
 * tile holds its rows x cols weights row-major; a 2:4 tile holds for each row and group the two
 * kept weights in column order (values; zero where the position lies past the edge) and a nibble
 * (codes). The nibbles of a tile run on row after row, two a byte, low one first; each tile begins
 * on a new byte. All arrays are views into a mapped file or memory owned by somebody else. */
#ifndef TSR_SPARSE_HYBRID_H
#define TSR_SPARSE_HYBRID_H

#include "sparse/mask.h"
#include "tensor/dtype.h"

struct hybrid_matrix {
  int64_t rows, cols;
  int64_t tile_rows, tile_cols;
  enum dtype dtype;        /* of dense and values: bf16, f16 or f32 */
  const uint8_t *tile_map; /* (tile count) bits, 1 = dense, bit t % 8 of byte t / 8 */
  const void *dense;       /* dense tiles, one after the other */
  const void *values;      /* kept weights of 2:4 tiles */
  const uint8_t *codes;    /* nibbles of 2:4 tiles */
  int64_t *tile_offset;    /* (tile count): element offset of each tile in dense or values;
                              owned, derived by hybrid_index */
  int64_t *code_offset;    /* (tile count): byte offset in codes; owned */
};

static inline int64_t hybrid_tile_cols(const struct hybrid_matrix *h) {
  return (h->cols + h->tile_cols - 1) / h->tile_cols;
}
static inline int64_t hybrid_tile_rows(const struct hybrid_matrix *h) {
  return (h->rows + h->tile_rows - 1) / h->tile_rows;
}
static inline bool hybrid_tile_dense(const struct hybrid_matrix *h, int64_t tile) {
  return h->tile_map[tile / 8] >> (tile % 8) & 1;
}

/* Where tile `tile` lies: first row and column, and its extent (smaller at the edges). */
struct tile_box {
  int64_t row, col, rows, cols;
};
static inline struct tile_box hybrid_tile_box(const struct hybrid_matrix *h, int64_t tile) {
  const int64_t per_row = hybrid_tile_cols(h);
  struct tile_box box = {tile / per_row * h->tile_rows, tile % per_row * h->tile_cols, h->tile_rows,
                         h->tile_cols};
  if (box.rows > h->rows - box.row) box.rows = h->rows - box.row;
  if (box.cols > h->cols - box.col) box.cols = h->cols - box.col;
  return box;
}
/* Nibble of group `group` in row `row` of a 2:4 tile whose rows have `groups` groups; both count
 * from the tile's corner. Its two values are elements 2 * (row * groups + group) and the next one,
 * from tile_offset[tile] on. When `groups` is even, a row is the groups / 2 bytes from
 * code_offset[tile] + row * groups / 2 on. */
static inline uint8_t hybrid_code(const struct hybrid_matrix *h, int64_t tile, int64_t row,
                                  int64_t groups, int64_t group) {
  const int64_t nibble = row * groups + group;
  const uint8_t pair = h->codes[h->code_offset[tile] + nibble / 2];
  return nibble % 2 ? pair >> 4 : pair & 15;
}

/* Bytes of each array for a matrix of these shapes with this tile map; checked arithmetic. */
struct hybrid_sizes {
  int64_t dense_tiles;
  size_t map_bytes, dense_bytes, values_bytes, codes_bytes;
  int64_t dense_count, values_count;
};
enum status hybrid_measure(int64_t rows, int64_t cols, int64_t tile_rows, int64_t tile_cols,
                           enum dtype dtype, const uint8_t *tile_map, struct hybrid_sizes *out,
                           struct error *err);
/* Fills tile_offset and code_offset from the tile map. */
enum status hybrid_index(struct hybrid_matrix *h, struct error *err);
void hybrid_release(struct hybrid_matrix *h); /* the two owned arrays */

/* Packs w (rows, cols, fp32) under a hybrid mask into caller-provided arrays of hybrid_measure's
 * sizes. Kept values are stored as they are (-0.0 and NaN included); dropped ones are lost. Arrays
 * that are NULL are left out; w may be NULL when dense and values are. */
void hybrid_pack(const struct mask_matrix *mask, const float *w, enum dtype dtype,
                 uint8_t *tile_map, void *dense, void *values, uint8_t *codes);
/* Row `row` expanded to fp32, zeros included: out (cols). */
void hybrid_row(const struct hybrid_matrix *h, int64_t row, float *out);
/* The mask that the packed form stands for (dense tiles get code 1100). */
enum status hybrid_mask(const struct hybrid_matrix *h, const char *name, struct mask_matrix *out,
                        struct error *err);
/* Checks every nibble and that padding bits are zero; says where the first bad one is. Needs
 * hybrid_index. */
enum status hybrid_check(const struct hybrid_matrix *h, const char *name, struct error *err);

#endif
