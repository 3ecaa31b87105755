/* Damages a small valid file in thousands of seeded ways and opens it each time: a parser must
 * either open what it is given or refuse it with a sentence, and never crash. */
#ifndef TSR_TESTS_DAMAGE_H
#define TSR_TESTS_DAMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Opens the file at `path`, reads everything it offers, and closes it. */
typedef enum status damage_open_fn(void *ctx, const char *path, struct error *err);

struct damage {
  const char *name;   /* of the parser, for messages and for the scratch file */
  const char *suffix; /* of the scratch file, where the parser looks at it: ".json"; may be NULL */
  const void *data;   /* the valid file */
  size_t bytes;
  damage_open_fn *open;
  void *ctx;
  uint64_t seed;
  int rounds; /* when TSR_DAMAGE_ROUNDS is not set */
};

/* Fails the test when the valid file does not open, when a refusal has no sentence, or when no
 * damage at all is ever refused. The status must be STATUS_OK, FAILED or REFUSED. */
void damage_run(const struct damage *d);

/* The same over the contents of the file at `path` (d->data and d->bytes are ignored). */
void damage_run_file(const struct damage *d, const char *path);

#endif
