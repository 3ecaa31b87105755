/* The kernels over quantized strips for avx2. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx2.h"

/* needs the vocabulary above */
#include "kernel/cpu/dot_avx2.h"

/* needs both */
#include "kernel/cpu/quant_body.h"

void quant_fill_avx2(struct kernel_table *table) { fill_quant(table); }
#endif
