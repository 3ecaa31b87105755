/* sparse: the fragment-major form. Every row comes back from it bit for bit, at ragged sizes, from
 * tiles of any size; its bytes lie where docs/GPU.md says; its size is what the tiles cost. */
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "sparse/fragments.h"
#include "support/quants.h"
#include "support/support.h"

static float rounded(float x) { return bf16_to_f32(bf16_from_f32(x)); }

/* Rows of the packed form against those of the source, as bits: -0.0 is not 0. */
static void check_rows(const struct fragment_matrix *f, const struct hybrid_matrix *h) {
  float *expected = test_malloc((size_t)h->cols * sizeof *expected);
  float *row = test_malloc((size_t)h->cols * sizeof *row);
  for (int64_t r = 0; r < h->rows; r++) {
    hybrid_row(h, r, expected);
    for (int64_t c = 0; c < h->cols; c++) expected[c] = rounded(expected[c]);
    memset(row, 0xa5, (size_t)h->cols * sizeof *row);
    fragment_row(f, r, row);
    assert_memory_equal(row, expected, (size_t)h->cols * sizeof *row);
  }
  test_free(expected);
  test_free(row);
}

static void rows_come_back(void **state) {
  (void)state;
  static const struct {
    int64_t rows, cols, tile;
    double dense_share;
    enum dtype dtype;
  } cases[] = {
      {128, 128, 128, 0, DTYPE_BF16},   {128, 128, 128, 1, DTYPE_BF16},
      {256, 640, 128, 0.5, DTYPE_BF16}, {1, 1, 128, 0, DTYPE_BF16},
      {129, 257, 128, 0.5, DTYPE_F32},  {200, 300, 128, 0.5, DTYPE_F16},
      {130, 130, 64, 0.2, DTYPE_BF16},  {257, 511, 256, 0.5, DTYPE_BF16},
      {100, 390, 12, 0.01, DTYPE_BF16}, {384, 126, 128, 0.5, DTYPE_BF16},
      {40, 1027, 128, 0.5, DTYPE_F32},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct hybrid_case c;
    struct fragment_matrix f;
    struct error err = {0};
    hybrid_case_make(&c, cases[i].rows, cases[i].cols, cases[i].tile, cases[i].dense_share,
                     cases[i].dtype, i);
    must(fragment_pack_hybrid(&f, &c.h, &err), err);
    check_rows(&f, &c.h);
    fragment_release(&f);
    hybrid_case_free(&c);
  }
}

static void dense_views_come_back(void **state) {
  (void)state;
  enum { ROWS = 133, COLS = 261 };
  static float w[ROWS * COLS], row[COLS];
  struct fragment_matrix f;
  struct error err = {0};
  fill_normal(w, ROWS * COLS, 9, 1);
  must(fragment_pack_dense(&f, (struct matrix_view){w, DTYPE_F32, ROWS, COLS}, &err), err);
  for (int64_t s = 0; s < f.strips; s++) assert_int_equal(f.strip[s].sparse_tiles, 0);
  assert_int_equal(f.tile_bytes, 2 * 3 * FRAGMENT_DENSE_TILE_BYTES);
  for (int64_t r = 0; r < ROWS; r++) {
    fragment_row(&f, r, row);
    for (int64_t c = 0; c < COLS; c++) assert_true(row[c] == rounded(w[r * COLS + c]));
  }
  fragment_release(&f);
}

/* Tiles of a strip: the 2:4 ones first, each kind by ascending column, each column once; strips
 * and tiles without gaps, 18 KiB and 32 KiB. */
static void tiles_are_ordered(void **state) {
  (void)state;
  struct hybrid_case c;
  struct fragment_matrix f;
  struct error err = {0};
  hybrid_case_make(&c, 700, 1500, 128, 0.5, DTYPE_BF16, 3);
  must(fragment_pack_hybrid(&f, &c.h, &err), err);
  assert_int_equal(f.strips, 6);
  assert_int_equal(f.tiles_per_strip, 12);
  uint64_t offset = 0;
  for (int64_t s = 0; s < f.strips; s++) {
    const int64_t sparse = f.strip[s].sparse_tiles;
    bool seen[12] = {false};
    assert_int_equal(f.strip[s].offset, offset);
    for (int64_t i = 0; i < f.tiles_per_strip; i++) {
      const int64_t column = f.columns[s * f.tiles_per_strip + i];
      assert_int_equal(c.mask.tiles[s * 12 + column], i >= sparse);
      assert_false(seen[column]);
      seen[column] = true;
      if (i && i != sparse) assert_true(column > f.columns[s * f.tiles_per_strip + i - 1]);
      assert_int_equal(fragment_tile_offset(&f, s, i), offset);
      offset += i < sparse ? 18432 : 32768;
    }
  }
  assert_int_equal(f.tile_bytes, offset);
  fragment_release(&f);
  hybrid_case_free(&c);
}

