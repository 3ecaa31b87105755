/* What the parts of gpu_learn share. */
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

/* |a - b| / |b|; a NaN stays. */
double learn_relative(const float *a, const float *b, int64_t count);
/* A row of the ledger of checks; whether the error is larger than `most`, which is also said. */
int learn_report(const struct gpu_learn *run, FILE *ledger, const char *what, const char *where,
                 double error, double most);

/* SparseGPT on the card against the CPU's, one row each; how many are wrong. */
int gpu_learn_check_prune(const struct gpu_learn *run, FILE *ledger);
/* Its factor and whole matrices of an 8B model. */
void gpu_learn_time_prune(const struct gpu_learn *run, FILE *ledger);
/* Kernels at the shapes of an 8B model, and whole learning steps, one row each. */
void gpu_learn_time(const struct gpu_learn *run, FILE *ledger);

#endif
