/* The products of a linear layer: see linear.h. No state but scratch.
 *
 * Few tokens (decoding) take the skinny path, which streams W once and shares it among the tokens;
 * more go through the blocked product, which expands W while packing. Which path is taken depends
 * on the number of tokens alone. */
#include "kernel/linear.h"

#include "base/error.h"
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  SKINNY_ROWS = 32,
  STRIP_TOKENS_MAX = 64 /* up to which strips are read directly rather than expanded */
};

static struct product_operand weight_operand(const struct linear_weight *w, bool transposed) {
  struct product_operand op = {.hybrid = w->hybrid,
                               .strips = w->strips,
                               .quant = w->quant,
                               .integers = w->integers,
                               .transposed = transposed};
  op.plain.dtype = w->quant ? DTYPE_BF16 : linear_dtype(w);
  if (!w->hybrid && !w->strips && !w->quant && !w->integers) {
    INVARIANT(dtype_is_float(w->dense.dtype));
    op.plain = (struct gemm_operand){w->dense.data, w->dense.dtype, w->dense.cols, transposed};
  }
  return op;
}

static struct product_operand float_operand(const float *data, int64_t ld, bool transposed) {
  return (struct product_operand){.plain = {data, DTYPE_F32, ld, transposed},
                                  .transposed = transposed};
}

struct skinny {
  const struct linear_weight *w;
  const float *x;
  int64_t ldx, tokens;
  float *y;
};

static void skinny_dense(void *ctx, int64_t item, int worker) {
  const struct skinny *s = ctx;
  (void)worker;
  const struct matrix_view *w = &s->w->dense;
  int64_t first = item * SKINNY_ROWS;
  int64_t count = w->rows - first < SKINNY_ROWS ? w->rows - first : SKINNY_ROWS;
  const char *rows = (const char *)w->data + first * w->cols * (w->dtype == DTYPE_F32 ? 4 : 2);
  kernel_table()->dot_rows(w->dtype, rows, w->cols, count, w->cols, s->x, s->ldx, s->tokens,
                           s->y + first, w->rows);
}

/* Items of a hybrid matrix: each tile row in pieces of SKINNY_ROWS. */
static int64_t pieces_per_tile_row(const struct hybrid_matrix *h) {
  return (h->tile_rows + SKINNY_ROWS - 1) / SKINNY_ROWS;
}

static void skinny_hybrid(void *ctx, int64_t item, int worker) {
  const struct skinny *s = ctx;
  (void)worker;
  const struct hybrid_matrix *h = s->w->hybrid;
  int64_t pieces = pieces_per_tile_row(h), tile_row = item / pieces;
  int64_t first = tile_row * h->tile_rows + item % pieces * SKINNY_ROWS;
  int64_t end = (tile_row + 1) * h->tile_rows;
  if (end > h->rows) end = h->rows;
  int64_t count = end - first < SKINNY_ROWS ? end - first : SKINNY_ROWS;
  if (count <= 0) return;
  float *sums =
      kernel_scratch(SCRATCH_SEGMENT, (size_t)SKINNY_ROWS * SKINNY_TOKENS_MAX * HYBRID_LANES);
  kernel_table()->hybrid_dot_rows(h, first, count, s->x, s->ldx, s->tokens, s->y + first, h->rows,
                                  sums);
}

/* x with rows padded by zeros to whole groups: (tokens, *ldx). */
static const float *pad_columns(const float *x, int64_t tokens, int64_t cols, int64_t *ldx) {
  *ldx = (cols + 3) / 4 * 4;
  if (*ldx == cols) return x;
  float *padded = kernel_scratch(SCRATCH_LINEAR, (size_t)(tokens * *ldx));
  for (int64_t t = 0; t < tokens; t++) {
    memcpy(padded + t * *ldx, x + t * cols, (size_t)cols * sizeof(float));
    memset(padded + t * *ldx + cols, 0, (size_t)(*ldx - cols) * sizeof(float));
  }
  return padded;
}

static void forward_skinny(const struct linear_weight *w, const float *x, int64_t tokens,
                           float *y) {
  struct skinny s = {w, x, linear_cols(w), tokens, y};
  if (w->hybrid) {
    s.x = pad_columns(x, tokens, linear_cols(w), &s.ldx);
    parallel_for(hybrid_tile_rows(w->hybrid) * pieces_per_tile_row(w->hybrid), skinny_hybrid, &s);
  } else {
    parallel_for((w->dense.rows + SKINNY_ROWS - 1) / SKINNY_ROWS, skinny_dense, &s);
  }
}

static void multiply(enum precision precision, int64_t m, int64_t n, int64_t k,
                     const struct product_operand *a, const struct product_operand *b, bool add,
                     float *c) {
  if (precision == PRECISION_BF16)
    product_bf16(m, n, k, 1.0f, a, b, add, c, n);
  else
    product(m, n, k, 1.0f, a, b, add, c, n);
}

