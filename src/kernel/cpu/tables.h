/* The vector kernels, by file and instruction set: each fills its part of the table. */
#ifndef TSR_KERNEL_CPU_TABLES_H
#define TSR_KERNEL_CPU_TABLES_H

#include "kernel/select.h"

void product_fill_avx2(struct kernel_table *table);
void product_fill_avx512(struct kernel_table *table);
void bf16_fill_avx2(struct kernel_table *table);
void bf16_fill_avx512(struct kernel_table *table);
void bf16_fill_avx512bf16(struct kernel_table *table);
void bf16_fill_amx(struct kernel_table *table);
void strips_fill_avx2(struct kernel_table *table);
void strips_fill_avx512(struct kernel_table *table);
void strips_fill_amx(struct kernel_table *table);
void quant_fill_avx2(struct kernel_table *table);
void quant_fill_avx512vnni(struct kernel_table *table);
void quant_fill_amx(struct kernel_table *table);
void rows_fill_avx2(struct kernel_table *table);
void rows_fill_avx512(struct kernel_table *table);
void kv_fill_avx2(struct kernel_table *table);
void kv_fill_avx512(struct kernel_table *table);
void mask_fill_avx2(struct kernel_table *table);
void mask_fill_avx512(struct kernel_table *table);

void product_fill_neon(struct kernel_table *table);
void bf16_fill_neon(struct kernel_table *table);
void bf16_fill_neonbf16(struct kernel_table *table);
void strips_fill_neon(struct kernel_table *table);
void quant_fill_neon(struct kernel_table *table);
void rows_fill_neon(struct kernel_table *table);
void kv_fill_neon(struct kernel_table *table);
void mask_fill_neon(struct kernel_table *table);

#endif
