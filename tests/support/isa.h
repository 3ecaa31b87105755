/* Runs a test under every instruction set that this processor has. */
#ifndef TSR_TESTS_ISA_H
#define TSR_TESTS_ISA_H

#include <stdio.h>

#include "kernel/select.h"
#include "support/support.h"

/* Calls fn once per instruction set; those that are missing are named aloud. */
static inline void for_each_isa(void (*fn)(void)) {
  static const char *const names[] = {"reference", "avx2", "avx512", "avx512bf16", "amx"};
  const char *before = kernel_table()->isa;
  for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++)
    if (kernel_table_use(names[i]))
      fn();
    else
      printf("skip: this processor has no %s\n", names[i]);
  kernel_table_use(before);
}

#endif
