/* Chooses the kernels: see select.h. State: one table per instruction set, filled at
 * first use, and which of them is current. */
#include "kernel/select.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "base/log.h"
#include "kernel/ops.h"

/* The levels of this architecture: each one can do what those before it can. */
#if defined(__aarch64__)
enum isa { ISA_REFERENCE, ISA_NEON, ISA_NEONBF16, ISA_COUNT };
static const char *const isa_name[ISA_COUNT] = {"reference", "neon", "neonbf16"};
#define ISA_NAMES "reference, neon, neonbf16"
#else
enum isa { ISA_REFERENCE, ISA_AVX2, ISA_AVX512, ISA_AVX512BF16, ISA_AMX, ISA_COUNT };
static const char *const isa_name[ISA_COUNT] = {"reference", "avx2", "avx512", "avx512bf16", "amx"};
#define ISA_NAMES "reference, avx2, avx512, avx512bf16, amx"
#endif

static struct kernel_table tables[ISA_COUNT];
static enum isa processor;
static const struct kernel_table *current;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* AMX's tiles are 8 KiB of state that Linux gives to a process only when it asks; the answer is no
 * where the kernel or what it runs on does not know them. */
static bool amx_permitted(void) {
#if defined(TSR_HAVE_AMX) && defined(SYS_arch_prctl)
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  enum { BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25 }; /* leaf 7, edx */
  unsigned a, b, c, d = 0;
  const unsigned all = BF16 | TILE | INT8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all) return false;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

static bool has_avx512vnni(void) {
#if defined(TSR_HAVE_AVX512VNNI)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

static bool has_avx512bf16(void) {
#if defined(TSR_HAVE_AVX512BF16)
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}
#endif

static enum isa isa_of_processor(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  /* F16C is not asked for: clang 14 has no name for it, and every processor with AVX2 has it. */
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return avx2 ? ISA_AVX2 : ISA_REFERENCE;
  if (!has_avx512bf16()) return ISA_AVX512;
  return amx_permitted() ? ISA_AMX : ISA_AVX512BF16;
#elif defined(__aarch64__)
#if defined(TSR_HAVE_NEONBF16) && defined(HWCAP2_BF16)
  if (getauxval(AT_HWCAP2) & HWCAP2_BF16) return ISA_NEONBF16;
#endif
  return ISA_NEON; /* part of the base architecture */
#else
  return ISA_REFERENCE;
#endif
}

/* The fastest level. Intel's vdpbf16ps without AMX is none: Emerald Rapids starts one every two
 * cycles and two fp32 multiply-adds in each, so that bf16 has half of fp32's rate. */
static enum isa isa_by_default(enum isa most) {
#if defined(__x86_64__)
  if (most == ISA_AVX512BF16 && __builtin_cpu_is("intel")) return ISA_AVX512;
#endif
  return most;
}

static enum isa isa_chosen(enum isa most) {
  const char *wish = getenv("TSR_ISA");
  const enum isa best = isa_by_default(most);
  if (!wish || !*wish) return best;
  for (int i = 0; i < ISA_COUNT; i++)
    if (!strcmp(wish, isa_name[i])) return (enum isa)i < most ? (enum isa)i : most;
  log_warn("TSR_ISA=%s is not one of " ISA_NAMES "; using %s", wish, isa_name[best]);
  return best;
}

static void fill(void) {
  processor = isa_of_processor();
  for (int i = 0; i < ISA_COUNT && i <= (int)processor; i++) {
    kernel_table_fill_reference(&tables[i]);
#if defined(__x86_64__)
    if (i >= ISA_AVX2) kernel_table_fill_avx2(&tables[i]);
    if (i >= ISA_AVX512) kernel_table_fill_avx512(&tables[i]);
#if defined(TSR_HAVE_AVX512VNNI)
    if (i >= ISA_AVX512 && has_avx512vnni()) kernel_table_fill_avx512vnni(&tables[i]);
#endif
#if defined(TSR_HAVE_AVX512BF16)
    if (i >= ISA_AVX512BF16) kernel_table_fill_avx512bf16(&tables[i]);
#endif
#if defined(TSR_HAVE_AMX)
    if (i >= ISA_AMX) kernel_table_fill_amx(&tables[i]);
#endif
#elif defined(__aarch64__)
    if (i >= ISA_NEON) kernel_table_fill_neon(&tables[i]);
#if defined(TSR_HAVE_NEONBF16)
    if (i >= ISA_NEONBF16) kernel_table_fill_neonbf16(&tables[i]);
#endif
#endif
    tables[i].isa = isa_name[i];
  }
  current = &tables[isa_chosen(processor)];
}

const struct kernel_table *kernel_table(void) {
  pthread_once(&once, fill);
  return current;
}

const char *kernel_isa_name(int level) {
  return level >= 0 && level < ISA_COUNT ? isa_name[level] : NULL;
}

bool kernel_table_use(const char *isa) {
  pthread_once(&once, fill);
  for (int i = 0; i < ISA_COUNT && i <= (int)processor; i++)
    if (!strcmp(isa, isa_name[i])) {
      current = &tables[i];
      return true;
    }
  return false;
}

const char *kernel_isa(void) { return kernel_table()->isa; }
