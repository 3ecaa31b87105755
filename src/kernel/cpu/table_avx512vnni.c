/* What VNNI adds to the kernels of AVX-512. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_avx512vnni(struct kernel_table *table) { quant_fill_avx512vnni(table); }
#endif
