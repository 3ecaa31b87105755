/* Interrupts: see interrupt.h. */
#include "base/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t requested;

static void on_signal(int number) {
  if (requested) { /* asked twice: the user does not want to wait */
    signal(number, SIG_DFL);
    raise(number);
  }
  requested = 1;
}

void interrupt_install(void) {
  struct sigaction action = {.sa_handler = on_signal};
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
}

bool interrupt_requested(void) { return requested != 0; }
void interrupt_set(bool value) { requested = value; }

enum status interrupt_check(struct error *err) {
  if (!requested) return STATUS_OK;
  return error_set(err, STATUS_INTERRUPTED, "interrupted");
}
