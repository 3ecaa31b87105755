/* What the two halves of gpu_learn share. */
#ifndef TSR_BENCH_GPU_LEARN_H
#define TSR_BENCH_GPU_LEARN_H

#include <stdio.h>

#include "kernel/backend.h"

struct gpu_learn {
  const struct backend *card;
  const char *date, *commit;
  double deadline_s; /* of the clock of base/clock.h */
};

/* Ends the program with the error's sentence when `status` is not OK. */
void learn_must(enum status status, const struct error *err);
/* `count` reproducible normals times `scale` in the memory of `on`; free with on->free. */
float *learn_normals(const struct backend *on, int64_t count, uint64_t seed, float scale);

/* Kernels at the shapes of an 8B model, and whole learning steps, one row each. */
void gpu_learn_time(const struct gpu_learn *run, FILE *ledger);

#endif
