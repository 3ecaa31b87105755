/* Exact density: which tiles stay dense so that a target is met to within one tile.
 *
 * Used by the greedy hybrid of the pruners (scores = what pruning a tile costs per weight) and by
 * the learner (scores = tile logits). Scores are only compared, never added. */
#ifndef TSR_SPARSE_PROJECT_H
#define TSR_SPARSE_PROJECT_H

#include "sparse/mask.h"

struct project_tile {
  double score; /* larger = keep dense; NaN counts as the smallest */
  int64_t gain; /* positions kept more when the tile is dense than when it is n:m; >= 0 */
};

/* Sets dense[i] for the tiles with the largest scores, equal scores in order of their index, until
 * `base` + the gains come closest to `target`: the distance is at most half of one tile's gain
 * where the target lies between none and all dense. Returns base + gains. `order` (count) is
 * workspace. */
int64_t project_tiles(const struct project_tile *tiles, size_t count, int64_t base, int64_t target,
                      size_t *order, bool *dense);

/* The same over a set of masks with tiles, by their tile_scores, which all must have. `total` is
 * the number of prunable positions, those of linears that have no mask (all kept) included;
 * `density` the share to keep. Sets the tiles. STATUS_REFUSED when the density cannot be reached
 * because too much is left dense or because even all tiles dense are not enough. */
enum status project_set(struct mask_set *set, int64_t total, double density, struct error *err);

#endif
