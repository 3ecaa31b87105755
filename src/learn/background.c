/* See background.h. The thread reads the copy and the lists in struct background alone, which
 * nobody touches until it is done. */
#include "learn/background.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"

bool background_serves(const struct background *b, const struct learner *l) {
  return l->ops->copy_aside && !b->refused;
}

enum status background_begin(struct background *b, const struct learner *l,
                             const struct run_state *state, const char *settings, const char *run,
                             struct error *err) {
  struct error reason;
  INVARIANT(b->phase == BACKGROUND_IDLE && background_serves(b, l));
  enum status status = checkpoint_list(&b->checkpoint, l, state, settings, err);
  if (status == STATUS_OK && !b->run && !(b->run = mem_strdup(run, err))) status = STATUS_FAILED;
  if (status != STATUS_OK) {
    checkpoint_free(&b->checkpoint);
    return status;
  }
  if (state_detach(&b->checkpoint.state.tensors, l->ops, &b->copy, &reason) != STATUS_OK) {
    log_warn("%s: checkpoints stop the card while they are written", reason.text);
    checkpoint_free(&b->checkpoint);
    b->refused = true;
    return STATUS_OK;
  }
  b->phase = BACKGROUND_COPYING;
  return STATUS_OK;
}

static void *write_file(void *ctx) {
  struct background *b = ctx;
  b->status = state_save(&b->checkpoint.state, b->run, &b->err);
  atomic_store(&b->done, true);
  return NULL;
}

/* Signals are the main thread's. */
static enum status start_writing(struct background *b, struct error *err) {
  sigset_t all, before;
  sigfillset(&all);
  atomic_store(&b->done, false);
  b->err = (struct error){0};
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int code = pthread_create(&b->thread, NULL, write_file, b);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code)
    return error_set(err, STATUS_FAILED, "no thread could be started to write the checkpoint: %s",
                     strerror(code));
  b->phase = BACKGROUND_WRITING;
  return STATUS_OK;
}

static enum status take_note(struct background *b, struct error *err) {
  pthread_join(b->thread, NULL);
  b->phase = BACKGROUND_IDLE;
  checkpoint_free(&b->checkpoint);
  if (b->status != STATUS_OK) {
    *err = b->err;
    error_prefix(err, "after step %lld", (long long)b->checkpoint.step);
  }
  return b->status;
}

enum status background_step(struct background *b, struct error *err) {
  if (b->phase == BACKGROUND_COPYING) return start_writing(b, err);
  if (b->phase == BACKGROUND_WRITING && atomic_load(&b->done)) return take_note(b, err);
  return STATUS_OK;
}

enum status background_finish(struct background *b, const struct learner *l, struct error *err) {
  enum status status = STATUS_OK;
  if (b->phase == BACKGROUND_COPYING) {
    status = l->ops->wait(err);
    if (status == STATUS_OK) status = start_writing(b, err);
    if (status != STATUS_OK) return status;
  }
  return b->phase == BACKGROUND_WRITING ? take_note(b, err) : STATUS_OK;
}

void background_free(struct background *b) {
  struct error ignored;
  if (b->phase == BACKGROUND_WRITING) take_note(b, &ignored);
  if (b->phase == BACKGROUND_COPYING) { /* copies may still arrive in what is given back */
    b->copy.ops->wait(&ignored);
    checkpoint_free(&b->checkpoint);
  }
  state_copy_free(&b->copy);
  free(b->run);
  b->run = NULL;
  b->phase = BACKGROUND_IDLE;
}
