/* sparse: quantized matrices. What is packed comes back as the integers and scales say, at ragged
 * sizes, with and without masks; ggml's blocks lose nothing; the search is better than the largest
 * weight's scale; damage is found. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "sparse/quantize.h"
#include "support/hybrids.h"
#include "support/support.h"

enum { ROWS_MOST = 40, COLS_MOST = 160 };
static struct error err;
static const struct quant_form forms[] = {
    {QUANT_I8, 0, false}, {QUANT_I8, 32, false}, {QUANT_I4, 0, false},  {QUANT_I4, 32, false},
    {QUANT_I4, 32, true}, {QUANT_I8, 64, false}, {QUANT_I4, 128, true},
};
enum { FORMS = sizeof forms / sizeof *forms };

/* --- sources --- */

struct plain {
  const float *w;
  int64_t cols;
};
static void plain_row(void *ctx, int64_t row, float *out) {
  const struct plain *p = ctx;
  memcpy(out, p->w + row * p->cols, (size_t)p->cols * sizeof *out);
}

struct blocks {
  const uint8_t *data;
  size_t row_bytes;
};
static const void *blocks_row(void *ctx, int64_t row) {
  const struct blocks *b = ctx;
  return b->data + (size_t)row * b->row_bytes;
}

static void make(struct quant_owned *q, const struct quant_form *form,
                 const struct mask_matrix *mask, int64_t rows, int64_t cols, const float *w) {
  struct plain plain = {w, cols};
  struct quant_source source = {.ctx = &plain, .row = plain_row};
  must(quant_make(q, form, mask, rows, cols, &source, "w", &err), err);
}

/* --- the expansion --- */

/* The weight at a kept position, from the definition in quant.h alone. */
static float by_definition(const struct quant_matrix *q, int64_t row, int64_t col, int integer) {
  const int64_t groups = q->group ? (q->cols + q->group - 1) / q->group : 1;
  const int64_t at = q->group ? row * groups + col / q->group : row;
  const float scale = q->group ? f16_to_f32(q->scales[at]) : q->row_scales[at];
  if (q->mins) return scale * (float)integer + f16_to_f32(q->mins[at]);
  return scale * (float)(q->type == QUANT_I4 ? integer - 8 : (int8_t)integer);
}

/* Walks over the arrays as the format says they lie, and gives every weight. */
static void expand_by_definition(const struct quant_matrix *q, const struct mask_matrix *mask,
                                 float *out) {
  int64_t dense = 0, values = 0;
  memset(out, 0, (size_t)(q->rows * q->cols) * sizeof *out);
  for (int64_t y = 0; y < q->rows; y += q->tile_rows)
    for (int64_t x = 0; x < q->cols; x += q->tile_cols) {
      const bool full = !mask || mask_tile_dense(mask, y, x);
      int64_t *at = full ? &dense : &values;
      for (int64_t r = y; r < y + q->tile_rows && r < q->rows; r++)
        for (int64_t c = x; c < x + q->tile_cols && c < q->cols; c += full ? 1 : 4)
          for (int i = 0; i < (full ? 1 : 2); i++, ++*at) {
            const int code = full ? 0 : mask_code(mask, r, c / 4);
            const int64_t col = full ? c : c + (i ? code >> 2 : code & 3);
            const uint8_t *base = full ? q->dense : q->values;
            const int integer = q->type == QUANT_I8 ? base[*at] : base[*at / 2] >> *at % 2 * 4 & 15;
            if (col < q->cols) out[r * q->cols + col] = by_definition(q, r, col, integer);
          }
      if (q->type == QUANT_I4) *at = (*at + 1) / 2 * 2;
    }
}

