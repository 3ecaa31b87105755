/* Checkpoints: the whole state of a run after some step, so that going on from it gives the same
 * bits as never having stopped.
 *
 * RUN/checkpoint.safetensors is written beside itself and renamed, and the one before it stays as
 * RUN/checkpoint.previous.safetensors. Every tensor has a CRC-32; a damaged checkpoint is reported
 * and the previous one is taken, which is as good: the steps between are only done again. */
#ifndef TSR_LEARN_CHECKPOINT_H
#define TSR_LEARN_CHECKPOINT_H

#include "learn/learner.h"
#include "learn/state_file.h"

/* What a run has found out so far, beside the logits. */
struct run_state {
  double dense_loss; /* held-out, nats per token */
  double prior_loss; /* of the prior's hard mask */
  double first_loss; /* training loss of the first step */
  double last_loss;  /* of the last mask that was measured */
  double best_loss;  /* of the best mask, and the step after which it was found */
  int64_t best_step; /* 0 = the prior */
  double seconds;    /* spent learning, over all processes */
  double prior_seconds;
  int64_t record_bytes;     /* length of record.jsonl */
  struct mask_matrix *best; /* (site_count) */
};

/* A checkpoint as its parts are listed: numbers are its own, tensors are where they lie. */
enum { CHECKPOINT_NUMBERS = 10 };
struct checkpoint {
  struct run_state numbers_of;
  int64_t step;
  struct state_number numbers[CHECKPOINT_NUMBERS];
  struct state state;
};
/* Waits for what is on its way to the host. *c must stay where it is; `settings` must outlive it.
 */
enum status checkpoint_list(struct checkpoint *c, const struct learner *l,
                            const struct run_state *state, const char *settings, struct error *err);
void checkpoint_free(struct checkpoint *c);

/* `settings` is the run's settings as JSON text: a checkpoint of other settings is refused. */
enum status checkpoint_save(const struct learner *l, const struct run_state *state,
                            const char *settings, const char *run, struct error *err);
/* *found is false, and STATUS_OK, when RUN has no checkpoint. STATUS_REFUSED when it has one and
 * none is usable. state->best must be initialised. */
enum status checkpoint_load(struct learner *l, struct run_state *state, const char *settings,
                            const char *run, bool *found, struct error *err);

#endif
