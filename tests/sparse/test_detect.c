/* sparse: structure found again in bits, and the reference's mask.npz (one that NumPy wrote). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "io/file.h"
#include "sparse/detect.h"
#include "sparse/mask_npz.h"
#include "support/support.h"

/* Bits of a hybrid mask, with every `spare`-th kept position cleared (0 = none). */
static void to_bits(const struct mask_matrix *m, int spare, struct mask_matrix *bits) {
  struct error err = {0};
  float row[64];
  int seen = 0;
  must(mask_matrix_init_bits(bits, m->name, m->rows, m->cols, &err), err);
  for (int64_t r = 0; r < m->rows; r++) {
    mask_row(m, r, row);
    for (int64_t c = 0; c < m->cols; c++)
      if (row[c] != 0) mask_set_bit(bits, r, c, !spare || ++seen % spare);
  }
}

static void random_hybrid(struct mask_matrix *m, struct rng *rng, int64_t rows, int64_t cols) {
  struct error err = {0};
  must(mask_matrix_init_hybrid(m, "w", rows, cols, 8, 8, &err), err);
  for (int64_t t = 0; t < mask_tile_count(m); t++) m->tiles[t] = t % 3 == 0;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < mask_group_count(m); g++) {
      uint8_t code;
      do code = sparse_candidate_code[rng_below(rng, 6)];
      while (!sparse_code_fits(code, mask_group_width(m, g)));
      mask_set_code(m, r, g, code);
    }
}

static void hybrids_are_found_again(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(10, 0);
  for (int round = 0; round < 200; round++) {
    struct mask_matrix m, bits, back;
    bool fits;
    random_hybrid(&m, &rng, 9 + (int64_t)rng_below(&rng, 20), 16 + (int64_t)rng_below(&rng, 40));
    to_bits(&m, 0, &bits);
    must(detect_hybrid(&bits, 8, 8, &back, &fits, &err), err);
    assert_true(fits);
    assert_int_equal(mask_kept(&back), mask_kept(&m));
    float a[64], b[64];
    for (int64_t r = 0; r < m.rows; r++) {
      mask_row(&m, r, a);
      mask_row(&back, r, b);
      assert_memory_equal(a, b, (size_t)m.cols * 4);
    }
    mask_matrix_free(&back);
    mask_matrix_free(&bits);
    /* natural zeros: no longer an exact mask, but the tiles are seen all the same (where a tile is
     * too small to be told from a 2:4 one, nothing is asked) */
    struct detection d;
    to_bits(&m, 17, &bits);
    detect_zeros(&bits, 8, 8, &d);
    assert_int_equal(d.pattern, ZEROS_HYBRID);
    assert_int_equal(d.nonzero, mask_kept(&bits));
    assert_int_equal(d.tiles_sparse + d.tiles_dense, mask_tile_count(&m));
    if (m.rows % 8 != 1 && m.cols % 4 == 0) assert_int_equal(d.kept, mask_kept(&m));
    must(detect_hybrid(&bits, 8, 8, &back, &fits, &err), err);
    assert_false(fits);
    mask_matrix_free(&bits);
    mask_matrix_free(&m);
  }
}

static void other_patterns_are_named(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(11, 0);
  struct detection d;
  char text[16];
  struct mask_matrix bits;
  must(mask_matrix_init_bits(&bits, "w", 32, 64, &err), err);
  for (int i = 0; i < 32 * 64; i++) mask_set_bit(&bits, i / 64, i % 64, i % 100 != 0);
  detect_zeros(&bits, 16, 16, &d);
  assert_string_equal(zero_pattern_name(&d, text), "dense");
  assert_int_equal(d.kept, 32 * 64);
  for (int i = 0; i < 32 * 64; i++) mask_set_bit(&bits, i / 64, i % 64, rng_below(&rng, 2));
  detect_zeros(&bits, 16, 16, &d);
  assert_string_equal(zero_pattern_name(&d, text), "unstructured");
  assert_int_equal(d.kept, d.nonzero);
  for (int i = 0; i < 32 * 64; i++) mask_set_bit(&bits, i / 64, i % 64, i % 8 < 4);
  detect_zeros(&bits, 16, 16, &d);
  assert_string_equal(zero_pattern_name(&d, text), "4:8");
  for (int i = 0; i < 32 * 64; i++) mask_set_bit(&bits, i / 64, i % 64, i % 4 < 2);
  detect_zeros(&bits, 16, 16, &d);
  assert_string_equal(zero_pattern_name(&d, text), "2:4");
  assert_int_equal(d.kept, 32 * 32);
  mask_matrix_free(&bits);
}

static void published_masks_are_read(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set, back;
  must(mask_load(&set, golden("mask.npz"), &err), err);
  assert_int_equal(set.count, 2);
  FILE *truth = fopen(golden("mask_npz.txt"), "r");
  assert_non_null(truth);
  for (size_t i = 0; i < set.count; i++) {
    const struct mask_matrix *m = &set.items[i];
    char line[128];
    float row[64];
    assert_int_equal(m->kind, MASK_HYBRID);
    assert_int_equal(m->tile_rows, 8);
    for (int64_t r = 0; r < m->rows; r++) {
      assert_non_null(fgets(line, sizeof line, truth));
      mask_row(m, r, row);
      for (int64_t c = 0; c < m->cols; c++) assert_true((line[c] == '1') == (row[c] == 1));
    }
  }
  fclose(truth);
  assert_non_null(strstr(mask_set_meta_get(&set, "reference meta"), "some/model"));
  const char *path = scratch_path("again.npz");
  must(mask_npz_save(&set, path, "{}", &err), err);
  must(mask_load(&back, path, &err), err);
  assert_int_equal(back.count, 2);
  for (size_t i = 0; i < 2; i++) {
    const struct mask_matrix *a = &set.items[i], *b = mask_set_find(&back, a->name);
    assert_non_null(b);
    assert_memory_equal(a->tiles, b->tiles, (size_t)mask_tile_count(a));
    assert_memory_equal(a->codes, b->codes, (size_t)(a->rows * mask_code_stride(a)));
  }
  mask_set_free(&set);
  mask_set_free(&back);
}

static void damaged_archives_are_survived(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(12, 0);
  char *data;
  size_t bytes;
  const char *good = scratch_path("plain.npz"), *bad = scratch_path("bad.npz");
  struct mask_set set;
  must(mask_load(&set, golden("mask.npz"), &err), err);
  must(mask_npz_save(&set, good, "{}", &err), err);
  mask_set_free(&set);
  must(file_read(good, 1 << 20, &data, &bytes, &err), err);
  int refused = 0;
  for (int round = 0; round < 2000; round++) {
    char *copy = malloc(bytes);
    memcpy(copy, data, bytes);
    for (uint64_t i = 0; i <= rng_below(&rng, 3); i++)
      copy[rng_below(&rng, bytes)] ^= (char)(1 << rng_below(&rng, 8));
    FILE *file = fopen(bad, "wb");
    fwrite(copy, 1, round % 8 ? bytes : (size_t)rng_below(&rng, bytes), file);
    fclose(file);
    free(copy);
    const enum status status = mask_load(&set, bad, &err);
    assert_true(status == STATUS_OK || status == STATUS_REFUSED || status == STATUS_FAILED);
    refused += status != STATUS_OK;
    mask_set_free(&set);
  }
  assert_true(refused > 500);
  free(data);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(hybrids_are_found_again),
      cmocka_unit_test(other_patterns_are_named),
      cmocka_unit_test(published_masks_are_read),
      cmocka_unit_test(damaged_archives_are_survived),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
