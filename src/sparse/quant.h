/* A quantized weight matrix, dense or hybrid, in the packed, neutral form of docs/FORMAT.md.
 *
 * Tiles lie as in hybrid.h: dense tiles whole, 2:4 tiles as two kept weights and a nibble for each
 * row and group. What is stored of a weight is an integer q:
 *   int8   one byte, two's complement, -127 .. 127 (-128 may come from files of others)
 *   int4   a nibble, 0 .. 15; the nibbles of a tile run on row after row, two a byte, low one
 *          first, and each tile begins on a new byte
 * and `group` consecutive columns of a row share a scale, and where there are mins, a minimum:
 *   w = scale * (q - zero) (zero: 0 for int8, 8 for int4)      without mins
 *   w = scale * q + min                                        with mins (int4 only)
 * These are ggml's Q8_0, Q4_0 and Q4_1 with the integers apart from the scales; a matrix that was
 * read from such blocks keeps their integers and scales exactly. A 2:4 tile has the scales of the
 * columns that it covers, like a dense one. Groups count columns of the matrix, kept or not. */
#ifndef TSR_SPARSE_QUANT_H
#define TSR_SPARSE_QUANT_H

#include "sparse/hybrid.h"

enum quant_type { QUANT_I8, QUANT_I4 };
enum { QUANT_GROUP = 32 }; /* columns that share a scale, unless a whole row does */

struct quant_matrix {
  int64_t rows, cols;
  int64_t tile_rows, tile_cols;
  enum quant_type type;
  int64_t group;           /* a multiple of QUANT_GROUP, or 0: one scale for the whole row */
  const uint8_t *tile_map; /* as in hybrid.h; NULL: all tiles are dense */
  const uint8_t *dense;    /* integers of dense tiles */
  const uint8_t *values;   /* integers of the kept weights of 2:4 tiles */
  const uint8_t *codes;    /* nibbles of 2:4 tiles */
  const uint16_t *scales;  /* (rows, groups) f16 when group > 0 */
  const uint16_t *mins;    /* (rows, groups) f16, or NULL */
  const float *row_scales; /* (rows) fp32 when group is 0 */
  int64_t *tile_offset;    /* (tiles): of each tile in dense or values, in integers rounded up to
                              whole bytes a tile; owned, derived by quant_index */
  int64_t *code_offset;    /* (tiles): byte offset in codes; owned */
};

static inline int64_t quant_groups(const struct quant_matrix *q) {
  return q->group ? (q->cols + q->group - 1) / q->group : 1;
}
static inline int quant_zero(enum quant_type type) { return type == QUANT_I4 ? 8 : 0; }
/* Integer `index` of an array: what is stored, unsigned for int4. */
static inline int quant_integer(enum quant_type type, const uint8_t *base, int64_t index) {
  return type == QUANT_I8 ? (int8_t)base[index] : base[index / 2] >> index % 2 * 4 & 15;
}
/* Its tiles and codes as those of a hybrid matrix without weights, for hybrid.h's functions on
 * them. tile_map stays NULL where all tiles are dense: quant_tile_dense asks for both. */
static inline struct hybrid_matrix quant_tiles(const struct quant_matrix *q) {
  return (struct hybrid_matrix){.rows = q->rows,
                                .cols = q->cols,
                                .tile_rows = q->tile_rows,
                                .tile_cols = q->tile_cols,
                                .tile_map = q->tile_map,
                                .codes = q->codes,
                                .tile_offset = q->tile_offset,
                                .code_offset = q->code_offset};
}
static inline bool quant_tile_dense(const struct quant_matrix *q, int64_t tile) {
  return !q->tile_map || q->tile_map[tile / 8] >> (tile % 8) & 1;
}
/* The tiles of a matrix without a mask: one, or as few as the limits of shapes allow, so that its
 * integers lie row after row. */
static inline void quant_whole_tile(int64_t rows, int64_t cols, int64_t *tile_rows,
                                    int64_t *tile_cols) {
  *tile_rows = rows < SPARSE_TILE_MAX ? rows : SPARSE_TILE_MAX;
  *tile_cols = cols < SPARSE_TILE_MAX ? (cols + 3) / 4 * 4 : SPARSE_TILE_MAX;
}

/* Bytes of each array of a matrix whose shapes, type, group and tile map are set; checked
 * arithmetic. STATUS_REFUSED for a shape or a group that cannot be. */
struct quant_sizes {
  size_t map_bytes, dense_bytes, values_bytes, codes_bytes;
  int64_t scales; /* how many: of mins as many, where there are any */
};
enum status quant_measure(const struct quant_matrix *q, struct quant_sizes *out, struct error *err);
/* Fills tile_offset and code_offset from the tile map. */
enum status quant_index(struct quant_matrix *q, struct error *err);
void quant_release(struct quant_matrix *q); /* the two owned arrays */

/* Integers of columns [col, col + count) of row `row`, those of dropped weights QUANT_DROPPED: out
 * (count). */
enum { QUANT_DROPPED = INT16_MIN };
void quant_integers(const struct quant_matrix *q, int64_t row, int64_t col, int64_t count,
                    int16_t *out);
/* The same columns as fp32, zeros for dropped weights: out (count). The reference that
 * all products are held against. */
void quant_columns(const struct quant_matrix *q, int64_t row, int64_t col, int64_t count,
                   float *out);
/* The whole row: out (cols). */
static inline void quant_row(const struct quant_matrix *q, int64_t row, float *out) {
  quant_columns(q, row, 0, q->cols, out);
}
/* Checks every code, that padding bits are zero, and that scales and mins are finite; says where
 * the first bad one is. Needs quant_index. */
enum status quant_check(const struct quant_matrix *q, const char *name, struct error *err);
/* "int8", "int4": as `pack --dtype` has it. */
const char *quant_type_name(enum quant_type type);

#endif
