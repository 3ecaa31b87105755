/* Recovery: fine-tuning of the weights that a mask keeps. The mask never changes: gradients and
 * moments of dropped weights are zero, so they stay +0, which is checked at the end.
 *
 * This is another model than the masked one: a mask is learned over frozen weights, and figures of
 * a recovered model are not to be compared with those of frozen ones without saying so. */
#ifndef TSR_LEARN_RECOVER_H
#define TSR_LEARN_RECOVER_H

#include "data/windows.h"
#include "model/model.h"

struct recover_settings {
  int64_t tokens; /* to learn from; what does not fill a step is left unused */
  double seconds; /* in place of tokens, which become what this machine learns from in that time,
                     held-out losses included: a few steps are timed at the start; 0 = tokens */
  int64_t batch;  /* windows of a step */
  uint64_t seed;  /* which windows are drawn */
  double rate; /* 0 = recover_default_rate; AdamW's, risen to over a tenth of the steps, then half a
                  cosine down to 0 */
  int64_t lora_rank; /* above 0: adapters of that rank are tuned in place of the weights
                        themselves and merged under the masks (learn/lora.h) */
  /* What is minimised. With a share of the teacher's, `teacher` is the dense model: another than
   * the one that is tuned. */
  struct model_objective objective;
  const struct model *teacher;
  enum precision precision;
  /* Where the state is kept (learn/state_file.h), made when it is first written: every
   * `checkpoint_seconds`, and when work is interrupted. NULL: nowhere. With `resume`, what lies
   * there is gone on from, with the same bits as if nothing had happened, or refused where it is of
   * other settings, weights, masks or text; the caller removes it when all is done. */
  const char *state;
  double checkpoint_seconds;
  bool resume;
};

/* Read off between a rate that did well for 135 million weights and one for a quarter of a million:
 * small models take high rates, adapters (rank above 0) lower ones
 * as their rank grows. docs/LEARNING.md has the figures. */
double recover_default_rate(const struct model *model, int64_t lora_rank);

struct recover_report {
  int64_t steps, weights; /* kept weights that were tuned, or numbers of adapters */
  double rate;            /* the highest */
  double dense_loss;      /* held-out, nats per token: of the model as it came */
  double masked_loss;     /* with the mask, before */
  double loss;            /* and after */
  double kl;       /* of the last step's tokens: the divergence from the teacher, nats per token, */
  double distance; /* and from its states; 0 where not asked for */
  double seconds, tokens_per_second;
};

/* Tunes the linears that `masks` name, in `model`, which afterwards holds them in fp32 with zeros
 * where the masks drop; linears without a mask, embeddings and norms stay. Some of the windows are
 * set aside for the held-out loss. 16 bytes a weight of those linears (adapters: learn/tuning.h).
 * STATUS_REFUSED for a packed model, masks that do not fit, a teacher that does not, or too little
 * text; STATUS_FAILED when the loss is no number; STATUS_INTERRUPTED when it was asked to stop. */
enum status recover_run(struct model *model, const struct mask_set *masks,
                        const struct windows *windows, const struct recover_settings *settings,
                        struct recover_report *report, struct error *err);

#endif
