/* The sizes of the fragment-major form (sparse/fragments.h), in C that CUDA's compiler reads too.
 *
 * strip: 128 rows of the matrix. tile: 128 columns of a strip, two steps of 64 columns. A step is
 * eight row blocks of 16 rows, one after the other; a row block holds what one warp loads to
 * multiply 16 x 64 weights:
 *   2:4:   128 bytes of metadata, one u32 a lane, then 2 fragments of 512 bytes (32 columns each)
 *   dense: 4 fragments of 512 bytes (16 columns each)
 * A fragment is 16 bytes for each of 32 lanes: operand A of mma.m16n8k16, or of mma.sp.m16n8k32
 * after compression. docs/GPU.md has the layout byte by byte. */
#ifndef TSR_SPARSE_FRAGMENT_LAYOUT_H
#define TSR_SPARSE_FRAGMENT_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

enum {
  FRAGMENT_STRIP_ROWS = 128,
  FRAGMENT_TILE_COLS = 128,
  FRAGMENT_STEP_COLS = 64,
  FRAGMENT_STEPS = 2, /* in a tile */
  FRAGMENT_BLOCK_ROWS = 16,
  FRAGMENT_BLOCKS = 8, /* in a strip */
  FRAGMENT_BYTES = 512,
  FRAGMENT_META_BYTES = 128,
  FRAGMENT_SPARSE_BLOCK_BYTES = FRAGMENT_META_BYTES + 2 * FRAGMENT_BYTES,
  FRAGMENT_DENSE_BLOCK_BYTES = 4 * FRAGMENT_BYTES,
  FRAGMENT_SPARSE_STEP_BYTES = FRAGMENT_BLOCKS * FRAGMENT_SPARSE_BLOCK_BYTES,
  FRAGMENT_DENSE_STEP_BYTES = FRAGMENT_BLOCKS * FRAGMENT_DENSE_BLOCK_BYTES,
  FRAGMENT_SPARSE_TILE_BYTES = FRAGMENT_STEPS * FRAGMENT_SPARSE_STEP_BYTES, /* 18432 */
  FRAGMENT_DENSE_TILE_BYTES = FRAGMENT_STEPS * FRAGMENT_DENSE_STEP_BYTES,   /* 32768 */
  FRAGMENT_ORDER_STRIPS = 4,  /* an order by columns has a multiple of so many */
  FRAGMENT_OFFSET_UNIT = 1024 /* every tile begins at a multiple of it */
};

/* What a weight is in the fragments. Integers have the same blocks with 8 or 4 bits a weight, and
 * after them, for each row, f16 scales (and minimums) of its two groups of 32 columns: for g = row
 * % 8 the scales of row g, row g + 8 in the first group, then in the second; then the minimums. */
enum fragment_kind { FRAGMENT_BF16, FRAGMENT_I8, FRAGMENT_I4 };
struct fragment_form {
  enum fragment_kind kind;
  bool scales, mins; /* false for bf16, and where a row has one scale, kept beside the tiles */
};
enum {
  FRAGMENT_GROUP_COLS = 32,
  FRAGMENT_SCALE_BYTES = 64, /* of a block's scales, and of its minimums */
  /* The most that a dense step takes. */
  FRAGMENT_I8_STEP_BYTES = FRAGMENT_BLOCKS * (2 * FRAGMENT_BYTES + 2 * FRAGMENT_SCALE_BYTES),
  FRAGMENT_I4_STEP_BYTES = FRAGMENT_BLOCKS * (FRAGMENT_BYTES + 2 * FRAGMENT_SCALE_BYTES)
};

static inline uint32_t fragment_step_bytes(struct fragment_form form, bool sparse) {
  const uint32_t bits = form.kind == FRAGMENT_BF16 ? 16 : form.kind == FRAGMENT_I8 ? 8 : 4;
  const uint32_t weights = FRAGMENT_BLOCK_ROWS * FRAGMENT_STEP_COLS / (sparse ? 2u : 1u);
  const uint32_t scales =
      (form.scales ? FRAGMENT_SCALE_BYTES : 0) + (form.mins ? FRAGMENT_SCALE_BYTES : 0);
  return FRAGMENT_BLOCKS * (weights * bits / 8 + scales + (sparse ? FRAGMENT_META_BYTES : 0));
}
static inline uint32_t fragment_tile_bytes(struct fragment_form form, bool sparse) {
  return FRAGMENT_STEPS * fragment_step_bytes(form, sparse);
}

#endif
