/* Tile logits: formulas against PyTorch, the shared shift, its gradient, the exact projection. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "io/json.h"
#include "learn/tiles.h"
#include "support/support.h"

static struct error err;

/* Two matrices of ragged tiles in two blocks. */
enum { MATRICES = 3 };
static struct mask_matrix matrices[MATRICES];
static const int64_t shape[MATRICES][2] = {{20, 36}, {33, 16}, {14, 28}};
static const int one_region[MATRICES] = {0, 0, 0}, two_regions[MATRICES] = {0, 0, 1};

static void make_matrices(void) {
  if (matrices[0].tiles) return;
  for (int i = 0; i < MATRICES; i++)
    must(mask_matrix_init_hybrid(&matrices[i], "m", shape[i][0], shape[i][1], 8, 8, &err), err);
}

static int64_t area(int first, int last) {
  int64_t sum = 0;
  for (int i = first; i < last; i++) sum += shape[i][0] * shape[i][1];
  return sum;
}

static void make_tiles(struct tile_logits *t, double density, bool per_block) {
  make_matrices();
  int64_t totals[2] = {per_block ? area(0, 2) : area(0, 3), area(2, 3)};
  must(tiles_init(t, matrices, per_block ? two_regions : one_region, MATRICES, totals,
                  per_block ? 2 : 1, density, &err),
       err);
  fill_normal(t->logit, (size_t)t->count, 3, 0.02f);
}

/* A loss that is linear in T with coefficients of its own. */
static double loss_of(const struct tile_logits *t, const float *coefficient) {
  double sum = 0;
  for (int64_t i = 0; i < t->count; i++) sum += (double)coefficient[i] * t->soft[i];
  return sum;
}

static void held_density_is_exact(void **state) {
  static const double density[] = {0.5, 0.55, 0.65, 0.9, 1.0};
  static const struct relaxation relax[] = {{25, 4}, {100, 1}, {500, 0.05}};
  for (int d = 0; d < 5; d++)
    for (int per_block = 0; per_block < 2; per_block++)
      for (int r = 0; r < 3; r++) {
        struct tile_logits t;
        make_tiles(&t, density[d], per_block);
        tiles_draw_noise(&t, 11, (uint64_t)r);
        tiles_relax(&t, relax[r], DENSITY_HELD);
        assert_true(tiles_density_error(&t) < 1e-6);
        tiles_free(&t);
      }
}

static void gradient_goes_through_the_shift(void **state) {
  for (int per_block = 0; per_block < 2; per_block++) {
    struct tile_logits t;
    make_tiles(&t, 0.6, per_block);
    struct relaxation relax = {60, 1.5};
    float *coefficient = mem_alloc((size_t)t.count, sizeof(float), &err);
    fill_normal(coefficient, (size_t)t.count, 5, 1);
    tiles_draw_noise(&t, 1, 2);
    tiles_relax(&t, relax, DENSITY_HELD);
    for (int64_t i = 0; i < t.count; i++) t.soft_gradient[i] = coefficient[i];
    tiles_backward(&t, DENSITY_HELD, 0);
    double sum = 0;
    for (int64_t i = 0; i < t.count; i += 3) {
      float kept = t.logit[i], h = 1e-3f;
      t.logit[i] = kept + h;
      double up = t.logit[i];
      tiles_relax(&t, relax, DENSITY_HELD);
      double high = loss_of(&t, coefficient);
      t.logit[i] = kept - h;
      double down = t.logit[i];
      tiles_relax(&t, relax, DENSITY_HELD);
      double low = loss_of(&t, coefficient);
      t.logit[i] = kept;
      double numeric = (high - low) / (up - down);
      assert_true(fabs(numeric - t.gradient[i]) < 0.01 * fabs(numeric) + 0.02);
    }
    for (int64_t i = 0; i < t.count; i++) sum += t.gradient[i];
    /* raising all logits alike changes nothing */
    assert_true(per_block || fabs(sum) < 1e-3);
    mem_free(coefficient);
    tiles_free(&t);
  }
}

