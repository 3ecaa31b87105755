/* Where a chunk of 16 bytes of a panel of activations lies in shared memory, and how wgmma is told.
 */
#ifndef TSR_KERNEL_CUDA_PANEL_H
#define TSR_KERNEL_CUDA_PANEL_H

#include "kernel/cuda/product.h"

/* A row is 128 bytes: all banks once. Rows of one chunk would lie in the same four banks; so the
 * chunk's place is turned by its row, and eight rows of any chunk fill all banks. */
DEVICE uint32_t panel_offset(uint32_t row, uint32_t chunk) {
  return row * PRODUCT_PANEL_ROW_BYTES + ((chunk ^ row % 8) << 4);
}

/* The descriptor of a panel at `address` (a multiple of 1024) for wgmma, operand B, its columns
 * innermost: bits 0 to 13: address / 16; 16 to 29: not used by this layout, 1; 32 to 45: bytes from
 * eight tokens to the next eight, over 16; 62 to 63: 1, chunks swizzled within 128 bytes, the same
 * as panel_offset. 16 columns further on, the address is 32 bytes more: the swizzle works on the
 * bits of addresses. */
DEVICE uint64_t panel_descriptor(uint32_t address) {
  return (address & 0x3ffff) >> 4 | 1ull << 16 |
         (uint64_t)(8 * PRODUCT_PANEL_ROW_BYTES / 16) << 32 | 1ull << 62;
}

#endif