static void rows_follow_the_definition(void **state) {
  struct rng rng = rng_make(7, 0);
  (void)state;
  for (int round = 0; round < 300; round++) {
    const struct quant_form *form = &forms[round % FORMS];
    const int64_t rows = 1 + (int64_t)rng_below(&rng, ROWS_MOST);
    const int64_t cols = 1 + (int64_t)rng_below(&rng, COLS_MOST);
    static float w[ROWS_MOST * COLS_MOST], expected[ROWS_MOST * COLS_MOST], row[COLS_MOST];
    struct hybrid_case c;
    struct quant_owned q;
    hybrid_case_make(&c, rows, cols, 4 << rng_below(&rng, 4), 0.5, DTYPE_F32, (uint64_t)round);
    fill_normal(w, (size_t)(rows * cols), (uint64_t)round, 1);
    const struct mask_matrix *mask = round % 3 ? &c.mask : NULL;
    make(&q, form, mask, rows, cols, w);
    must(quant_check(&q.matrix, "w", &err), err);
    expand_by_definition(&q.matrix, mask, expected);
    for (int64_t r = 0; r < rows; r++) {
      quant_row(&q.matrix, r, row);
      assert_memory_equal(row, expected + r * cols, (size_t)cols * sizeof *row);
      const int64_t from = (int64_t)rng_below(&rng, (uint64_t)cols);
      const int64_t count = (int64_t)rng_below(&rng, (uint64_t)(cols - from) + 1);
      quant_columns(&q.matrix, r, from, count, row);
      assert_memory_equal(row, expected + r * cols + from, (size_t)count * sizeof *row);
      for (int64_t k = 0; k < cols;
           k++) { /* half a step of the range of normals, scales' rounding */
        const bool kept = !mask || mask_tile_dense(mask, r, k) || expected[r * cols + k] != 0;
        const double step = form->type == QUANT_I8 ? 10.0 / 254 : 10.0 / 14;
        if (kept) assert_true(fabs((double)expected[r * cols + k] - w[r * cols + k]) <= step);
      }
    }
    quant_owned_free(&q);
    hybrid_case_free(&c);
  }
}

/* --- blocks --- */

/* Random blocks with finite, mostly normal scales. */
static void random_blocks(enum dtype dtype, uint8_t *out, int64_t count, struct rng *rng) {
  const struct dtype_traits *t = dtype_traits(dtype);
  const int halves = dtype == DTYPE_Q8_0 || dtype == DTYPE_Q4_0 || dtype == DTYPE_Q5_0 ? 1 : 2;
  for (int64_t b = 0; b < count / t->block_length; b++, out += t->block_bytes) {
    for (int i = 0; i < t->block_bytes; i++) out[i] = (uint8_t)rng_below(rng, 256);
    for (int i = 0; i < halves; i++) {
      const uint16_t half = f16_from_f32(((float)rng_below(rng, 2001) - 1000) / 4096);
      memcpy(out + 2 * i, &half, 2);
    }
  }
}

/* A mask and blocks: kept weights have the bits of ggml's own expansion. */
static void blocks_are_taken_over(void **state) {
  static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q4_K};
  enum { ROWS = 24, COLS = 512, TILE = 8 };
  static float expected[ROWS * COLS], row[COLS];
  static uint8_t data[ROWS * COLS * 2];
  struct rng rng = rng_make(8, 0);
  (void)state;
  for (size_t i = 0; i < 2 * sizeof types / sizeof *types; i++) {
    const enum dtype dtype = types[i / 2];
    struct hybrid_case c;
    struct quant_owned q;
    struct quant_form form;
    struct blocks blocks = {.data = data};
    struct quant_source source = {.ctx = &blocks, .blocks = blocks_row, .dtype = dtype};
    assert_true(dtype_bytes(dtype, COLS, &blocks.row_bytes));
    random_blocks(dtype, data, (int64_t)ROWS * COLS, &rng);
    dtype_to_f32(dtype, data, (int64_t)ROWS * COLS, expected);
    hybrid_case_make(&c, ROWS, COLS, TILE, 0.4, DTYPE_F32, i);
    const struct mask_matrix *mask = i % 2 ? &c.mask : NULL;
    if (mask) mask_apply(mask, expected, expected);
    assert_true(quant_form_of_blocks(dtype, &form));
    must(quant_make(&q, &form, mask, ROWS, COLS, &source, "w", &err), err);
    for (int64_t r = 0; r < ROWS; r++) {
      quant_row(&q.matrix, r, row);
      if (dtype == DTYPE_Q4_K) /* scales and minima rounded to f16 */
        for (int k = 0; k < COLS; k++)
          assert_true(fabs((double)row[k] - expected[r * COLS + k]) <= 0x1p-10 * 16 * 63 * 0.25);
      else
        assert_memory_equal(row, expected + r * COLS, sizeof row);
    }
    quant_owned_free(&q);
    hybrid_case_free(&c);
  }
  struct quant_form none;
  assert_false(quant_form_of_blocks(DTYPE_Q6_K, &none));
  assert_false(quant_form_of_blocks(DTYPE_BF16, &none));
}

