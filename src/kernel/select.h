/* The table of small kernels, chosen once for the processor at hand.
 *
 * The framework (gemm.c, linear.c, attention.c, rows.c, mask_ops.c) blocks, packs and threads; what
 * it calls in its inner loops are these functions. All are serial and touch nothing but their
 * arguments. The table is filled with the plain reference (kernel/ref) and then overwritten by what
 * the processor can do (kernel/cpu), level by level: reference, avx2 (with FMA, F16C, BMI2), avx512
 * (F, BW, DQ, VL; VNNI for quantized weights where it is), avx512bf16 (with VNNI), amx (tiles of
 * bf16 and int8); on AArch64 reference, neon and neonbf16. The choice is the highest level that the
 * processor has, but for Intel's without AMX: there avx512, whose fp32 products outrun their bf16
 * instructions. TSR_ISA=NAME asks for another level, at most the processor's highest. No alignment
 * is required anywhere.
 */
#ifndef TSR_KERNEL_SELECT_H
#define TSR_KERNEL_SELECT_H

#include "kernel/bf16_kernels.h"
#include "kernel/kv_cache.h"
#include "kernel/mask_kernels.h"
#include "kernel/quant_kernels.h"
#include "sparse/hybrid.h"
#include "tensor/dtype.h"

struct strip_matrix; /* sparse/strips.h */
struct strip_batch;  /* kernel/strip_batch.h */

/* Tokens that the skinny products take at once. */
enum { SKINNY_TOKENS_MAX = 8, HYBRID_LANES = 16 };

struct kernel_table {
  const char *isa;

  /* --- products --- */
  /* The largest tile of C that `tile` makes; tile_cols is also the width of a packed panel of B. */
  int tile_rows, tile_cols;
  /* C (rows, cols) = alpha * A B, or += when add. A (rows, k): element (i, p) at
   * a[i * row_step + p * k_step]. b: a packed panel (k, tile_cols), zero where cols < tile_cols.
   * 1 <= rows <= tile_rows, 1 <= cols <= tile_cols, p = 0 .. k - 1 summed in this order. */
  void (*tile)(int64_t k, const float *a, int64_t row_step, int64_t k_step, const float *b,
               float alpha, float *c, int64_t ldc, int rows, int cols, bool add);
  /* out (k, width) = transpose of source (count, k; leading dimension ld), zeros in columns count
   * .. width - 1. */
  void (*pack_transposed)(const float *source, int64_t ld, int64_t count, int64_t k, int64_t width,
                          float *out);
  /* out (k, width) = source (k, count; leading dimension ld), zeros in the other columns. */
  void (*pack_copied)(const float *source, int64_t ld, int64_t count, int64_t k, int64_t width,
                      float *out);
  /* Expands `count` elements of a native dtype. */
  void (*widen)(enum dtype dtype, const void *source, int64_t count, float *out);
  /* y[t * ldy + r] = dot(row r of w, row t of x), for 1 <= tokens <= SKINNY_TOKENS_MAX.
   * w (rows, cols; leading dimension ld, of a native dtype), x (tokens, cols; ldx). */
  void (*dot_rows)(enum dtype dtype, const void *w, int64_t ld, int64_t rows, int64_t cols,
                   const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy);
  /* The same for `count` rows of a hybrid matrix from `first` on, all in one tile row; reads kept
   * weights only. x is zero-padded to a multiple of 4 columns; y[t * ldy] belongs to row `first`.
   * sums: scratch of count * tokens * HYBRID_LANES floats. */
  void (*hybrid_dot_rows)(const struct hybrid_matrix *h, int64_t first, int64_t count,
                          const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy,
                          float *sums);
  /* `count` columns of a row of a 2:4 tile, expanded with their zeros. values: two per group, from
   * the first group on; that group's nibble is nibble `nibble` of codes (two a byte, low first). */
  void (*expand_groups)(enum dtype dtype, const void *values, const uint8_t *codes, int64_t nibble,
                        int64_t count, float *out);

  /* y[t * ldy + r] = dot(row r, token t), r counting from the first row of strip `first`, for
   * `count` strips and any number of tokens; rows past the matrix's last are left out. Products are
   * exact, sums fp32. x (chunks, tokens, STRIP_COLS), zeros behind the last column. sums: scratch
   * of 2 * tokens * STRIP_ROWS floats. x and sums 64-byte aligned. Strips are taken two by two from
   * `first` on: bits are the same for any count only when `first` is even. */
  void (*strip_dot)(const struct strip_matrix *w, int64_t first, int64_t count, const float *x,
                    int64_t tokens, float *y, int64_t ldy, float *sums);

  /* The same for up to STRIP_BATCH_STRIPS strips of bf16 weights and a batch that strip_parts has
   * made; both NULL where the processor has no tiles. sums: 64-byte aligned scratch of
   * STRIP_BATCH_STRIPS * padded_rows * STRIP_ROWS floats. strip_parts makes the activations of one
   * chunk from x (tokens, w->cols). Denormal parts count as zero. */
  void (*strip_batch)(const struct strip_batch *batch, int64_t first, int64_t count, float *y,
                      int64_t ldy, float *sums);
  void (*strip_parts)(const struct strip_batch *batch, const float *x, int64_t chunk);

  /* out (cols, STRIP_ROWS; leading dimension width): columns [chunk * STRIP_COLS, + cols) of a
   * strip, expanded and transposed. */
  void (*strip_expand)(const struct strip_matrix *w, int64_t strip, int64_t chunk, int64_t cols,
                       int64_t width, float *out);

