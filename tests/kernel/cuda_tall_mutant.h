/* One deliberately wrong kernel of two strips a block, called PRODUCT_NAME: the body with a word of
 * its vocabulary redefined before. QUANT_BITS and PRODUCT_PAIR: as in the body, 0 where not
 * defined. */
#define PANEL_TOKENS 128
#ifndef QUANT_BITS
#define QUANT_BITS 0
#endif
#ifndef PRODUCT_PAIR
#define PRODUCT_PAIR 0
#endif
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS
#undef PRODUCT_PAIR
