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
  FRAGMENT_DENSE_TILE_BYTES = FRAGMENT_STEPS * FRAGMENT_DENSE_STEP_BYTES    /* 32768 */
};

#endif
