/* The state of a learning run: the logits of every learned linear, the tap through which the model
 * sees W * M instead of W and hands back gradients, and one optimizer step.
 *
 * Of mask size, this holds the logits with their moments and gradient, and nothing else: W * M and
 * its gradient exist for one linear at a time, in two buffers of the largest linear. */
#ifndef TSR_LEARN_LEARNER_H
#define TSR_LEARN_LEARNER_H

#include "data/windows.h"
#include "learn/adamw.h"
#include "learn/groups.h"
#include "learn/tiles.h"
#include "model/model.h"

struct learn_site {
  const struct linear_site *site;
  struct mask_matrix mask;    /* tiles and codes: frozen, or what the logits harden to */
  struct group_logits groups; /* joint and maskllm */
  int64_t first_tile;         /* of this linear in learner.tiles */
  double weight_squares;      /* ||W||^2 */
  double masked_squares;      /* sum of (w M)^2 in the sample of the forward pass at hand */
};

struct learner {
  const struct model *model;
  struct learn_settings settings;
  struct learn_site *sites;
  int site_count;
  int *site_of; /* (model_site_count) index into sites, -1 = left dense */
  int64_t learned_weights, left_dense_weights;
  struct tile_logits tiles;            /* empty in maskllm mode */
  double weight_squares, weight_norms; /* sums over sites of ||W||^2 and ||W|| */
  int64_t step;                        /* steps done */

  struct model_workspace *workspace;
  float *masked;                      /* (largest linear) W * M, f32, or bf16 in its front half */
  float *gradient;                    /* (largest linear) dL/d(W * M) */
  struct linear_weight masked_weight; /* what the tap answers with */
  int formed;                         /* the site whose W * M is in `masked`, -1 = none */
  double mask_seconds;                /* spent on masks in this step */
  int32_t *ids;                       /* (micro, window) */

  /* the sample in use */
  struct relaxation relax_tile, relax_24;
  bool noise;
  uint32_t draw;             /* number of the sample of the noise */
  int64_t micro;             /* number of the micro-batch in the step */
  double regularizer_weight; /* of this step, over the number of micro-batches */
  double regularizer_value;  /* R, averaged over the micro-batches of the step */
};

/* Everything for `settings` (resolved), with zero logits. skip (model_site_count) says which
 * linears stay dense. STATUS_REFUSED for a packed model, weights that are no numbers, or a density
 * out of reach. */
enum status learner_init(struct learner *l, const struct model *model,
                         const struct learn_settings *settings, const bool *skip,
                         struct error *err);
void learner_free(struct learner *l);
/* Bytes that learner_init takes, the model's workspace included. */
size_t learner_bytes(const struct model *model, const struct learn_settings *settings);

struct step_result {
  double loss; /* mean nll per predicted token, in nats */
  double kl;   /* mean KL from the dense model, in nats; 0 without distillation */
  double regularizer;
  double density_soft; /* of the last sample */
  double gradient_norm;
  double learning_rate; /* the share of the rates that the schedule gives */
  int64_t flips_24;     /* groups whose argmax differs from the step before */
  double mask_seconds;  /* of the step: sampling, mask gradients, the optimizer */
};
/* The gradient of one step, in the logits' gradient members, on the windows that the sampler draws
 * for it: draws are numbered step * batch + i over `train` (train_count), window indices.
 * STATUS_FAILED with what to do when the loss or the gradient is no number. */
enum status learner_gradient(struct learner *l, const struct windows *windows, const int64_t *train,
                             int64_t train_count, struct step_result *result, struct error *err);
/* That, and the update. */
enum status learner_step(struct learner *l, const struct windows *windows, const int64_t *train,
                         int64_t train_count, struct step_result *result, struct error *err);

/* Hardens the logits into the sites' masks: codes to the argmax candidates; tiles by their sign
 * and, with `project`, moved to the exact density. *density_before gets the density before the
 * projection, *moved the number of tiles it changed. */
enum status learner_harden(struct learner *l, bool project, double *density_before, int64_t *moved,
                           struct error *err);
/* The argmax candidates into the sites' codes. Returns how many groups changed. */
int64_t learner_harden_groups(struct learner *l);
/* Writes a choice of tiles (tiles.count) into the sites' masks. */
void learner_place_tiles(struct learner *l, const bool *dense);
/* Mean nll per predicted token over windows `which` (count): with the sites' hard masks, or of the
 * dense model. */
enum status learner_loss(struct learner *l, const struct windows *windows, const int64_t *which,
                         int64_t count, bool dense, double *nll, struct error *err);

#endif
