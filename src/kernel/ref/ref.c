/* The plain kernels together. They are what every faster one is tested beside, and what runs on a
 * processor for which there is none. */
#include "kernel/ref/ref.h"

void kernel_table_fill_reference(struct kernel_table *table) {
  ref_fill_product(table);
  ref_fill_bf16(table);
  ref_fill_strips(table);
  ref_fill_quant(table);
  ref_fill_row(table);
  ref_fill_distill(table);
  ref_fill_attention(table);
  ref_fill_mask(table);
  ref_fill_gumbel(table);
}
