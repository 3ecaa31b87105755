/* Scratch memory of the kernels: per thread, grown at first use and kept, so that a training step
 * or a decoded token allocates nothing once shapes have been seen. All sizes are bounded by block
 * sizes, not by the matrices (a few MiB per thread). */
#ifndef TSR_KERNEL_SCRATCH_H
#define TSR_KERNEL_SCRATCH_H

#include <stddef.h>

/* One slot per nesting level: a function never holds a slot across a call that uses the same. */
enum scratch_slot {
  SCRATCH_PACK_A,
  SCRATCH_PACK_B,
  SCRATCH_SEGMENT,
  SCRATCH_LINEAR,
  SCRATCH_ATTENTION,
  SCRATCH_MASK,
  SCRATCH_SLOTS
};

/* Room for `count` floats, 64-byte aligned, contents undefined; valid until the thread asks for the
 * slot again. Ends the process with a sentence when memory is out: the products have no way to
 * fail. */
void *kernel_scratch(enum scratch_slot slot, size_t count);

#endif
