/* Making quantized matrices (quant.h), of fp32 weights or of ggml's blocks. */
#ifndef TSR_SPARSE_QUANTIZE_H
#define TSR_SPARSE_QUANTIZE_H

#include "sparse/quant.h"

/* What integers are made, and what they are scaled by. */
struct quant_form {
  enum quant_type type;
  int64_t group; /* as in quant.h: 0 is one fp32 scale a row, without mins */
  bool mins;     /* int4 only */
};

/* The form in which integers of a block type are kept as they are; false when there is none. */
bool quant_form_of_blocks(enum dtype dtype, struct quant_form *out);

/* Scales for the `count` weights w, one group: *scale, *min and integers (count) as quant.h has
 * them, f16 values where form->group is set. The squared error of the result, or NAN when a weight
 * is not finite or too large for an f16 scale (about 8e6 for int8, 5e5 for int4).
 *
 * The scale of the largest weight is where a search begins: integers are rounded by a few scales
 * around it, each time the best scale (and minimum) for those integers follows by least squares, is
 * rounded to what is stored, and the weights are rounded once more; the least error is kept. So the
 * error is never above that of the largest weight's scale (`search` false). */
double quantize_group(const struct quant_form *form, bool search, const float *w, int64_t count,
                      uint8_t *integers, float *scale, float *min);

/* Where weights come from. `blocks`, where it is not NULL, gives a row of `dtype`, whose form is
 * the one wanted: its integers are taken over, and `row` is not asked. */
struct quant_source {
  void *ctx;
  void (*row)(void *ctx, int64_t row, float *out); /* (cols) fp32; from any thread */
  const void *(*blocks)(void *ctx, int64_t row);
  enum dtype dtype;
};

/* A quantized matrix with its arrays. */
struct quant_owned {
  struct quant_matrix matrix;
  struct quant_sizes sizes;
  void *memory; /* all arrays */
};

/* Quantizes (rows, cols) on all threads. Under a hybrid mask (NULL: none) only kept weights count
 * for the scales, and 2:4 tiles keep their integers alone. `name` is for errors: STATUS_REFUSED
 * when a weight is not finite or too large. */
enum status quant_make(struct quant_owned *out, const struct quant_form *form,
                       const struct mask_matrix *mask, int64_t rows, int64_t cols,
                       const struct quant_source *source, const char *name, struct error *err);
/* The same integers and scales without a tile map. Dropped weights become the integer of zero, or
 * with minimums, which may have none, the one next to it. */
enum status quant_make_dense(struct quant_owned *out, const struct quant_matrix *from,
                             struct error *err);
void quant_owned_free(struct quant_owned *q); /* safe on a zeroed struct */

#endif