static void soft_rule_pulls_to_the_target(void **state) {
  struct tile_logits t;
  make_tiles(&t, 0.6, true);
  struct relaxation relax = {60, 1.5};
  tiles_relax(&t, relax, DENSITY_SOFT);
  tiles_backward(&t, DENSITY_SOFT, 7);
  for (int64_t i = 0; i < t.count; i += 5) {
    float kept = t.logit[i];
    t.logit[i] = kept + 1e-3f;
    tiles_relax(&t, relax, DENSITY_SOFT);
    double high = 7 * tiles_density_error(&t);
    t.logit[i] = kept - 1e-3f;
    tiles_relax(&t, relax, DENSITY_SOFT);
    double low = 7 * tiles_density_error(&t);
    t.logit[i] = kept;
    assert_true(fabs((high - low) / 2e-3 - t.gradient[i]) < 0.02 * fabs(t.gradient[i]) + 1e-4);
  }
  tiles_free(&t);
}

static void projection_meets_the_target_to_one_tile(void **state) {
  for (int per_block = 0; per_block < 2; per_block++)
    for (double density = 0.52; density < 1; density += 0.07) {
      struct tile_logits t;
      make_tiles(&t, density, per_block);
      bool *dense = mem_alloc((size_t)t.count, sizeof *dense, &err);
      int64_t moved;
      tiles_harden(&t, (struct relaxation){500, 0.05}, DENSITY_HELD, dense);
      must(tiles_project(&t, t.logit, dense, &moved, &err), err);
      assert_true(moved <= 3);
      for (int r = 0; r < t.region_count; r++) {
        const struct tile_region *region = &t.regions[r];
        double kept = (double)region->base, least_dense = INFINITY, most_sparse = -INFINITY;
        for (int64_t i = region->first; i < region->first + region->count; i++) {
          if (dense[i]) kept += t.gain[i];
          if (dense[i] && t.logit[i] < least_dense) least_dense = t.logit[i];
          if (!dense[i] && t.logit[i] > most_sparse) most_sparse = t.logit[i];
        }
        assert_true(fabs(kept - region->target) <= 32); /* an 8 x 8 tile keeps 32 more */
        assert_true(least_dense > most_sparse);
      }
      mem_free(dense);
      tiles_free(&t);
    }
}

static void unreachable_density_is_refused(void **state) {
  make_matrices();
  struct tile_logits t;
  int64_t total = area(0, 3) * 2; /* as many weights again are left dense */
  assert_int_equal(tiles_init(&t, matrices, one_region, MATRICES, &total, 1, 0.6, &err),
                   STATUS_REFUSED);
  assert_non_null(strstr(err.text, "cannot be reached"));
}

static void threads_do_not_show(void **state) {
  struct tile_logits t[2];
  for (int i = 0; i < 2; i++) {
    parallel_set_threads(i ? 3 : 1);
    make_tiles(&t[i], 0.6, false);
    tiles_draw_noise(&t[i], 9, 4);
    tiles_relax(&t[i], (struct relaxation){200, 0.5}, DENSITY_HELD);
  }
  assert_memory_equal(t[0].soft, t[1].soft, (size_t)t[0].count * sizeof(float));
  tiles_free(&t[0]);
  tiles_free(&t[1]);
  parallel_set_threads(0);
}

static void noise_is_logistic(void **state) {
  struct mask_matrix m;
  must(mask_matrix_init_hybrid(&m, "m", 512, 512, 4, 4, &err), err);
  int64_t total = 512 * 512;
  struct tile_logits t;
  must(tiles_init(&t, &m, one_region, 1, &total, 1, 0.6, &err), err);
  tiles_draw_noise(&t, 3, 1);
  double mean = 0, square = 0;
  for (int64_t i = 0; i < t.count; i++) {
    mean += t.noise[i];
    square += (double)t.noise[i] * t.noise[i];
  }
  mean /= (double)t.count;
  square /= (double)t.count;
  assert_true(fabs(mean) < 0.06 && fabs(square - M_PI * M_PI / 3) < 0.15);
  float first = t.noise[0];
  tiles_draw_noise(&t, 3, 2);
  assert_true(t.noise[0] != first);
  tiles_draw_noise(&t, 3, 1);
  assert_true(t.noise[0] == first);
  tiles_free(&t);
  mask_matrix_free(&m);
}

