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
#include "learn/pattern.h"
#include "learn/tiles.h"
#include "model/model.h"

struct learn_site {
  const struct linear_site *site;
  struct mask_matrix mask;       /* tiles and codes: frozen, or what the logits harden to */
  uint8_t *codes, *dense;        /* the same codes (bits) and tiles in the backend's memory */
  struct group_logits groups;    /* joint and maskllm */
  struct pattern_logits pattern; /* the same under another pattern than 2:4 */
  int64_t first_tile;            /* of this linear in learner.tiles */
  double weight_squares;         /* ||W||^2 */
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

  /* where it runs: place.c */
  const struct backend *ops;
  struct model *placed;     /* the model in the backend's memory, unless that is the host's */
  const struct model *runs; /* the model that passes run over: `placed`, or `model` */
  bool masks_changed;       /* on the host, since they were sent to the backend */
  struct model_workspace *workspace;
  /* in the backend's memory: */
  void *masked;    /* (largest linear) W * M, f32, or bf16 in its front half */
  float *gradient; /* (largest linear) dL/d(W * M) */
  double *sums;    /* (site_count) sum of (w M)^2 in the sample of the forward pass at hand */
  double *gradient_squares;              /* (site_count) of the logits' gradients */
  uint64_t *flips;                       /* (1) groups whose argmax changed in the update */
  void *moment_buffers[BACKEND_BUFFERS]; /* offload: moments of a linear on their way */
  float *tile_soft;                      /* (tiles.count) T of the sample in use */
  double *tile_gradient;                 /* (tiles.count) dL/dT */
  double *host_sums;                     /* (site_count + 1) the host's, for bringing sums there */

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
  double loss;     /* mean nll per predicted token, in nats */
  double kl;       /* mean divergence from the dense model, in nats; 0 without distillation */
  double distance; /* mean relative squared distance from its states; 0 without matching */
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
/* The argmax candidates into the sites' codes. */
enum status learner_harden_groups(struct learner *l, struct error *err);
/* To be called when the sites' masks were changed by others than these functions. */
void learner_masks_changed(struct learner *l);
/* Writes a choice of tiles (tiles.count) into the sites' masks. */
void learner_place_tiles(struct learner *l, const bool *dense);
/* Mean nll per predicted token over windows `which` (count): with the sites' hard masks, or of the
 * dense model. */
enum status learner_loss(struct learner *l, const struct windows *windows, const int64_t *which,
                         int64_t count, bool dense, double *nll, struct error *err);

/* --- pattern_step.c: what the backend does for 2:4, under another pattern --- */

void learner_pattern_sample(struct learner *l, struct learn_site *s, struct matrix_view w,
                            enum dtype out_dtype);
void learner_pattern_gradient(struct learner *l, struct learn_site *s, struct matrix_view w,
                              struct mask_decay decay, enum dtype out_dtype);
/* Returns how many groups' hard choices changed. */
int64_t learner_pattern_update(struct learn_site *s, const struct mask_adamw *settings);

/* --- place.c: between the host and the backend; on the CPU there is nothing to copy --- */

/* All that lies in the backend's memory but the logits; `largest` linear in weights. */
enum status learner_place(struct learner *l, int64_t largest, struct error *err);
void learner_unplace(struct learner *l);
/* The sites' masks, where they changed; T of the sample that was drawn, with zero gradients. */
enum status learner_send_masks(struct learner *l, struct error *err);
enum status learner_send_sample(struct learner *l, struct error *err);
/* dL/dT into tiles.soft_gradient; `count` of the sums into host_sums. */
enum status learner_take_tile_gradient(struct learner *l, struct error *err);
enum status learner_take_sums(struct learner *l, const double *sums, int count, struct error *err);

#endif
