/* The hybrid product for prefill on cards without wgmma: included once for each row of
 * TALL_KERNELS, after a vocabulary, with PRODUCT_NAME   the kernel's name PANEL_TOKENS   tokens of
 * a panel, 128
 *
 * A block takes two strips and one panel, so that a step's activations are fetched once for 256
 * rows: with one strip the second-level cache binds. The strips go through the columns together,
 * from left to right, each with the kind of tile that it has there; plans, `order` and segments are
 * those of a cluster of two (product.h). 16 warps, 4 down and 4 across, take 64 rows and 32 tokens
 * each. Copies, stages and the barrier of a step are as in product_body.h. */

#define LOCAL_(name, suffix) name##_##suffix
#define LOCAL__(name, suffix) LOCAL_(name, suffix)
#define LOCAL(suffix) LOCAL__(PRODUCT_NAME, suffix)
#define THREADS TALL_THREADS
#define WARP_BLOCKS 4
#define WARP_OCTETS 4
#define WEIGHT_BYTES (TALL_STRIPS * FRAGMENT_DENSE_STEP_BYTES)
#define STAGE_BYTES (WEIGHT_BYTES + PANEL_TOKENS * PRODUCT_PANEL_ROW_BYTES)
#define CHUNKS_PER_ROW (PRODUCT_PANEL_ROW_BYTES / 16)

/* Where the next step to be copied lies. All threads of a block hold the same. */
struct LOCAL(loader) {
  uint32_t segment, segment_end;
  uint32_t steps;               /* left of the segment */
  uint32_t order;               /* index of the tile at hand, of the first strip */
  uint32_t above;               /* from there to the second strip's: 0 where there is none */
  uint32_t places[TALL_STRIPS]; /* of the tiles at hand, as in `order` */
  uint32_t col, token;
};

/* A matrix with an odd number of strips ends with a block whose second strip repeats the first; its
 * rows lie past the end. */
DEVICE uint32_t LOCAL(above)(const struct cluster_args *args,
                             const struct product_segment *segment) {
  return segment->strip + 1 < args->strips ? args->tiles_per_strip : 0;
}

DEVICE void LOCAL(fetch_places)(const struct cluster_args *args, struct LOCAL(loader) * l) {
  l->places[0] = global_load(args->order + l->order);
  l->places[1] = global_load(args->order + l->order + l->above);
}

DEVICE void LOCAL(open_segment)(const struct cluster_args *args, struct LOCAL(loader) * l) {
  if (l->segment == l->segment_end) return;
  const struct product_segment segment = global_load(args->product.segments + l->segment);
  l->steps = FRAGMENT_STEPS * segment.sparse;
  l->order = segment.strip * args->tiles_per_strip + segment.column;
  l->above = LOCAL(above)(args, &segment);
  l->col = segment.column * FRAGMENT_TILE_COLS;
  l->token = segment.panel * PANEL_TOKENS;
  LOCAL(fetch_places)(args, l);
}

/* 64 activations of each of the panel's tokens; zeros past the last token and the last column. */
DEVICE void LOCAL(copy_panel)(const struct product_args *args, uint32_t first_col, uint32_t token,
                              uint32_t to) {
  const uint32_t chunk = thread_index() % CHUNKS_PER_ROW, col = first_col + 8 * chunk;
  const uint32_t left = col < args->cols ? 2 * (args->cols - col) : 0;
  const uint32_t bytes = left < 16 ? left : 16;
  UNROLL for (uint32_t row = thread_index() / CHUNKS_PER_ROW; row < PANEL_TOKENS;
              row += THREADS / CHUNKS_PER_ROW) {
    const bool inside = bytes && token + row < args->tokens;
    async_copy16(to + panel_offset(row, chunk),
                 args->x + (inside ? (token + row) * args->x_stride + col : 0), inside ? bytes : 0);
  }
}

/* Starts the copy of the next step into the stage at `to`, if there is one left; closes the group
 * of copies in any case. */
DEVICE void LOCAL(copy_step)(const struct cluster_args *args, struct LOCAL(loader) * l,
                             uint32_t to) {
  if (l->segment < l->segment_end) {
    const uint32_t step = l->steps % FRAGMENT_STEPS ? 1 : 0;
    UNROLL
    for (int s = 0; s < TALL_STRIPS; s++) {
      const uint32_t bytes =
          l->places[s] & 1 ? FRAGMENT_SPARSE_STEP_BYTES : FRAGMENT_DENSE_STEP_BYTES;
      const uint8_t *from =
          args->product.tiles + (uint64_t)(l->places[s] >> 1) * FRAGMENT_OFFSET_UNIT + step * bytes;
      for (uint32_t at = 16 * thread_index(); at < bytes; at += 16 * THREADS)
        async_copy16(to + s * FRAGMENT_DENSE_STEP_BYTES + at, from + at, 16);
    }
    LOCAL(copy_panel)
    (&args->product, l->col + step * FRAGMENT_STEP_COLS, l->token, to + WEIGHT_BYTES);
    if (--l->steps == 0) {
      l->segment++;
      LOCAL(open_segment)(args, l);
    } else if (step) {
      l->order++;
      l->col += FRAGMENT_TILE_COLS;
      LOCAL(fetch_places)(args, l);
    }
  }
  async_commit();
}

