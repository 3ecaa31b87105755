/* The avx512 kernels together. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"

void kernel_table_fill_avx512(struct kernel_table *table) {
  product_fill_avx512(table);
  bf16_fill_avx512(table);
  strips_fill_avx512(table);
  rows_fill_avx512(table);
  kv_fill_avx512(table);
  mask_fill_avx512(table);
}
#endif
