/* Checkpoints that do not stop a card. After a step the state is copied into pinned memory of the
 * host, on a lane of its own, while the next step's passes run; the update of that step, which
 * would change it, waits for the copies. When that step is done a thread writes the file, which is
 * that of the step it was taken after, bit for bit.
 *
 * One checkpoint at a time. What fails in the thread is said by the next call. The memory, as much
 * as the file is long, is taken by the first checkpoint and kept. */
#ifndef TSR_LEARN_BACKGROUND_H
#define TSR_LEARN_BACKGROUND_H

#include <pthread.h>
#include <stdatomic.h>

#include "learn/checkpoint.h"

enum background_phase { BACKGROUND_IDLE, BACKGROUND_COPYING, BACKGROUND_WRITING };

struct background {
  enum background_phase phase;
  bool refused; /* there is no memory for copies: checkpoints are written between steps */
  struct checkpoint checkpoint;
  struct state_copy copy;
  char *run; /* where it is written */
  pthread_t thread;
  atomic_bool done;
  /* of the thread, once it is done */
  enum status status;
  struct error err;
};

/* Whether the learner's state can be copied aside: not on the CPU, whose memory it is. */
bool background_serves(const struct background *b, const struct learner *l);
/* Takes a checkpoint of the learner as it is between two steps; none may be on its way. Where there
 * is no memory for the copy, b->refused is set, a warning says so, and STATUS_OK: the caller writes
 * it by itself. `settings` must stay until it is written. */
enum status background_begin(struct background *b, const struct learner *l,
                             const struct run_state *state, const char *settings, const char *run,
                             struct error *err);
/* To be called after every step: starts the writing of what was copied, takes note of what is
 * written. A failure is that of the checkpoint. */
enum status background_step(struct background *b, struct error *err);
/* Until nothing is on its way; between steps. */
enum status background_finish(struct background *b, const struct learner *l, struct error *err);
/* After background_finish, or where its failure no longer matters. */
void background_free(struct background *b);

#endif
