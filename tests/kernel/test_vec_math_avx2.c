/* The vector vocabulary and its functions for avx2: see vec_math_cases.h. */
#if defined(__x86_64__)
#include "kernel/cpu/vec_avx2.h"

/* needs the vocabulary above */
#include "kernel/vec_math_cases.h"

int main(void) { return run_cases("avx2"); }
#else
#include <stdio.h>

int main(void) {
  printf("skip: avx2 is for x86-64\n");
  return 0;
}
#endif
