/* Every kernel of TALL_KERNELS, from the one body: after a vocabulary. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define QUANT_BITS 0
#define PRODUCT_NAME tall_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS

#define QUANT_BITS 8
#define PRODUCT_NAME tall_i8_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS

#define QUANT_BITS 4
#define PRODUCT_NAME tall_i4_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS
