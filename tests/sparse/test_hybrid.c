/* sparse: the packed form. Pack and unpack agree bit for bit with the masked matrix at ragged
 * sizes and odd values; sizes are at the floor; damage is found. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "sparse/hybrid.h"
#include "sparse/packed.h"
#include "support/hybrids.h"
#include "support/support.h"

struct packing {
  struct mask_matrix mask;
  struct hybrid_matrix h;
  struct hybrid_sizes sizes;
  uint8_t *map, *codes;
  void *dense, *values;
};

/* A hybrid mask, half of its tiles dense. */
static void random_mask(struct mask_matrix *m, struct rng *rng, int64_t rows, int64_t cols,
                        int64_t tile_rows, int64_t tile_cols) {
  struct error err = {0};
  must(mask_matrix_init_hybrid(m, "w", rows, cols, tile_rows, tile_cols, &err), err);
  hybrid_mask_fill(m, 0.5, rng);
}

static void pack(struct packing *p, const float *w, enum dtype dtype) {
  struct error err = {0};
  const struct mask_matrix *m = &p->mask;
  p->map = mem_alloc((size_t)(mask_tile_count(m) + 7) / 8, 1, &err);
  for (int64_t t = 0; t < mask_tile_count(m); t++)
    p->map[t / 8] |= (uint8_t)(m->tiles[t] << (t % 8));
  must(hybrid_measure(m->rows, m->cols, m->tile_rows, m->tile_cols, dtype, p->map, &p->sizes, &err),
       err);
  p->dense = mem_alloc(p->sizes.dense_bytes, 1, &err);
  p->values = mem_alloc(p->sizes.values_bytes, 1, &err);
  p->codes = mem_alloc(p->sizes.codes_bytes, 1, &err);
  hybrid_pack(m, w, dtype, p->map, p->dense, p->values, p->codes);
  p->h = (struct hybrid_matrix){m->rows,  m->cols,   m->tile_rows, m->tile_cols, dtype, p->map,
                                p->dense, p->values, p->codes,     NULL,         NULL};
  must(hybrid_index(&p->h, &err), err);
}

static void packing_free(struct packing *p) {
  hybrid_release(&p->h);
  mask_matrix_free(&p->mask);
  mem_free(p->map);
  mem_free(p->dense);
  mem_free(p->values);
  mem_free(p->codes);
}

static void rows_come_back(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(3, 0);
  static const enum dtype dtypes[3] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  for (int round = 0; round < 400; round++) {
    struct packing p = {0};
    const int64_t rows = 1 + (int64_t)rng_below(&rng, 24), cols = 1 + (int64_t)rng_below(&rng, 48);
    random_mask(&p.mask, &rng, rows, cols, 1 + (int64_t)rng_below(&rng, 9),
                4 * (1 + (int64_t)rng_below(&rng, 5)));
    float w[24 * 48], expected[24 * 48], row[48];
    fill_normal(w, (size_t)(rows * cols), (uint64_t)round, 1);
    w[rng_below(&rng, (uint64_t)(rows * cols))] = -0.0f;
    w[rng_below(&rng, (uint64_t)(rows * cols))] = NAN;
    for (int i = 0; i < 4 && i < cols; i++) w[i] = 0;
    const enum dtype dtype = dtypes[round % 3];
    for (int64_t i = 0; i < rows * cols; i++) { /* what the type can hold */
      uint32_t bits;
      dtype_from_f32(dtype, &w[i], 1, &bits);
      dtype_to_f32(dtype, &bits, 1, &w[i]);
    }
    pack(&p, w, dtype);
    mask_apply(&p.mask, w, expected);
    for (int64_t r = 0; r < rows; r++) {
      hybrid_row(&p.h, r, row);
      assert_memory_equal(row, expected + r * cols, (size_t)cols * 4);
    }
    must(hybrid_check(&p.h, "w", &err), err);
    struct mask_matrix back;
    must(hybrid_mask(&p.h, "w", &back, &err), err);
    assert_memory_equal(back.tiles, p.mask.tiles, (size_t)mask_tile_count(&back));
    assert_int_equal(mask_kept(&back), mask_kept(&p.mask));
    float again[48];
    for (int64_t r = 0; r < rows; r++) {
      mask_row(&back, r, row);
      mask_row(&p.mask, r, again);
      assert_memory_equal(row, again, (size_t)cols * 4);
    }
    mask_matrix_free(&back);
    packing_free(&p);
  }
}

/* 9/16 of bf16 for 2:4 tiles of any width that holds an even number of groups, or a tile of an
 * even number of rows. */
