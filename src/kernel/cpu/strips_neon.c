/* The kernels over strips for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/cpu/strips_body.h"

void strips_fill_neon(struct kernel_table *table) { fill_strips(table); }
#endif
