/* The hybrid product for prefill on cards without wgmma: included once for each row of
 * TALL_KERNELS, after a vocabulary, with
 *   PRODUCT_NAME   the kernel's name
 *   PANEL_TOKENS   tokens of a panel, 128
 *   QUANT_BITS     8 or 4 for integers, 0 for bf16
 *   PRODUCT_PAIR   1 for a pair: the two strips are one of the gate and the same of up, and each
 *                  warp has two row blocks of both, so that f(gate) * up is made in registers
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
#if QUANT_BITS
#define SPARSE_STEP_BYTES args->product.sparse_step_bytes
#define DENSE_STEP_BYTES args->product.dense_step_bytes
#define STRIP_BYTES (QUANT_BITS == 8 ? FRAGMENT_I8_STEP_BYTES : FRAGMENT_I4_STEP_BYTES)
#else
#define SPARSE_STEP_BYTES FRAGMENT_SPARSE_STEP_BYTES
#define DENSE_STEP_BYTES FRAGMENT_DENSE_STEP_BYTES
#define STRIP_BYTES FRAGMENT_DENSE_STEP_BYTES
#endif
#define WEIGHT_BYTES (TALL_STRIPS * STRIP_BYTES)
#define STAGE_BYTES (WEIGHT_BYTES + PANEL_TOKENS * PRODUCT_PANEL_ROW_BYTES)
#define CHUNKS_PER_ROW (PRODUCT_PANEL_ROW_BYTES / 16)

/* Where the next step to be copied lies. All threads of a block hold the same. */
struct LOCAL(loader) {
  uint32_t segment, segment_end;
  uint32_t steps;               /* left of the segment */
  uint32_t order;               /* index of the tile at hand, of the first strip */
  uint32_t places[TALL_STRIPS]; /* of the tiles at hand, as in `order` */
  uint32_t col, token;
  uint32_t kinds; /* bit 2 s + strip: stage s has 2:4 weights of that strip */
};

DEVICE uint32_t LOCAL(stage)(uint32_t slot) {
  return shared_base() + PRODUCT_FLAG_BYTES + slot * STAGE_BYTES;
}

/* A matrix with an odd number of strips ends with a block whose second strip repeats the first; its
 * rows lie past the end. */
DEVICE void LOCAL(fetch_places)(const struct cluster_args *args, struct LOCAL(loader) * l) {
  const uint32_t apart = PRODUCT_PAIR ? args->product.gate_strips : 1;
  l->places[0] = global_load(args->order + l->order);
  l->places[1] = global_load(args->order + l->order + apart * args->tiles_per_strip);
}

