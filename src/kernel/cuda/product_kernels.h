/* Every kernel of PRODUCT_KERNELS, from the one body: after a vocabulary. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define QUANT_BITS 0
#define WARP_BLOCKS 1
#define PRODUCT_NAME product_8
#define PANEL_TOKENS 8
#define WARP_OCTETS 1
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_16
#define PANEL_TOKENS 16
#define WARP_OCTETS 2
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_32
#define PANEL_TOKENS 32
#define WARP_OCTETS 4
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_64
#define PANEL_TOKENS 64
#define WARP_OCTETS 8
#include "kernel/cuda/product_body.h"
#undef WARP_BLOCKS

#define WARP_BLOCKS 4
#define PRODUCT_NAME product_128
#define PANEL_TOKENS 128
#define WARP_OCTETS 4
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_256
#define PANEL_TOKENS 256
#define WARP_OCTETS 8
#include "kernel/cuda/product_body.h"
#undef WARP_BLOCKS
#undef QUANT_BITS
