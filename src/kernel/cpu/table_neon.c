/* The neon kernels together. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_neon(struct kernel_table *table) {
  product_fill_neon(table);
  bf16_fill_neon(table);
  strips_fill_neon(table);
  quant_fill_neon(table);
  rows_fill_neon(table);
  kv_fill_neon(table);
  mask_fill_neon(table);
}
#endif
