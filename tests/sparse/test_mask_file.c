/* sparse: mask files. Everything survives the trip, equal sets give equal bytes, and thousands of
 * damaged files are refused or read as a mask that is valid, never worse. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "io/file.h"
#include "sparse/mask.h"
#include "support/support.h"

static void add_hybrid(struct mask_set *set, const char *name, int64_t rows, int64_t cols,
                       bool scores, struct rng *rng) {
  struct error err = {0};
  struct mask_matrix m;
  must(mask_matrix_init_hybrid(&m, name, rows, cols, 4, 8, &err), err);
  if (scores) must(mask_matrix_add_scores(&m, &err), err);
  for (int64_t t = 0; t < mask_tile_count(&m); t++) {
    m.tiles[t] = rng_below(rng, 2);
    if (scores) m.tile_scores[t] = (float)rng_normal(rng);
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g + 1 < mask_group_count(&m); g++)
      mask_set_code(&m, r, g, sparse_candidate_code[rng_below(rng, 6)]);
  must(mask_set_add(set, &m, &err), err);
}

/* A tiled mask of 3:5 with random groups. */
static void add_tiled(struct mask_set *set, const char *name, int64_t rows, int64_t cols,
                      struct rng *rng) {
  struct error err = {0};
  struct mask_matrix m;
  must(mask_matrix_init_tiled(&m, name, rows, cols, 4, 20, 3, 5, &err), err);
  must(mask_matrix_add_scores(&m, &err), err);
  for (int64_t t = 0; t < mask_tile_count(&m); t++) {
    m.tiles[t] = rng_below(rng, 2);
    m.tile_scores[t] = (float)rng_normal(rng);
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c + 5 <= cols; c += 5) { /* one kept and one dropped change places */
      const int64_t kept = c + (int64_t)rng_below(rng, 3),
                    dropped = c + 3 + (int64_t)rng_below(rng, 2);
      mask_set_bit(&m, r, kept, false);
      mask_set_bit(&m, r, dropped, true);
    }
  must(mask_set_add(set, &m, &err), err);
}

static void make_set(struct mask_set *set) {
  struct error err = {0};
  struct rng rng = rng_make(6, 0);
  struct mask_matrix bits;
  *set = (struct mask_set){0};
  add_hybrid(set, "model.layers.0.self_attn.q_proj.weight", 9, 20, true, &rng);
  add_hybrid(set, "model.layers.0.mlp.down_proj.weight", 5, 23, false, &rng);
  add_tiled(set, "model.layers.0.mlp.up_proj.weight", 7, 43, &rng);
  must(mask_matrix_init_bits(&bits, "model.layers.1.mlp.up_proj.weight", 3, 11, &err), err);
  for (int i = 0; i < 33; i++) mask_set_bit(&bits, i / 11, i % 11, rng_below(&rng, 2));
  must(mask_set_add(set, &bits, &err), err);
  must(mask_set_meta(set, "method", "sparsegpt \"quoted\" é", &err), err);
  must(mask_set_meta(set, "seed", "0", &err), err);
}

static void assert_same_matrix(const struct mask_matrix *a, const struct mask_matrix *b) {
  assert_string_equal(a->name, b->name);
  assert_int_equal(a->kind, b->kind);
  assert_int_equal(a->rows, b->rows);
  assert_int_equal(a->cols, b->cols);
  if (a->kind == MASK_BITS) {
    assert_memory_equal(a->bits, b->bits, (size_t)(a->rows * mask_bit_stride(a)));
    return;
  }
  assert_int_equal(a->keep, b->keep);
  assert_int_equal(a->of, b->of);
  assert_int_equal(a->tile_rows, b->tile_rows);
  assert_int_equal(a->tile_cols, b->tile_cols);
  assert_memory_equal(a->tiles, b->tiles, (size_t)mask_tile_count(a));
  assert_memory_equal(mask_groups(a), mask_groups(b), mask_groups_bytes(a));
  assert_true(!a->tile_scores == !b->tile_scores);
  if (a->tile_scores)
    assert_memory_equal(a->tile_scores, b->tile_scores, (size_t)mask_tile_count(a) * 4);
}

