/* The hybrid product by wgmma, for sm_90a: included once for each row of CLUSTER_KERNELS, after a
 * vocabulary, with
 *   PRODUCT_NAME   the kernel's name
 *   PANEL_TOKENS   tokens of a panel, 128 or 256
 *   QUANT_BITS     8 or 4 for integers, 0 for bf16
 *   PRODUCT_PAIR   1 for a pair: a block's 128 rows are 64 of the gate and the same 64 of up, one
 *                  for each warp group; at the end they bring their sums together
 *
 * A block multiplies a strip of 128 rows with a panel. One warp copies: each step's weights, as
 * they lie, and this block's share of the panel's 64 activations a token to every block of the
 * cluster, so that the second-level cache is asked for a panel once a cluster. Two warp groups
 * multiply 64 rows each: weights from shared memory to registers, activations straight from shared
 * memory by wgmma. While one group fetches its weights, the other multiplies.
 *
 * Each stage of the ring has two mbarriers: `full`, which counts the bytes that arrive, and
 * `empty`, at which every multiplying warp of the *cluster* arrives when it has left the stage:
 * only then may any block copy into it again. */

#define LOCAL_(name, suffix) name##_##suffix
#define LOCAL__(name, suffix) LOCAL_(name, suffix)
#define LOCAL(suffix) LOCAL__(PRODUCT_NAME, suffix)
#define WARP_OCTETS (PANEL_TOKENS / 8)
#if QUANT_BITS
#define SPARSE_STEP_BYTES args->product.sparse_step_bytes
#define DENSE_STEP_BYTES args->product.dense_step_bytes
#define WEIGHT_BYTES (QUANT_BITS == 8 ? FRAGMENT_I8_STEP_BYTES : FRAGMENT_I4_STEP_BYTES)
#else
#define SPARSE_STEP_BYTES FRAGMENT_SPARSE_STEP_BYTES
#define DENSE_STEP_BYTES FRAGMENT_DENSE_STEP_BYTES
#define WEIGHT_BYTES FRAGMENT_DENSE_STEP_BYTES
#endif
#define STAGE_BYTES (WEIGHT_BYTES + PANEL_TOKENS * PRODUCT_PANEL_ROW_BYTES)
#define CONSUMER_THREADS (32 * CLUSTER_CONSUMER_WARPS)

/* A place in the ring, and how often it came round, as a parity. */
struct LOCAL(ring) {
  uint32_t stage, parity;
};

DEVICE void LOCAL(advance)(struct LOCAL(ring) * ring, uint32_t stages) {
  ring->stage++;
  if (ring->stage < stages) return;
  ring->stage = 0;
  ring->parity ^= 1;
}

DEVICE uint32_t LOCAL(full)(uint32_t stage) {
  return shared_base() + CLUSTER_BARRIERS + 16 * stage;
}
DEVICE uint32_t LOCAL(empty)(uint32_t stage) { return LOCAL(full)(stage) + 8; }
DEVICE uint32_t LOCAL(stage)(uint32_t stage) {
  return shared_base() + CLUSTER_STAGES + stage * STAGE_BYTES;
}

/* Where this block's tiles of the segment stand in `order`: of both halves of its rows, which are
 * of one strip unless they are those of a pair. The last cluster may have a block too many: it goes
 * through the last strip's tiles, for its share of the panel is needed, and its rows lie past the
 * end. */
DEVICE const uint32_t *LOCAL(order)(const struct cluster_args *args,
                                    const struct product_segment *segment, uint32_t half) {
  uint32_t strip = segment->strip + cluster_rank();
#if PRODUCT_PAIR
  strip = product_pair_strip((strip & ~1u) + half, args->product.gate_strips);
#endif
  return args->order + (uint64_t)strip * args->tiles_per_strip + segment->column;
}
/* Which half of a strip's row blocks lies in half `half` of a stage's weights. */
DEVICE uint32_t LOCAL(strip_half)(const struct product_segment *segment, uint32_t half) {
#if PRODUCT_PAIR
  return (segment->strip + cluster_rank()) & 1;
#else
  return half;
#endif
}

/* --- the warp that copies --- */

