/* Products of operands rounded to bf16, under every instruction set, against fp64 sums of the
 * rounded operands: products of two bf16 are exact in fp32, so only the order of the sums is left
 * to tolerate. Packing is compared byte for byte with the reference's; bits do not depend on the
 * number of threads. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/linear.h"
#include "kernel/product.h"
#include "support/isa.h"

static void *must_alloc(size_t count, size_t size) {
  struct error err;
  void *p = mem_alloc(count, size, &err);
  assert_non_null(p);
  return p;
}

static float rounded(float x) { return bf16_to_f32(bf16_from_f32(x)); }

/* `count` normal values of a dtype; `value` gets what a product shall see of them. */
static void *make_matrix(enum dtype dtype, size_t count, uint64_t seed, float *value) {
  void *data = must_alloc(count, 4);
  fill_normal(value, count, seed, 1.0f);
  dtype_from_f32(dtype, value, (int64_t)count, data);
  dtype_to_f32(dtype, data, (int64_t)count, value);
  for (size_t i = 0; i < count; i++) value[i] = rounded(value[i]);
  return data;
}

struct operand {
  struct product_operand op;
  void *data;
  float *value;
  int64_t ld;
};

/* (rows, cols) of op(X), with `gap` elements between the stored rows. */
static struct operand operand_make(int64_t rows, int64_t cols, bool transposed, enum dtype dtype,
                                   int64_t gap, uint64_t seed) {
  struct operand o = {.ld = (transposed ? rows : cols) + gap};
  size_t count = (size_t)((transposed ? cols : rows) * o.ld);
  o.value = must_alloc(count, 4);
  o.data = make_matrix(dtype, count, seed, o.value);
  o.op = (struct product_operand){.plain = {o.data, dtype, o.ld, transposed},
                                  .transposed = transposed};
  return o;
}
static double operand_at(const struct operand *o, int64_t row, int64_t col) {
  return o->value[o->op.transposed ? col * o->ld + row : row * o->ld + col];
}
static void operand_free(struct operand *o) {
  mem_free(o->data);
  mem_free(o->value);
}

struct product_case {
  int64_t m, n, k;
  bool ta, tb;
  enum dtype da, db;
  float alpha;
  bool add;
  int64_t every; /* 1: all of C is checked, else every so many elements */
  int64_t gap;   /* between the rows of C */
};

static void check_product(const struct product_case *p) {
  struct operand a = operand_make(p->m, p->k, p->ta, p->da, 3, 1);
  struct operand b = operand_make(p->k, p->n, p->tb, p->db, 1, 2);
  int64_t ldc = p->n + p->gap;
  size_t count = (size_t)(p->m * ldc);
  float *c = must_alloc(count, 4), *before = must_alloc(count, 4);
  fill_normal(before, count, 3, 1.0f);
  memcpy(c, before, count * 4);
  product_bf16(p->m, p->n, p->k, p->alpha, &a.op, &b.op, p->add, c, ldc);
  for (int64_t at = 0; at < (int64_t)count; at += p->every) {
    int64_t i = at / ldc, j = at % ldc;
    if (j >= p->n) { /* what lies between the rows is not touched */
      assert_true(c[at] == before[at]);
      continue;
    }
    double sum = 0, size = 0;
    for (int64_t q = 0; q < p->k; q++) {
      double term = operand_at(&a, i, q) * operand_at(&b, q, j);
      sum += term;
      size += fabs(term);
    }
    sum = p->alpha * sum + (p->add ? (double)before[at] : 0);
    size = fabs((double)p->alpha) * size + 1;
    if (!(fabs(sum - (double)c[at]) <= 1e-6 * size))
      fail_msg("%s %ldx%ldx%ld: (%ld,%ld) is %.9g, not %.9g", kernel_table()->isa, (long)p->m,
               (long)p->n, (long)p->k, (long)i, (long)j, (double)c[at], sum);
  }
  operand_free(&a);
  operand_free(&b);
  mem_free(c);
  mem_free(before);
}

static void ragged_cases(void) {
  static const int64_t sizes[][3] = {{1, 1, 1},      {1, 40, 7},   {3, 33, 300}, {13, 17, 5},
                                     {32, 32, 64},   {16, 16, 32}, {25, 65, 31}, {97, 50, 20},
                                     {31, 200, 513}, {7, 8, 1100}, {64, 96, 544}};
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
    for (int t = 0; t < 4; t++)
      for (int d = 0; d < 3; d++)
        check_product(&(struct product_case){sizes[s][0], sizes[s][1], sizes[s][2], t & 1, t >> 1,
                                             dtypes[(d + t) % 3], dtypes[d], t == 2 ? -0.5f : 1.0f,
                                             d == 1, 1, 2});
}
static void products_against_fp64(void **state) {
  (void)state;
  for_each_isa(ragged_cases);
}

