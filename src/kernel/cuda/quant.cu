/* The hybrid product of integers on the device: every kernel of QUANT_KERNELS. */
#include "kernel/cuda/simt_ptx.h"
/* needs the vocabulary above */
#include "kernel/cuda/quant_kernels.h"

extern "C" const void *quant_kernel(uint32_t bits, uint32_t panel_tokens) {
  switch (100 * bits + panel_tokens) {
#define KERNEL_CASE(bits, tokens) \
  case 100 * bits + tokens:       \
    return (const void *)product_i##bits##_##tokens;
    QUANT_KERNELS(KERNEL_CASE)
    default:
      return nullptr;
  }
}
