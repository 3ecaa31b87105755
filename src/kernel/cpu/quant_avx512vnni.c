/* The kernels over quantized strips for avx512vnni. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx512.h"

/* needs the vocabulary above */
#include "kernel/cpu/dot_avx512vnni.h"

/* needs both */
#include "kernel/cpu/quant_body.h"

void quant_fill_avx512vnni(struct kernel_table *table) { fill_quant(table); }
#endif
