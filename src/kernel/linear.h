/* A weight matrix as the products see it, and the three products of a linear layer.
 *
 * W is (rows = out features, cols = in features). A weight is dense (f32, f16 or bf16 elements, in
 * memory or mapped), hybrid (sparse/hybrid.h: tiles that are dense or 2:4, as they lie in files),
 * either of them in the order that decoding reads fastest (sparse/strips.h), or quantized to int8
 * or int4 in such an order (sparse/quant_strips.h). Integers as they lie in files (sparse/quant.h,
 * and dense elements of ggml's block types) are right here but slow: the blocked product expands
 * them piece by piece, however few the tokens. All products
 * accumulate in fp32 over k in a fixed order that depends on the shapes alone, so that the bits do
 * not depend on the number of threads.
 * With PRECISION_BF16 the two operands are rounded to bf16 first; a forward product of few tokens,
 * which is bound by reading W, takes them as they are in either case.
 *
 * Quantized weights in strips: w is scale * integer + minimum, and a forward product of up to 64
 * tokens rounds x, whatever the precision: to int8, for each token and 32 columns the nearest
 * multiple of the largest magnitude over 127, with exact sums over these 32, so that y differs from
 * the product with x as it is by at most the sum over columns of |w| * largest / 254, and fp32
 * rounding. From 12 tokens on processors with tiles round x and the scaled weights to bf16 instead,
 * each product by at most 2^-7 of itself (with scales for rows 2^-8), on average by less than int8.
 * On processors without tiles, and with PRECISION_FP32, x is rounded to int8 however many tokens
 * there are. Other products expand the weights to fp32 (PRECISION_FP32: exactly) and take x as it
 * is. */
#ifndef TSR_KERNEL_LINEAR_H
#define TSR_KERNEL_LINEAR_H

#include "kernel/precision.h"
#include "sparse/hybrid.h"
#include "sparse/quant.h"
#include "sparse/quant_strips.h"
#include "sparse/strips.h"
#include "tensor/dtype.h"

struct linear_weight {
  struct matrix_view dense;            /* used when the others are NULL */
  const struct hybrid_matrix *hybrid;  /* not owned; used when strips is NULL */
  const struct strip_matrix *strips;   /* not owned */
  const struct quant_strips *quant;    /* not owned; the others are NULL */
  const struct quant_matrix *integers; /* not owned; likewise */
};

static inline int64_t linear_rows(const struct linear_weight *w) {
  return w->quant      ? w->quant->rows
         : w->integers ? w->integers->rows
         : w->strips   ? w->strips->rows
         : w->hybrid   ? w->hybrid->rows
                       : w->dense.rows;
}
static inline int64_t linear_cols(const struct linear_weight *w) {
  return w->quant      ? w->quant->cols
         : w->integers ? w->integers->cols
         : w->strips   ? w->strips->cols
         : w->hybrid   ? w->hybrid->cols
                       : w->dense.cols;
}
/* int8 is DTYPE_I8, int4 DTYPE_U8: bytes of two nibbles. */
static inline enum dtype linear_dtype(const struct linear_weight *w) {
  if (w->quant) return w->quant->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  if (w->integers) return w->integers->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  return w->strips ? w->strips->dtype : w->hybrid ? w->hybrid->dtype : w->dense.dtype;
}
/* Whether some of its tiles may be 2:4. */
static inline bool linear_is_hybrid(const struct linear_weight *w) {
  if (w->quant) return w->quant->sparse;
  if (w->integers) return w->integers->tile_map != NULL;
  return w->strips ? w->strips->sparse : w->hybrid != NULL;
}
/* "bf16", "int4", "q4_1": what its weights are. */
const char *linear_type_name(const struct linear_weight *w);

/* y = x W^T (+ bias).  x (tokens, cols), y (tokens, rows), bias (rows) or NULL. All fp32, dense
 * row-major. y must not overlap x. */
void linear_forward(const struct linear_weight *w, const float *bias, const float *x,
                    int64_t tokens, enum precision precision, float *y);
/* The same for up to LINEAR_MANY_MOST matrices and one x: strips, of 16 bits or quantized, and few
 * tokens go through one parallel section, which leaves less of the machine idle than one for each.
 * The same bits. */
enum { LINEAR_MANY_MOST = 3 };
struct linear_output {
  const struct linear_weight *w;
  const float *bias;
  float *y;
};
void linear_forward_many(const struct linear_output *outputs, int count, const float *x,
                         int64_t tokens, enum precision precision);
/* dx = dy W, or dx += dy W when accumulate.  dy (tokens, rows), dx (tokens, cols). */
void linear_backward_input(const struct linear_weight *w, const float *dy, int64_t tokens,
                           enum precision precision, float *dx, bool accumulate);
/* dw = dy^T x, or += .  dw (rows, cols). */
void linear_backward_weight(const float *dy, const float *x, int64_t tokens, int64_t rows,
                            int64_t cols, enum precision precision, float *dw, bool accumulate);

/* Row `row` of W as fp32: out (cols). For packing. */
void linear_row(const struct linear_weight *w, int64_t row, float *out);
/* hidden (tokens, cols) = scale * the rows `ids` (tokens) of W: an embedding. */
void linear_embed(const struct linear_weight *w, const int32_t *ids, int64_t tokens, float scale,
                  float *hidden);

#endif
