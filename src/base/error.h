/* Status codes and error sentences.
 *
 * Every fallible function returns an enum status and, on anything but STATUS_OK, fills the
 * caller's struct error with one sentence: what was wrong, where, and what to do about it. On
 * success the struct is left untouched. The numeric values are the program's exit codes. */
#ifndef TSR_BASE_ERROR_H
#define TSR_BASE_ERROR_H

#include <stdarg.h>

enum status {
  STATUS_OK = 0,
  STATUS_FAILED = 1,       /* the work could not be done: I/O, memory, diverged training */
  STATUS_USAGE = 2,        /* wrong command line or API arguments */
  STATUS_REFUSED = 3,      /* the input is damaged, unsupported or does not fit */
  STATUS_INTERRUPTED = 130 /* stopped by a signal, state saved */
};

struct error {
  enum status status;
  char text[1024];
};

/* Formats the sentence, stores the status, and returns it so that `return error_set(...)` works.
 * `err` may be NULL: then only the status is returned. */
enum status error_set(struct error *err, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
enum status error_setv(struct error *err, enum status status, const char *format, va_list args);

/* Puts "context: " before the sentence already stored, keeping its status. Returns that status. */
enum status error_prefix(struct error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Broken invariants stop the program, in release builds too. */
#define INVARIANT(condition)                                            \
  do {                                                                  \
    if (!(condition)) invariant_broken(#condition, __FILE__, __LINE__); \
  } while (0)
_Noreturn void invariant_broken(const char *condition, const char *file, int line);

#endif