/* Stored as integers: no kernel reads rows of it directly. */
static bool is_stored_integers(const struct linear_weight *w) {
  return !w->strips && !w->hybrid && !w->quant && (w->integers || !dtype_is_native(w->dense.dtype));
}

static void add_bias(const float *bias, int64_t tokens, int64_t rows, float *y) {
  if (!bias) return;
  for (int64_t t = 0; t < tokens; t++) kernel_table()->add(y + t * rows, bias, rows);
}

void linear_forward(const struct linear_weight *w, const float *bias, const float *x,
                    int64_t tokens, enum precision precision, float *y) {
  int64_t rows = linear_rows(w), cols = linear_cols(w);
  if (w->quant && tokens <= quant_tokens_most(precision)) {
    const struct quant_output out = {w->quant, y};
    if (tokens > 0) quant_products(&out, 1, x, tokens);
  } else if (w->strips && tokens <= STRIP_TOKENS_MAX) {
    const struct strip_output out = {w->strips, y};
    if (tokens > 0) strips_products(&out, 1, x, tokens, precision);
  } else if (tokens <= SKINNY_TOKENS_MAX && !is_stored_integers(w)) {
    if (tokens > 0) forward_skinny(w, x, tokens, y);
  } else {
    struct product_operand a = float_operand(x, cols, false), b = weight_operand(w, true);
    multiply(precision, tokens, rows, cols, &a, &b, false, y);
  }
  add_bias(bias, tokens, rows, y);
}

void linear_forward_many(const struct linear_output *outputs, int count, const float *x,
                         int64_t tokens, enum precision precision) {
  struct strip_output strips[LINEAR_MANY_MOST];
  struct quant_output quants[LINEAR_MANY_MOST];
  bool all_strips = tokens > 0 && tokens <= STRIP_TOKENS_MAX;
  bool all_quants = tokens > 0 && tokens <= quant_tokens_most(precision);
  INVARIANT(count >= 1 && count <= LINEAR_MANY_MOST);
  for (int i = 0; i < count; i++) {
    all_strips = all_strips && outputs[i].w->strips;
    all_quants = all_quants && outputs[i].w->quant;
    strips[i] = (struct strip_output){outputs[i].w->strips, outputs[i].y};
    quants[i] = (struct quant_output){outputs[i].w->quant, outputs[i].y};
  }
  if (all_strips) strips_products(strips, count, x, tokens, precision);
  if (all_quants) quant_products(quants, count, x, tokens);
  for (int i = 0; i < count; i++) {
    const struct linear_output *o = &outputs[i];
    if (all_strips || all_quants)
      add_bias(o->bias, tokens, linear_rows(o->w), o->y);
    else
      linear_forward(o->w, o->bias, x, tokens, precision, o->y);
  }
}

void linear_backward_input(const struct linear_weight *w, const float *dy, int64_t tokens,
                           enum precision precision, float *dx, bool accumulate) {
  int64_t rows = linear_rows(w), cols = linear_cols(w);
  struct product_operand a = float_operand(dy, rows, false), b = weight_operand(w, false);
  multiply(precision, tokens, cols, rows, &a, &b, accumulate, dx);
}

void linear_backward_weight(const float *dy, const float *x, int64_t tokens, int64_t rows,
                            int64_t cols, enum precision precision, float *dw, bool accumulate) {
  struct product_operand a = float_operand(dy, rows, true), b = float_operand(x, cols, false);
  multiply(precision, rows, cols, tokens, &a, &b, accumulate, dw);
}

const char *linear_type_name(const struct linear_weight *w) {
  if (w->quant) return quant_type_name(w->quant->type);
  if (w->integers) return quant_type_name(w->integers->type);
  return dtype_traits(linear_dtype(w))->name;
}

void linear_row(const struct linear_weight *w, int64_t row, float *out) {
  struct product_operand op = weight_operand(w, false);
  const float *segment = operand_segment(&op, row, 0, linear_cols(w), out);
  if (segment != out) memcpy(out, segment, (size_t)linear_cols(w) * sizeof(float));
}

struct embedding {
  const struct linear_weight *w;
  const int32_t *ids;
  float scale, *hidden;
};

static void embed_row(void *ctx, int64_t token, int worker) {
  const struct embedding *e = ctx;
  (void)worker;
  int64_t n = linear_cols(e->w);
  float *row = e->hidden + token * n;
  linear_row(e->w, e->ids[token], row);
  if (e->scale != 1.0f)
    for (int64_t i = 0; i < n; i++) row[i] *= e->scale;
}

void linear_embed(const struct linear_weight *w, const int32_t *ids, int64_t tokens, float scale,
                  float *hidden) {
  struct embedding e = {w, ids, scale, hidden};
  parallel_for(tokens, embed_row, &e);
}
