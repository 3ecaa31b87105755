/* The card's side of decoding, for device_learn.c, which opens the CUDA column. */
#ifndef TSR_KERNEL_CUDA_DEVICE_SERVE_H
#define TSR_KERNEL_CUDA_DEVICE_SERVE_H

#include "kernel/cuda/column_serve.h"

/* After a failure, too, device_serve_close gives back what was taken. */
enum status device_serve_open(struct gpu *gpu, const struct serve_runtime **out, struct error *err);
void device_serve_close(struct gpu *gpu);

#endif
