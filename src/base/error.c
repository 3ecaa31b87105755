/* Error sentences: see error.h. */
#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status error_setv(struct error *err, enum status status, const char *format, va_list args) {
  if (err) {
    err->status = status;
    vsnprintf(err->text, sizeof err->text, format, args);
  }
  return status;
}

enum status error_set(struct error *err, enum status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  error_setv(err, status, format, args);
  va_end(args);
  return status;
}

enum status error_prefix(struct error *err, const char *format, ...) {
  if (!err) return STATUS_FAILED;
  char old[sizeof err->text];
  memcpy(old, err->text, sizeof old);
  va_list args;
  va_start(args, format);
  int n = vsnprintf(err->text, sizeof err->text, format, args);
  va_end(args);
  if (n >= 0 && (size_t)n < sizeof err->text)
    snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", old);
  return err->status;
}

_Noreturn void invariant_broken(const char *condition, const char *file, int line) {
  fprintf(stderr, "tessera: internal error at %s:%d: %s does not hold; please report this\n", file,
          line, condition);
  abort();
}
