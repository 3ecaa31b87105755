/* A 16-bit weight matrix in the order in which the decode kernels read it: made at load time from a
 * dense matrix or from the packed, neutral form (hybrid.h). docs/KERNELS.md says why it is so.
 *
 * Sixteen output rows are a strip; a strip is cut into chunks of 32 columns, and its chunks follow
 * each other in memory, so that whole strips are read from front to back. Rows and columns past the
 * edge are zero. A chunk is
 *   dense, 1024 bytes: for each pair of columns (2p, 2p + 1) sixteen u32, lane r holding row r's
 * two weights, the even column low. As a matrix of bytes it is one B tile of AMX; 2:4, 576 bytes:
 * sixteen u32 of codes, lane r holding the nibbles of row r's eight groups, the first lowest; then
 * for each group sixteen u32, lane r holding row r's two kept weights; empty: all weights are zero,
 * and nothing is stored. Chunks of one kind that follow each other form a run. A chunk is 2:4 when
 * every tile that it touches is; tiles of any height and width are therefore right, and those of 16
 * x 32 or multiples lose nothing. */
#ifndef TSR_SPARSE_STRIPS_H
#define TSR_SPARSE_STRIPS_H

#include "sparse/hybrid.h"

enum {
  STRIP_ROWS = 16,
  STRIP_COLS = 32,
  STRIP_GROUPS = STRIP_COLS / 4,
  STRIP_PAIRS = STRIP_COLS / 2,
  STRIP_LINE_BYTES = 4 * STRIP_ROWS,
  STRIP_DENSE_BYTES = STRIP_PAIRS * STRIP_LINE_BYTES,
  STRIP_SPARSE_BYTES = (1 + STRIP_GROUPS) * STRIP_LINE_BYTES
};
enum strip_kind { STRIP_EMPTY, STRIP_DENSE, STRIP_SPARSE };

struct strip_run {
  uint32_t kind : 2, chunks : 30;
};

struct strip_matrix {
  int64_t rows, cols;
  int64_t strips, chunks; /* chunks per strip, empty ones counted */
  enum dtype dtype;       /* bf16 or f16 */
  bool sparse;            /* made from a hybrid matrix */
  const uint8_t *data;    /* 64-byte aligned */
  int64_t *offset;        /* (strips): where each strip begins in data */
  int64_t *first_run;     /* (strips + 1) into runs */
  struct strip_run *runs;
  size_t stored_bytes; /* of all chunks */
};

static inline int64_t strip_kind_bytes(enum strip_kind kind) {
  return kind == STRIP_DENSE ? STRIP_DENSE_BYTES : kind == STRIP_SPARSE ? STRIP_SPARSE_BYTES : 0;
}

/* Chunks of one kind that follow each other, from kinds (strips, chunks): fills first_run (strips +
 * 1) and, unless NULL, runs; returns how many there are. */
int64_t strips_find_runs(const uint8_t *kinds, int64_t strips, int64_t chunks, int64_t *first_run,
                         struct strip_run *runs);

/* Both copy on all threads; fp32 weights are rounded to bf16. A dense matrix becomes dense chunks,
 * zeros or not: it is what hybrid ones are compared with. Release with strips_release. */
enum status strips_from_dense(struct strip_matrix *out, const struct matrix_view *w,
                              struct error *err);
enum status strips_from_hybrid(struct strip_matrix *out, const struct hybrid_matrix *h,
                               struct error *err);
void strips_release(struct strip_matrix *s); /* safe on a zeroed struct */

/* Columns [col, col + count) of row `row` as fp32. */
void strips_row(const struct strip_matrix *s, int64_t row, int64_t col, int64_t count, float *out);

#endif
