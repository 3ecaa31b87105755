/* sparse: masks against a spelled-out reference at ragged sizes, and the exact projection. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "sparse/mask.h"
#include "sparse/project.h"
#include "support/hybrids.h"
#include "support/support.h"

/* Tiles and groups of a tiled mask, at random; a narrow group keeps what there is. */
static void randomize_tiled(struct mask_matrix *m, struct rng *rng) {
  for (int64_t t = 0; t < mask_tile_count(m); t++) m->tiles[t] = rng_below(rng, 2);
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t c = 0; c < m->cols; c++) { /* a bit changes places with one of its group */
      const int64_t first = c / m->of * m->of, left = m->cols - first;
      const int64_t other =
          first + (int64_t)rng_below(rng, (uint64_t)(left < m->of ? left : m->of));
      const bool kept = mask_bit(m, r, c);
      mask_set_bit(m, r, c, mask_bit(m, r, other));
      mask_set_bit(m, r, other, kept);
    }
}

/* A hybrid mask, half of its tiles dense. */
static void random_mask(struct mask_matrix *m, struct rng *rng, int64_t rows, int64_t cols,
                        int64_t tile_rows, int64_t tile_cols) {
  struct error err = {0};
  must(mask_matrix_init_hybrid(m, "w", rows, cols, tile_rows, tile_cols, &err), err);
  hybrid_mask_fill(m, 0.5, rng);
}

static void candidates_agree(void **state) {
  (void)state;
  for (int i = 0; i < SPARSE_CANDIDATES; i++) {
    const uint8_t code = sparse_candidate_code[i];
    assert_true((code & 3) < code >> 2);
    for (int j = 0; j < 4; j++)
      assert_true(sparse_candidate_table[i][j] == (j == (code & 3) || j == code >> 2));
    assert_int_equal(sparse_code_candidate(code), i);
  }
  int known = 0;
  for (int n = 0; n < 16; n++) known += sparse_code_candidate((uint8_t)n) >= 0;
  assert_int_equal(known, 6);
}

/* Whether (r, c) is kept, straight from the definition. */
static int kept_at(const struct mask_matrix *m, int64_t r, int64_t c) {
  const int64_t per_row = (m->cols + m->tile_cols - 1) / m->tile_cols;
  if (m->tiles[r / m->tile_rows * per_row + c / m->tile_cols]) return 1;
  if (m->kind == MASK_TILED) return mask_bit(m, r, c);
  const uint8_t code = mask_code(m, r, c / 4);
  return c % 4 == (code & 3) || c % 4 == code >> 2;
}

static void rows_and_counts_follow_the_definition(void **state) {
  (void)state;
  struct rng rng = rng_make(1, 0);
  for (int round = 0; round < 300; round++) {
    struct mask_matrix m;
    const int64_t rows = 1 + (int64_t)rng_below(&rng, 20), cols = 1 + (int64_t)rng_below(&rng, 40);
    if (round % 3) {
      random_mask(&m, &rng, rows, cols, 1 + (int64_t)rng_below(&rng, 9),
                  4 * (1 + (int64_t)rng_below(&rng, 4)));
    } else {
      struct error err = {0};
      const int of = 3 + (int)rng_below(&rng, 8), keep = 1 + (int)rng_below(&rng, (uint64_t)of - 1);
      if (keep == 2 && of == 4) continue; /* those are hybrid */
      must(mask_matrix_init_tiled(&m, "w", rows, cols, 1 + (int64_t)rng_below(&rng, 9), 4 * of,
                                  keep, of, &err),
           err);
      randomize_tiled(&m, &rng);
      must(mask_check_groups(&m, keep, of, &err), err);
    }
    float w[20 * 40], masked[20 * 40], row[40];
    fill_normal(w, (size_t)(rows * cols), (uint64_t)round, 1);
    w[0] = -0.0f;
    w[rows * cols - 1] = NAN;
    mask_apply(&m, w, masked);
    int64_t kept = 0, by_tiles = 0;
    for (int64_t r = 0; r < rows; r++) {
      mask_row(&m, r, row);
      for (int64_t c = 0; c < cols; c++) {
        const int expected = kept_at(&m, r, c);
        kept += expected;
        assert_true(row[c] == (float)expected);
        const float zero = 0;
        assert_memory_equal(&masked[r * cols + c], expected ? &w[r * cols + c] : &zero, 4);
      }
    }
    for (int64_t t = 0; t < mask_tile_count(&m); t++)
      by_tiles += m.tiles[t] ? mask_tile_area(&m, t) : mask_tile_kept_sparse(&m, t);
    assert_int_equal(kept, mask_kept(&m));
    assert_int_equal(kept, by_tiles);
    mask_apply(&m, w, w);
    assert_memory_equal(w, masked, (size_t)(rows * cols) * 4);
    mask_matrix_free(&m);
  }
}

