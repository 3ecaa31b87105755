/* The row-wise kernels for avx512. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"
#include "kernel/cpu/vec_math.h"

/* needs the vocabulary above */
#include "kernel/cpu/rows_body.h"
/* needs the steps of the rows */
#include "kernel/cpu/distill_body.h"

#include "kernel/cpu/gumbel_body.h"

void rows_fill_avx512(struct kernel_table *table) {
  fill_rows(table);
  fill_distill(table);
  fill_gumbel(table);
}
#endif
