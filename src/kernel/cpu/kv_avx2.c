/* Attention over a cache for avx2. */
#if defined(__x86_64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_avx2.h"

/* needs the vocabulary above */
#include "kernel/cpu/kv_body.h"

void kv_fill_avx2(struct kernel_table *table) { fill_kv(table); }
#endif
