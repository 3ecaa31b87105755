/* The avx512 kernels together. */
#if defined(__x86_64__)
#include "kernel/select.h"

void kernel_table_fill_avx512(struct kernel_table *table) { (void)table; }
#endif
