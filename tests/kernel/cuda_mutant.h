/* One deliberately wrong product kernel, called PRODUCT_NAME: the body with a word of its
 * vocabulary redefined before. */
#define PANEL_TOKENS 16
#define WARP_BLOCKS 1
#define WARP_OCTETS 2
#define QUANT_BITS 0
#include "kernel/cuda/product_body.h"
#undef QUANT_BITS
#undef WARP_BLOCKS
