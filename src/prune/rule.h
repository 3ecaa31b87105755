/* What a pruned matrix must look like, and the picking of what stays within a group. */
#ifndef TSR_PRUNE_RULE_H
#define TSR_PRUNE_RULE_H

#include "sparse/mask.h"

enum prune_pattern {
  PRUNE_2_4,          /* a hybrid mask without dense tiles, tile scores included */
  PRUNE_N_M,          /* the same with n kept of every m columns: a tiled mask, or a bit mask where
                         m does not divide the width of a tile */
  PRUNE_UNSTRUCTURED, /* a bit mask */
  PRUNE_HYBRID        /* as 2:4 or n:m; which tiles stay dense is decided over the model later */
};

struct prune_rule {
  enum prune_pattern pattern;
  int keep, of;                 /* PRUNE_N_M and PRUNE_HYBRID */
  double sparsity;              /* PRUNE_UNSTRUCTURED: share of weights that go */
  int64_t tile_rows, tile_cols; /* all but PRUNE_UNSTRUCTURED */
  const uint8_t *dense_tiles;   /* (tile count) or NULL: tiles that are known to stay dense */
};

/* Code of the two largest of scores (width 1 to 4); NaN is the largest of all, equal scores go to
 * the left. */
uint8_t rule_pick_pair(const float *scores, int width);
/* kept[i] = whether scores[i] is among the `keep` largest of `width`, in the same order. */
void rule_pick(const float *scores, int width, int keep, bool *kept);

/* Makes the mask that the rule's pattern asks for. */
enum status rule_mask_init(const struct prune_rule *rule, const char *name, int64_t rows,
                           int64_t cols, struct mask_matrix *out, struct error *err);
/* True when the pattern's mask has codes. */
static inline bool rule_is_pairs(const struct prune_rule *rule) {
  return rule->pattern == PRUNE_2_4 ||
         (rule->pattern == PRUNE_HYBRID && rule->keep == 2 && rule->of == 4);
}
/* True when it has tiles. */
static inline bool rule_is_tiled(const struct prune_rule *rule) {
  return rule_is_pairs(rule) ||
         (rule->pattern != PRUNE_UNSTRUCTURED && rule->tile_cols % rule->of == 0);
}
/* Tile scores from what each row loses in each column of tiles: cost (rows, tile columns). The
 * score of a tile is its rows' sum over the number of its weights. */
enum status rule_score_tiles(struct mask_matrix *m, const float *cost, struct error *err);

#endif
