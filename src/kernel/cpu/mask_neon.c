/* The kernels of the soft masks for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/cpu/mask_body.h"

void mask_fill_neon(struct kernel_table *table) { fill_mask(table); }
#endif