static void sizes_are_at_the_floor(void **state) {
  (void)state;
  struct error err = {0};
  const uint8_t none[4096] = {0};
  for (int64_t tile = 4; tile <= 128; tile *= 2) {
    struct hybrid_sizes s;
    must(hybrid_measure(512, 512, tile, tile, DTYPE_BF16, none, &s, &err), err);
    assert_int_equal(s.dense_bytes, 0);
    assert_int_equal(s.values_bytes + s.codes_bytes, 512 * 512 * 2 * 9 / 16);
    if (tile == 4) assert_int_equal(s.map_bytes, 128 * 128 / 8);
  }
}

static void checks_find_each_bad_nibble(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(4, 0);
  struct packing p = {0};
  float w[7 * 23];
  fill_normal(w, 7 * 23, 1, 1);
  random_mask(&p.mask, &rng, 7, 23, 3, 8);
  memset(p.mask.tiles, 0, (size_t)mask_tile_count(&p.mask));
  pack(&p, w, DTYPE_F32);
  for (size_t i = 0; i < p.sizes.codes_bytes; i++)
    for (int bad = 0; bad < 16; bad++) {
      const uint8_t old = p.codes[i];
      const int low = old & 15;
      p.codes[i] = (uint8_t)((old & 0xf0) | bad);
      const enum status status = hybrid_check(&p.h, "w", &err);
      if (sparse_code_candidate((uint8_t)bad) < 0) assert_int_equal(status, STATUS_REFUSED);
      if (bad == low) assert_int_equal(status, STATUS_OK);
      p.codes[i] = old;
    }
  const int64_t tiles = mask_tile_count(&p.mask); /* 3 x 3: seven unused bits */
  p.map[tiles / 8] |= 0x80;
  assert_int_equal(hybrid_check(&p.h, "w", &err), STATUS_REFUSED);
  packing_free(&p);
}

/* packed_view accepts what pack made and refuses each lie about it. */
static void views_refuse_lies(void **state) {
  (void)state;
  struct error err = {0};
  struct rng rng = rng_make(5, 0);
  struct packing p = {0};
  float w[9 * 20], row[20], expected[9 * 20];
  fill_normal(w, 9 * 20, 2, 1);
  random_mask(&p.mask, &rng, 9, 20, 4, 8);
  pack(&p, w, DTYPE_F32);
  int64_t layout[4] = {9, 20, 4, 8};
  struct stored_tensor t[PACKED_PARTS] = {
      {"l", DTYPE_I64, 1, {4}, (uint8_t *)layout, 32},
      {"d", DTYPE_F32, 1, {p.sizes.dense_count}, p.dense, p.sizes.dense_bytes},
      {"v", DTYPE_F32, 1, {p.sizes.values_count}, p.values, p.sizes.values_bytes},
      {"m", DTYPE_U8, 1, {2}, p.map, p.sizes.map_bytes},
      {"c", DTYPE_U8, 1, {1}, p.codes, p.sizes.codes_bytes}};
  const struct stored_tensor *parts[PACKED_PARTS] = {&t[0], &t[1], &t[2], &t[3], &t[4]};
  struct hybrid_matrix h;
  must(packed_view(&h, "w", parts, &err), err);
  mask_apply(&p.mask, w, expected);
  for (int r = 0; r < 9; r++) {
    hybrid_row(&h, r, row);
    assert_memory_equal(row, expected + r * 20, sizeof row);
  }
  hybrid_release(&h);
  for (int i = 0; i < PACKED_PARTS; i++) {
    t[i].size_bytes += i == PACKED_LAYOUT ? 8 : 1;
    assert_int_equal(packed_view(&h, "w", parts, &err), STATUS_REFUSED);
    t[i].size_bytes -= i == PACKED_LAYOUT ? 8 : 1;
    const enum dtype dtype = t[i].dtype;
    t[i].dtype = DTYPE_I32;
    assert_int_equal(packed_view(&h, "w", parts, &err), STATUS_REFUSED);
    t[i].dtype = dtype;
  }
  static const int64_t lies[6][4] = {{0, 20, 4, 8}, {9, -1, 4, 8}, {9, 20, 0, 8},
                                     {9, 20, 4, 6}, {9, 21, 4, 8}, {INT64_MAX, INT64_MAX, 1, 4}};
  for (int i = 0; i < 6; i++) {
    memcpy(layout, lies[i], sizeof layout);
    assert_int_equal(packed_view(&h, "w", parts, &err), STATUS_REFUSED);
  }
  packing_free(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_come_back),
      cmocka_unit_test(sizes_are_at_the_floor),
      cmocka_unit_test(checks_find_each_bad_nibble),
      cmocka_unit_test(views_refuse_lies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
