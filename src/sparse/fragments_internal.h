/* What the packers share: where things lie in a row block, and one row of one step of a quantized
 * matrix (fragments_quant.c). */
#ifndef TSR_SPARSE_FRAGMENTS_INTERNAL_H
#define TSR_SPARSE_FRAGMENTS_INTERNAL_H

#include <string.h>

#include "sparse/fragments.h"

enum { LANE_HALVES = 8, QUARTERS = 4 /* of a step: 16 columns */ };

/* Index of a weight in a fragment: `row` and `col` below 16. Lane 4 * (row % 8) + (col % 8) / 2
 * holds it in register row / 8 + 2 * (col / 8). */
static inline size_t fragment_index(int64_t row, int64_t col) {
  const int64_t lane = 4 * (row % 8) + col % 8 / 2, reg = row / 8 + 2 * (col / 8);
  return (size_t)(lane * LANE_HALVES + 2 * reg + col % 2);
}

/* Index of the 16 bits of metadata of a row's columns 16 * quarter .. in the words of the lanes:
 * word 4 * (row % 8) + quarter, low half for rows 0 to 7, high half for rows 8 to 15. */
static inline size_t meta_index(int64_t row, int64_t quarter) {
  return (size_t)(2 * (4 * (row % 8) + quarter) + row / 8);
}

static inline uint16_t load16(const uint8_t *base, size_t index) {
  uint16_t value;
  memcpy(&value, base + 2 * index, 2);
  return value;
}
static inline void store16(uint8_t *base, size_t index, uint16_t value) {
  memcpy(base + 2 * index, &value, 2);
}

/* A row's part of a step of integers: those of its 64 columns, its codes (16) where the tile is
 * 2:4, and f16 scales and minimums of its two groups. */
struct quant_piece {
  int16_t integers[FRAGMENT_STEP_COLS];
  uint8_t codes[FRAGMENT_STEP_COLS / 4];
  uint16_t scale[2], minimum[2];
};
void fragment_put_quant(struct fragment_form form, bool sparse, uint8_t *block, int64_t row,
                        const struct quant_piece *piece);
/* The integers of dropped weights are QUANT_DROPPED. */
void fragment_get_quant(struct fragment_form form, bool sparse, const uint8_t *block, int64_t row,
                        struct quant_piece *piece);

#endif
