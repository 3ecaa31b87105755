/* Picking within groups, and the mask that a pattern asks for. Owns nothing. */
#include "prune/rule.h"

#include "prune/select.h"

uint8_t rule_pick_pair(const float *scores, int width) {
  if (width < 2) return sparse_candidate_code[0];
  int best = 0, second = -1;
  for (int i = 1; i < width; i++) {
    const uint32_t key = select_key(scores[i]);
    if (key > select_key(scores[best])) {
      second = best;
      best = i;
    } else if (second < 0 || key > select_key(scores[second])) {
      second = i;
    }
  }
  const int low = best < second ? best : second, high = best < second ? second : best;
  return (uint8_t)(low | high << 2);
}

void rule_pick(const float *scores, int width, int keep, bool *kept) {
  for (int i = 0; i < width; i++) {
    const uint32_t key = select_key(scores[i]);
    int before = 0; /* elements that are kept sooner than this one */
    for (int j = 0; j < width; j++) {
      const uint32_t other = select_key(scores[j]);
      before += other > key || (other == key && j < i);
    }
    kept[i] = before < keep;
  }
}

enum status rule_mask_init(const struct prune_rule *rule, const char *name, int64_t rows,
                           int64_t cols, struct mask_matrix *out, struct error *err) {
  if (!rule_is_tiled(rule)) return mask_matrix_init_bits(out, name, rows, cols, err);
  enum status status =
      rule_is_pairs(rule)
          ? mask_matrix_init_hybrid(out, name, rows, cols, rule->tile_rows, rule->tile_cols, err)
          : mask_matrix_init_tiled(out, name, rows, cols, rule->tile_rows, rule->tile_cols,
                                   rule->keep, rule->of, err);
  if (status || !rule->dense_tiles) return status;
  for (int64_t t = 0; t < mask_tile_count(out); t++) out->tiles[t] = rule->dense_tiles[t];
  return STATUS_OK;
}

enum status rule_score_tiles(struct mask_matrix *m, const float *cost, struct error *err) {
  enum status status = mask_matrix_add_scores(m, err);
  if (status) return status;
  const int64_t tiles = mask_tile_count(m), per_row = mask_tile_col_count(m);
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t first = t / per_row * m->tile_rows, col = t % per_row;
    const int64_t end = first + m->tile_rows < m->rows ? first + m->tile_rows : m->rows;
    double sum = 0;
    for (int64_t r = first; r < end; r++) sum += cost[r * per_row + col];
    m->tile_scores[t] = (float)(sum / (double)mask_tile_area(m, t));
  }
  return STATUS_OK;
}