/* Prices of 3, 1 and 2 a weight; the first matrix's tiles then count three times as much. */
static void times_are_held_like_densities(void **state) {
  static const double price[MATRICES] = {3, 1, 2}, shares[] = {0.6, 0.7, 0.9};
  for (int k = 0; k < 3; k++) {
    struct tile_logits t;
    make_tiles(&t, 1, false);
    int64_t total = 3 * area(0, 1) + area(1, 2) + 2 * area(2, 3);
    must(tiles_aim_at_time(&t, matrices, MATRICES, price, total, shares[k], &err), err);
    tiles_draw_noise(&t, 11, 3);
    tiles_relax(&t, (struct relaxation){100, 1}, DENSITY_HELD);
    assert_true(tiles_density_error(&t) < 1e-6);
    bool *dense = mem_alloc((size_t)t.count, sizeof *dense, &err);
    must(tiles_project(&t, t.logit, dense, NULL, &err), err);
    /* exact to half a tile of the dearest kind: 8 x 8 weights, of which half go, at 3 each */
    assert_true(fabs(tiles_hard_share(&t, dense) - shares[k]) * (double)total <=
                8 * 8 / 2 * 3 / 2.0);
    /* and the density is one of weights still */
    double kept = 0;
    int64_t at = 0;
    for (int i = 0; i < MATRICES; i++)
      for (int64_t j = 0; j < mask_tile_count(&matrices[i]); j++, at++)
        kept += dense[at] ? (double)mask_tile_area(&matrices[i], j)
                          : (double)mask_tile_kept_sparse(&matrices[i], j);
    assert_true(fabs(tiles_hard_density(&t, dense) - kept / (double)area(0, 3)) < 1e-12);
    mem_free(dense);
    tiles_free(&t);
  }
}

static void prices_of_one_change_nothing(void **state) {
  static const double price[MATRICES] = {1, 1, 1};
  struct tile_logits a, b;
  make_tiles(&a, 0.7, false);
  make_tiles(&b, 1, false);
  must(tiles_aim_at_time(&b, matrices, MATRICES, price, area(0, 3), 0.7, &err), err);
  for (int k = 0; k < 2; k++) {
    tiles_draw_noise(k ? &b : &a, 4, 5);
    tiles_relax(k ? &b : &a, (struct relaxation){100, 1}, DENSITY_HELD);
  }
  assert_memory_equal(a.soft, b.soft, (size_t)a.count * sizeof *a.soft);
  tiles_free(&a);
  tiles_free(&b);
}

static void times_out_of_reach_are_refused(void **state) {
  static const double price[MATRICES] = {1, 0, 0}; /* 2:4 is faster in the first matrix alone */
  struct tile_logits t;
  make_tiles(&t, 1, false);
  assert_int_equal(tiles_aim_at_time(&t, matrices, MATRICES, price, area(0, 3), 0.6, &err),
                   STATUS_REFUSED);
  assert_non_null(strstr(err.text, "cannot be reached"));
  tiles_free(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(held_density_is_exact),
      cmocka_unit_test(gradient_goes_through_the_shift),
      cmocka_unit_test(soft_rule_pulls_to_the_target),
      cmocka_unit_test(projection_meets_the_target_to_one_tile),
      cmocka_unit_test(unreachable_density_is_refused),
      cmocka_unit_test(threads_do_not_show),
      cmocka_unit_test(noise_is_logistic),
      cmocka_unit_test(times_are_held_like_densities),
      cmocka_unit_test(prices_of_one_change_nothing),
      cmocka_unit_test(times_out_of_reach_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
