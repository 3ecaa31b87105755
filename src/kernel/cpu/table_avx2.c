/* The avx2 kernels together. */
#if defined(__x86_64__)
#include "kernel/select.h"

void kernel_table_fill_avx2(struct kernel_table *table) { (void)table; }
#endif
