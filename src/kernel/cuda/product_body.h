/* The hybrid product, one kernel: included once for each row of PRODUCT_KERNELS, after a vocabulary
 * (simt_ptx.h on the device, the emulator's in tests), with
 *   PRODUCT_NAME   the kernel's name
 *   PANEL_TOKENS   tokens of a panel
 *   WARP_BLOCKS    row blocks of 16 rows that a warp takes
 *   WARP_OCTETS    groups of 8 tokens that a warp takes
 *   QUANT_BITS     8 or 4 for integers, 0 for bf16
 *
 * Weights are operand A: the kernel computes Y^T, out features down, tokens across. A block streams
 * the steps of its segments through a ring of stages in shared memory, across the borders of
 * segments, so that the copies never run dry; a step is 64 columns: 9 or 16 KiB of weights, copied
 * as they lie, and 128 bytes of activations a token, whose 16-byte chunks are swizzled (chunk ^ row
 * % 8) so that neither the copies nor ldmatrix meet a bank twice.
 *
 * One barrier a step: it says that the step to come has arrived for everybody, and that everybody
 * has left the stage that is about to be filled again. */

#define WARPS_DOWN (FRAGMENT_BLOCKS / WARP_BLOCKS)
#define WARPS_ACROSS (PANEL_TOKENS / (8 * WARP_OCTETS))
#define THREADS (32 * WARPS_DOWN * WARPS_ACROSS)
#if QUANT_BITS
#define SPARSE_STEP_BYTES args->sparse_step_bytes
#define DENSE_STEP_BYTES args->dense_step_bytes
#define WEIGHT_BYTES (QUANT_BITS == 8 ? FRAGMENT_I8_STEP_BYTES : FRAGMENT_I4_STEP_BYTES)
#else
#define SPARSE_STEP_BYTES FRAGMENT_SPARSE_STEP_BYTES
#define DENSE_STEP_BYTES FRAGMENT_DENSE_STEP_BYTES
#define WEIGHT_BYTES FRAGMENT_DENSE_STEP_BYTES
#endif
#define STAGE_BYTES (WEIGHT_BYTES + PANEL_TOKENS * PRODUCT_PANEL_ROW_BYTES)
#define CHUNKS_PER_ROW (PRODUCT_PANEL_ROW_BYTES / 16)
#define LOCAL_(name, suffix) name##_##suffix
#define LOCAL__(name, suffix) LOCAL_(name, suffix)
#define LOCAL(suffix) LOCAL__(PRODUCT_NAME, suffix)

/* Where the next step to be copied lies. All threads of a block hold the same. */
struct LOCAL(loader) {
  uint32_t segment, segment_end;
  uint32_t sparse_steps, dense_steps; /* left of the segment */
  const uint8_t *weights;
  const uint16_t *columns; /* of the tile after the one at hand */
  uint32_t col, next_col;  /* first column of the step; of the next tile */
  uint32_t token;          /* first of the panel */
};

DEVICE uint32_t LOCAL(fetch_col)(struct LOCAL(loader) * l) {
  const uint32_t tile = global_load(l->columns);
  l->columns++;
  return tile * FRAGMENT_TILE_COLS;
}

/* A tile's column is fetched while the one before is copied: its latency would otherwise come
 * before every copy of activations. */
DEVICE void LOCAL(next_tile)(struct LOCAL(loader) * l) {
  l->col = l->next_col;
  if (l->sparse_steps + l->dense_steps > FRAGMENT_STEPS) l->next_col = LOCAL(fetch_col)(l);
}

DEVICE void LOCAL(open_segment)(const struct product_args *args, struct LOCAL(loader) * l) {
  if (l->segment == l->segment_end) return;
  const struct product_segment segment = global_load(args->segments + l->segment);
  l->sparse_steps = FRAGMENT_STEPS * segment.sparse;
  l->dense_steps = FRAGMENT_STEPS * segment.dense;
  l->weights = args->tiles + segment.offset;
  l->columns = args->columns + segment.column;
  l->token = segment.panel * PANEL_TOKENS;
  l->next_col = LOCAL(fetch_col)(l);
  LOCAL(next_tile)(l);
}

/* 64 activations of each of the panel's tokens; zeros past the last token and the last column. */
DEVICE void LOCAL(copy_panel)(const struct product_args *args, const struct LOCAL(loader) * l,
                              uint32_t to) {
  const uint32_t chunk = thread_index() % CHUNKS_PER_ROW, col = l->col + 8 * chunk;
  const uint32_t left = col < args->cols ? 2 * (args->cols - col) : 0;
  const uint32_t bytes = left < 16 ? left : 16;
  UNROLL for (uint32_t row = thread_index() / CHUNKS_PER_ROW; row < PANEL_TOKENS;
              row += THREADS / CHUNKS_PER_ROW) {
    const uint32_t token = l->token + row;
    const bool inside = bytes && token < args->tokens;
    async_copy16(to + panel_offset(row, chunk),
                 args->x + (inside ? token * args->x_stride + col : 0), inside ? bytes : 0);
  }
}

/* Starts the copy of the next step into the stage at `to`, if there is one left; closes the group
 * of copies in any case, so that their number tells which have arrived. */
