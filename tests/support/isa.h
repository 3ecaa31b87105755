/* Runs a test under every instruction set that this processor has. */
#ifndef TSR_TESTS_ISA_H
#define TSR_TESTS_ISA_H

#include <stdio.h>

#include "kernel/select.h"
#include "support/support.h"

/* Calls fn once per instruction set; those that are missing are named aloud. */
static inline void for_each_isa(void (*fn)(void)) {
  const char *before = kernel_table()->isa, *name;
  for (int i = 0; (name = kernel_isa_name(i)); i++)
    if (kernel_table_use(name))
      fn();
    else
      printf("skip: this processor has no %s\n", name);
  kernel_table_use(before);
}

#endif
