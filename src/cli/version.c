/* The commit this program was built from: the one file that is compiled again when it changes. */
#include "cli/commands.h"

const char *version_commit(void) { return TSR_COMMIT; }
