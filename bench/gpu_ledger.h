/* Where the programs that run on a card write. */
#ifndef TSR_BENCH_GPU_LEDGER_H
#define TSR_BENCH_GPU_LEDGER_H

#include <stdio.h>
#include <stdlib.h>

/* FOLDER/NAME, empty; ends the program with a sentence where it cannot be written. */
static inline FILE *gpu_open_ledger(const char *program, const char *folder, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "w");
  if (file) return file;
  fprintf(stderr, "%s: cannot write %s; is the folder there?\n", program, path);
  exit(EXIT_FAILURE);
}

#endif
