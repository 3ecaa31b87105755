/* A quantized weight matrix in the order in which the decode kernels read it: made at load time
 * from the neutral form (quant.h) or from rows of ggml's blocks. docs/KERNELS.md says why it is so.
 *
 * As in strips.h sixteen output rows are a strip, and its chunks follow each other; a chunk has 64
 * columns here, two groups of 32, so that each of its lines is 64 bytes: four for each row, lane r
 * those of row r. Behind the last row integers and scales are zero; behind the last column
 * integers are, and no product asks for their minimum. The lines of a chunk, in this order:
 *   scales     f16: rows 0 .. 15 of the first group, then of the second; not where a row has one
 *              scale, which stands in row_scales
 *   mins       likewise, where there are any
 *   integers, of a dense chunk
 *     int8, 16 lines   line p: columns 4p .. 4p + 3, each plus 128, so that they are unsigned
 *     int4, 8 lines    line p: in the low nibbles columns 8p .. 8p + 3, in the high ones 8p + 4 ..
 *                      8p + 7, as quant.h has them
 *   of a 2:4 chunk, for each group of 32 columns
 *     a line of codes, then the kept integers in four sets; set j has the kept weights of the eight
 *     columns from 8j on: byte b < 2 the b-th of the first four, else the (b - 2)-th of the others.
 *     Bits 2j and 2j + 1 of the code's byte b say where among its four columns that weight was.
 *     int8, 4 lines    line j: set j, two's complement
 *     int4, 2 lines    line i: set 2i in the low nibbles, 2i + 1 in the high ones, less 8 in two's
 *                      complement
 * In bytes of a dense chunk a 2:4 one takes 5/8 (int8) and 3/4 (int4), apart from scales.
 *
 * A chunk is 2:4 when every tile that it touches is. Others are dense, dropped weights stored as
 * zeros. With minimums there is no integer for a zero: such a chunk is two dense ones for the same
 * columns, the integers and scales without minimums, and ones at the kept places with the minimums
 * as their scales. Tiles of any size are therefore right; those of 16 x 64 or multiples lose
 * nothing. */
#ifndef TSR_SPARSE_QUANT_STRIPS_H
#define TSR_SPARSE_QUANT_STRIPS_H

#include "sparse/quant.h"
#include "sparse/strips.h"

enum {
  QUANT_CHUNK_COLS = 64,
  QUANT_CHUNK_GROUPS = QUANT_CHUNK_COLS / QUANT_GROUP,
  QUANT_CHUNK_KEPT = QUANT_CHUNK_COLS / 2,
  QUANT_SETS = 4,                /* of kept weights in a group */
  QUANT_TWICE = STRIP_SPARSE + 1 /* after enum strip_kind: two dense chunks for the same columns */
};

struct quant_strips {
  int64_t rows, cols;
  int64_t strips, chunks; /* chunks per strip, empty ones counted */
  enum quant_type type;
  bool sparse;             /* made from a hybrid matrix */
  bool mins;               /* chunks have minimums */
  const float *row_scales; /* (strips * STRIP_ROWS), or NULL: chunks have scales */
  const uint8_t *data;     /* 64-byte aligned */
  int64_t *offset;         /* (strips): where each strip begins in data */
  int64_t *first_run;      /* (strips + 1) into runs */
  struct strip_run *runs;  /* kinds: enum strip_kind or QUANT_TWICE */
  size_t stored_bytes;     /* of all chunks */
};

/* Bytes of scales and minimums before a chunk's integers. */
static inline int64_t quant_scale_bytes(const struct quant_strips *s) {
  return s->row_scales ? 0 : s->mins ? 2 * STRIP_LINE_BYTES : STRIP_LINE_BYTES;
}
static inline int64_t quant_chunk_bytes(const struct quant_strips *s, int kind) {
  const int64_t dense = s->type == QUANT_I8 ? 16 : 8;
  const int64_t lines = kind == STRIP_EMPTY ? 0 : kind == STRIP_SPARSE ? dense / 2 + 2 : dense;
  const int64_t bytes = lines ? lines * STRIP_LINE_BYTES + quant_scale_bytes(s) : 0;
  return kind == QUANT_TWICE ? 2 * bytes : bytes;
}

/* Both copy on all threads. Scales of wider groups than 32 are repeated. A matrix without a tile
 * map becomes dense chunks, zeros or not: it is what hybrid ones are compared with. Release with
 * quant_strips_release. */
enum status quant_strips_from_quant(struct quant_strips *out, const struct quant_matrix *q,
                                    struct error *err);
/* Rows of the blocks that quant_strips_takes: q8_0, q5_0, q4_0, q4_1 exactly, q4_k with the scale
 * and the minimum of each 32 columns (products of an f16 and six bits) rounded to f16. */
enum status quant_strips_from_blocks(struct quant_strips *out, const struct matrix_view *w,
                                     struct error *err);
bool quant_strips_takes(enum dtype dtype);
void quant_strips_release(struct quant_strips *s); /* safe on a zeroed struct */

/* What a row has in one chunk: w = scale * q + min where kept (min 0 where there are none, the zero
 * of int4 taken off), else 0. The scales are those of the chunk, 1 where the row has its own. */
struct quant_chunk_row {
  int16_t q[QUANT_CHUNK_COLS];
  bool kept[QUANT_CHUNK_COLS];
  float scale[QUANT_CHUNK_GROUPS], min[QUANT_CHUNK_GROUPS];
};
void quant_chunk_read(const struct quant_strips *s, int kind, const uint8_t *chunk, int64_t lane,
                      struct quant_chunk_row *out);

/* Columns [col, col + count) of row `row` as fp32. */
void quant_strips_row(const struct quant_strips *s, int64_t row, int64_t col, int64_t count,
                      float *out);

#endif
