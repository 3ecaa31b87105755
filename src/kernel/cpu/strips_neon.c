/* The kernels over strips, and the plain read, for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* need the vocabulary above */
#include "kernel/cpu/read_body.h"
#include "kernel/cpu/strips_body.h"

void strips_fill_neon(struct kernel_table *table) {
  fill_strips(table);
  fill_read(table);
}
#endif