static void files_come_back_and_repeat(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set, back;
  const char *first = scratch_path("first.mask"), *second = scratch_path("second");
  make_set(&set);
  must(mask_save(&set, first, &err), err);
  must(mask_load(&back, first, &err), err);
  assert_int_equal(back.count, set.count);
  for (size_t i = 0; i < set.count; i++) assert_same_matrix(&set.items[i], &back.items[i]);
  assert_int_equal(back.meta_count, 2);
  assert_string_equal(mask_set_meta_get(&back, "method"), "sparsegpt \"quoted\" é");
  must(mask_save(&back, second, &err), err);
  char *a, *b;
  size_t a_bytes, b_bytes;
  must(file_read(first, 1 << 20, &a, &a_bytes, &err), err);
  must(file_read(second, 1 << 20, &b, &b_bytes, &err), err);
  assert_int_equal(a_bytes, b_bytes);
  assert_memory_equal(a, b, a_bytes);
  free(a);
  free(b);
  mask_set_free(&set);
  mask_set_free(&back);
}

/* A mask that was read is a valid one: its rows expand and its counts agree. */
static void use(const struct mask_set *set) {
  float row[64];
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    int64_t kept = 0;
    for (int64_t r = 0; m->cols <= 64 && r < m->rows; r++) {
      mask_row(m, r, row);
      for (int64_t c = 0; c < m->cols; c++) kept += row[c] == 1;
    }
    if (m->cols <= 64) assert_int_equal(kept, mask_kept(m));
  }
}

/* A group that keeps one too many, and a pattern that belongs to hybrid masks. */
static void wrong_groups_are_refused(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set = {0}, back;
  struct mask_matrix m;
  const char *path = scratch_path("wrong.mask");
  must(mask_matrix_init_tiled(&m, "w", 2, 16, 2, 8, 1, 4, &err), err);
  mask_set_bit(&m, 1, 6, true);
  must(mask_set_add(&set, &m, &err), err);
  must(mask_save(&set, path, &err), err);
  assert_int_equal(mask_load(&back, path, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "row 1, columns from 4 keep 2 where 1:4 keeps 1"));
  mask_set_free(&set);
  assert_int_equal(mask_matrix_init_tiled(&m, "w", 2, 16, 2, 8, 2, 4, &err), STATUS_REFUSED);
  assert_int_equal(mask_matrix_init_tiled(&m, "w", 2, 16, 2, 12, 4, 8, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "do not hold whole groups of 8"));
}

static void damage_is_survived(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set;
  const char *good = scratch_path("good"), *bad = scratch_path("bad");
  make_set(&set);
  must(mask_save(&set, good, &err), err);
  mask_set_free(&set);
  char *data;
  size_t bytes;
  must(file_read(good, 1 << 20, &data, &bytes, &err), err);
  struct rng rng = rng_make(7, 0);
  int refused = 0;
  for (int round = 0; round < 4000; round++) {
    char *copy = malloc(bytes);
    memcpy(copy, data, bytes);
    size_t size = bytes;
    const int edits = 1 + (int)rng_below(&rng, 3);
    for (int i = 0; i < edits; i++) {
      const size_t at = (size_t)rng_below(&rng, bytes);
      if (rng_below(&rng, 2))
        copy[at] ^= (char)(1 << rng_below(&rng, 8));
      else
        copy[at] = "0123456789\"{}:,. "[rng_below(&rng, 17)];
    }
    if (round % 8 == 0) size = (size_t)rng_below(&rng, bytes);
    FILE *file = fopen(bad, "wb");
    assert_int_equal(fwrite(copy, 1, size, file), size);
    fclose(file);
    free(copy);
    err = (struct error){0};
    const enum status status = mask_load(&set, bad, &err);
    assert_true(status == STATUS_OK || status == STATUS_REFUSED || status == STATUS_FAILED);
    if (status) {
      refused++;
      assert_true(err.text[0] != 0);
      assert_int_equal(set.count, 0);
    }
    use(&set);
    mask_set_free(&set);
  }
  assert_true(refused > 2000);
  free(data);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(files_come_back_and_repeat),
      cmocka_unit_test(wrong_groups_are_refused),
      cmocka_unit_test(damage_is_survived),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
