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

#include <stdalign.h>
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
  uint32_t gate_peers; /* of a pair: so many of the peers belong to the gate, the others to up */
};

/* What a pair of matrices with the same columns, gate and up, makes of its two sums: y = f(gate) *
 * up. The matrices are joined, the strips of the gate first. In decoding an output of both has one
 * counter, and all its segments, of either, leave their sums in slots. In prefill a block has the
 * sums of both: strips are then counted in turns, one of the gate and the same of up
 * (product_pair_strip).
 */
enum { PRODUCT_PAIR_PANEL_MAX = 64 };
enum product_pair { PAIR_NONE, PAIR_SILU, PAIR_GELU_TANH };

/* Strip `i` of a pair in prefill, among those of the joined matrix. */
#define product_pair_strip(i, gate_strips) ((i) / 2 + (i) % 2 * (gate_strips))

/* The strip of a segment that a block takes, and where its sums go when they are shared. */
struct product_place {
  uint32_t strip;
  uint32_t slot, first_slot, slot_stride; /* the peers' slots are slot_stride apart */
  uint32_t counter;
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
  float *y_wide; /* or NULL: fp32 in place of y, for logits; panels of up to 64 tokens, no pairs */
  float *partials;    /* (slots, PANEL_TOKENS, 128) */
  uint32_t *counters; /* (outputs), zero between launches */
  enum product_pair activation;
  uint32_t gate_strips; /* of a pair, whose `rows` are those of one matrix; its bias has 2 rows */
  /* Of integers: bytes of a step, whether blocks have scales and minimums, else the rows' scales.
   */
  uint32_t sparse_step_bytes, dense_step_bytes;
  uint32_t scales, mins;
  const float *row_scales; /* (strips * 128), or NULL */
};

enum {
  PRODUCT_STAGES_MIN = 2,
  PRODUCT_STAGES_MAX = 8,
  PRODUCT_FLAG_BYTES = 128, /* at the start of shared memory; keeps the stages aligned */
  PRODUCT_PANEL_ROW_BYTES = 2 * FRAGMENT_STEP_COLS
};

/* Room for a step of weights, whatever scales it has: a multiple of 1024. */
static inline uint32_t product_weight_bytes(enum fragment_kind kind) {
  if (kind == FRAGMENT_I8) return FRAGMENT_I8_STEP_BYTES;
  if (kind == FRAGMENT_I4) return FRAGMENT_I4_STEP_BYTES;
  return FRAGMENT_DENSE_STEP_BYTES;
}
/* A stage holds one step of weights and the panel's activations for its 64 columns. */
static inline uint32_t product_stage_bytes(enum fragment_kind kind, uint32_t panel_tokens) {
  return product_weight_bytes(kind) + panel_tokens * PRODUCT_PANEL_ROW_BYTES;
}
static inline uint32_t product_shared_bytes(enum fragment_kind kind, uint32_t panel_tokens,
                                            uint32_t stages) {
  return PRODUCT_FLAG_BYTES + stages * product_stage_bytes(kind, panel_tokens);
}
/* As many stages as a block's shared memory holds, up to what the copies need: six steps of 9 KiB
 * keep 45 KiB in flight, eight of integers, which are smaller, as blocks share a multiprocessor;
 * prefill waits for the tensor cores and needs no more than four. 0 when the memory does not hold
 * the least. */
static inline uint32_t product_stages(enum fragment_kind kind, uint32_t panel_tokens,
                                      uint32_t shared_bytes) {
  const uint32_t most = panel_tokens > 64 ? 4 : kind == FRAGMENT_BF16 ? 6 : PRODUCT_STAGES_MAX;
  const uint32_t fit =
      shared_bytes < PRODUCT_FLAG_BYTES
          ? 0
          : (shared_bytes - PRODUCT_FLAG_BYTES) / product_stage_bytes(kind, panel_tokens);
  return fit < PRODUCT_STAGES_MIN ? 0 : fit < most ? fit : most;
}

/* --- products of clusters, by wgmma (sm_90a) ---
 *
 * The blocks of a cluster take consecutive strips and share one panel of activations, of which each
 * brings its part to all. So they all go through the columns from left to right, whatever kind of
 * tile each strip has there; `order` says where the tiles lie. A segment is then a range of
 * columns: strip: the first of the cluster's strips; column: the first tile, in columns; sparse:
 * how many, of either kind; dense and offset: 0. Slots and counters are `cluster` times as many. */

/* What the copy engine knows of the activations: a CUtensorMap, made by the host for each launch.
 */
struct panel_map {
  alignas(64) uint64_t opaque[16];
};

struct cluster_args {
  struct product_args product; /* `x` and `columns` are not read */
  const uint32_t *order;       /* see fragment_order */
  uint32_t tiles_per_strip;
  uint32_t cluster; /* blocks of a cluster: 1, 2 or 4; each copies panel / cluster tokens */
  struct panel_map x;
};

