/* Attention over a cache for neon. */
#if defined(__aarch64__)
#include "kernel/cpu/tables.h"
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/cpu/kv_body.h"

void kv_fill_neon(struct kernel_table *table) { fill_kv(table); }
#endif
