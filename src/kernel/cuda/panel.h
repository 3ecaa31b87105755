/* Where a chunk of 16 bytes of a panel of activations lies in shared memory. */
#ifndef TSR_KERNEL_CUDA_PANEL_H
#define TSR_KERNEL_CUDA_PANEL_H

#include "kernel/cuda/product.h"

/* A row is 128 bytes: all banks once. Rows of one chunk would lie in the same four banks; so the
 * chunk's place is turned by its row, and eight rows of any chunk fill all banks. */
DEVICE uint32_t panel_offset(uint32_t row, uint32_t chunk) {
  return row * PRODUCT_PANEL_ROW_BYTES + ((chunk ^ row % 8) << 4);
}

#endif