/* Starts the copies of a step: `weights` and their bytes by half. */
DEVICE void LOCAL(copy_step)(const struct cluster_args *args, const struct LOCAL(ring) * ring,
                             const uint8_t *const weights[2], const uint32_t bytes[2], uint32_t col,
                             uint32_t token) {
  const uint32_t full = LOCAL(full)(ring->stage), to = LOCAL(stage)(ring->stage);
  const uint32_t share = PANEL_TOKENS / args->cluster, first = share * cluster_rank();
  mbarrier_wait(LOCAL(empty)(ring->stage), ring->parity ^ 1);
  mbarrier_expect(full, bytes[0] + bytes[1] + PANEL_TOKENS * PRODUCT_PANEL_ROW_BYTES);
#if PRODUCT_PAIR
  bulk_copy(to, weights[0], bytes[0], full);
  bulk_copy(to + WEIGHT_BYTES / 2, weights[1], bytes[1], full);
#else
  bulk_copy(to, weights[0], bytes[0] + bytes[1], full);
#endif
  bulk_copy_panel(to + WEIGHT_BYTES + first * PRODUCT_PANEL_ROW_BYTES, &args->x, col, token + first,
                  full, args->cluster);
}

DEVICE void LOCAL(copy_all)(const struct cluster_args *args, uint32_t at, uint32_t end) {
  struct LOCAL(ring) ring = {0, 0};
  for (; at < end; at++) {
    const struct product_segment segment = global_load(args->product.segments + at);
    for (uint32_t tile = 0; tile < segment.sparse; tile++) {
      const uint8_t *weights[2];
      uint32_t bytes[2];
      UNROLL
      for (uint32_t half = 0; half < 2; half++) {
        const uint32_t place = global_load(LOCAL(order)(args, &segment, half) + tile);
        bytes[half] = (place & 1 ? SPARSE_STEP_BYTES : DENSE_STEP_BYTES) / 2;
        weights[half] = args->product.tiles + (uint64_t)(place >> 1) * FRAGMENT_OFFSET_UNIT +
                        LOCAL(strip_half)(&segment, half) * bytes[half];
      }
      for (uint32_t step = 0; step < FRAGMENT_STEPS; step++) {
        LOCAL(copy_step)
        (args, &ring, weights, bytes,
         (segment.column + tile) * FRAGMENT_TILE_COLS + step * FRAGMENT_STEP_COLS,
         segment.panel * PANEL_TOKENS);
        weights[0] += 2 * bytes[0];
        weights[1] += 2 * bytes[1];
        LOCAL(advance)(&ring, args->product.stages);
      }
    }
  }
}

/* --- the warps that multiply --- */

#include "kernel/cuda/weights_body.h"

/* The row block of this warp, and its group. */
DEVICE uint32_t LOCAL(warp_block)(void) { return thread_index() / 32 - 4; }
DEVICE uint32_t LOCAL(warp_group)(void) { return LOCAL(warp_block)() / 4; }

/* Where the warp's row block lies in a stage. */
DEVICE uint32_t LOCAL(block_at)(const struct product_args *args, uint32_t stage, bool sparse) {
  const uint32_t block_bytes = LOCAL(block_bytes)(args, sparse);
#if PRODUCT_PAIR
  return stage + LOCAL(warp_group)() * (WEIGHT_BYTES / 2) + LOCAL(warp_block)() % 4 * block_bytes;
#else
  return stage + LOCAL(warp_block)() * block_bytes;
#endif
}

DEVICE void LOCAL(multiply_sparse)(const struct product_args *args, uint32_t stage,
                                   float sums[WARP_OCTETS][4]) {
  const uint32_t a = LOCAL(block_at)(args, stage, true);
  const uint64_t panel = panel_descriptor(stage + WEIGHT_BYTES);
  const uint32_t meta = shared_load4(a + 4 * (thread_index() % 32));
  struct words4 weights[2];
  UNROLL
  for (int half = 0; half < 2; half++) {
    const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, a, true, half);
    weights[half] = LOCAL(load_weights)(a + FRAGMENT_META_BYTES, half, &scaling);
  }
  wgmma_fence();
  wgmma_sparse_low(sums, WARP_OCTETS, &weights[0], panel, meta);
  wgmma_sparse_high(sums, WARP_OCTETS, &weights[1], panel + 64 / 16, meta);
  wgmma_commit();
  wgmma_wait();
}