/* A weight and its code, found by hand where the document puts them. */
static void bytes_lie_where_documented(void **state) {
  (void)state;
  enum { ROW = 77, COL = 107 }; /* row block 4, row 13 of it; second step, its column 43 */
  static float w[128 * 128];
  struct mask_matrix mask;
  struct hybrid_matrix h = {128, 128, 128, 128, DTYPE_BF16, NULL, NULL, NULL, NULL, NULL, NULL};
  static uint8_t map[1], codes[128 * 16];
  static uint16_t values[128 * 64];
  struct fragment_matrix f;
  struct error err = {0};
  w[ROW * 128 + COL] = 3.5f;
  must(mask_matrix_init_hybrid(&mask, "w", 128, 128, 128, 128, &err), err);
  mask_set_code(&mask, ROW, COL / 4, 0x0d); /* positions 1 and 3: the weight is the second kept */
  hybrid_pack(&mask, w, DTYPE_BF16, map, NULL, values, codes);
  h.tile_map = map, h.values = values, h.codes = codes;
  must(hybrid_index(&h, &err), err);
  must(fragment_pack_hybrid(&f, &h, &err), err);
  assert_int_equal(f.tile_bytes, 18432);
  /* Group 10 of the step's 16: second fragment, its compressed columns 4 and 5; lane
   * 4 * (13 % 8) + 5 % 8 / 2 = 22, register 13 / 8 + 2 * (5 / 8) = 1, upper half. */
  uint16_t stored, meta;
  const uint8_t *block = f.tiles + 9216 + 4 * 1152;
  memcpy(&stored, block + 128 + 512 + 22 * 16 + 1 * 4 + 2, 2);
  assert_int_equal(stored, bf16_from_f32(3.5f));
  /* Metadata: word of lane 4 * (13 % 8) + 43 / 16 = 22, high half, nibble 10 % 4 = 2. */
  memcpy(&meta, block + 22 * 4 + 2, 2);
  assert_int_equal(meta, 0x4d44);
  fragment_release(&f);
  hybrid_release(&h);

  map[0] = 1;
  must(fragment_pack_dense(&f, (struct matrix_view){w, DTYPE_F32, 128, 128}, &err), err);
  /* Fragment 43 / 16 = 2, column 11 of it: lane 4 * 5 + 1, register 1 + 2, upper half. */
  memcpy(&stored, f.tiles + 16384 + 4 * 2048 + 2 * 512 + 21 * 16 + 3 * 4 + 2, 2);
  assert_int_equal(stored, bf16_from_f32(3.5f));
  fragment_release(&f);
  mask_matrix_free(&mask);
}

static void any_thread_count_gives_the_same_bytes(void **state) {
  (void)state;
  struct hybrid_case c;
  struct fragment_matrix one, four;
  struct error err = {0};
  hybrid_case_make(&c, 900, 700, 128, 0.4, DTYPE_BF16, 11);
  parallel_set_threads(1);
  must(fragment_pack_hybrid(&one, &c.h, &err), err);
  parallel_set_threads(4);
  must(fragment_pack_hybrid(&four, &c.h, &err), err);
  parallel_set_threads(0);
  assert_int_equal(one.tile_bytes, four.tile_bytes);
  assert_memory_equal(one.tiles, four.tiles, one.tile_bytes);
  fragment_release(&one);
  fragment_release(&four);
  hybrid_case_free(&c);
}

/* Every form, under masks of our tiles, of others, and none: rows come back bit for bit. */
static void integers_come_back(void **state) {
  (void)state;
  static const int64_t tiles[] = {0, 128, 64};
  for (int i = 0; i < 3 * QUANT_FORMS; i++) {
    struct quant_case c;
    struct fragment_matrix f;
    struct error err = {0};
    const struct quant_form *form = &quant_forms[i / 3];
    quant_case_make(&c, form, 200, 395, tiles[i % 3], 0.4, (uint64_t)i);
    const struct quant_matrix *q = &c.owned.matrix;
    const enum status status = fragment_pack_quant(&f, q, &err);
    if (tiles[i % 3] == 64 && form->mins) { /* a torn tile has no integer for its zeros */
      assert_int_equal(status, STATUS_REFUSED);
      assert_non_null(strstr(err.text, "128 x 128"));
      quant_case_free(&c);
      continue;
    }
    must(status, err);
    float expected[395], row[395];
    for (int64_t r = 0; r < 200; r++) {
      quant_row(q, r, expected);
      fragment_row(&f, r, row);
      for (int k = 0; k < 395; k++) assert_true(row[k] == expected[k]);
    }
    fragment_release(&f);
    quant_case_free(&c);
  }
}

static void joined_rows_are_those_of_both(void **state) {
  (void)state;
  struct quant_case c[2];
  struct fragment_matrix f[2], joined;
  struct error err = {0};
  const struct quant_form form = {QUANT_I8, 0, false};
  for (int i = 0; i < 2; i++) {
    quant_case_make(&c[i], &form, 130, 300, 128, 0.5, (uint64_t)i);
    must(fragment_pack_quant(&f[i], &c[i].owned.matrix, &err), err);
  }
  must(fragment_join(&joined, &f[0], &f[1], &err), err);
  for (int64_t r = 0; r < 260; r++) {
    float expected[300], row[300];
    fragment_row(&f[r / 130], r % 130, expected);
    fragment_row(&joined, r < 130 ? r : 256 + r - 130, row);
    assert_memory_equal(row, expected, sizeof row);
  }
  for (int i = 0; i < 2; i++) {
    fragment_release(&f[i]);
    quant_case_free(&c[i]);
  }
  fragment_release(&joined);
}

static void too_wide_is_refused(void **state) {
  (void)state;
  struct fragment_matrix f;
  struct error err = {0};
  static float w[1];
  const struct matrix_view view = {w, DTYPE_F32, 1, FRAGMENT_COLS_MAX + 1};
  assert_int_equal(fragment_pack_dense(&f, view, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "8388480"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_come_back),
      cmocka_unit_test(dense_views_come_back),
      cmocka_unit_test(tiles_are_ordered),
      cmocka_unit_test(bytes_lie_where_documented),
      cmocka_unit_test(any_thread_count_gives_the_same_bytes),
      cmocka_unit_test(integers_come_back),
      cmocka_unit_test(joined_rows_are_those_of_both),
      cmocka_unit_test(too_wide_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
