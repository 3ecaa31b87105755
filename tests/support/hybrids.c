#include "support/hybrids.h"

#include "base/mem.h"
#include "base/rng.h"
#include "sparse/project.h"
#include "support/support.h"

void hybrid_mask_fill(struct mask_matrix *m, double dense_share, struct rng *rng) {
  for (int64_t t = 0; t < mask_tile_count(m); t++) m->tiles[t] = rng_uniform(rng) < dense_share;
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t g = 0; g < mask_group_count(m); g++) {
      uint8_t code;
      do code = sparse_candidate_code[rng_below(rng, SPARSE_CANDIDATES)];
      while (!sparse_code_fits(code, mask_group_width(m, g)));
      mask_set_code(m, r, g, code);
    }
}

void hybrid_case_make(struct hybrid_case *c, int64_t rows, int64_t cols, int64_t tile,
                      double dense_share, enum dtype dtype, uint64_t seed) {
  struct error err = {0};
  struct rng rng = rng_make(seed, 5);
  struct hybrid_sizes sizes;
  *c = (struct hybrid_case){0};
  struct mask_matrix *m = &c->mask;
  must(mask_matrix_init_hybrid(m, "w", rows, cols, tile, tile, &err), err);
  hybrid_mask_fill(m, dense_share, &rng);
  c->map = mem_alloc((size_t)(mask_tile_count(m) + 7) / 8, 1, &err);
  for (int64_t t = 0; t < mask_tile_count(m); t++)
    c->map[t / 8] |= (uint8_t)(m->tiles[t] << (t % 8));
  must(hybrid_measure(rows, cols, tile, tile, dtype, c->map, &sizes, &err), err);
  c->dense = mem_alloc(sizes.dense_bytes, 1, &err);
  c->values = mem_alloc(sizes.values_bytes, 1, &err);
  c->codes = mem_alloc(sizes.codes_bytes, 1, &err);
  float *w = mem_alloc((size_t)(rows * cols), sizeof *w, &err);
  assert_non_null(w);
  fill_normal(w, (size_t)(rows * cols), seed, 1);
  w[rng_below(&rng, (uint64_t)(rows * cols))] = -0.0f;
  hybrid_pack(m, w, dtype, c->map, c->dense, c->values, c->codes);
  mem_free(w);
  c->h = (struct hybrid_matrix){rows,     cols,      tile,     tile, dtype, c->map,
                                c->dense, c->values, c->codes, NULL, NULL};
  must(hybrid_index(&c->h, &err), err);
}

void hybrid_case_free(struct hybrid_case *c) {
  hybrid_release(&c->h);
  mask_matrix_free(&c->mask);
  mem_free(c->map);
  mem_free(c->dense);
  mem_free(c->values);
  mem_free(c->codes);
}

void hybrid_masks_make(struct mask_set *set, const struct model *model, int64_t tile,
                       double density, uint64_t seed) {
  struct error err = {0};
  struct rng rng = rng_make(seed, 0);
  int64_t total = 0;
  *set = (struct mask_set){0};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
    struct mask_matrix m;
    total += rows * cols;
    if (i == 0) continue;
    must(mask_matrix_init_hybrid(&m, site->name, rows, cols, tile, tile, &err), err);
    must(mask_matrix_add_scores(&m, &err), err);
    hybrid_mask_fill(&m, 0.5, &rng);
    for (int64_t t = 0; t < mask_tile_count(&m); t++) m.tile_scores[t] = (float)rng_normal(&rng);
    must(mask_set_add(set, &m, &err), err);
  }
  must(project_set(set, total, density, &err), err);
}
