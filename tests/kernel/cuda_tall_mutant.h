/* One deliberately wrong kernel of two strips a block, called PRODUCT_NAME: the body with a word of
 * its vocabulary redefined before. */
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
