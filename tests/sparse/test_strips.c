/* sparse: strips give back, bit for bit, the weights that they were made of, take the bytes that
 * their chunks need, and store nothing for zeros. */
#include <string.h>

#include "base/mem.h"
#include "sparse/strips.h"
#include "support/hybrids.h"
#include "support/support.h"

static const struct {
  int64_t rows, cols, tile;
} shapes[] = {{150, 200, 128}, {37, 45, 8}, {70, 130, 64}, {33, 19, 128}, {48, 96, 32},
              {16, 32, 16},    {17, 33, 4}, {1, 1, 8},     {40, 127, 12}, {256, 256, 128}};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};

static void assert_row(const struct strip_matrix *s, int64_t row, const float *want) {
  float got[256];
  for (int64_t col = 0; col < s->cols; col += 1 + col / 3) {
    int64_t count = (s->cols - col + 1) / 2;
    strips_row(s, row, col, count, got);
    assert_memory_equal(got, want + col, (size_t)count * sizeof *got);
  }
  strips_row(s, row, 0, s->cols, got);
  assert_memory_equal(got, want, (size_t)s->cols * sizeof *got);
}

static void as_bf16(float *x, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] = bf16_to_f32(bf16_from_f32(x[i]));
}

static void hybrid_rows_come_back(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < SHAPES; i++)
    for (int d = 0; d < 3; d++) {
      struct hybrid_case c;
      struct strip_matrix s;
      float want[256];
      hybrid_case_make(&c, shapes[i].rows, shapes[i].cols, shapes[i].tile, 0.4, dtypes[d], 7);
      must(strips_from_hybrid(&s, &c.h, &err), err);
      assert_true(s.sparse);
      assert_int_equal(s.dtype, d == 2 ? DTYPE_BF16 : dtypes[d]);
      for (int64_t r = 0; r < c.h.rows; r++) {
        hybrid_row(&c.h, r, want);
        if (d == 2) as_bf16(want, c.h.cols);
        assert_row(&s, r, want);
      }
      strips_release(&s);
      hybrid_case_free(&c);
    }
}

static void dense_rows_come_back(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < SHAPES; i++)
    for (int d = 0; d < 3; d++) {
      const int64_t rows = shapes[i].rows, cols = shapes[i].cols;
      float *w = mem_alloc((size_t)(rows * cols), sizeof *w, &err);
      void *stored = mem_alloc((size_t)(rows * cols), sizeof *w, &err);
      fill_normal(w, (size_t)(rows * cols), 3, 1);
      w[0] = -0.0f;
      dtype_from_f32(dtypes[d], w, rows * cols, stored);
      dtype_to_f32(dtypes[d], stored, rows * cols, w);
      if (d == 2) as_bf16(w, rows * cols);
      const struct matrix_view view = {stored, dtypes[d], rows, cols};
      struct strip_matrix s;
      must(strips_from_dense(&s, &view, &err), err);
      assert_false(s.sparse);
      assert_int_equal(s.stored_bytes, s.strips * s.chunks * STRIP_DENSE_BYTES);
      for (int64_t r = 0; r < rows; r++) assert_row(&s, r, w + r * cols);
      strips_release(&s);
      mem_free(w);
      mem_free(stored);
    }
}

/* Tiles of whole chunks lose nothing: 9/16 of the dense bytes for each that is 2:4. */
static void bytes_are_at_the_floor(void **state) {
  (void)state;
  struct error err = {0};
  struct hybrid_case c;
  struct strip_matrix s;
  struct hybrid_sizes sizes;
  hybrid_case_make(&c, 256, 512, 128, 0.5, DTYPE_BF16, 5);
  must(hybrid_measure(256, 512, 128, 128, DTYPE_BF16, c.map, &sizes, &err), err);
  must(strips_from_hybrid(&s, &c.h, &err), err);
  assert_true(sizes.dense_tiles > 0 && sizes.dense_tiles < 8);
  assert_int_equal(s.stored_bytes, sizes.dense_bytes + sizes.values_bytes + sizes.codes_bytes);
  strips_release(&s);
  hybrid_case_free(&c);
}

static void zeros_cost_nothing(void **state) {
  (void)state;
  struct error err = {0};
  for (int sparse = 0; sparse < 2; sparse++) {
    struct hybrid_case c;
    struct strip_matrix s;
    float row[100];
    hybrid_case_make(&c, 40, 100, 32, sparse ? 0 : 1, DTYPE_BF16, 5);
    memset(sparse ? c.values : c.dense, 0, (size_t)(sparse ? 2000 : 4000) * 2);
    must(strips_from_hybrid(&s, &c.h, &err), err);
    assert_int_equal(s.stored_bytes, 0);
    for (int64_t r = 0; r < 40; r++) {
      strips_row(&s, r, 0, 100, row);
      for (int i = 0; i < 100; i++) assert_true(row[i] == 0);
    }
    strips_release(&s);
    hybrid_case_free(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(hybrid_rows_come_back), cmocka_unit_test(dense_rows_come_back),
      cmocka_unit_test(bytes_are_at_the_floor), cmocka_unit_test(zeros_cost_nothing)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
