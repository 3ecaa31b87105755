/* One deliberately wrong kernel for integers of QUANT_BITS, called PRODUCT_NAME: the body with a
 * word of its vocabulary redefined before. */
#define PANEL_TOKENS 16
#define WARP_BLOCKS 1
#define WARP_OCTETS 2
#include "kernel/cuda/product_body.h"
#undef WARP_BLOCKS
#undef QUANT_BITS
