/* One deliberately wrong kernel for clusters, called PRODUCT_NAME: the body with a word of its
 * vocabulary redefined before. QUANT_BITS: as in the body, 0 where it is not defined. */
#define PANEL_TOKENS 128
#ifndef QUANT_BITS
#define QUANT_BITS 0
#endif
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