DEVICE void LOCAL(open_segment)(const struct cluster_args *args, struct LOCAL(loader) * l) {
  if (l->segment == l->segment_end) return;
  const struct product_segment segment = global_load(args->product.segments + l->segment);
  l->steps = FRAGMENT_STEPS * segment.sparse;
  l->order =
      (PRODUCT_PAIR ? segment.strip / 2 : segment.strip) * args->tiles_per_strip + segment.column;
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

/* Starts the copy of the next step into stage `slot`, if there is one left; closes the group
 * of copies in any case. */
DEVICE void LOCAL(copy_step)(const struct cluster_args *args, struct LOCAL(loader) * l,
                             uint32_t slot) {
  const uint32_t to = LOCAL(stage)(slot);
  if (l->segment < l->segment_end) {
    const uint32_t step = l->steps % FRAGMENT_STEPS ? 1 : 0;
    l->kinds &= ~(3u << 2 * slot);
    l->kinds |= ((l->places[0] & 1) | (l->places[1] & 1) << 1) << 2 * slot;
    UNROLL
    for (int s = 0; s < TALL_STRIPS; s++) {
      const uint32_t bytes = l->places[s] & 1 ? SPARSE_STEP_BYTES : DENSE_STEP_BYTES;
      const uint8_t *from =
          args->product.tiles + (uint64_t)(l->places[s] >> 1) * FRAGMENT_OFFSET_UNIT + step * bytes;
      for (uint32_t at = 16 * thread_index(); at < bytes; at += 16 * THREADS)
        async_copy16(to + s * STRIP_BYTES + at, from + at, 16);
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

/* The warp's place in the block's output: its strip, its first row block there, its first token. Of
 * a pair, the warp's last two row blocks are those of up. */
#if PRODUCT_PAIR
DEVICE uint32_t LOCAL(warp_strip)(void) { return 0; }
DEVICE uint32_t LOCAL(warp_block)(void) { return thread_index() / 32 % 4 * (WARP_BLOCKS / 2); }
#else
DEVICE uint32_t LOCAL(warp_strip)(void) { return thread_index() / 32 % 4 / 2; }
DEVICE uint32_t LOCAL(warp_block)(void) { return thread_index() / 32 % 2 * WARP_BLOCKS; }
#endif
DEVICE uint32_t LOCAL(warp_token)(void) { return thread_index() / 128 * (8 * WARP_OCTETS); }

/* As in product_body.h. `stage` is where the warp's own strip begins, the panel lies behind both.
 */
DEVICE struct words4 LOCAL(load_octet)(uint32_t stage, int octet, int half) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t row = LOCAL(warp_token)() + 8 * octet + lane % 8;
  const uint32_t panel = stage + (TALL_STRIPS - LOCAL(warp_strip)()) * STRIP_BYTES;
  return load_matrices(panel + panel_offset(row, 4 * half + lane / 8));
}

#include "kernel/cuda/multiply_tall_body.h"

#define OUTPUT_THREADS THREADS
#define OUTPUT_BARRIER() block_barrier()
#include "kernel/cuda/output_body.h"

DEVICE struct product_place LOCAL(place)(const struct product_segment *segment, uint32_t strip) {
  return (struct product_place){segment->strip + strip, segment->slot * TALL_STRIPS + strip,
                                segment->first_slot * TALL_STRIPS + strip, TALL_STRIPS,
                                segment->output * TALL_STRIPS};
}

#if PRODUCT_PAIR
DEVICE void LOCAL(put_sums)(const struct product_args *args, const struct product_segment *segment,
                            float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const struct product_place gate = LOCAL(place)(segment, 0), up = LOCAL(place)(segment, 1);
  const uint32_t strip = segment->strip / TALL_STRIPS; /* of the output */
  const uint32_t block = LOCAL(warp_block)(), token = LOCAL(warp_token)();
  UNROLL
  for (int m = 0; m < WARP_BLOCKS / 2; m++) {
    float(*up_sums)[4] = sums[m + WARP_BLOCKS / 2];
#if QUANT_BITS
    if (args->row_scales) {
      LOCAL(scale_rows)(args, strip, block + m, sums[m], WARP_OCTETS);
      LOCAL(scale_rows)(args, args->gate_strips + strip, block + m, up_sums, WARP_OCTETS);
    }
#endif
    if (segment->peers > 1) {
      LOCAL(put_block)(args, segment, &gate, block + m, token, sums[m], WARP_OCTETS);
      LOCAL(put_block)(args, segment, &up, block + m, token, up_sums, WARP_OCTETS);
    } else {
      LOCAL(put_pair)
      (args, segment, strip * FRAGMENT_STRIP_ROWS + (block + m) * FRAGMENT_BLOCK_ROWS, token,
       sums[m], up_sums, WARP_OCTETS);
    }
  }
  if (segment->peers > 1 && LOCAL(arrive_last)(args, segment, &gate)) LOCAL(add_pair_slots)
  (args, segment, &gate, 0, &up, 0, FRAGMENT_STRIP_ROWS, strip * FRAGMENT_STRIP_ROWS);
}
#else
DEVICE void LOCAL(put_sums)(const struct product_args *args, const struct product_segment *segment,
                            float sums[WARP_BLOCKS][WARP_OCTETS][4]) {
  const struct product_place own = LOCAL(place)(segment, LOCAL(warp_strip)());
#if QUANT_BITS
  if (args->row_scales) {
    UNROLL
    for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(scale_rows)
    (args, own.strip, LOCAL(warp_block)() + m, sums[m], WARP_OCTETS);
  }
#endif
  UNROLL
  for (int m = 0; m < WARP_BLOCKS; m++) LOCAL(put_block)
  (args, segment, &own, LOCAL(warp_block)() + m, LOCAL(warp_token)(), sums[m], WARP_OCTETS);
  if (segment->peers == 1 || !LOCAL(arrive_last)(args, segment, &own)) return;
  for (uint32_t strip = 0; strip < TALL_STRIPS; strip++) {
    const struct product_place place = LOCAL(place)(segment, strip);
    LOCAL(add_slots)(args, segment, &place);
  }
}
#endif

/* Waits for the step to come in stage `slot` and refills the stage that the last one left. */
DEVICE void LOCAL(next_stage)(const struct cluster_args *args, struct LOCAL(loader) * loader,
                              uint32_t slot) {
  async_wait(args->product.stages - 2);
  block_barrier();
  LOCAL(copy_step)(args, loader, slot ? slot - 1 : args->product.stages - 1);
}

DEVICE void LOCAL(run)(const struct cluster_args *args) {
  struct LOCAL(loader) loader = {0};
  loader.segment = global_load(args->product.first_segment + block_index());
  loader.segment_end = global_load(args->product.first_segment + block_index() + 1);
  const uint32_t end = loader.segment_end;
  uint32_t at = loader.segment, slot = 0;
  LOCAL(open_segment)(args, &loader);
  for (uint32_t s = 0; s + 1 < args->product.stages; s++) LOCAL(copy_step)(args, &loader, s);
  for (; at < end; at++) {
    uint32_t steps = FRAGMENT_STEPS * (uint32_t)global_load(&args->product.segments[at].sparse);
    float sums[WARP_BLOCKS][WARP_OCTETS][4] = {{{0}}};
    for (; steps; steps--) {
      LOCAL(next_stage)(args, &loader, slot);
      const uint32_t stage = LOCAL(stage)(slot) + LOCAL(warp_strip)() * STRIP_BYTES;
      const uint32_t kinds = loader.kinds >> (2 * slot + LOCAL(warp_strip)()) & 3;
#if PRODUCT_PAIR
      if (kinds % 3)
        LOCAL(multiply_mixed)(&args->product, stage, kinds & 1, sums);
      else
#endif
          if (kinds & 1)
        LOCAL(multiply_sparse)(&args->product, stage, sums);
      else
        LOCAL(multiply_dense)(&args->product, stage, sums);
      slot = slot + 1 == args->product.stages ? 0 : slot + 1;
    }
    /* Only now: while it multiplies, a thread has no registers for it. */
    const struct product_segment segment = global_load(args->product.segments + at);
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
#undef SPARSE_STEP_BYTES
#undef DENSE_STEP_BYTES
#undef STRIP_BYTES
#undef WEIGHT_BYTES
#undef STAGE_BYTES
#undef CHUNKS_PER_ROW
#undef PRODUCT_NAME
#undef PANEL_TOKENS
