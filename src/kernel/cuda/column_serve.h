/* What the CUDA column asks of its runtime for decoding: that of a card (device_serve.c), or of the
 * emulator. */
#ifndef TSR_KERNEL_CUDA_COLUMN_SERVE_H
#define TSR_KERNEL_CUDA_COLUMN_SERVE_H

#include "kernel/cuda/device.h"
#include "kernel/serve.h"

struct serve_product; /* a matrix's product by one kernel for up to so many tokens, prepared */

/* `ctx` is the cuda_runtime's. */
struct serve_runtime {
  enum status (*launch)(void *ctx, enum serve_kernel kernel, uint32_t blocks, uint32_t threads,
                        uint32_t shared_bytes, const void *args, struct error *err);
  /* As serve_ops. */
  int (*variants)(void *ctx, const struct gpu_matrix *m, uint32_t tokens,
                  char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX]);
  /* For up to `tokens` tokens; `name` is one of the above, or SERVE_DENSE: a library's product of
   * `dense`, the same matrix as bf16 (rows, cols). Sums of blocks pass through memory that all
   * products share. */
  enum status (*product_new)(void *ctx, const struct gpu_matrix *m, const void *dense,
                             uint32_t tokens, const char *name, struct serve_product **out,
                             struct error *err);
  void (*product_free)(void *ctx, struct serve_product *p);
  enum status (*product_run)(void *ctx, struct serve_product *p, const struct gpu_operands *o,
                             uint32_t tokens, struct error *err);
  /* Seconds on the card's clock since the last call; waits. */
  enum status (*lap)(void *ctx, double *seconds, struct error *err);
  void (*machine)(void *ctx, char card[256], char machine[512]);
  enum status (*record_begin)(void *ctx, struct error *err);
  enum status (*record_end)(void *ctx, struct serve_record **out, struct error *err);
  enum status (*record_run)(void *ctx, const struct serve_record *record, struct error *err);
  void (*record_free)(void *ctx, struct serve_record *record);
  uint64_t (*record_epoch)(void *ctx);
};

#endif
