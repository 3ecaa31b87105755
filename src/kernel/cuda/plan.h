/* Who multiplies what: cuts a hybrid product into segments for the blocks of a launch. Plain C; the
 * kernels follow the list blindly.
 *
 * Outputs (strip, panel) are numbered strip by strip. Whole outputs are dealt to the blocks in
 * turn, so that blocks that run at the same time share weights and activations in the second-level
 * cache, until less than two rounds are left; what is left is cut between tiles so that all blocks
 * end at the same cost. Equal arguments give equal plans, and the plan alone fixes the order of all
 * sums: the same bits in every run. */
#ifndef TSR_KERNEL_CUDA_PLAN_H
#define TSR_KERNEL_CUDA_PLAN_H

#include "kernel/cuda/product.h"
#include "sparse/fragments.h"

/* What a tile costs. Decoding: its bytes. Prefill: the clocks of its multiplications. */
struct product_costs {
  uint32_t sparse_tile, dense_tile;
};

struct product_plan {
  uint32_t panel_tokens, panels, blocks;
  uint32_t cluster; /* 0: for blocks; else `blocks` counts clusters of so many blocks each */
  uint32_t outputs; /* of a block or a cluster */
  uint32_t slots; /* of (panel_tokens, 128) floats in the workspace, for each block of a cluster */
  uint32_t segments;
  struct product_segment *segment; /* (segments), the first block's first */
  uint32_t *first_segment;         /* (blocks + 1) */
};

/* A plan for `tokens` tokens in panels of `panel_tokens`; blocks 1 to 65535, costs from 1 on. */
enum status product_plan_make(struct product_plan *out, const struct fragment_matrix *f,
                              uint32_t tokens, uint32_t panel_tokens, uint32_t blocks,
                              struct product_costs costs, struct error *err);
/* The same for a pair of joined matrices (product_pair, fragment_join). */
enum status product_plan_make_pair(struct product_plan *out, const struct fragment_matrix *f,
                                   uint32_t tokens, uint32_t panel_tokens, uint32_t blocks,
                                   struct product_costs costs, struct error *err);
/* The same for clusters (product.h): an output is `cluster` strips and a panel, cut by columns, and
 * a column costs what its dearest tile costs. `order`: from fragment_order. */
enum status product_plan_make_clusters(struct product_plan *out, const struct fragment_matrix *f,
                                       const uint32_t *order, uint32_t tokens,
                                       uint32_t panel_tokens, uint32_t clusters, uint32_t cluster,
                                       struct product_costs costs, struct error *err);
/* The same for a pair of joined matrices: strips are counted as in product_pair_strip, and clusters
 * have an even number of them. */
enum status product_plan_make_pair_clusters(struct product_plan *out,
                                            const struct fragment_matrix *f, const uint32_t *order,
                                            uint32_t tokens, uint32_t panel_tokens,
                                            uint32_t clusters, uint32_t cluster,
                                            struct product_costs costs, struct error *err);
void product_plan_release(struct product_plan *plan);

/* Counters and slots that the launch needs, over all blocks of its clusters. */
size_t product_plan_counters(const struct product_plan *plan);
size_t product_plan_slot_bytes(const struct product_plan *plan);
/* Bytes that the launch needs beside the matrix: slots, counters, and the plan itself. */
size_t product_workspace_bytes(const struct product_plan *plan);

#endif
