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

#include "sparse/mask.h"
#include "tensor/dtype.h"

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

#endif
