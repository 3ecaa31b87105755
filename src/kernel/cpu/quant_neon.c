/* The kernels over quantized strips for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/cpu/dot_neon.h"

/* needs both */
#include "kernel/cpu/quant_body.h"

void quant_fill_neon(struct kernel_table *table) { fill_quant(table); }
#endif