/* --- the search --- */

/* Never worse than the largest weight's scale, and on the whole clearly better for nibbles. */
static void searching_pays(void **state) {
  enum { COUNT = 32, GROUPS = 2000 };
  static const double at_most[] = {0.9, 0.9, 0.9, 0.9, 0.9}; /* of the plain error */
  (void)state;
  for (int f = 0; f < 5; f++) {
    double plain = 0, found = 0;
    for (int g = 0; g < GROUPS; g++) {
      float w[COUNT], scale, min;
      uint8_t integers[COUNT];
      const int64_t count = 1 + g % COUNT;
      fill_normal(w, (size_t)count, (uint64_t)g, 0.02f);
      const double a = quantize_group(&forms[f], false, w, count, integers, &scale, &min);
      const double b = quantize_group(&forms[f], true, w, count, integers, &scale, &min);
      double counted = 0;
      for (int64_t i = 0; i < count; i++) {
        const int zero = forms[f].mins ? 0 : quant_zero(forms[f].type);
        const int q = forms[f].type == QUANT_I8 ? (int8_t)integers[i] : integers[i];
        const float gap = w[i] - (scale * (float)(q - zero) + min);
        counted += (double)gap * gap;
      }
      assert_true(b <= a);
      assert_true(fabs(counted - b) <= 1e-6 * b + 1e-20);
      plain += a;
      found += b;
    }
    if (!(found <= at_most[f] * plain)) fail_msg("form %d: %g of %g", f, found, plain);
    print_message("form %d: squared error %.4f of the largest weight's scale\n", f, found / plain);
  }
}

/* Only what is kept counts: a large dropped weight leaves no trace. */
static void dropped_weights_do_not_count(void **state) {
  float w[4 * 32], other[4 * 32], row[32], again[32];
  struct mask_matrix m;
  struct quant_owned a, b;
  (void)state;
  fill_normal(w, 4 * 32, 3, 1);
  memcpy(other, w, sizeof w);
  must(mask_matrix_init_hybrid(&m, "w", 4, 32, 4, 32, &err), err); /* 1100 everywhere */
  for (int i = 0; i < 4 * 32; i++)
    if (i % 4 > 1) other[i] = i % 8 > 5 ? 1e6f : NAN;
  for (int f = 0; f < FORMS; f++) {
    make(&a, &forms[f], &m, 4, 32, w);
    make(&b, &forms[f], &m, 4, 32, other);
    for (int r = 0; r < 4; r++) {
      quant_row(&a.matrix, r, row);
      quant_row(&b.matrix, r, again);
      assert_memory_equal(row, again, sizeof row);
    }
    quant_owned_free(&a);
    quant_owned_free(&b);
  }
  mask_matrix_free(&m);
}

static void extremes(void **state) {
  float w[32] = {0}, row[32];
  struct quant_owned q;
  (void)state;
  for (int f = 0; f < FORMS; f++) { /* zeros, and one value all over */
    memset(w, 0, sizeof w);
    make(&q, &forms[f], NULL, 1, 32, w);
    quant_row(&q.matrix, 0, row);
    for (int i = 0; i < 32; i++) assert_true(row[i] == 0);
    quant_owned_free(&q);
    for (int i = 0; i < 32; i++) w[i] = -0.75f;
    make(&q, &forms[f], NULL, 1, 32, w);
    quant_row(&q.matrix, 0, row);
    for (int i = 0; i < 32; i++) assert_true(fabsf(row[i] + 0.75f) < 1e-3f);
    quant_owned_free(&q);
  }
  static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
  for (int i = 0; i < 4; i++)
    for (int f = 0; f < FORMS; f++) {
      struct plain plain = {w, 32};
      struct quant_source source = {.ctx = &plain, .row = plain_row};
      w[5] = bad[i];
      if (!forms[f].group && isfinite(bad[i])) continue; /* an fp32 scale holds it */
      assert_int_equal(quant_make(&q, &forms[f], NULL, 1, 32, &source, "w", &err), STATUS_REFUSED);
      assert_non_null(strstr(err.text, "row 0"));
    }
}

