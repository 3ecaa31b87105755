/* The CUDA backend on a card, in builds that have it (-DTSR_CUDA=ON): for backend_open. */
#ifndef TSR_KERNEL_CUDA_OPEN_H
#define TSR_KERNEL_CUDA_OPEN_H

#include "kernel/backend.h"

enum status cuda_backend_open(const struct backend **out, int card, struct error *err);
void cuda_backend_close(void);

#endif
