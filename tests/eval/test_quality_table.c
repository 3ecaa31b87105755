/* bench/table.py, the driver of the quality table, on a tiny model: tests/tools/quality_table.py
 * holds the checks. */
#include <stdlib.h>

#include "support/support.h"

static void makes_a_small_table(void **state) {
  (void)state;
  static char output[1 << 16];
  const char *model = shared_data("models/stories260K"), *text = shared_data("calib/tiny.utf8");
  const char *root = getenv("TSR_SOURCE") ? getenv("TSR_SOURCE") : ".";
  if (!model || !text) skip();
  if (run_command(output, sizeof output, "python3 -c 'import json'")) {
    print_message("skip: no python3, so the table's driver is not tried\n");
    skip();
  }
  int status = run_command(output, sizeof output,
                           "TSR_PROGRAM='%s' python3 '%s/tests/tools/quality_table.py' '%s' '%s' "
                           "'%s'",
                           program(), root, model, text, scratch());
  if (status) fail_msg("%s", output);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(makes_a_small_table)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
