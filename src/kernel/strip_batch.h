/* Inside the kernel room: a batch of tokens for tile instructions, and strips of bf16 weights. */
#ifndef TSR_KERNEL_STRIP_BATCH_H
#define TSR_KERNEL_STRIP_BATCH_H

#include "sparse/strips.h"

enum { STRIP_BATCH_STRIPS = 8 }; /* at most so many at a time */

struct strip_batch {
  const struct strip_matrix *w;
  int64_t tokens;
  int parts; /* bf16 numbers that a token's activation is cut into: 3 are exact, 1 rounds */
  int64_t padded_rows; /* parts * tokens, rounded up to whole tiles of 16 rows when over 16 */
  void *x;             /* (chunks, padded_rows, STRIP_COLS) bf16: part by part, zeros behind */
};

#endif
