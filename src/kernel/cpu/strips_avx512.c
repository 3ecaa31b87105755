/* The kernels over strips, and the plain read, for avx512. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"

/* need the vocabulary above */
#include "kernel/cpu/read_body.h"
#include "kernel/cpu/strips_body.h"

void strips_fill_avx512(struct kernel_table *table) {
  fill_strips(table);
  fill_read(table);
}
#endif
