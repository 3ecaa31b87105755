/* sparse: quantized strips give back, bit for bit, the weights that they were made of, take the
 * bytes that their chunks need, and store nothing for zeros. */
#include "sparse/quant_strips.h"

#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "support/quants.h"
#include "support/support.h"

enum { COLS_MOST = 512 };
static struct error err;
/* tile 0: no mask */
static const struct {
  int64_t rows, cols, tile;
} shapes[] = {{150, 200, 128}, {37, 45, 8}, {70, 130, 64}, {33, 19, 128}, {48, 96, 32},
              {16, 64, 16},    {17, 33, 4}, {1, 1, 8},     {40, 127, 12}, {64, 256, 64},
              {70, 130, 0},    {33, 19, 0}, {16, 128, 0}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void assert_row(const struct quant_strips *s, int64_t row, const float *want) {
  float got[COLS_MOST];
  for (int64_t col = 0; col < s->cols; col += 1 + col / 3) {
    const int64_t count = (s->cols - col + 1) / 2;
    quant_strips_row(s, row, col, count, got);
    for (int64_t i = 0; i < count; i++)
      if (got[i] != want[col + i])
        fail_msg("%lld x %lld, row %lld, column %lld: %.9g, not %.9g", (long long)s->rows,
                 (long long)s->cols, (long long)row, (long long)(col + i), got[i], want[col + i]);
  }
}

static void rows_come_back(void **state) {
  (void)state;
  for (int i = 0; i < SHAPES; i++)
    for (int f = 0; f < QUANT_FORMS; f++) {
      struct quant_case c;
      struct quant_strips s;
      float want[COLS_MOST];
      quant_case_make(&c, &quant_forms[f], shapes[i].rows, shapes[i].cols, shapes[i].tile, 0.4, 7);
      const struct quant_matrix *q = &c.owned.matrix;
      must(quant_strips_from_quant(&s, q, &err), err);
      assert_int_equal(s.sparse, shapes[i].tile != 0);
      for (int64_t r = 0; r < q->rows; r++) {
        quant_row(q, r, want);
        assert_row(&s, r, want);
      }
      quant_strips_release(&s);
      quant_case_free(&c);
    }
}

/* The scales of q4_k are rounded to f16, 2^-11 of each product; all other types are exact. */
static void blocks_come_back(void **state) {
  (void)state;
  static const enum dtype dtypes[] = {DTYPE_Q8_0, DTYPE_Q5_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q4_K};
  struct rng rng = rng_make(3, 3);
  assert_false(quant_strips_takes(DTYPE_Q6_K));
  assert_false(quant_strips_takes(DTYPE_F16));
  for (int d = 0; d < 5; d++) {
    const int64_t rows = 37, cols = d == 4 ? 512 : 224;
    size_t bytes = 0;
    assert_true(dtype_bytes(dtypes[d], (uint64_t)(rows * cols), &bytes));
    uint8_t *blocks = mem_alloc(bytes, 1, &err);
    float *want = mem_alloc((size_t)(rows * cols), sizeof *want, &err), got[COLS_MOST];
    for (size_t i = 0; i < bytes; i++) blocks[i] = (uint8_t)rng_next(&rng);
    const int64_t length = dtype_traits(dtypes[d])->block_bytes;
    for (size_t i = 0; i < bytes; i += (size_t)length) { /* d and m of moderate size */
      blocks[i + 1] = (uint8_t)((blocks[i + 1] & 0x83) | 0x28);
      if (d >= 3) blocks[i + 3] = (uint8_t)((blocks[i + 3] & 0x83) | 0x28);
    }
    dtype_to_f32(dtypes[d], blocks, rows * cols, want);
    const struct matrix_view view = {blocks, dtypes[d], rows, cols};
    struct quant_strips s;
    assert_true(quant_strips_takes(dtypes[d]));
    must(quant_strips_from_blocks(&s, &view, &err), err);
    assert_false(s.sparse);
    for (int64_t r = 0; r < rows; r++) {
      if (d < 4) {
        assert_row(&s, r, want + r * cols);
        continue;
      }
      quant_strips_row(&s, r, 0, cols, got);
      for (int64_t c = 0; c < cols; c++) /* at most 15 * 63 * 2^-3 and 63 * 2^-3 are added up */
        assert_true(got[c] - want[r * cols + c] <= 0.1f && want[r * cols + c] - got[c] <= 0.1f);
    }
    quant_strips_release(&s);
    mem_free(blocks), mem_free(want);
  }
}

/* Tiles of whole chunks lose nothing: a 2:4 one takes 5/8 (int8) and 3/4 (int4) of a dense one,
 * apart from scales. */
static void bytes_are_at_the_floor(void **state) {
  (void)state;
  for (int f = 0; f < QUANT_FORMS; f++) {
    struct quant_case c;
    struct quant_strips s;
    const struct quant_form *form = &quant_forms[f];
    quant_case_make(&c, form, 256, 512, 128, 0.5, 5);
    const struct quant_sizes *sizes = &c.owned.sizes;
    assert_true(sizes->dense_bytes > 0 && sizes->values_bytes > 0);
    must(quant_strips_from_quant(&s, &c.owned.matrix, &err), err);
    const size_t scales =
        form->group ? (size_t)(256 * 512 / QUANT_GROUP * 2 * (form->mins ? 2 : 1)) : 0;
    assert_int_equal(s.stored_bytes,
                     sizes->dense_bytes + sizes->values_bytes + sizes->codes_bytes + scales);
    quant_strips_release(&s);
    quant_case_free(&c);
  }
}

static void zeros_cost_nothing(void **state) {
  (void)state;
  for (int f = 0; f < 4; f++)
    for (int sparse = 0; sparse < 2; sparse++) {
      struct quant_case c;
      struct quant_strips s;
      float row[100];
      quant_case_make(&c, &quant_forms[f], 40, 100, 64, sparse ? 0 : 1, 5);
      struct quant_matrix *q = &c.owned.matrix;
      const int zero = q->type == QUANT_I8 ? 0 : 0x88;
      memset((void *)(sparse ? q->values : q->dense), zero,
             sparse ? c.owned.sizes.values_bytes : c.owned.sizes.dense_bytes);
      must(quant_strips_from_quant(&s, q, &err), err);
      assert_int_equal(s.stored_bytes, 0);
      for (int64_t r = 0; r < 40; r++) {
        quant_strips_row(&s, r, 0, 100, row);
        for (int i = 0; i < 100; i++) assert_true(row[i] == 0);
      }
      quant_strips_release(&s);
      quant_case_free(&c);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_come_back), cmocka_unit_test(blocks_come_back),
      cmocka_unit_test(bytes_are_at_the_floor), cmocka_unit_test(zeros_cost_nothing)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
