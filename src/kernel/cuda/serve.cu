/* The kernels of decoding on the device, beside the products. */
#include "kernel/cuda/simt_ptx.h"
/* needs the vocabulary above */
#include "kernel/cuda/serve_kernels.h"

extern "C" const void *serve_kernel(int which) {
  static const void *const kernels[] = {
#define KERNEL_ADDRESS(name, type) (const void *)name,
      SERVE_KERNELS(KERNEL_ADDRESS)
#define ATTEND_ADDRESS(lanes, rows) (const void *)attend_##lanes##x##rows,
          ATTEND_KERNELS(ATTEND_ADDRESS)};
  return kernels[which];
}
