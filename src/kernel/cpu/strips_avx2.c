/* The kernels over strips, and the plain read, for avx2. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx2.h"

/* need the vocabulary above */
#include "kernel/cpu/read_body.h"
#include "kernel/cpu/strips_body.h"

void strips_fill_avx2(struct kernel_table *table) {
  fill_strips(table);
  fill_read(table);
}
#endif
