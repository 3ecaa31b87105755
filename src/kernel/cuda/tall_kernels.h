/* Every kernel of TALL_KERNELS, from the one body: after a vocabulary. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define PRODUCT_PAIR 0
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
#undef PRODUCT_PAIR

#define PRODUCT_PAIR 1
#define QUANT_BITS 0
#define PRODUCT_NAME tall_pair_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS
#define QUANT_BITS 8
#define PRODUCT_NAME tall_pair_i8_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS
#define QUANT_BITS 4
#define PRODUCT_NAME tall_pair_i4_128
#define PANEL_TOKENS 128
#include "kernel/cuda/tall_body.h"
#undef QUANT_BITS
#undef PRODUCT_PAIR
