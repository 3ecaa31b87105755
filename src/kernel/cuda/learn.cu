/* The kernels of learning and evaluation on the device. */
#include "kernel/cuda/simt_ptx.h"
/* needs the vocabulary above */
#include "kernel/cuda/learn_kernels.h"

extern "C" const void *learn_kernel(int which) {
  static const void *const kernels[] = {
#define KERNEL_ADDRESS(name, type) (const void *)name,
      LEARN_KERNELS(KERNEL_ADDRESS)};
  return kernels[which];
}
