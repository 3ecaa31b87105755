/* What a card does beside its stream of work, for the CUDA column's runtime: pinned memory, copies
 * on two streams of their own, and graphs of recorded operations. */
#ifndef TSR_KERNEL_CUDA_DEVICE_GRAPH_H
#define TSR_KERNEL_CUDA_DEVICE_GRAPH_H

#include "kernel/cuda/column.h"
#include "kernel/cuda/device.h"

/* Fills in alloc_host to graph_free of `runtime`, whose launch and multiply graphs are made with;
 * both must stay until the lanes are closed. */
enum status gpu_lanes_open(struct gpu *gpu, struct cuda_runtime *runtime, struct error *err);
/* Nothing where they are not open. */
void gpu_lanes_close(void);
/* Until both lanes are empty. */
enum status gpu_lanes_wait(struct error *err);

/* In learn.cu. */
const void *learn_kernel(int which);

#endif
