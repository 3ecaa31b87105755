/* The row-wise kernels for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* need the vocabulary above, in this order */
#include "kernel/cpu/vec_math.h"

#include "kernel/cpu/rows_body.h"

#include "kernel/cpu/distill_body.h"

#include "kernel/cpu/gumbel_body.h"

void rows_fill_neon(struct kernel_table *table) {
  fill_rows(table);
  fill_distill(table);
  fill_gumbel(table);
}
#endif
