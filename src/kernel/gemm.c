/* The blocked product: see gemm.h. No state but the packing scratch.
 *
 * C is made in super-blocks whose packed operands fit a few MiB. For each: B is packed into panels
 * of tile_cols columns (transposing, widening or expanding on the way), A into panels of tile_rows
 * rows unless it is fp32 and already has its rows along k, where the kernel reads it in place. Then
 * items of C run over all k blocks, so that an item stays in the second-level cache.
 *
 * Bits: an element of C is the sum over k blocks, in order, of sums over k in order. The k blocks
 * depend on k alone; which thread runs which item changes nothing. */
#include "kernel/gemm.h"

#include "base/error.h"
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  K_BLOCK = 256, /* a panel of B, K_BLOCK x tile_cols, fits the first-level cache */
  K_SUPER = 6 * K_BLOCK,
  M_SUPER = 1536,          /* packed A: at most M_SUPER x K_SUPER, 9 MiB */
  N_SUPER_BYTES = 8 << 20, /* packed B */
  ITEM_ROWS = 96,
  ITEM_COLS = 192,
  SEGMENT = 256,        /* columns fetched at a time while packing */
  COPIED_STEPS = 16,    /* rows copied to one panel before the next panel's */
  SMALL_WORK = 1 << 17, /* multiply-adds below which threads do not pay */
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Panels of `width` stored rows (transposed packing) or stored columns (copying), over k range
 * [k0, k0 + kc): out (panel, kc, width). */
struct packing {
  const struct product_operand *op;
  bool rows_along_k; /* the stored rows run along k: packing transposes */
  int64_t first, count, width, k0, kc;
  float *out;
};

static void pack_panel_transposed(const struct packing *p, int64_t first, int64_t count,
                                  float *out) {
  const struct kernel_table *table = kernel_table();
  const struct product_operand *op = p->op;
  if (!op->hybrid && op->plain.dtype == DTYPE_F32) {
    const float *source = (const float *)op->plain.data + first * op->plain.ld + p->k0;
    table->pack_transposed(source, op->plain.ld, count, p->kc, p->width, out);
    return;
  }
  if (operand_panel(op, first, count, p->width, p->k0, p->kc, out)) return;
  float *rows = kernel_scratch(SCRATCH_SEGMENT, (size_t)(p->width * SEGMENT));
  for (int64_t k = 0; k < p->kc; k += SEGMENT) {
    int64_t length = p->kc - k < SEGMENT ? p->kc - k : SEGMENT;
    for (int64_t i = 0; i < count; i++)
      operand_segment(op, first + i, p->k0 + k, length, rows + i * SEGMENT);
    table->pack_transposed(rows, SEGMENT, count, length, p->width, out + k * p->width);
  }
}

/* Copies a band of panels, so that a stored row is fetched in long pieces, and a few rows at a
 * time: a panel is narrow, and all its rows in one go would be a cache line here and there of a
 * whole matrix, which no prefetch foresees. */
static void pack_band_copied(const struct packing *p, int64_t first, int64_t count, float *out) {
  const struct kernel_table *table = kernel_table();
  const struct product_operand *op = p->op;
  bool in_place = !op->hybrid && op->plain.dtype == DTYPE_F32;
  float *buffer = in_place ? NULL : kernel_scratch(SCRATCH_SEGMENT, (size_t)count);
  for (int64_t k = 0, steps; k < p->kc; k += steps) {
    steps = in_place ? least(COPIED_STEPS, p->kc - k) : 1;
    const float *rows = operand_segment(op, p->k0 + k, first, count, buffer);
    for (int64_t i = 0; i < count; i += p->width)
      table->pack_copied(rows + i, op->plain.ld, least(count - i, p->width), steps, p->width,
                         out + i * p->kc + k * p->width);
  }
}

static int64_t band_panels(const struct packing *p) {
  return p->rows_along_k ? 1 : (SEGMENT + p->width - 1) / p->width;
}

static void pack_item(void *ctx, int64_t item, int worker) {
  const struct packing *p = ctx;
  (void)worker;
  int64_t band = band_panels(p) * p->width;
  int64_t i = item * band;
  int64_t count = p->count - i < band ? p->count - i : band;
  float *out = p->out + i * p->kc;
  if (p->rows_along_k)
    pack_panel_transposed(p, p->first + i, count, out);
  else
    pack_band_copied(p, p->first + i, count, out);
}

static void run(bool serial, int64_t items, void (*fn)(void *, int64_t, int), void *ctx) {
  if (serial)
    for (int64_t i = 0; i < items; i++) fn(ctx, i, 0);
  else
    parallel_for(items, fn, ctx);
}

static void pack(struct packing p, bool serial) {
  int64_t band = band_panels(&p) * p.width;
  run(serial, (p.count + band - 1) / band, pack_item, &p);
}

/* One super-block of C, (m, n) at c, over kc. */
struct multiplication {
  int64_t m, n, kc;
  int64_t item_rows, item_cols;
  float alpha;
  bool add;
  const float *a; /* element (i, p) of row panel r: a[r * panel_step + i * row_step + p * k_step] */
  int64_t panel_step, row_step, k_step;
  const float *b; /* (panels, kc, tile_cols) */
  float *c;
  int64_t ldc;
};

