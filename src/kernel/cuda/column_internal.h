/* What the files of the CUDA column share. */
#ifndef TSR_KERNEL_CUDA_COLUMN_INTERNAL_H
#define TSR_KERNEL_CUDA_COLUMN_INTERNAL_H

#include "kernel/cuda/column.h"

enum column_scratch {
  COLUMN_IDS,       /* ids or targets of a call */
  COLUMN_OPERAND_A, /* operands of a product in its element type */
  COLUMN_OPERAND_B,
  COLUMN_PARTS,    /* sums of blocks */
  COLUMN_COUNTERS, /* of blocks that have arrived; zero between launches */
  COLUMN_DELTA,    /* of attention's backward pass */
  COLUMN_FACTOR,   /* inverted blocks on a diagonal, and a strip of a matrix */
  COLUMN_SCRATCHES
};
struct column_room {
  void *memory;
  size_t bytes;
};

struct cuda_column {
  const struct cuda_runtime *runtime; /* NULL: not open */
  const struct cuda_runtime *plain;   /* under a recording runtime; else NULL */
  struct error first;                 /* of what was queued */
  bool aside;                         /* something was copied aside and not waited for */
  struct column_room scratch[COLUMN_SCRATCHES];
};
extern struct cuda_column cuda_column;

/* Blocks a multiprocessor is given of kernels that walk over the grid. */
enum { COLUMN_WAVES = 16 };

void column_note(enum status status, const struct error *err);
/* At least `bytes`, zeroed when new; NULL after a failure, which is noted. */
void *column_scratch(enum column_scratch which, size_t bytes);
/* Nothing after a failure. */
void column_launch(enum learn_kernel kernel, uint32_t blocks, uint32_t threads,
                   uint32_t shared_bytes, const void *args);
/* For a kernel whose blocks take `per_block` items at a time. */
uint32_t column_blocks(uint64_t items, uint32_t per_block);
uint32_t column_element(enum dtype dtype);

void column_multiply(struct dense_product p);

/* column_serve.c */
const struct serve_ops *column_serve_ops(void);
/* column_prune.c */
extern const struct sparsegpt_ops column_sparsegpt_ops;

/* --- column_attention.c, column_mask.c: as in kernel/backend.h --- */

void column_attention_forward(const struct attention_shape *shape, const float *q, const float *k,
                              const float *v, float *out, float *lse);
void column_attention_backward(const struct attention_shape *shape, const float *q, const float *k,
                               const float *v, const float *out, const float *lse,
                               const float *dout, float *dq, float *dk, float *dv);
void column_mask_sample(const struct mask_source *source, struct matrix_view w,
                        enum dtype out_dtype, void *out, double *squares);
void column_mask_backward(const struct mask_source *source, struct matrix_view w, const float *dw,
                          struct mask_decay decay, bool accumulate, void *dlogits, double *dtile,
                          enum dtype out_dtype, void *out);
void column_mask_gradient_squares(const void *gradient, enum dtype dtype, int64_t rows,
                                  int64_t cols, double *squares);
void column_mask_adamw_step(const struct mask_adamw *settings, int64_t rows, int64_t cols,
                            const float *gradient, float *logits, float *first, float *second,
                            uint8_t *codes, uint64_t *flips);
void column_mask_compact_step(const struct mask_adamw *settings,
                              const struct mask_rounding *rounding, int64_t rows, int64_t cols,
                              const struct mask_compact *state, uint8_t *codes, uint64_t *flips);
void column_mask_harden(const void *logits, enum dtype dtype, int64_t rows, int64_t cols,
                        uint8_t *codes, uint64_t *flips);
void column_mask_keep(struct matrix_view w, const uint8_t *codes, const uint8_t *tiles,
                      int64_t tile_rows, int64_t tile_cols, float *out);

#endif
