/* Inside the kernel room: activations as the products with quantized strips take them. */
#ifndef TSR_KERNEL_QUANT_X_H
#define TSR_KERNEL_QUANT_X_H

#include "sparse/quant_strips.h"

/* One token's activations in one chunk, each group of 32 rounded by itself: x = scale * near, where
 * scale is the largest magnitude over 127. Which of these a kernel needs depends on what its
 * instruction set multiplies, signed or unsigned bytes. */
struct quant_x {
  int8_t near[QUANT_CHUNK_COLS];    /* to the nearest, ties to even */
  uint8_t raised[QUANT_CHUNK_COLS]; /* near + 128 */
  float scale[QUANT_CHUNK_GROUPS], scale_16th[QUANT_CHUNK_GROUPS];
  float total[QUANT_CHUNK_GROUPS];       /* scale * sum of near */
  int32_t raise[QUANT_CHUNK_GROUPS];     /* -128 * sum of near */
  int32_t take_zero[QUANT_CHUNK_GROUPS]; /* -8 * sum of near */
  uint8_t unused[24];
};
_Static_assert(sizeof(struct quant_x) == 3 * STRIP_LINE_BYTES, "whole lines");

/* A batch of tokens for tile instructions. */
enum { QUANT_BATCH_STRIPS = 8 }; /* at most so many at a time */

struct quant_batch {
  const struct quant_strips *w;
  int64_t tokens;
  int64_t padded_rows; /* tokens rounded up to whole tiles of 16 rows */
  void *x;             /* (chunks * QUANT_CHUNK_GROUPS, padded_rows, QUANT_GROUP) bf16: zeros
                          behind the last token and column */
};

#endif
