/* Inside the kernel room: the small kernels over quantized strips (sparse/quant_strips.h), part of
 * the table in select.h. */
#ifndef TSR_KERNEL_QUANT_KERNELS_H
#define TSR_KERNEL_QUANT_KERNELS_H

#include <stdint.h>

struct quant_strips; /* sparse/quant_strips.h */
struct quant_x;      /* kernel/quant_x.h */
struct quant_batch;

struct quant_kernels {
  /* Rounds columns [0, cols <= QUANT_CHUNK_COLS) of x (tokens, ldx), zeros behind them. All
   * instruction sets give the same integers and scales. A group whose largest magnitude is below
   * 2^-100 counts as zero; with one that is not finite its scale is not either. */
  void (*round)(const float *x, int64_t ldx, int64_t cols, int64_t tokens, struct quant_x *out);
  /* y[t * ldy + r] = row r times token t, r counting from the first row of strip `first`, for
   * `count` strips and any number of tokens; rows past the matrix's last are left out. Sums over a
   * group are exact integers; they are scaled and added up in fp32, group after group. x (chunks,
   * tokens). sums: scratch of 2 * tokens * STRIP_ROWS floats. x and sums 64-byte aligned. */
  void (*dot)(const struct quant_strips *w, int64_t first, int64_t count, const struct quant_x *x,
              int64_t tokens, float *y, int64_t ldy, float *sums);
  /* The same for up to QUANT_BATCH_STRIPS strips and a batch that batch_round has made, a chunk at
   * a time, of x (tokens, w->cols); both NULL where the processor has no tiles. Activations, and
   * weights that are scaled by groups, are rounded to bf16. sums: 64-byte aligned scratch of
   * QUANT_BATCH_STRIPS * padded_rows * STRIP_ROWS floats. */
  void (*batch_dot)(const struct quant_batch *batch, int64_t first, int64_t count, float *y,
                    int64_t ldy, float *sums);
  void (*batch_round)(const struct quant_batch *batch, const float *x, int64_t chunk);
  /* out (cols, STRIP_ROWS; leading dimension width): columns [chunk * QUANT_CHUNK_COLS, + cols) of
   * a strip, expanded and transposed. */
  void (*expand)(const struct quant_strips *w, int64_t strip, int64_t chunk, int64_t cols,
                 int64_t width, float *out);
};

#endif