  /* --- products of quantized strips --- */
  struct quant_kernels quant;

  /* The sum modulo 2^32 of data's 32-bit words in the machine's order, the last one filled up with
   * zero bytes: a plain read, as fast as the processor can, of `streams` (1, 2 or 4) parts side by
   * side. What is fastest is for the caller to try. */
  uint32_t (*sum_words)(const void *data, size_t bytes, int streams);

  /* --- products of operands rounded to bf16 --- */
  struct bf16_kernels bf16;

  /* --- rows: as in kernel/ops.h, over the rows given --- */
  void (*rmsnorm)(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                  int64_t n, float *y, float *inverse);
  void (*rmsnorm_backward)(const float *dy, const float *x, const float *weight, bool plus_one,
                           const float *inverse, int64_t rows, int64_t n, float *dx,
                           bool accumulate);
  /* One row at one position: x (heads, head_dim), cos and sin (head_dim / 2); sin is negated by the
   * sign of direction. */
  void (*rope)(float *x, int64_t heads, int64_t head_dim, const float *cos, const float *sin,
               int direction);
  void (*glu)(bool gelu, const float *gate, const float *up, int64_t n, float *out);
  void (*glu_backward)(bool gelu, const float *gate, const float *up, const float *dout, int64_t n,
                       float *dgate, float *dup);
  float (*cross_entropy)(const float *logits, int64_t vocab, int32_t target, float scale,
                         float *dlogits);
  float (*softmax_kl)(const float *reference, const float *model, int64_t vocab, uint8_t *agree);
  /* A row of distill_loss (kernel/distill.h): by KL(teacher || model), by KL(model || teacher), and
   * by the former over the tokens whose teacher's logit is at least `least` and the others as one.
   */
  void (*distill)(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                  float weight, float scale, float *nll, float *kl, float *dlogits);
  void (*distill_reverse)(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                          float weight, float scale, float *nll, float *kl, float *dlogits);
  void (*distill_top)(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                      float least, float weight, float scale, float *nll, float *kl,
                      float *dlogits);
  void (*add)(float *x, const float *y, int64_t n);
  double (*sum_squares)(const float *x, int64_t n);

  /* --- attention --- */
  /* One row of raw scores (n) becomes exp(score' - max') in [low, high) and 0 elsewhere, where
   * score' = scale * score, soft-capped, and max' is the larger of *max and the row's. Updates *max
   * and *sum (of all exponentials so far) and returns exp(old *max - max'), by which what was
   * accumulated before is to be scaled. low < high. */
  float (*attention_row)(float *scores, int64_t low, int64_t high, int64_t n, float scale,
                         float softcap, float *max, float *sum);
  /* scores: raw scores in, probabilities out. dscores: d/dprobability in, d/d(raw score) out. */
  void (*attention_row_backward)(float *scores, float *dscores, int64_t low, int64_t high,
                                 int64_t n, float scale, float softcap, float lse, float delta);
  /* The same over a cache (kernel/kv_cache.h). Raw scores of q (group, head_dim) with `blocks`
   * blocks of keys, times their scales (blocks * KV_BLOCK) unless NULL: scores (group, ld). */
  void (*kv_scores)(enum dtype dtype, const void *keys, const float *scales, int64_t blocks,
                    int64_t head_dim, const float *q, int64_t group, float *scores, int64_t ld);
  /* out (group, n) += sum over j < count of p[g * ld + j] * values (count, n); n a multiple of
   * KV_BLOCK. */
  void (*kv_mix)(enum dtype dtype, const void *values, int64_t count, int64_t n, const float *p,
                 int64_t ld, int64_t group, float *out);
  /* Elements of a cache as fp32; n a multiple of KV_BLOCK. */
  void (*kv_widen)(enum dtype dtype, const void *source, int64_t n, float *out);
  /* The other way (bf16 is bf16.round's), to the nearest, ties to even. Returns the scale: of i8
   * the largest magnitude over 127, of f32 and f16 1. */
  float (*kv_round)(enum dtype dtype, const float *x, int64_t n, void *out);
  /* x *= factor over n; dot product over n. */
  void (*scale)(float *x, int64_t n, float factor);
  float (*dot)(const float *x, const float *y, int64_t n);

  /* --- soft masks --- */
  struct mask_kernels mask;
  /* x = log(-log x), minus Gumbel noise of a uniform, and x = e^x, over n: a multiple of 16. */
  void (*minus_gumbel)(float *x, int64_t n);
  void (*exponential)(float *x, int64_t n);
};

const struct kernel_table *kernel_table(void);

/* The levels of this architecture from the lowest on, also those that this processor lacks; NULL
 * past the last. */
const char *kernel_isa_name(int level);

/* Switches to another instruction set by its name, for tests and benchmarks; not while kernels run.
 * False, and nothing changed, when the processor lacks it or no such name is known. */
bool kernel_table_use(const char *isa);

void kernel_table_fill_reference(struct kernel_table *table);
void kernel_table_fill_avx2(struct kernel_table *table);
void kernel_table_fill_avx512(struct kernel_table *table);
void kernel_table_fill_avx512vnni(struct kernel_table *table);
void kernel_table_fill_avx512bf16(struct kernel_table *table);
void kernel_table_fill_amx(struct kernel_table *table);
void kernel_table_fill_neon(struct kernel_table *table);
void kernel_table_fill_neonbf16(struct kernel_table *table);

#endif
