/* The kernels of bf16 products for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* need the vocabulary above, in this order */
#include "kernel/cpu/vec_math.h"

#include "kernel/cpu/bf16_pack_body.h"

#include "kernel/cpu/bf16_block_body.h"

#include "kernel/cpu/bf16_softmax_body.h"

void bf16_fill_neon(struct kernel_table *table) {
  fill_bf16(table);
  table->bf16.softmax_row = softmax_row;
}
#endif
