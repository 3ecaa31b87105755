/* Which kernel multiplies a matrix for so many tokens: measured once, kept on disk for each card.
 *
 * What is best cannot be read off a shape: panels, waves of blocks and the library's own choices
 * make steps. So every candidate, the dense product of a library among them, is timed where it
 * will run, and the table remembers who won. Batches fall into buckets, the same for all matrices;
 * a bucket is timed at its smallest and its largest batch, and a hybrid kernel is taken only where
 * it is as fast as the dense product at both ends: so a hybrid layer is never slower than its dense
 * form by more than the timing's own error.
 *
 * No GPU is needed here: the timer belongs to the caller. */
#ifndef TSR_MODEL_CHOICE_H
#define TSR_MODEL_CHOICE_H

#include <stdint.h>

#include "base/error.h"

enum { CHOICE_NAME_MAX = 32, CHOICE_CANDIDATES_MAX = 16 };

struct choice_shape {
  const char *weights; /* "bf16", "int8 g32", ...: shorter than CHOICE_NAME_MAX */
  int64_t rows, cols;
  int64_t sparse_tiles; /* of 128 x 128; 0: the matrix is dense */
};

struct choice_timer {
  void *ctx;
  /* The names of what can run, "dense" among them. Returns how many, at most
   * CHOICE_CANDIDATES_MAX. */
  int (*candidates)(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                    char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX]);
  /* Seconds that one takes, above 0. */
  enum status (*time)(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                      const char *name, double *seconds, struct error *err);
};

struct choice;

/* The table of a card; `machine` names the card, its driver and this build, all that a timing
 * depends on. `path` may be missing; a file of another machine, or one that cannot be read, is
 * left aside (with a warning in the second case) and written anew. */
enum status choice_open(struct choice **out, const char *path, const char *machine,
                        struct error *err);
/* The name of the best for `tokens` tokens, 1 or more. Times it first where the table knows none,
 * or one that is no candidate any more. */
enum status choice_pick(struct choice *c, const struct choice_shape *shape, uint32_t tokens,
                        const struct choice_timer *timer, char name[CHOICE_NAME_MAX],
                        struct error *err);
/* Writes the table, atomically, if anything was timed; makes its folder. */
enum status choice_save(struct choice *c, struct error *err);
void choice_close(struct choice *c); /* NULL is fine; does not save */

/* The largest batch of the bucket that holds `tokens`; *first: the smallest. */
uint32_t choice_bucket(uint32_t tokens, uint32_t *first);
/* $XDG_CACHE_HOME/tessera/gpu-CARD.json, or below $HOME/.cache; in `card` all but letters and
 * digits becomes '-'. STATUS_REFUSED where neither is set. free() the result. */
enum status choice_path(const char *card, char **out, struct error *err);

#endif
