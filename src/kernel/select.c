/* Chooses the kernels: see select.h. State: one table per instruction set, filled at
 * first use, and which of them is current. */
#include "kernel/select.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/log.h"
#include "kernel/ops.h"

enum isa { ISA_REFERENCE, ISA_AVX2, ISA_AVX512, ISA_COUNT };
static const char *const isa_name[ISA_COUNT] = {"reference", "avx2", "avx512"};

static struct kernel_table tables[ISA_COUNT];
static enum isa processor;
static const struct kernel_table *current;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static enum isa isa_of_processor(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  /* F16C is not asked for: clang 14 has no name for it, and every processor with AVX2 has it. */
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? ISA_AVX512 : avx2 ? ISA_AVX2 : ISA_REFERENCE;
#else
  return ISA_REFERENCE;
#endif
}

static enum isa isa_lowered(enum isa most) {
  const char *wish = getenv("TSR_ISA");
  if (!wish || !*wish) return most;
  for (int i = 0; i < ISA_COUNT; i++)
    if (!strcmp(wish, isa_name[i])) return (enum isa)i < most ? (enum isa)i : most;
  log_warn("TSR_ISA=%s is not one of reference, avx2, avx512; using %s", wish, isa_name[most]);
  return most;
}

static void fill(void) {
  processor = isa_of_processor();
  for (int i = 0; i <= (int)processor; i++) {
    kernel_table_fill_reference(&tables[i]);
#if defined(__x86_64__)
    if (i >= ISA_AVX2) kernel_table_fill_avx2(&tables[i]);
    if (i >= ISA_AVX512) kernel_table_fill_avx512(&tables[i]);
#endif
    tables[i].isa = isa_name[i];
  }
  current = &tables[isa_lowered(processor)];
}

const struct kernel_table *kernel_table(void) {
  pthread_once(&once, fill);
  return current;
}

bool kernel_table_use(const char *isa) {
  pthread_once(&once, fill);
  for (int i = 0; i <= (int)processor; i++)
    if (!strcmp(isa, isa_name[i])) {
      current = &tables[i];
      return true;
    }
  return false;
}

const char *kernel_isa(void) { return kernel_table()->isa; }