/* The warp's place in the block's output: its strip, its first row block there, its first token. */
DEVICE uint32_t LOCAL(warp_strip)(void) { return thread_index() / 32 % 4 / 2; }
DEVICE uint32_t LOCAL(warp_block)(void) { return thread_index() / 32 % 2 * WARP_BLOCKS; }
DEVICE uint32_t LOCAL(warp_token)(void) { return thread_index() / 128 * (8 * WARP_OCTETS); }

/* As in product_body.h. `stage` is where the warp's own strip begins, the panel lies behind both.
 */
DEVICE struct words4 LOCAL(load_octet)(uint32_t stage, int octet, int half) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t row = LOCAL(warp_token)() + 8 * octet + lane % 8;
  const uint32_t panel = stage + (TALL_STRIPS - LOCAL(warp_strip)()) * FRAGMENT_DENSE_STEP_BYTES;
  return load_matrices(panel + panel_offset(row, 4 * half + lane / 8));
}

#include "kernel/cuda/multiply_body.h"

#define OUTPUT_THREADS THREADS
#define OUTPUT_BARRIER() block_barrier()
#include "kernel/cuda/output_body.h"

DEVICE struct product_place LOCAL(place)(const struct product_segment *segment, uint32_t strip) {
  return (struct product_place){segment->strip + strip, segment->slot * TALL_STRIPS + strip,
                                segment->first_slot * TALL_STRIPS + strip, TALL_STRIPS,
                                segment->output * TALL_STRIPS};
}

DEVICE void LOCAL(put_sums)(const struct product_args *args, const struct product_segment *segment,
                            float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const struct product_place own = LOCAL(place)(segment, LOCAL(warp_strip)());
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(put_block)
  (args, segment, &own, LOCAL(warp_block)() + m, LOCAL(warp_token)(), sums[m], WARP_OCTETS);
  if (segment->peers == 1 || !LOCAL(arrive_last)(args, segment, &own)) return;
  for (uint32_t strip = 0; strip < TALL_STRIPS; strip++) {
    const struct product_place place = LOCAL(place)(segment, strip);
    LOCAL(add_slots)(args, segment, &place);
  }
}

/* Waits for the step to come, refills the stage that the last one left, and returns the stage to
 * multiply from. */
DEVICE uint32_t LOCAL(next_stage)(const struct cluster_args *args, struct LOCAL(loader) * loader,
                                  uint32_t *slot) {
  const uint32_t stages = shared_base() + PRODUCT_FLAG_BYTES;
  const uint32_t current = *slot, before = current ? current - 1 : args->product.stages - 1;
  *slot = current + 1 == args->product.stages ? 0 : current + 1;
  async_wait(args->product.stages - 2);
  block_barrier();
  LOCAL(copy_step)(args, loader, stages + before * STAGE_BYTES);
  return stages + current * STAGE_BYTES;
}

DEVICE void LOCAL(run)(const struct cluster_args *args) {
  struct LOCAL(loader) loader = {0};
  loader.segment = global_load(args->product.first_segment + block_index());
  loader.segment_end = global_load(args->product.first_segment + block_index() + 1);
  const uint32_t end = loader.segment_end;
  uint32_t at = loader.segment, slot = 0;
  LOCAL(open_segment)(args, &loader);
  for (uint32_t s = 0; s + 1 < args->product.stages; s++)
    LOCAL(copy_step)(args, &loader, shared_base() + PRODUCT_FLAG_BYTES + s * STAGE_BYTES);
  for (; at < end; at++) {
    const struct product_segment segment = global_load(args->product.segments + at);
    const uint32_t *order = args->order + segment.strip * args->tiles_per_strip + segment.column +
                            LOCAL(warp_strip)() * LOCAL(above)(args, &segment);
    uint32_t next = global_load(order); /* a tile ahead: its latency would hold up the products */
    float sums[WARP_BLOCKS][WARP_OCTETS][4] = {{{0}}};
    for (uint32_t tile = 0; tile < segment.sparse; tile++) {
      const bool sparse = next & 1;
      if (tile + 1 < segment.sparse) next = global_load(order + tile + 1);
      for (uint32_t step = 0; step < FRAGMENT_STEPS; step++) {
        const uint32_t stage = LOCAL(next_stage)(args, &loader, &slot) +
                               LOCAL(warp_strip)() * FRAGMENT_DENSE_STEP_BYTES;
        if (sparse)
          LOCAL(multiply_sparse)(&args->product, stage, sums);
        else
          LOCAL(multiply_dense)(&args->product, stage, sums);
      }
    }
    LOCAL(put_sums)(&args->product, &segment, sums);
  }
  async_wait(0);
}

KERNEL(PRODUCT_NAME, LOCAL(run), THREADS, struct cluster_args)

#undef LOCAL
#undef LOCAL_
#undef LOCAL__
#undef THREADS
#undef WARP_BLOCKS
#undef WARP_OCTETS
#undef WEIGHT_BYTES
#undef STAGE_BYTES
#undef CHUNKS_PER_ROW
#undef PRODUCT_NAME
#undef PANEL_TOKENS
