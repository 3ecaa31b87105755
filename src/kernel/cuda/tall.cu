/* The product of two strips a block on the device: every kernel of TALL_KERNELS, for cards below
 * compute capability 9.0. Those from there on have clusters; in their code these only trap, and the
 * host never starts them there. */
#include "kernel/cuda/simt_ptx.h"
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
/* needs the vocabulary above */
#include "kernel/cuda/tall_kernels.h"
#else
#include "kernel/cuda/product.h"
#define KERNEL_TRAP(tokens) \
  extern "C" __global__ void tall_##tokens(const __grid_constant__ cluster_args) { __trap(); }
TALL_KERNELS(KERNEL_TRAP)
#endif

extern "C" const void *tall_kernel(uint32_t panel_tokens) {
  return panel_tokens == 128 ? (const void *)tall_128 : nullptr;
}
