/* Ctrl-C and SIGTERM as a flag that long work polls between steps, so that it can save and stop. */
#ifndef TSR_BASE_INTERRUPT_H
#define TSR_BASE_INTERRUPT_H

#include <stdbool.h>

#include "base/error.h"

/* Installs handlers for SIGINT and SIGTERM (the program does this; a library user may not want
 * it). A second signal ends the process at once. */
void interrupt_install(void);
bool interrupt_requested(void);
/* For library users and tests: sets or clears the flag. */
void interrupt_set(bool requested);
/* STATUS_INTERRUPTED with a sentence when the flag is set, else STATUS_OK. */
enum status interrupt_check(struct error *err);

#endif
