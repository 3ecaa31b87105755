/* A card that is not there: the runtime of the CUDA column (kernel/cuda/column.h) whose kernels run
 * under the emulator and whose dense products are the CPU's. Its memory is out of the host's reach
 * between calls: who reads it there is ended by a signal. */
#ifndef TSR_TESTS_CUDA_EMULATED_H
#define TSR_TESTS_CUDA_EMULATED_H

#include "kernel/backend.h"
#include "kernel/cuda/learn.h"
#include "kernel/cuda/serve.h"

/* The CUDA column over an emulated card with this much memory. Skips the test where the emulator
 * cannot run. */
const struct backend *emulated_open(size_t memory_bytes);
/* The same again, while it is open. */
const struct backend *emulated_backend(void);
void emulated_close(void);

/* Settings and counts of the card at hand. */
struct emulated_card {
  uint32_t order;              /* of blocks, as in simt.h */
  uint32_t block_shared_bytes; /* change it before the first launch */
  size_t live_bytes;           /* taken and not given back */
  bool lose_changes;           /* graphs keep their old arguments: a mistake that tests must see */
  bool late_fetch;             /* arrive does not wait: another */
  bool no_pinned;              /* there is no memory that copies can go to */
  bool late_aside;             /* await_aside does not wait: another */
  uint64_t serves[SERVE_KERNEL_COUNT], packed_products, dense_products, timings, recorded_launches;
  uint64_t launches[LEARN_KERNEL_COUNT], products, downloads, puts, bank_conflicts, asides;
};
extern struct emulated_card emulated_card;
/* What the library's dense product takes of what its bytes would, in the timings of kernels: stays
 * when the card is closed. */
extern double emulated_dense_cost;
extern bool emulated_idle; /* products take their time and compute nothing */

#endif
