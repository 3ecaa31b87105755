/* What AVX-512 with bf16 dot products and VNNI adds to the kernels of the levels below. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_avx512bf16(struct kernel_table *table) { bf16_fill_avx512bf16(table); }
#endif