/* --- sizes and damage --- */

static void sizes_are_at_the_floor(void **state) {
  const uint8_t none[64] = {0};
  struct quant_sizes s;
  (void)state;
  struct quant_matrix q = {
      .rows = 512, .cols = 512, .tile_rows = 32, .tile_cols = 32, .type = QUANT_I4, .group = 32};
  must(quant_measure(&q, &s, &err), err);
  assert_int_equal(s.dense_bytes, 512 * 512 / 2);
  assert_int_equal(s.scales, 512 * 16);
  q.tile_map = none; /* 2:4: a quarter of a byte for values and an eighth for codes */
  must(quant_measure(&q, &s, &err), err);
  assert_int_equal(s.dense_bytes, 0);
  assert_int_equal(s.values_bytes + s.codes_bytes, 512 * 512 * 3 / 8);
  q.type = QUANT_I8;
  must(quant_measure(&q, &s, &err), err);
  assert_int_equal(s.values_bytes + s.codes_bytes, 512 * 512 * 5 / 8);
  static const int64_t groups[] = {-32, 16, 33, INT64_MAX};
  for (int i = 0; i < 4; i++) {
    q.group = groups[i];
    assert_int_equal(quant_measure(&q, &s, &err), STATUS_REFUSED);
  }
  q.group = 32;
  q.rows = INT64_MAX;
  assert_int_equal(quant_measure(&q, &s, &err), STATUS_REFUSED);
}

static void checks_find_damage(void **state) {
  enum { ROWS = 7, COLS = 37, TILE = 4 };
  float w[ROWS * COLS];
  struct hybrid_case c;
  struct quant_owned q;
  (void)state;
  fill_normal(w, ROWS * COLS, 1, 1);
  hybrid_case_make(&c, ROWS, COLS, TILE, 0.5, DTYPE_F32, 4);
  make(&q, &forms[4], &c.mask, ROWS, COLS, w);
  struct quant_matrix *m = &q.matrix;
  must(quant_check(m, "w", &err), err);
  uint16_t *const scales = (uint16_t *)m->scales, *const mins = (uint16_t *)m->mins;
  for (int64_t i = 0; i < q.sizes.scales; i++) {
    uint16_t *const both[2] = {&scales[i], &mins[i]};
    for (int k = 0; k < 2; k++) {
      const uint16_t old = *both[k];
      *both[k] = 0x7c00; /* infinity */
      assert_int_equal(quant_check(m, "w", &err), STATUS_REFUSED);
      *both[k] = old;
    }
  }
  for (size_t i = 0; i < q.sizes.codes_bytes; i++) {
    uint8_t *const byte = (uint8_t *)m->codes + i, old = *byte;
    *byte = (uint8_t)((old & 0xf0) | 5);
    assert_int_equal(quant_check(m, "w", &err), STATUS_REFUSED);
    *byte = old;
  }
  uint8_t *const map = (uint8_t *)m->tile_map;
  map[q.sizes.map_bytes - 1] ^= 0x80; /* 2 x 10 tiles: four unused bits */
  assert_int_equal(quant_check(m, "w", &err), STATUS_REFUSED);
  quant_owned_free(&q);
  hybrid_case_free(&c);
  make(&q, &forms[3], NULL, ROWS, COLS, w); /* 259 nibbles */
  uint8_t *const dense = (uint8_t *)q.matrix.dense;
  dense[q.sizes.dense_bytes - 1] |= 0x10;
  assert_int_equal(quant_check(&q.matrix, "w", &err), STATUS_REFUSED);
  quant_owned_free(&q);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rows_follow_the_definition),
      cmocka_unit_test(blocks_are_taken_over),
      cmocka_unit_test(searching_pays),
      cmocka_unit_test(dropped_weights_do_not_count),
      cmocka_unit_test(extremes),
      cmocka_unit_test(sizes_are_at_the_floor),
      cmocka_unit_test(checks_find_damage),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