static void fresh_masks_are_valid(void **state) {
  (void)state;
  struct error err = {0};
  for (int64_t cols = 1; cols < 18; cols++) {
    struct mask_matrix m, copy;
    must(mask_matrix_init_hybrid(&m, "w", 3, cols, 2, 8, &err), err);
    for (int64_t g = 0; g < mask_group_count(&m); g++)
      assert_true(sparse_code_fits(mask_code(&m, 2, g), mask_group_width(&m, g)));
    if (mask_group_count(&m) % 2) assert_int_equal(m.codes[mask_code_stride(&m) - 1] >> 4, 0);
    must(mask_matrix_copy(&copy, &m, &err), err);
    assert_memory_equal(copy.codes, m.codes, (size_t)(3 * mask_code_stride(&m)));
    mask_matrix_free(&m);
    mask_matrix_free(&copy);
    must(mask_matrix_init_bits(&m, "w", 3, cols, &err), err);
    mask_set_bit(&m, 1, cols - 1, true);
    assert_int_equal(mask_kept(&m), 1);
    mask_set_bit(&m, 1, cols - 1, false);
    assert_int_equal(mask_kept(&m), 0);
    mask_matrix_free(&m);
  }
}

static void sets_find_and_refuse(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set = {0};
  struct mask_matrix m;
  must(mask_matrix_init_bits(&m, "a", 2, 3, &err), err);
  must(mask_set_add(&set, &m, &err), err);
  must(mask_matrix_init_bits(&m, "a", 2, 3, &err), err);
  assert_int_equal(mask_set_add(&set, &m, &err), STATUS_REFUSED);
  mask_matrix_free(&m);
  assert_non_null(mask_set_find(&set, "a"));
  assert_null(mask_set_find(&set, "b"));
  must(mask_set_meta(&set, "method", "x", &err), err);
  must(mask_set_meta(&set, "method", "y", &err), err);
  assert_string_equal(mask_set_meta_get(&set, "method"), "y");
  assert_null(mask_set_meta_get(&set, "other"));
  assert_int_equal(mask_set_meta(&set, "matrix:a", "y", &err), STATUS_USAGE);
  assert_int_equal(mask_matrix_init_hybrid(&m, "w", 4, 4, 4, 6, &err), STATUS_REFUSED);
  assert_int_equal(mask_matrix_init_hybrid(&m, "w", 0, 4, 4, 8, &err), STATUS_REFUSED);
  mask_set_free(&set);
}

/* Three ragged matrices with random scores; many targets; within half of the largest gain. */
static void projection_is_exact(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(2, 0);
  for (int round = 0; round < 200; round++) {
    struct mask_set set = {0};
    int64_t total = round % 2 ? 1000 : 0; /* every other model has linears left dense */
    for (int i = 0; i < 3; i++) {
      struct mask_matrix m;
      random_mask(&m, &rng, 30 + (int64_t)rng_below(&rng, 70), 30 + (int64_t)rng_below(&rng, 70),
                  16, 16);
      free(m.name);
      m.name = strdup(i == 0 ? "a" : i == 1 ? "b" : "c");
      must(mask_matrix_add_scores(&m, &err), err);
      for (int64_t t = 0; t < mask_tile_count(&m); t++)
        m.tile_scores[t] = round % 3 ? (float)rng_normal(&rng) : (float)rng_below(&rng, 3);
      if (round % 5 == 0) m.tile_scores[0] = NAN;
      total += m.rows * m.cols;
      must(mask_set_add(&set, &m, &err), err);
    }
    const double density = 0.6 + 0.4 * rng_uniform(&rng);
    must(project_set(&set, total, density, &err), err);
    int64_t kept, area;
    mask_set_count(&set, &kept, &area);
    kept += total - area;
    assert_true(fabs((double)kept - density * (double)total) <= 16 * 16 / 2 / 2 + 1);
    /* no 2:4 tile has a larger score than a dense one */
    double least_dense = INFINITY, most_sparse = -INFINITY;
    for (size_t i = 0; i < set.count; i++)
      for (int64_t t = 0; t < mask_tile_count(&set.items[i]); t++) {
        const double score = set.items[i].tile_scores[t];
        if (isnan(score)) continue;
        if (set.items[i].tiles[t])
          least_dense = fmin(least_dense, score);
        else
          most_sparse = fmax(most_sparse, score);
      }
    assert_true(most_sparse <= least_dense);
    mask_set_free(&set);
  }
}

static void projection_refuses_what_cannot_be(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set = {0};
  struct mask_matrix m;
  must(mask_matrix_init_hybrid(&m, "a", 64, 63, 16, 16, &err), err);
  must(mask_matrix_add_scores(&m, &err), err);
  must(mask_set_add(&set, &m, &err), err);
  assert_int_equal(project_set(&set, 2 * 64 * 63, 0.6, &err), STATUS_REFUSED);
  assert_int_equal(project_set(&set, 64 * 63, 0.4, &err), STATUS_REFUSED);
  must(project_set(&set, 64 * 63, 0.5, &err),
       err); /* ragged groups keep 2 of 3: as near as can be */
  for (int64_t t = 0; t < mask_tile_count(&set.items[0]); t++)
    assert_int_equal(set.items[0].tiles[t], 0);
  must(project_set(&set, 64 * 63, 1.0, &err), err);
  assert_int_equal(mask_kept(&set.items[0]), 64 * 63);
  mask_set_free(&set);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(candidates_agree),
      cmocka_unit_test(rows_and_counts_follow_the_definition),
      cmocka_unit_test(fresh_masks_are_valid),
      cmocka_unit_test(sets_find_and_refuse),
      cmocka_unit_test(projection_is_exact),
      cmocka_unit_test(projection_refuses_what_cannot_be),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
