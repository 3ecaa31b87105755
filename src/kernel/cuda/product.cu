/* The hybrid product on the device: every kernel of PRODUCT_KERNELS. */
#include "kernel/cuda/simt_ptx.h"
/* needs the vocabulary above */
#include "kernel/cuda/product_kernels.h"