/* Equal k blocks of at most K_BLOCK. */
static int64_t k_block_size(int64_t kc) {
  int64_t blocks = (kc + K_BLOCK - 1) / K_BLOCK;
  return blocks ? (kc + blocks - 1) / blocks : 1;
}

static void multiply_block(const struct multiplication *x, int64_t i0, int64_t i1, int64_t j0,
                           int64_t j1, int64_t k0, int64_t kc) {
  const struct kernel_table *table = kernel_table();
  for (int64_t j = j0; j < j1; j += table->tile_cols) {
    const float *b = x->b + j * x->kc + k0 * table->tile_cols;
    int cols = (int)least(x->n - j, table->tile_cols);
    for (int64_t i = i0; i < i1; i += table->tile_rows) {
      const float *a = x->a + i / table->tile_rows * x->panel_step + k0 * x->k_step;
      table->tile(kc, a, x->row_step, x->k_step, b, x->alpha, x->c + i * x->ldc + j, x->ldc,
                  (int)least(x->m - i, table->tile_rows), cols, x->add || k0 > 0);
    }
  }
}

static void multiply_item(void *ctx, int64_t item, int worker) {
  const struct multiplication *x = ctx;
  (void)worker;
  int64_t row_items = (x->m + x->item_rows - 1) / x->item_rows;
  int64_t i0 = item % row_items * x->item_rows, i1 = least(i0 + x->item_rows, x->m);
  int64_t j0 = item / row_items * x->item_cols, j1 = least(j0 + x->item_cols, x->n);
  int64_t step = k_block_size(x->kc);
  for (int64_t k = 0; k < x->kc; k += step)
    multiply_block(x, i0, i1, j0, j1, k, least(step, x->kc - k));
}

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static void multiply(struct multiplication x, bool serial) {
  const struct kernel_table *table = kernel_table();
  x.item_rows = round_up(ITEM_ROWS, table->tile_rows);
  x.item_cols = round_up(ITEM_COLS, table->tile_cols);
  int64_t rows = (x.m + x.item_rows - 1) / x.item_rows,
          cols = (x.n + x.item_cols - 1) / x.item_cols;
  run(serial, rows * cols, multiply_item, &x);
}

/* Columns of B whose packed panels over kc fit N_SUPER_BYTES. */
static int64_t n_super_size(int64_t kc, int64_t tile_cols) {
  int64_t cols = N_SUPER_BYTES / (int64_t)sizeof(float) / kc / tile_cols * tile_cols;
  return cols < tile_cols ? tile_cols : cols;
}

static void product_k_super(const struct multiplication *whole, const struct product_operand *a,
                            const struct product_operand *b, int64_t m0, int64_t k0, bool serial) {
  const struct kernel_table *table = kernel_table();
  struct multiplication x = *whole;
  bool in_place = !a->transposed && a->plain.dtype == DTYPE_F32;
  if (in_place) {
    x.a = (const float *)a->plain.data + m0 * a->plain.ld + k0;
    x.row_step = a->plain.ld;
    x.k_step = 1;
    x.panel_step = table->tile_rows * a->plain.ld;
  } else {
    float *packed =
        kernel_scratch(SCRATCH_PACK_A, (size_t)(round_up(x.m, table->tile_rows) * x.kc));
    pack((struct packing){a, !a->transposed, m0, x.m, table->tile_rows, k0, x.kc, packed}, serial);
    x.a = packed;
    x.row_step = 1;
    x.k_step = table->tile_rows;
    x.panel_step = table->tile_rows * x.kc;
  }
  int64_t n_super = n_super_size(x.kc, table->tile_cols);
  for (int64_t n0 = 0; n0 < whole->n; n0 += n_super) {
    x.n = least(n_super, whole->n - n0);
    float *packed =
        kernel_scratch(SCRATCH_PACK_B, (size_t)(round_up(x.n, table->tile_cols) * x.kc));
    pack((struct packing){b, b->transposed, n0, x.n, table->tile_cols, k0, x.kc, packed}, serial);
    x.b = packed;
    x.c = whole->c + n0;
    multiply(x, serial);
  }
}

static void zero_rows(int64_t m, int64_t n, float *c, int64_t ldc) {
  for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof(float));
}

void product(int64_t m, int64_t n, int64_t k, float alpha, const struct product_operand *a,
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
                                 .kc = least(K_SUPER, k - k0),
                                 .alpha = alpha,
                                 .add = add || k0 > 0,
                                 .c = c + m0 * ldc,
                                 .ldc = ldc};
      product_k_super(&x, a, b, m0, k0, serial);
    }
}

void gemm(int64_t m, int64_t n, int64_t k, float alpha, struct gemm_operand a,
          struct gemm_operand b, float beta, float *c, int64_t ldc) {
  INVARIANT(dtype_is_native(a.dtype) && dtype_is_native(b.dtype));
  INVARIANT(beta == 0.0f || beta == 1.0f);
  struct product_operand pa = {.plain = a, .transposed = a.transposed},
                         pb = {.plain = b, .transposed = b.transposed};
  product(m, n, k, alpha, &pa, &pb, beta == 1.0f, c, ldc);
}
