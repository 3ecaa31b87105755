/* The blocked product of operands rounded to bf16: see product.h. No state but scratch.
 *
 * As in gemm.c, C is made in super-blocks whose packed operands fit a few MiB. Both operands are
 * packed, in one parallel section, into the chunks of bf16_kernels.h: at the rate of the tiles,
 * memory is what costs, so each is read once and is half as large from there on.
 *
 * Bits: an element of C is the sum over super-blocks of k, in order, of sums that a kernel makes in
 * an order of its own over k. Items begin at multiples of 32 rows and columns, so that neither how
 * C is cut nor which thread runs what changes anything. */
#include "base/parallel.h"
#include "kernel/precision.h"
#include "kernel/product.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  K_SUPER = 2048,           /* summed in one go */
  M_SUPER = 1536,           /* packed A: at most M_SUPER x K_SUPER, 6 MiB */
  N_SUPER_BYTES = 8 << 20,  /* packed B */
  ITEM_A_BYTES = 400 << 10, /* packed A and B of an item, both in the second-level cache */
  ITEM_B_BYTES = 1 << 20,
  ITEMS_A_THREAD = 4,     /* at least, so that threads end together */
  STREAM_BYTES = 2 << 20, /* a C as large as this is not found in the caches later */
  BAND_COLS = 128,        /* columns packed together, so that stored rows are read in long pieces */
  SEGMENT = 256,          /* columns of a hybrid row fetched at a time */
  SMALL_WORK = 1 << 18,   /* multiply-adds below which threads do not pay */
};

const char *const precision_name[PRECISIONS] = {"fp32", "bf16"};

