/* What the two halves of gpu_check share. */
#ifndef TSR_BENCH_GPU_H
#define TSR_BENCH_GPU_H

#include <stdbool.h>
#include <stdio.h>

#include "kernel/cuda/device.h"

/* Ends the program with the error's sentence when `status` is not OK. */
void gpu_must(enum status status, const struct error *err);

/* What stands in front of each row of the ledgers: date, commit, card. */
struct gpu_run {
  struct gpu *gpu;
  const char *date, *commit;
  char choice_path[4096]; /* the table of kernels that was measured */
  double deadline_s;      /* of the clock of base/clock.h */
};
void gpu_row_begin(FILE *ledger, const struct gpu_run *run);

/* Every kernel against fp64 and the CPU backend at ragged sizes, one row each. Returns how many
 * failed. */
int gpu_check_products(const struct gpu_run *run, FILE *ledger);
/* The same for integers and for pairs with an activation; the reference is the packed form itself,
 * read back. */
int gpu_check_forms(const struct gpu_run *run, FILE *ledger);
/* Layers of well-known models at several densities and batches against cuBLASLt. */
void gpu_time_products(const struct gpu_run *run, FILE *ledger);

#endif
