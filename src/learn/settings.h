/* Every number that decides what a learning run does, and the defaults.
 *
 * A setting that was not given is NAN (reals), 0 (counts) or -1 (choices) until
 * learn_settings_resolve fills it. The defaults depend on the mode and on the token budget: the
 * paper's settings belong to runs of two billion tokens and do harm to one of twenty thousand
 * (they spend a short run far from any hard mask), so each number is read off between a value for
 * short runs, found by experiment, and the paper's. What they became goes into the run's record. */
#ifndef TSR_LEARN_SETTINGS_H
#define TSR_LEARN_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "io/json.h"
#include "kernel/precision.h"
#include "model/model.h"

enum learn_mode { LEARN_JOINT, LEARN_TILE, LEARN_MASKLLM, LEARN_MODES };
extern const char *const learn_mode_name[LEARN_MODES];

/* How the density is kept at its target: by a shift of the tile logits that is solved for in every
 * step (tiles.h), or by the paper's loss term l1 * |density - rho|. */
enum learn_density { DENSITY_HELD, DENSITY_SOFT, DENSITY_RULES };
/* Gumbel noise: one sample a step, one for each micro-batch, or none. */
enum learn_noise { NOISE_STEP, NOISE_MICRO, NOISE_NONE, NOISE_RULES };
/* -l2 * (1 - step / steps) * R. R: sum ||M W||^2 / sum ||W||^2 (paper), sum ||M W|| / sum ||W||
 * (reference code; no denominator in maskllm mode), or sum ||M W||^2, not annealed (MaskLLM). */
enum learn_regularizer {
  REGULARIZER_NONE,
  REGULARIZER_PAPER,
  REGULARIZER_REFERENCE,
  REGULARIZER_MASKLLM,
  REGULARIZERS
};
/* Which tiles the prior holds dense: the best of each linear (the paper), or of the whole model
 * (of each block with per_block). Each gets +1 or -1, or a normal score by its rank. */
enum learn_tile_prior { TILE_PRIOR_LINEAR, TILE_PRIOR_GLOBAL, TILE_PRIOR_RANK, TILE_PRIORS };

extern const char *const learn_density_name[DENSITY_RULES];
extern const char *const learn_noise_name[NOISE_RULES];
extern const char *const learn_regularizer_name[REGULARIZERS];
extern const char *const learn_tile_prior_name[TILE_PRIORS];

/* The two numbers of the relaxation, linear in the step. */
struct learn_anneal {
  double kappa_first, kappa_last;
  double tau_first, tau_last;
};

struct cost_table; /* learn/cost.h */
struct backend;    /* kernel/backend.h */

struct learn_settings {
  enum learn_mode mode;
  double sparsity; /* 0 to 1 - n / m; the target density is 1 - sparsity */
  /* Of decoding over the dense model, in place of a sparsity; NAN = not given. `sparsity` is then
   * what 2:4 tiles spread evenly would have, and `costs` (not owned) is not NULL. */
  double speedup;
  const struct cost_table *costs;
  bool recompute; /* activations: only each block's input is kept (no part of the identity: the same
                     bits) */
  bool compact;   /* 2:4 logits and moments in 8.1 bytes a weight in place of 21: another result, of
                     the   same mean (kernel/mask_compact.h) */
  /* No part of the identity, for they give the same bits; on a card only: moments lie in the host's
   * memory and come by, linear by linear; what a step queues is replayed as graphs. */
  bool offload, graphs;
  const struct backend *backend; /* where it runs (not owned, no part of a run's identity); NULL:
                                    on the CPU */
  int64_t tile_rows, tile_cols;
  int keep, of;   /* n and m of what tiles that are not dense keep; 0: 2:4 */
  bool per_block; /* every transformer block has the target density */
  uint64_t seed;

  int64_t tokens; /* the budget; what does not fill a step is left unused */
  int64_t window; /* tokens of a sequence */
  int64_t batch;  /* sequences of a step */
  int64_t micro;  /* sequences at a time: a step is batch / micro forward and backward passes */
  int64_t steps;  /* follows from the four above */
  int64_t heldout_windows;
  int64_t evaluations; /* times the held-out loss is measured, the one before learning aside */

  int density, noise, regularizer, tile_prior; /* the enums above */
  int precision;                               /* enum precision, of the model's products */
  int distill_kind;                            /* enum distill_kind */
  int64_t distill_k;                           /* tokens of DISTILL_TOP, else 0 */

  double lr_tile, lr_24;
  int64_t warmup_steps;
  double lr_floor; /* the cosine ends at this share of the rate */
  double beta1, beta2, adam_eps, weight_decay, clip;
  struct learn_anneal tile, two_four;
  double l1, l2;
  double distill; /* share of the divergence from the dense model, beside the text's nll */
  double match;   /* share, of the whole loss, of the distance from its states between blocks */

  double init_std;
  double prior_strength_tile, prior_strength_24;
};

/* All settings unset but the mode. */
void learn_settings_unset(struct learn_settings *settings, enum learn_mode mode);

/* Fills what is unset and checks the whole; STATUS_USAGE names the option at fault. `context` is
 * the model's context length. */
enum status learn_settings_resolve(struct learn_settings *settings, int64_t context,
                                   struct error *err);

/* The three settings of distillation that recovery has, too: fills what is unset (kind -1, k 0),
 * and refuses by name what is asked for without need. */
enum status learn_check_distill(int *kind, int64_t *k, double share, struct error *err);

/* As one flat JSON object, new reference: what config.json and the record's first line hold, and
 * what --resume compares. */
json_t *learn_settings_to_json(const struct learn_settings *settings);

/* What other patterns do in files and kernels of their own. */
static inline bool learn_is_24(const struct learn_settings *s) {
  return s->keep == 2 && s->of == 4;
}
/* What the model's passes minimise, and whether the dense model has to run for it. */
static inline struct model_objective learn_objective(const struct learn_settings *s) {
  return (struct model_objective){{(enum distill_kind)s->distill_kind, s->distill_k, s->distill},
                                  s->match};
}
static inline bool learn_has_teacher(const struct learn_settings *s) {
  const struct model_objective objective = learn_objective(s);
  return model_has_teacher(&objective);
}
/* The sparsity when no tile is dense. */
static inline double learn_most_sparsity(const struct learn_settings *s) {
  return 1 - (double)s->keep / s->of;
}
static inline bool learn_uses_tiles(const struct learn_settings *s) {
  return s->mode != LEARN_MASKLLM;
}
static inline bool learn_uses_groups(const struct learn_settings *s) {
  return s->mode != LEARN_TILE;
}

#endif
