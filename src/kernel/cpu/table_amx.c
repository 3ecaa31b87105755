/* What AMX adds to the kernels of the levels below. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_amx(struct kernel_table *table) {
  bf16_fill_amx(table);
  strips_fill_amx(table);
  quant_fill_amx(table);
}
#endif
