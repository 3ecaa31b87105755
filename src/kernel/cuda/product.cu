/* The hybrid product on the device: every kernel of PRODUCT_KERNELS. */
#include "kernel/cuda/simt_ptx.h"
/* needs the vocabulary above */
#include "kernel/cuda/product_kernels.h"

extern "C" const void *product_kernel(uint32_t panel_tokens) {
  switch (panel_tokens) {
#define KERNEL_CASE(tokens, threads) \
  case tokens:                       \
    return (const void *)product_##tokens;
    PRODUCT_KERNELS(KERNEL_CASE)
    default:
      return nullptr;
  }
}