/* Several items, bands, k blocks and super-blocks at once. */
static void across_blocks(void **state) {
  (void)state;
  const char *best = kernel_table()->isa;
  const struct product_case cases[] = {
      {1600, 1500, 2100, false, true, DTYPE_F32, DTYPE_F32, 1, false, 1009, 2},
      {40, 9000, 1000, true, false, DTYPE_F32, DTYPE_BF16, 1, true, 307, 2},
      /* rows of C that are whole cache lines, too many for the caches */
      {1030, 784, 100, false, false, DTYPE_F32, DTYPE_F32, 1, false, 13, 0},
      {1030, 784, 100, false, false, DTYPE_F32, DTYPE_F32, 1, true, 13, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_product(&cases[i]);
  if (kernel_table_use("avx512bf16")) check_product(&cases[2]);
  if (kernel_table_use("avx2")) check_product(&cases[1]);
  kernel_table_use(best);
}

static void nothing_to_sum(void **state) {
  (void)state;
  float c[6] = {1, 2, 3, 4, 5, 6};
  struct product_operand op = {.plain = {c, DTYPE_F32, 1, false}};
  product_bf16(2, 2, 0, 1, &op, &op, true, c, 3);
  assert_true(c[0] == 1 && c[4] == 5);
  product_bf16(2, 2, 0, 1, &op, &op, false, c, 3);
  assert_true(c[0] == 0 && c[1] == 0 && c[2] == 3 && c[3] == 0 && c[4] == 0 && c[5] == 6);
}

/* --- packing --- */

/* Values that rounding has trouble with, and then any. Denormals are left out: hardware may take
 * them for zero. */
static float *troublesome(size_t count) {
  static const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f800000,
                                  0xff800000, 0x7f7fffff, 0xff7fffff, 0x80000000, 0x00000000,
                                  0x7fc00001, 0xffc12345, 0x00800000, 0x0080ffff, 0xbfffffff};
  float *x = must_alloc(count, 4);
  fill_normal(x, count, 8, 3.0f);
  for (size_t i = 0; i < count; i += 3) memcpy(&x[i], &bits[i / 3 % 15], 4);
  return x;
}

enum { ROWS = 75, COLS = 83 };
struct packed {
  uint16_t panel[3 * BF16_CHUNK], panels[6 * 3 * BF16_CHUNK], row[COLS];
  uint32_t strip[3 * BF16_CHUNK / 2], strips[6 * 3 * BF16_CHUNK / 2];
};

static void pack_all(enum dtype dtype, const void *source, const float *floats,
                     struct packed *out) {
  const struct bf16_kernels *k = &kernel_table()->bf16;
  memset(out, 0xa5, sizeof *out);
  k->panel_along(dtype, source, COLS, 13, COLS, out->panel);
  k->panels_across(dtype, source, COLS, COLS, ROWS, 3 * BF16_CHUNK, out->panels);
  k->strip_along(dtype, source, COLS, 16, COLS, out->strip);
  k->strips_across(dtype, source, COLS, COLS, ROWS, 3 * BF16_CHUNK / 2, out->strips);
  k->round(floats, COLS, out->row);
}

static struct packed *packed_by_reference(enum dtype dtype, const void *source,
                                          const float *floats) {
  const char *before = kernel_table()->isa;
  struct packed *want = must_alloc(1, sizeof *want);
  assert_true(kernel_table_use("reference"));
  pack_all(dtype, source, floats, want);
  kernel_table_use(before);
  return want;
}

static void packing_cases(void) {
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  float *x = troublesome(ROWS * COLS);
  uint8_t *data = must_alloc(ROWS * COLS * 4 + 4, 1);
  struct packed *got = must_alloc(1, sizeof *got);
  for (int d = 0; d < 3; d++) {
    void *source = data + (dtypes[d] == DTYPE_F32 ? 4 : 2); /* aligned to an element, no more */
    dtype_from_f32(dtypes[d], x, ROWS * COLS, source);
    struct packed *want = packed_by_reference(dtypes[d], source, x);
    pack_all(dtypes[d], source, x, got);
    assert_memory_equal(got, want, sizeof *got);
    mem_free(want);
  }
  mem_free(x);
  mem_free(data);
  mem_free(got);
}
static void packing_as_the_reference(void **state) {
  (void)state;
  for_each_isa(packing_cases);
}

/* Not a number stays none, on its way through any product. */
static void nan_case(void) {
  float a[40] = {0}, b[40] = {0}, c[1];
  uint32_t low_payload = 0x7f800001;
  memcpy(&a[33], &low_payload, 4);
  b[33] = 1;
  struct product_operand oa = {.plain = {a, DTYPE_F32, 40, false}};
  struct product_operand ob = {.plain = {b, DTYPE_F32, 40, true}, .transposed = true};
  product_bf16(1, 1, 40, 1, &oa, &ob, false, c, 1);
  assert_true(isnan(c[0]));
}
static void nan_stays(void **state) {
  (void)state;
  for_each_isa(nan_case);
}

/* --- the products of a linear layer --- */

struct layer {
  struct linear_weight dense, hybrid;
  struct hybrid_matrix packed;
  void *data[5];
};

/* The same bf16 weights twice: as a plain matrix with zeros, and packed. */
static void layer_make(struct layer *l, int64_t rows, int64_t cols) {
  struct error err;
  struct mask_matrix mask;
  float *w = must_alloc((size_t)(rows * cols), 4);
  fill_normal(w, (size_t)(rows * cols), 5, 1);
  must(mask_matrix_init_hybrid(&mask, "w", rows, cols, 128, 128, &err), err);
  for (int64_t t = 0; t < mask_tile_count(&mask); t++) mask.tiles[t] = t % 3 == 0;
  mask_apply(&mask, w, w);
  uint8_t *map = must_alloc((size_t)(mask_tile_count(&mask) + 7) / 8, 1);
  for (int64_t t = 0; t < mask_tile_count(&mask); t++)
    if (mask.tiles[t]) map[t / 8] |= (uint8_t)(1 << t % 8);
  struct hybrid_sizes sizes;
  must(hybrid_measure(rows, cols, 128, 128, DTYPE_BF16, map, &sizes, &err), err);
  l->data[0] = map;
  l->data[1] = must_alloc(sizes.dense_bytes, 1);
  l->data[2] = must_alloc(sizes.values_bytes, 1);
  l->data[3] = must_alloc(sizes.codes_bytes, 1);
  l->data[4] = must_alloc((size_t)(rows * cols), 2);
  hybrid_pack(&mask, w, DTYPE_BF16, map, l->data[1], l->data[2], l->data[3]);
  l->packed = (struct hybrid_matrix){rows,       cols,       128,        128,  DTYPE_BF16, map,
                                     l->data[1], l->data[2], l->data[3], NULL, NULL};
  must(hybrid_index(&l->packed, &err), err);
  dtype_from_f32(DTYPE_BF16, w, rows * cols, l->data[4]);
  l->dense = (struct linear_weight){.dense = {l->data[4], DTYPE_BF16, rows, cols}};
  l->hybrid = (struct linear_weight){.hybrid = &l->packed};
  mask_matrix_free(&mask);
  mem_free(w);
}
static void layer_free(struct layer *l) {
  hybrid_release(&l->packed);
  for (int i = 0; i < 5; i++) mem_free(l->data[i]);
}

/* A hybrid weight gives the bits of the plain one: both are packed into the same chunks. */
static void hybrid_case(void) {
  enum { TOKENS = 37, H_ROWS = 300, H_COLS = 275 };
  struct layer l;
  layer_make(&l, H_ROWS, H_COLS);
  float *x = must_alloc(TOKENS * H_ROWS, 4), *one = must_alloc(TOKENS * H_ROWS, 4);
  float *two = must_alloc(TOKENS * H_ROWS, 4);
  fill_normal(x, TOKENS * H_ROWS, 3, 1);
  linear_forward(&l.dense, NULL, x, TOKENS, PRECISION_BF16, one);
  linear_forward(&l.hybrid, NULL, x, TOKENS, PRECISION_BF16, two);
  assert_memory_equal(one, two, TOKENS * H_ROWS * 4);
  linear_backward_input(&l.dense, x, TOKENS, PRECISION_BF16, one, false);
  linear_backward_input(&l.hybrid, x, TOKENS, PRECISION_BF16, two, false);
  assert_memory_equal(one, two, TOKENS * H_COLS * 4);
  mem_free(x), mem_free(one), mem_free(two);
  layer_free(&l);
}
static void hybrid_like_dense(void **state) {
  (void)state;
  for_each_isa(hybrid_case);
}

enum { TOKENS = 260, T_ROWS = 300, T_COLS = 530 };

/* Forward, both backward products, at 1, 2 and 3 threads. */
static void thread_case(void) {
  struct layer l;
  layer_make(&l, T_ROWS, T_COLS);
  size_t part[3] = {TOKENS * T_ROWS, TOKENS * T_COLS, T_ROWS * T_COLS};
  float *x = must_alloc(part[1], 4), *first = NULL;
  fill_normal(x, part[1], 3, 1);
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    float *all = must_alloc(part[0] + part[1] + part[2], 4), *y = all, *dx = y + part[0];
    linear_forward(&l.hybrid, NULL, x, TOKENS, PRECISION_BF16, y);
    linear_backward_input(&l.dense, y, TOKENS, PRECISION_BF16, dx, false);
    linear_backward_weight(y, x, TOKENS, T_ROWS, T_COLS, PRECISION_BF16, dx + part[1], false);
    if (!first) {
      first = all;
      continue;
    }
    assert_memory_equal(first, all, (part[0] + part[1] + part[2]) * 4);
    mem_free(all);
  }
  mem_free(first);
  mem_free(x);
  layer_free(&l);
  parallel_set_threads(0);
}
static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(thread_case);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_against_fp64),
      cmocka_unit_test(across_blocks),
      cmocka_unit_test(nothing_to_sum),
      cmocka_unit_test(packing_as_the_reference),
      cmocka_unit_test(nan_stays),
      cmocka_unit_test(hybrid_like_dense),
      cmocka_unit_test(same_bits_at_any_thread_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
