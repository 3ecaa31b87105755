/* What BF16 adds to the kernels of NEON. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_neonbf16(struct kernel_table *table) { bf16_fill_neonbf16(table); }
#endif