DEVICE void LOCAL(copy_step)(const struct product_args *args, struct LOCAL(loader) * l,
                             uint32_t to) {
  if (l->segment < l->segment_end) {
    const bool sparse = l->sparse_steps > 0;
    const uint32_t bytes = sparse ? SPARSE_STEP_BYTES : DENSE_STEP_BYTES;
    for (uint32_t at = 16 * thread_index(); at < bytes; at += 16 * THREADS)
      async_copy16(to + at, l->weights + at, 16);
    LOCAL(copy_panel)(args, l, to + WEIGHT_BYTES);
    l->weights += bytes;
    if (sparse)
      l->sparse_steps--;
    else
      l->dense_steps--;
    l->col += FRAGMENT_STEP_COLS;
    if (l->sparse_steps + l->dense_steps == 0) {
      l->segment++;
      LOCAL(open_segment)(args, l);
    } else if ((l->sparse_steps + l->dense_steps) % FRAGMENT_STEPS == 0) {
      LOCAL(next_tile)(l);
    }
  }
  async_commit();
}

/* The warp's place in the block's output: its first row block and its first token. */
DEVICE uint32_t LOCAL(warp_block)(void) { return thread_index() / 32 % WARPS_DOWN * WARP_BLOCKS; }
DEVICE uint32_t LOCAL(warp_token)(void) {
  return thread_index() / 32 / WARPS_DOWN * (8 * WARP_OCTETS);
}

/* Operand B of 32 columns of an octet of tokens: matrix i, which lanes 8 i .. address, holds
 * columns 8 i .. of them. */
DEVICE struct words4 LOCAL(load_octet)(uint32_t stage, int octet, int half) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t row = LOCAL(warp_token)() + 8 * octet + lane % 8;
  return load_matrices(stage + WEIGHT_BYTES + panel_offset(row, 4 * half + lane / 8));
}

#if QUANT_BITS
#include "kernel/cuda/multiply_quant_body.h"
#else
#include "kernel/cuda/multiply_body.h"
#endif

#define OUTPUT_THREADS THREADS
#define OUTPUT_BARRIER() block_barrier()
#include "kernel/cuda/output_body.h"

DEVICE struct product_place LOCAL(place)(const struct product_segment *segment) {
  return (struct product_place){segment->strip, segment->slot, segment->first_slot, 1,
                                segment->output};
}

/* The sums go to the output, or to the segment's slot when the output has other segments. */
DEVICE void LOCAL(put_sums)(const struct product_args *args, const struct product_segment *segment,
                            float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const struct product_place place = LOCAL(place)(segment);
#if QUANT_BITS
  if (args->row_scales) LOCAL(scale_rows)
  (args, segment->strip, LOCAL(warp_block)(), sums[0], WARP_OCTETS);
#endif
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(put_block)
  (args, segment, &place, LOCAL(warp_block)() + m, LOCAL(warp_token)(), sums[m], WARP_OCTETS);
  if (segment->peers > 1 && LOCAL(arrive_last)(args, segment, &place))
    LOCAL(add_slots)(args, segment, &place);
}

/* --- the kernel --- */

/* Waits for the step to come, refills the stage that the last one left, and returns the stage to
 * multiply from. */
DEVICE uint32_t LOCAL(next_stage)(const struct product_args *args, struct LOCAL(loader) * loader,
                                  uint32_t *slot) {
  const uint32_t stages = shared_base() + PRODUCT_FLAG_BYTES;
  const uint32_t current = *slot, before = current ? current - 1 : args->stages - 1;
  *slot = current + 1 == args->stages ? 0 : current + 1;
  async_wait(args->stages - 2);
  block_barrier();
  LOCAL(copy_step)(args, loader, stages + before * STAGE_BYTES);
  return stages + current * STAGE_BYTES;
}

DEVICE void LOCAL(run)(const struct product_args *args) {
  struct LOCAL(loader) loader = {0};
  loader.segment = global_load(args->first_segment + block_index());
  loader.segment_end = global_load(args->first_segment + block_index() + 1);
  const uint32_t end = loader.segment_end;
  uint32_t at = loader.segment, slot = 0;
  LOCAL(open_segment)(args, &loader);
  for (uint32_t s = 0; s + 1 < args->stages; s++) LOCAL(copy_step)
  (args, &loader, shared_base() + PRODUCT_FLAG_BYTES + s * STAGE_BYTES);
  for (; at < end; at++) {
    const struct product_segment segment = global_load(args->segments + at);
    float sums[WARP_BLOCKS][WARP_OCTETS][4] = {{{0}}};
    for (uint32_t step = 0; step < FRAGMENT_STEPS * (uint32_t)segment.sparse; step++)
      LOCAL(multiply_sparse)(args, LOCAL(next_stage)(args, &loader, &slot), sums);
    for (uint32_t step = 0; step < FRAGMENT_STEPS * (uint32_t)segment.dense; step++)
      LOCAL(multiply_dense)(args, LOCAL(next_stage)(args, &loader, &slot), sums);
    LOCAL(put_sums)(args, &segment, sums);
  }
  async_wait(0);
}

KERNEL(PRODUCT_NAME, LOCAL(run), THREADS, struct product_args)

#undef WARPS_DOWN
#undef WARPS_ACROSS
#undef THREADS
#undef CHUNKS_PER_ROW
#undef SPARSE_STEP_BYTES
#undef DENSE_STEP_BYTES
#undef WEIGHT_BYTES
#undef STAGE_BYTES
#undef LOCAL
#undef LOCAL_
#undef LOCAL__
#undef PRODUCT_NAME
#undef PANEL_TOKENS
#undef WARP_OCTETS
