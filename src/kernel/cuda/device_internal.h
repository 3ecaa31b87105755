/* What the files of the host's side share: device.c, device_product.c. */
#ifndef TSR_KERNEL_CUDA_DEVICE_INTERNAL_H
#define TSR_KERNEL_CUDA_DEVICE_INTERNAL_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernel/cuda/device.h"

/* How the kernel for panels of so many tokens runs on the card at hand, asked for once. */
struct kernel_facts {
  enum fragment_kind kind; /* of the weights */
  bool pair;
  uint32_t panel_tokens, threads, stages, shared_bytes;
  int blocks; /* on one multiprocessor; 0: does not run on this card */
};
enum { CLUSTER_SIZES = 3 /* 1, 2 and 4 blocks */ };
struct cluster_facts {
  enum fragment_kind kind;
  bool pair;
  uint32_t panel_tokens, stages, shared_bytes;
  int clusters[CLUSTER_SIZES]; /* that run at once; 0: not on this card */
};

enum {
#define COUNT_KERNEL(...) +1
  GPU_KERNELS = 0 PRODUCT_KERNELS(COUNT_KERNEL) QUANT_KERNELS(COUNT_KERNEL),
  GPU_CLUSTER_KERNELS = 0 CLUSTER_KERNELS(COUNT_KERNEL),
  GPU_TALL_KERNELS = 0 TALL_KERNELS(COUNT_KERNEL)
#undef COUNT_KERNEL
};

struct gpu {
  int index;
  cudaStream_t stream;
  struct gpu_facts facts;
  struct kernel_facts kernels[GPU_KERNELS];
  struct cluster_facts cluster_kernels[GPU_CLUSTER_KERNELS];
  struct kernel_facts tall_kernels[GPU_TALL_KERNELS];
  CUresult (*encode_map)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                         const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                         CUtensorMapFloatOOBfill); /* of the driver; NULL: no cluster kernels */
};

/* Turns a CUDA error into one of ours: "the GPU could not <what>: ...". */
enum status gpu_check(struct error *err, cudaError_t code, const char *what);
/* Memory on the card with a copy of `from` in it. */
enum status gpu_alloc_copy(struct gpu *gpu, const void *from, size_t bytes, void **out,
                           struct error *err);
/* Fills in what the kernels of this build can do on the card. */
enum status gpu_products_open(struct gpu *gpu, struct error *err);

#endif
