/* The vector vocabulary and its functions for neon: see vec_math_cases.h. */
#if defined(__aarch64__)
#include "kernel/cpu/vec_neon.h"

/* needs the vocabulary above */
#include "kernel/vec_math_cases.h"

int main(void) { return run_cases("neon"); }
#else
#include <stdio.h>

int main(void) {
  printf("skip: neon is for AArch64\n");
  return 0;
}
#endif