enum precision precision_fastest(void) {
  return kernel_table()->bf16.in_hardware ? PRECISION_BF16 : PRECISION_FP32;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* One operand's share of a super-block: rows of op(A) or columns of op(B) [first, first + count),
 * k [k0, k0 + kc), packed with `k_padded` elements each. */
struct packing {
  const struct product_operand *op;
  bool is_b;
  bool along_k; /* the stored rows run along k */
  int64_t first, count, k0, kc, k_padded;
  void *out;
};

static const void *element(const struct gemm_operand *plain, int64_t row, int64_t col) {
  return (const char *)plain->data + (row * plain->ld + col) * (plain->dtype == DTYPE_F32 ? 4 : 2);
}

/* Where row or column `i` of the packing begins. A pair of B is as large as two elements of A. */
static uint16_t *packed_at(const struct packing *p, int64_t i) {
  return (uint16_t *)p->out + i * p->k_padded;
}

static void pack_along(const struct packing *p, enum dtype dtype, const void *source, int64_t ld,
                       int64_t count, int64_t k, uint16_t *out) {
  const struct bf16_kernels *kernels = &kernel_table()->bf16;
  if (p->is_b)
    kernels->strip_along(dtype, source, ld, count, k, (uint32_t *)out);
  else
    kernels->panel_along(dtype, source, ld, count, k, out);
}

static void pack_across(const struct packing *p, enum dtype dtype, const void *source, int64_t ld,
                        int64_t count, int64_t k, uint16_t *out) {
  const struct bf16_kernels *kernels = &kernel_table()->bf16;
  int64_t step = BF16_SIDE * p->k_padded;
  if (p->is_b)
    kernels->strips_across(dtype, source, ld, count, k, step / 2, (uint32_t *)out);
  else
    kernels->panels_across(dtype, source, ld, count, k, step, out);
}

/* Hybrid operands are expanded to fp32 a few rows at a time, then packed like any other. */
static void pack_hybrid_along(const struct packing *p, int64_t first, int64_t count,
                              uint16_t *out) {
  float *rows = kernel_scratch(SCRATCH_SEGMENT, BF16_SIDE * SEGMENT);
  for (int64_t k = 0; k < p->kc; k += SEGMENT) {
    int64_t length = least(SEGMENT, p->kc - k);
    for (int64_t i = 0; i < count; i++)
      operand_segment(p->op, first + i, p->k0 + k, length, rows + i * SEGMENT);
    pack_along(p, DTYPE_F32, rows, SEGMENT, count, length, out + k * BF16_SIDE);
  }
}

/* Strips lie across k already. */
static void pack_strips_along(const struct packing *p, int64_t first, int64_t count,
                              uint16_t *out) {
  float *rows = kernel_scratch(SCRATCH_SEGMENT, BF16_SIDE * SEGMENT);
  for (int64_t k = 0; k < p->kc; k += SEGMENT) {
    int64_t length = least(SEGMENT, p->kc - k);
    operand_panel(p->op, first, count, BF16_SIDE, p->k0 + k, length, rows);
    pack_across(p, DTYPE_F32, rows, BF16_SIDE, count, length, out + k * BF16_SIDE);
  }
}

static void pack_hybrid_across(const struct packing *p, int64_t first, int64_t count,
                               uint16_t *out) {
  float *rows = kernel_scratch(SCRATCH_SEGMENT, BF16_STEP * BAND_COLS);
  for (int64_t k = 0; k < p->kc; k += BF16_STEP) {
    int64_t here = least(BF16_STEP, p->kc - k);
    for (int64_t i = 0; i < here; i++)
      operand_segment(p->op, p->k0 + k + i, first, count, rows + i * BAND_COLS);
    pack_across(p, DTYPE_F32, rows, BAND_COLS, count, here, out + k * BF16_SIDE);
  }
}

static int64_t band_of(const struct packing *p) { return p->along_k ? BF16_SIDE : BAND_COLS; }

static void pack_band(const struct packing *p, int64_t band) {
  const struct gemm_operand *plain = &p->op->plain;
  int64_t i = band * band_of(p), count = least(band_of(p), p->count - i), at = p->first + i;
  uint16_t *out = packed_at(p, i);
  if ((p->op->strips || p->op->quant) && p->along_k)
    pack_strips_along(p, at, count, out);
  else if (operand_is_coded(p->op) && p->along_k)
    pack_hybrid_along(p, at, count, out);
  else if (operand_is_coded(p->op) || p->op->strips || p->op->quant)
    pack_hybrid_across(p, at, count, out);
  else if (p->along_k)
    pack_along(p, plain->dtype, element(plain, at, p->k0), plain->ld, count, p->kc, out);
  else
    pack_across(p, plain->dtype, element(plain, p->k0, at), plain->ld, count, p->kc, out);
}

static int64_t band_count(const struct packing *p) {
  return (p->count + band_of(p) - 1) / band_of(p);
}

/* A and B of a super-block; A's bands are the first items, and none where it is there already. */
struct both {
  struct packing a, b;
  int64_t a_bands;
};

static void pack_item(void *ctx, int64_t item, int worker) {
  const struct both *both = ctx;
  (void)worker;
  if (item < both->a_bands)
    pack_band(&both->a, item);
  else
    pack_band(&both->b, item - both->a_bands);
}

/* One super-block of C, (m, n) at c, over k_padded. */
struct multiplication {
  int64_t m, n, k_padded;
  float alpha;
  bool add, stream;
  const uint16_t *a;
  const uint32_t *b;
  float *c;
  int64_t ldc;
};

/* How C is cut into items; what they give does not depend on it. */
struct cut {
  int64_t col_items, cols;
  int64_t row_items, rows;
  bool cols_first; /* items that follow one another differ in their columns */
};

struct multiplying {
  struct multiplication x;
  struct cut cut;
};

static void multiply_item(void *ctx, int64_t item, int worker) {
  const struct multiplying *work = ctx;
  const struct multiplication *x = &work->x;
  const struct cut *cut = &work->cut;
  (void)worker;
  int64_t i = (cut->cols_first ? item / cut->col_items : item % cut->row_items) * cut->rows;
  int64_t j = (cut->cols_first ? item % cut->col_items : item / cut->row_items) * cut->cols;
  struct bf16_block block = {
      .rows = least(cut->rows, x->m - i),
      .cols = least(cut->cols, x->n - j),
      .k = x->k_padded,
      .a = x->a + i * x->k_padded,
      .panel_step = BF16_SIDE * x->k_padded,
      .b = x->b + j * x->k_padded / 2,
      .strip_step = BF16_SIDE * x->k_padded / 2,
      .alpha = x->alpha,
      .add = x->add,
      .stream = x->stream,
      .c = x->c + i * x->ldc + j,
      .ldc = x->ldc,
  };
  kernel_table()->bf16.block(&block);
}

static void run(bool serial, int64_t items, void (*fn)(void *, int64_t, int), void *ctx) {
  if (serial)
    for (int64_t i = 0; i < items; i++) fn(ctx, i, 0);
  else
    parallel_for(items, fn, ctx);
}

static int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* The size of each of `items` equal pieces, in whole 32s, which is what kernels work in. */
static int64_t item_size(int64_t count, int64_t items) {
  return round_up(pieces(count, items), 2 * BF16_SIDE);
}

/* The columns of an item have their B in the second-level cache, and a thread meets them again and
 * again with other rows: so B passes from the third level once or twice, and A once for each block
 * of columns. */
static struct cut cut_for(const struct multiplication *x, int64_t threads) {
  const int64_t row_bytes = x->k_padded * (int64_t)sizeof(uint16_t);
  struct cut c;
  c.cols = item_size(x->n, pieces(x->n * row_bytes, ITEM_B_BYTES));
  c.col_items = pieces(x->n, c.cols);
  int64_t row_items = pieces(x->m * row_bytes, ITEM_A_BYTES);
  if (c.col_items * row_items < ITEMS_A_THREAD * threads)
    row_items = pieces(ITEMS_A_THREAD * threads, c.col_items);
  c.rows = item_size(x->m, row_items);
  c.row_items = pieces(x->m, c.rows);
  c.cols_first = threads % c.col_items == 0;
  return c;
}

static void multiply(struct multiplication x, bool serial) {
  struct multiplying work = {x, cut_for(&x, serial ? 1 : parallel_threads())};
  run(serial, work.cut.row_items * work.cut.col_items, multiply_item, &work);
}

/* Scratch for `count` packed rows or columns: a bf16 is half a float. */
static void *packed_scratch(enum scratch_slot slot, int64_t count, int64_t k_padded) {
  return kernel_scratch(slot, (size_t)(round_up(count, BF16_SIDE) * k_padded / 2));
}

/* Columns of B whose strips fit N_SUPER_BYTES, in whole bands. */
static int64_t n_super_size(int64_t k_padded) {
  int64_t cols = N_SUPER_BYTES / 2 / k_padded / BAND_COLS * BAND_COLS;
  return cols < BAND_COLS ? BAND_COLS : cols;
}

static void product_k_super(const struct multiplication *whole, const struct product_operand *a,
                            const struct product_operand *b, int64_t m0, int64_t k0, int64_t kc,
                            bool serial) {
  struct multiplication x = *whole;
  x.k_padded = round_up(kc, BF16_STEP);
  struct both both = {
      .a = {.op = a, .along_k = !a->transposed, .first = m0, .count = x.m},
      .b = {.op = b, .is_b = true, .along_k = b->transposed},
  };
  both.a.k0 = both.b.k0 = k0;
  both.a.kc = both.b.kc = kc;
  both.a.k_padded = both.b.k_padded = x.k_padded;
  x.a = both.a.out = packed_scratch(SCRATCH_PACK_A, x.m, x.k_padded);
  both.a_bands = band_count(&both.a);
  int64_t n_super = n_super_size(x.k_padded);
  for (int64_t n0 = 0; n0 < whole->n; n0 += n_super) {
    x.n = least(n_super, whole->n - n0);
    both.b.first = n0;
    both.b.count = x.n;
    x.b = both.b.out = packed_scratch(SCRATCH_PACK_B, x.n, x.k_padded);
    run(serial, both.a_bands + band_count(&both.b), pack_item, &both);
    both.a_bands = 0;
    x.c = whole->c + n0;
    multiply(x, serial);
  }
}

static void zero_rows(int64_t m, int64_t n, float *c, int64_t ldc) {
  for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof(float));
}

void product_bf16(int64_t m, int64_t n, int64_t k, float alpha, const struct product_operand *a,
                  const struct product_operand *b, bool add, float *c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (!add) zero_rows(m, n, c, ldc);
    return;
  }
  bool serial = m * n <= SMALL_WORK / k;
  for (int64_t m0 = 0; m0 < m; m0 += M_SUPER)
    for (int64_t k0 = 0; k0 < k; k0 += K_SUPER) {
      struct multiplication x = {.m = least(M_SUPER, m - m0),
                                 .n = n,
                                 .alpha = alpha,
                                 .add = add || k0 > 0,
                                 .stream = k <= K_SUPER && m * n >= STREAM_BYTES / 4,
                                 .c = c + m0 * ldc,
                                 .ldc = ldc};
      product_k_super(&x, a, b, m0, k0, least(K_SUPER, k - k0), serial);
    }
}
