/* The reference kernels, by file: each fills its part of the table. */
#ifndef TSR_KERNEL_REF_H
#define TSR_KERNEL_REF_H

#include "kernel/select.h"

void ref_fill_product(struct kernel_table *table);
void ref_fill_bf16(struct kernel_table *table);
void ref_fill_strips(struct kernel_table *table);
void ref_fill_quant(struct kernel_table *table);
void ref_fill_row(struct kernel_table *table);
void ref_fill_distill(struct kernel_table *table);
void ref_fill_attention(struct kernel_table *table);
void ref_fill_mask(struct kernel_table *table);
void ref_fill_gumbel(struct kernel_table *table);

#endif
