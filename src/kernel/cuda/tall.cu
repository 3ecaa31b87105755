/* The product of two strips a block on the device: every kernel of TALL_KERNELS, for cards below
 * compute capability 9.0. Those from there on have clusters; in their code these only trap, and the
 * host never starts them there. */
#include "kernel/cuda/simt_ptx.h"
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
/* needs the vocabulary above */
#include "kernel/cuda/tall_kernels.h"
#else
#include "kernel/cuda/product.h"
#define KERNEL_TRAP(kind, pair, name, tokens) \
  extern "C" __global__ void name(const __grid_constant__ cluster_args) { __trap(); }
TALL_KERNELS(KERNEL_TRAP)
#endif

extern "C" const void *tall_kernel(enum fragment_kind of, bool of_pair, uint32_t panel_tokens) {
#define KERNEL_CASE(kind, pair, name, tokens)                              \
  if (of == FRAGMENT_##kind && of_pair == (bool)(pair) && panel_tokens == tokens) \
    return (const void *)name;
  TALL_KERNELS(KERNEL_CASE)
  return nullptr;
}
