/* The choice of kernels: TSR_ISA asks for a level, and gets it or the highest there is. */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/select.h"
#include "support/support.h"

static int level_of(const char *isa) {
  int level = 0;
  while (kernel_isa_name(level) && strcmp(isa, kernel_isa_name(level)) != 0) level++;
  return level;
}

/* The level that a fresh process chooses when TSR_ISA is `wish` (NULL: unset). */
static int chosen(const char *wish) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (!child) {
    if (wish)
      setenv("TSR_ISA", wish, 1);
    else
      unsetenv("TSR_ISA");
    _exit(level_of(kernel_table()->isa));
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && kernel_isa_name(WEXITSTATUS(status)));
  return WEXITSTATUS(status);
}

static int highest(void) {
  int last = 0;
  while (kernel_isa_name(last + 1)) last++;
  return chosen(kernel_isa_name(last));
}

/* By default the highest level, but for Intel's bf16 without AMX. */
static void the_environment_chooses(void **state) {
  (void)state;
  const int most = highest(), usual = chosen(NULL);
  assert_string_equal(kernel_isa_name(0), "reference");
  for (int i = 0; kernel_isa_name(i); i++)
    assert_int_equal(chosen(kernel_isa_name(i)), i < most ? i : most);
  assert_int_equal(chosen(""), usual);
  assert_int_equal(chosen("avx1024"), usual);
  bool slow_bf16 = false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  slow_bf16 = __builtin_cpu_is("intel") && !strcmp(kernel_isa_name(most), "avx512bf16");
#endif
  assert_int_equal(usual, slow_bf16 ? most - 1 : most);
}

static void a_table_is_used_when_the_processor_has_it(void **state) {
  (void)state;
  const int most = highest();
  const char *before = kernel_table()->isa, *level;
  for (int i = 0; (level = kernel_isa_name(i)); i++) {
    const char *now = kernel_table()->isa;
    assert_int_equal(kernel_table_use(level), i <= most);
    assert_string_equal(kernel_table()->isa, i <= most ? level : now);
  }
  assert_false(kernel_table_use("avx1024"));
  assert_true(kernel_table_use(before));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(the_environment_chooses),
                                     cmocka_unit_test(a_table_is_used_when_the_processor_has_it)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
