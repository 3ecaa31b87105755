/* Inside the kernel room: the blocked product over operands that may also be hybrid. */
#ifndef TSR_KERNEL_PRODUCT_H
#define TSR_KERNEL_PRODUCT_H

#include "kernel/gemm.h"
#include "kernel/precision.h"
#include "sparse/hybrid.h"
#include "sparse/quant.h"
#include "sparse/quant_strips.h"
#include "sparse/strips.h"

/* A stored matrix: plain (of a block type, too), hybrid, or integers, all row-major, or strips of
 * 16-bit or quantized weights. Row i of
 * what is stored is fetched in segments; the transposed flag only says which of its two sides is
 * summed over. */
struct product_operand {
  struct gemm_operand plain;
  const struct hybrid_matrix *hybrid;
  bool transposed;
  const struct strip_matrix *strips;
  const struct quant_strips *quant;
  const struct quant_matrix *integers; /* all four NULL: plain. Else plain.data is NULL and
                                          plain.dtype that of the weights, bf16 for quant */
};
/* Whether its rows are not there element by element: operand_segment alone can read them. */
static inline bool operand_is_coded(const struct product_operand *op) {
  return op->hybrid || op->integers || !dtype_is_native(op->plain.dtype);
}

/* Columns [col, col + count) of stored row `row` as fp32: a pointer into the operand when it is
 * fp32, else `buffer` (count), filled. */
const float *operand_segment(const struct product_operand *op, int64_t row, int64_t col,
                             int64_t count, float *buffer);

/* out (k, width) = transpose of columns [k0, k0 + k) of stored rows [first, first + count), zeros
 * behind them: straight from strips, which lie that way already. False, and nothing done, for other
 * operands and where the panel is not made of whole strips and chunks. */
bool operand_panel(const struct product_operand *op, int64_t first, int64_t count, int64_t width,
                   int64_t k0, int64_t k, float *out);

/* gemm (gemm.h) over such operands; a is plain. */
void product(int64_t m, int64_t n, int64_t k, float alpha, const struct product_operand *a,
             const struct product_operand *b, bool add, float *c, int64_t ldc);
/* The same with both operands rounded to bf16 first and sums in fp32. Bits differ from one
 * instruction set to another (they sum in different orders), not with the number of threads. */
void product_bf16(int64_t m, int64_t n, int64_t k, float alpha, const struct product_operand *a,
                  const struct product_operand *b, bool add, float *c, int64_t ldc);

/* A weight matrix and where its product goes: y (tokens, w->rows). */
struct strip_output {
  const struct strip_matrix *w;
  float *y;
};
/* y = x W^T of one or several matrices with the same columns, x (tokens, cols), in one section and
 * reading each W once however many tokens there are. With PRECISION_BF16 x may be rounded, where
 * that is faster. */
void strips_products(const struct strip_output *outputs, int count, const float *x, int64_t tokens,
                     enum precision precision);

/* The same for quantized weights, x rounded as linear.h says (tiles take one matrix after the
 * other); up to how many tokens it is as fast as the product that expands W first. */
struct quant_output {
  const struct quant_strips *w;
  float *y;
};
void quant_products(const struct quant_output *outputs, int count, const float *x, int64_t tokens);
int64_t quant_tokens_most(enum precision precision);

#endif
