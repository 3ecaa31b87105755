/* What host and device agree on for the hybrid product on a GPU: the kernels' arguments and their
 * work plan. Read by C on the host, by CUDA's compiler, and by the emulator of the tests.
 *
 * Y (tokens, rows) = X (tokens, cols) W^T, with W in fragment-major form (sparse/fragments.h).
 * The output is cut into strips of 128 rows and panels of PANEL_TOKENS tokens. A block works off a
 * list of segments: consecutive tiles of one strip for one panel. Where several blocks share an
 * output, each leaves its sums in a slot of the workspace, and the block that comes last adds the
 * slots in the order of the tiles: who is last does not show in the bits. */
#ifndef TSR_KERNEL_CUDA_PRODUCT_H
#define TSR_KERNEL_CUDA_PRODUCT_H

#include <stdint.h>

#include "sparse/fragment_layout.h"

struct product_segment {
  uint64_t offset;        /* bytes from `tiles` to the first tile */
  uint32_t column;        /* index of the first tile in `columns` */
  uint16_t sparse, dense; /* tiles: first so many 2:4 ones, then so many dense ones */
  uint32_t strip, panel;
  uint32_t output;           /* index of the counter of this (strip, panel) */
  uint32_t peers;            /* segments of this output; 1: no workspace is used */
  uint32_t slot, first_slot; /* own slot, and the first of the output's `peers` slots */
};

struct product_args {
  const uint8_t *tiles;
  const uint16_t *columns;
  const struct product_segment *segments;
  const uint32_t *first_segment; /* (blocks + 1) into segments */
  const uint16_t *x; /* bf16 (tokens, cols; leading dimension x_stride, a multiple of 8);
                        16-byte aligned */
  uint64_t x_stride;
  uint32_t tokens, rows, cols;
  uint32_t stages;          /* of the ring in shared memory, PRODUCT_STAGES_MIN to _MAX */
  uint16_t *y;              /* bf16 (tokens, rows; leading dimension y_stride) */
  const uint16_t *bias;     /* bf16 (rows), or NULL */
  const uint16_t *residual; /* bf16, like y, added last; may be y itself; or NULL */
  uint64_t y_stride;
  float *partials;    /* (slots, PANEL_TOKENS, 128) */
  uint32_t *counters; /* (outputs), zero between launches */
};

enum {
  PRODUCT_STAGES_MIN = 2,
  PRODUCT_STAGES_MAX = 8,
  PRODUCT_FLAG_BYTES = 128, /* at the start of shared memory; keeps the stages aligned */
  PRODUCT_PANEL_ROW_BYTES = 2 * FRAGMENT_STEP_COLS
};

/* A stage holds one step of weights and the panel's activations for its 64 columns. */
static inline uint32_t product_stage_bytes(uint32_t panel_tokens) {
  return FRAGMENT_DENSE_STEP_BYTES + panel_tokens * PRODUCT_PANEL_ROW_BYTES;
}
static inline uint32_t product_shared_bytes(uint32_t panel_tokens, uint32_t stages) {
  return PRODUCT_FLAG_BYTES + stages * product_stage_bytes(panel_tokens);
}
/* As many stages as a block's shared memory holds, up to what the copies need: six steps of 9 KiB
 * keep 45 KiB in flight; prefill waits for the tensor cores and needs no more than four. 0 when the
 * memory does not hold the least. */
static inline uint32_t product_stages(uint32_t panel_tokens, uint32_t shared_bytes) {
  const uint32_t most = panel_tokens > 64 ? 4 : 6;
  const uint32_t fit = shared_bytes < PRODUCT_FLAG_BYTES ? 0
                                                         : (shared_bytes - PRODUCT_FLAG_BYTES) /
                                                               product_stage_bytes(panel_tokens);
  return fit < PRODUCT_STAGES_MIN ? 0 : fit < most ? fit : most;
}

/* The kernels there are, by the tokens of a panel. Decoding: each of eight warps takes 16 rows and
 * all tokens. Prefill: a warp takes 64 rows and 32 or 64 tokens. */
#define PRODUCT_KERNELS(K) \
  K(8, 256)                \
  K(16, 256)               \
  K(32, 256)               \
  K(64, 256)               \
  K(128, 256)              \
  K(256, 256)
/* K(panel tokens, threads) */

#endif