enum {
  CLUSTER_CONSUMER_WARPS = 8, /* two warp groups; before them a group of which one warp copies */
  CLUSTER_THREADS = 128 + 32 * CLUSTER_CONSUMER_WARPS,
  CLUSTER_BARRIERS = 128, /* byte of the first stage's two mbarriers; then those of the next */
  CLUSTER_STAGES = 1024,  /* byte of the first stage: the swizzle repeats after so many */
  CLUSTER_STAGES_MAX = 6
};
/* A pair's two warp groups bring their sums together in so many bytes behind the stages. */
enum { CLUSTER_EXCHANGE_OCTETS = 8, CLUSTER_EXCHANGE_BYTES = 128 * CLUSTER_EXCHANGE_OCTETS * 16 };
static inline uint32_t cluster_shared_bytes(enum fragment_kind kind, bool pair,
                                            uint32_t panel_tokens, uint32_t stages) {
  return CLUSTER_STAGES + stages * product_stage_bytes(kind, panel_tokens) +
         (pair ? CLUSTER_EXCHANGE_BYTES : 0);
}
static inline uint32_t cluster_stages(enum fragment_kind kind, bool pair, uint32_t panel_tokens,
                                      uint32_t shared_bytes) {
  const uint32_t other = cluster_shared_bytes(kind, pair, panel_tokens, 0);
  const uint32_t fit =
      shared_bytes < other ? 0 : (shared_bytes - other) / product_stage_bytes(kind, panel_tokens);
  return fit < PRODUCT_STAGES_MIN ? 0 : fit < CLUSTER_STAGES_MAX ? fit : CLUSTER_STAGES_MAX;
}
#define CLUSTER_KERNELS(K)           \
  K(BF16, 0, cluster_128, 128)       \
  K(BF16, 0, cluster_256, 256)       \
  K(I8, 0, cluster_i8_128, 128)      \
  K(I8, 0, cluster_i8_256, 256)      \
  K(I4, 0, cluster_i4_128, 128)      \
  K(I4, 0, cluster_i4_256, 256)      \
  K(BF16, 1, cluster_pair_128, 128)  \
  K(BF16, 1, cluster_pair_256, 256)  \
  K(I8, 1, cluster_pair_i8_128, 128) \
  K(I8, 1, cluster_pair_i8_256, 256) \
  K(I4, 1, cluster_pair_i4_128, 128) \
  K(I4, 1, cluster_pair_i4_256, 256)
/* K(FRAGMENT_ kind of the weights, 1 for pairs, name, panel tokens) */

/* --- products of two strips a block, by mma: prefill on cards without wgmma ---
 *
 * Arguments, plans and segments are those of clusters of two; one block does the work of both. */
enum { TALL_STRIPS = 2, TALL_THREADS = 512, TALL_STAGES_MAX = 3 };
static inline uint32_t tall_stage_bytes(enum fragment_kind kind, uint32_t panel_tokens) {
  return TALL_STRIPS * product_weight_bytes(kind) + panel_tokens * PRODUCT_PANEL_ROW_BYTES;
}
static inline uint32_t tall_shared_bytes(enum fragment_kind kind, uint32_t panel_tokens,
                                         uint32_t stages) {
  return PRODUCT_FLAG_BYTES + stages * tall_stage_bytes(kind, panel_tokens);
}
static inline uint32_t tall_stages(enum fragment_kind kind, uint32_t panel_tokens,
                                   uint32_t shared_bytes) {
  const uint32_t fit = shared_bytes < PRODUCT_FLAG_BYTES ? 0
                                                         : (shared_bytes - PRODUCT_FLAG_BYTES) /
                                                               tall_stage_bytes(kind, panel_tokens);
  return fit < PRODUCT_STAGES_MIN ? 0 : fit < TALL_STAGES_MAX ? fit : TALL_STAGES_MAX;
}
#define TALL_KERNELS(K)           \
  K(BF16, 0, tall_128, 128)       \
  K(I8, 0, tall_i8_128, 128)      \
  K(I4, 0, tall_i4_128, 128)      \
  K(BF16, 1, tall_pair_128, 128)  \
  K(I8, 1, tall_pair_i8_128, 128) \
  K(I4, 1, tall_pair_i4_128, 128)
/* K(FRAGMENT_ kind of the weights, 1 for pairs, name, panel tokens) */

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

/* Those for integers, for decoding; prefill has TALL_KERNELS and CLUSTER_KERNELS. */
#define QUANT_KERNELS(K) \
  K(8, 8)                \
  K(8, 16)               \
  K(8, 32)               \
  K(8, 64)               \
  K(4, 8)                \
  K(4, 16)               \
  K(4, 32)               \
  K(4, 64)
/* K(bits of an integer, panel tokens); 256 threads */

#endif
