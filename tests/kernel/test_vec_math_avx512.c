/* The vector vocabulary and its functions for avx512: see vec_math_cases.h. */
#if defined(__x86_64__)
#include "kernel/cpu/vec_avx512.h"

/* needs the vocabulary above */
#include "kernel/vec_math_cases.h"

int main(void) { return run_cases("avx512"); }
#else
#include <stdio.h>

int main(void) {
  printf("skip: avx512 is for x86-64\n");
  return 0;
}
#endif