DEVICE void LOCAL(multiply_dense)(const struct product_args *args, uint32_t stage,
                                  float sums[WARP_OCTETS][4]) {
  const uint32_t a = LOCAL(block_at)(args, stage, false);
  const uint64_t panel = panel_descriptor(stage + WEIGHT_BYTES);
  struct words4 weights[4];
  UNROLL
  for (int half = 0; half < 2; half++) {
    const struct LOCAL(scaling) scaling = LOCAL(load_scaling)(args, a, false, half);
    weights[2 * half] = LOCAL(load_weights)(a, 2 * half, &scaling);
    weights[2 * half + 1] = LOCAL(load_weights)(a, 2 * half + 1, &scaling);
  }
  wgmma_fence();
  UNROLL
  for (int i = 0; i < 4; i++) wgmma_dense(sums, WARP_OCTETS, &weights[i], panel + i * 32 / 16);
  wgmma_commit();
  wgmma_wait();
}

#define OUTPUT_THREADS CONSUMER_THREADS
#define OUTPUT_THREAD() (thread_index() - 128)
#define OUTPUT_BARRIER() group_barrier(1, CONSUMER_THREADS)
#include "kernel/cuda/output_body.h"

DEVICE struct product_place LOCAL(place)(const struct cluster_args *args,
                                         const struct product_segment *segment) {
  const uint32_t rank = cluster_rank(), blocks = args->cluster;
  return (struct product_place){segment->strip + rank, segment->slot * blocks + rank,
                                segment->first_slot * blocks + rank, blocks,
                                segment->output * blocks + rank};
}

#if PRODUCT_PAIR
/* Up's group leaves its sums in shared memory, a few tokens at a time, and that of the gate makes
 * the output. Every thread has the same rows and tokens as one of the other group. */
DEVICE void LOCAL(exchange)(const struct cluster_args *args, const struct product_segment *segment,
                            uint32_t first_row, float sums[WARP_OCTETS][4]) {
  const uint32_t at = LOCAL(stage)(args->product.stages) + 4 * (thread_index() % 128);
  UNROLL
  for (int first = 0; first < WARP_OCTETS; first += CLUSTER_EXCHANGE_OCTETS) {
    if (LOCAL(warp_group)() == 1) {
      UNROLL
      for (int i = 0; i < 4 * CLUSTER_EXCHANGE_OCTETS; i++)
        shared_store4(at + 512 * i, bits_of_float(sums[first + i / 4][i % 4]));
    }
    group_barrier(1, CONSUMER_THREADS);
    if (LOCAL(warp_group)() == 0) {
      float up[CLUSTER_EXCHANGE_OCTETS][4];
      UNROLL
      for (int i = 0; i < 4 * CLUSTER_EXCHANGE_OCTETS; i++)
        up[i / 4][i % 4] = float_of_bits(shared_load4(at + 512 * i));
      LOCAL(put_pair)
      (&args->product, segment, first_row, 8 * first, sums + first, up, CLUSTER_EXCHANGE_OCTETS);
    }
    group_barrier(1, CONSUMER_THREADS);
  }
}

