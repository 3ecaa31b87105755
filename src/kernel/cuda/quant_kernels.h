/* Every kernel of QUANT_KERNELS, from the one body: after a vocabulary. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define WARP_BLOCKS 1
#define QUANT_BITS 8
#define PRODUCT_NAME product_i8_8
#define PANEL_TOKENS 8
#define WARP_OCTETS 1
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i8_16
#define PANEL_TOKENS 16
#define WARP_OCTETS 2
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i8_32
#define PANEL_TOKENS 32
#define WARP_OCTETS 4
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i8_64
#define PANEL_TOKENS 64
#define WARP_OCTETS 8
#include "kernel/cuda/product_body.h"
#undef QUANT_BITS

#define QUANT_BITS 4
#define PRODUCT_NAME product_i4_8
#define PANEL_TOKENS 8
#define WARP_OCTETS 1
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i4_16
#define PANEL_TOKENS 16
#define WARP_OCTETS 2
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i4_32
#define PANEL_TOKENS 32
#define WARP_OCTETS 4
#include "kernel/cuda/product_body.h"
#define PRODUCT_NAME product_i4_64
#define PANEL_TOKENS 64
#define WARP_OCTETS 8
#include "kernel/cuda/product_body.h"
#undef QUANT_BITS
#undef WARP_BLOCKS
