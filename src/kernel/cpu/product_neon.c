/* The kernels of the products for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/cpu/product_body.h"

void product_fill_neon(struct kernel_table *table) { fill_product(table); }
#endif
