/* Every kernel of TALL_KERNELS, from the one body: after a vocabulary. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define PRODUCT_NAME tall_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
