/* Every kernel of CLUSTER_KERNELS, from the one body: after a vocabulary with that of sm_90a. */
#include "kernel/cuda/panel.h"
#include "kernel/cuda/product.h"

#define PRODUCT_PAIR 0
#define QUANT_BITS 0
#define PRODUCT_NAME cluster_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#define QUANT_BITS 8
#define PRODUCT_NAME cluster_i8_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_i8_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#define QUANT_BITS 4
#define PRODUCT_NAME cluster_i4_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_i4_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#undef PRODUCT_PAIR

#define PRODUCT_PAIR 1
#define QUANT_BITS 0
#define PRODUCT_NAME cluster_pair_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_pair_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#define QUANT_BITS 8
#define PRODUCT_NAME cluster_pair_i8_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_pair_i8_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#define QUANT_BITS 4
#define PRODUCT_NAME cluster_pair_i4_128
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
#define PRODUCT_NAME cluster_pair_i4_256
#define PANEL_TOKENS 256
#include "kernel/cuda/cluster_body.h"
#undef QUANT_BITS
#undef PRODUCT_PAIR
