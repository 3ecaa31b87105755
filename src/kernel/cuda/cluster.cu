/* The product of clusters on the device: every kernel of CLUSTER_KERNELS, for sm_90a alone. In the
 * code for other cards they only trap; the host never starts them there. */
#include "kernel/cuda/simt_ptx_90a.h"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* needs the vocabulary above */
#include "kernel/cuda/cluster_kernels.h"
#else
#define KERNEL_TRAP(kind, pair, name, tokens) \
  extern "C" __global__ void name(const __grid_constant__ cluster_args) { __trap(); }
CLUSTER_KERNELS(KERNEL_TRAP)
#endif

extern "C" const void *cluster_kernel(enum fragment_kind of, bool of_pair, uint32_t panel_tokens) {
#define KERNEL_CASE(kind, pair, name, tokens)                              \
  if (of == FRAGMENT_##kind && of_pair == (bool)(pair) && panel_tokens == tokens) \
    return (const void *)name;
  CLUSTER_KERNELS(KERNEL_CASE)
  return nullptr;
}
