/* The avx2 kernels together. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_avx2(struct kernel_table *table) {
  product_fill_avx2(table);
  bf16_fill_avx2(table);
  strips_fill_avx2(table);
  quant_fill_avx2(table);
  rows_fill_avx2(table);
  kv_fill_avx2(table);
  mask_fill_avx2(table);
}
#endif
