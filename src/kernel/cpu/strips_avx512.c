/* The kernels over strips for avx512. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"

/* needs the vocabulary above */
#include "kernel/cpu/strips_body.h"

void strips_fill_avx512(struct kernel_table *table) { fill_strips(table); }
#endif
