/* A hybrid matrix: the weights of a pruned linear in the packed, neutral form of docs/FORMAT.md.
 *
 * Tiles in row-major order, each stored whole, dense tiles and 2:4 tiles in two arrays. A dense
 * tile holds its rows x cols weights row-major; a 2:4 tile holds for each row and group the two
 * kept weights in column order (values) and a nibble (codes, two groups a byte, rows padded to
 * whole bytes). All arrays are views into a mapped file or memory owned by somebody else. */
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

/* Bytes of each array for a matrix of these shapes with this tile map; checked arithmetic. */
struct hybrid_sizes {
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
 * sizes. Kept values are stored as they are (-0.0 and NaN included); dropped ones are lost. */
void hybrid_pack(const struct mask_matrix *mask, const float *w, enum dtype dtype,
                 uint8_t *tile_map, void *dense, void *values, uint8_t *codes);
/* Row `row` expanded to fp32, zeros included: out (cols). */
void hybrid_row(const struct hybrid_matrix *h, int64_t row, float *out);
/* The mask that the packed form stands for (dense tiles get code 1100). */
enum status hybrid_mask(const struct hybrid_matrix *h, const char *name, struct mask_matrix *out,
                        struct error *err);
/* Checks every nibble and that padding bits are zero; says where the first bad one is. */
enum status hybrid_check(const struct hybrid_matrix *h, const char *name, struct error *err);

#endif
