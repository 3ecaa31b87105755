/* The exact projection. Owns nothing; one sort of all tiles of the model by score. */
#include "sparse/project.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

static double rank_score(const struct project_tile *t) {
  return isnan(t->score) ? -INFINITY : t->score;
}

static int by_score(const void *a, const void *b, void *tiles) {
  const size_t i = *(const size_t *)a, j = *(const size_t *)b;
  const double si = rank_score((const struct project_tile *)tiles + i);
  const double sj = rank_score((const struct project_tile *)tiles + j);
  if (si != sj) return si > sj ? -1 : 1;
  return i < j ? -1 : i > j;
}

int64_t project_tiles(const struct project_tile *tiles, size_t count, int64_t base, int64_t target,
                      size_t *order, bool *dense) {
  for (size_t i = 0; i < count; i++) {
    order[i] = i;
    dense[i] = false;
  }
  qsort_r(order, count, sizeof *order, by_score, (void *)(uintptr_t)tiles);
  int64_t kept = base;
  for (size_t i = 0; i < count; i++) {
    const int64_t gain = tiles[order[i]].gain;
    /* Past the target, and by no less than what is missing now: stop here. */
    if (kept + gain - target >= target - kept) break;
    kept += gain;
    dense[order[i]] = true;
  }
  return kept;
}

/* One row per tile of the set, in order of the matrices. */
static void gather_tiles(const struct mask_set *set, struct project_tile *tiles) {
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    const int64_t count = mask_tile_count(m);
    for (int64_t t = 0; t < count; t++)
      *tiles++ = (struct project_tile){m->tile_scores[t],
                                       mask_tile_area(m, t) - mask_tile_kept_sparse(m, t)};
  }
}

static void scatter_tiles(struct mask_set *set, const bool *dense) {
  for (size_t i = 0; i < set->count; i++) {
    const int64_t count = mask_tile_count(&set->items[i]);
    for (int64_t t = 0; t < count; t++) set->items[i].tiles[t] = *dense++;
  }
}

/* Positions of the set's matrices, those kept were every tile n:m, and the same share of n / m
 * where groups are not ragged. */
static void measure_set(const struct mask_set *set, size_t *tiles, int64_t *area,
                        int64_t *sparse_kept, int64_t *reach) {
  *tiles = 0;
  *area = *sparse_kept = *reach = 0;
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    INVARIANT(mask_has_tiles(m) && m->tile_scores);
    *tiles += (size_t)mask_tile_count(m);
    *area += m->rows * m->cols;
    *reach += m->rows * m->cols * m->keep / m->of;
    const int64_t count = mask_tile_count(m);
    for (int64_t t = 0; t < count; t++) *sparse_kept += mask_tile_kept_sparse(m, t);
  }
}

enum status project_set(struct mask_set *set, int64_t total, double density, struct error *err) {
  size_t count;
  int64_t area, sparse_kept, reach;
  measure_set(set, &count, &area, &sparse_kept, &reach);
  INVARIANT(area <= total);
  const int64_t target = llround(density * (double)total);
  const int64_t base = total - area + sparse_kept;
  /* Ragged groups keep a little more than their share: what counts as reachable does not see them.
   */
  if (target < total - area + reach || target > total)
    return error_set(
        err, STATUS_REFUSED,
        "a density of %.4f cannot be reached: with every tile pruned it is %.4f; ask for "
        "less sparsity or skip fewer layers",
        density, (double)base / (double)total);
  enum status status = STATUS_FAILED;
  struct project_tile *tiles = mem_alloc(count, sizeof *tiles, err);
  size_t *order = mem_alloc(count, sizeof *order, err);
  bool *dense = mem_alloc(count, sizeof *dense, err);
  if (!tiles || !order || !dense) goto out;
  gather_tiles(set, tiles);
  project_tiles(tiles, count, base, target, order, dense);
  scatter_tiles(set, dense);
  status = STATUS_OK;
out:
  mem_free(tiles);
  mem_free(order);
  mem_free(dense);
  return status;
}