DEVICE void LOCAL(put_sums)(const struct cluster_args *args, const struct product_segment *segment,
                            float sums[WARP_OCTETS][4]) {
  const struct product_place place = LOCAL(place)(args, segment);
  const uint32_t strip = place.strip / 2, half = place.strip % 2; /* of the output */
  const uint32_t block = 4 * half + LOCAL(warp_block)() % 4;
  const uint32_t first_row = strip * FRAGMENT_STRIP_ROWS;
#if QUANT_BITS
  if (args->product.row_scales) LOCAL(scale_rows)
  (&args->product, strip + LOCAL(warp_group)() * args->product.gate_strips, block, sums,
   WARP_OCTETS);
#endif
  if (segment->peers == 1) {
    LOCAL(exchange)(args, segment, first_row + block * FRAGMENT_BLOCK_ROWS, sums);
    return;
  }
  /* A slot has 64 rows of the gate, then those of up. */
  LOCAL(put_block)
  (&args->product, segment, &place, LOCAL(warp_block)(), 0, sums, WARP_OCTETS);
  if (LOCAL(arrive_last)(&args->product, segment, &place)) LOCAL(add_pair_slots)
  (&args->product, segment, &place, 0, &place, FRAGMENT_STRIP_ROWS / 2, FRAGMENT_STRIP_ROWS / 2,
   first_row + half * (FRAGMENT_STRIP_ROWS / 2));
}
#else
DEVICE void LOCAL(put_sums)(const struct cluster_args *args, const struct product_segment *segment,
                            float sums[WARP_OCTETS][4]) {
  const struct product_place place = LOCAL(place)(args, segment);
#if QUANT_BITS
  if (args->product.row_scales) LOCAL(scale_rows)
  (&args->product, place.strip, LOCAL(warp_block)(), sums, WARP_OCTETS);
#endif
  LOCAL(put_block)
  (&args->product, segment, &place, LOCAL(warp_block)(), 0, sums, WARP_OCTETS);
  if (segment->peers > 1 && LOCAL(arrive_last)(&args->product, segment, &place))
    LOCAL(add_slots)(&args->product, segment, &place);
}
#endif

DEVICE void LOCAL(multiply_all)(const struct cluster_args *args, uint32_t at, uint32_t end) {
  struct LOCAL(ring) ring = {0, 0};
  for (; at < end; at++) {
    const struct product_segment segment = global_load(args->product.segments + at);
    const uint32_t *order = LOCAL(order)(args, &segment, LOCAL(warp_group)());
    uint32_t next = global_load(order); /* a tile ahead: its latency would hold up the products */
    float sums[WARP_OCTETS][4] = {{0}};
    for (uint32_t tile = 0; tile < segment.sparse; tile++) {
      const bool sparse = next & 1;
      if (tile + 1 < segment.sparse) next = global_load(order + tile + 1);
      for (uint32_t step = 0; step < FRAGMENT_STEPS; step++) {
        mbarrier_wait(LOCAL(full)(ring.stage), ring.parity);
        if (sparse)
          LOCAL(multiply_sparse)(&args->product, LOCAL(stage)(ring.stage), sums);
        else
          LOCAL(multiply_dense)(&args->product, LOCAL(stage)(ring.stage), sums);
        mbarrier_release(LOCAL(empty)(ring.stage), args->cluster);
        LOCAL(advance)(&ring, args->product.stages);
      }
    }
    LOCAL(put_sums)(args, &segment, sums);
  }
}

DEVICE void LOCAL(run)(const struct cluster_args *args) {
  const uint32_t cluster = cluster_index();
  const uint32_t first = global_load(args->product.first_segment + cluster);
  const uint32_t end = global_load(args->product.first_segment + cluster + 1);
  if (thread_index() == 0) {
    for (uint32_t s = 0; s < args->product.stages; s++) {
      mbarrier_init(LOCAL(full)(s), 1);
      mbarrier_init(LOCAL(empty)(s), CLUSTER_CONSUMER_WARPS * args->cluster);
    }
    mbarrier_init_done();
  }
  cluster_barrier();
  if (thread_index() < 128) {
    registers_give(40);
    if (thread_index() < 32) LOCAL(copy_all)(args, first, end);
  } else {
    registers_take(232);
    LOCAL(multiply_all)(args, first, end);
  }
  /* Until all are done, others may still copy into this block or arrive at its mbarriers. */
  cluster_barrier();
}

KERNEL(PRODUCT_NAME, LOCAL(run), CLUSTER_THREADS, struct cluster_args)

#undef LOCAL
#undef LOCAL_
#undef LOCAL__
#undef WARP_OCTETS
#undef SPARSE_STEP_BYTES
#undef DENSE_STEP_BYTES
#undef WEIGHT_BYTES
#undef STAGE_BYTES
#undef CONSUMER_THREADS
#undef PRODUCT_NAME
#undef PANEL_TOKENS
