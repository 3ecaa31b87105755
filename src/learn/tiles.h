/* The tile logits: one number a tile, from which the soft probability T that it stays dense.
 *
 *   T_i = sigmoid((kappa * (p_i + c) + z_i) / tau)
 *
 * z is the difference of two Gumbel variables, which is one logistic variable. c is the shift: one
 * number that all tiles of a region (the model, or one block) share, solved for in every step so
 * that the expected density of the very T that the step uses is the target:
 *
 *   sum_i gain_i T_i = target,   gain_i = weights that tile i keeps more when dense
 *
 * A target may also be a time (learn/cost.h): gain_i is then what the tile's weights cost when they
 * are kept, in picoseconds, and everything else stays as it is.
 *
 * c depends on all p of its region, and the gradient goes through it:
 *
 *   dL/dp_i = g_i T'_i - gain_i T'_i * (sum_j g_j T'_j) / (sum_j gain_j T'_j)
 *
 * so that a step moves density between tiles and never changes its sum. With the paper's soft rule
 * c is 0 and the loss gets l1 * mean over regions |density - rho|.
 *
 * State: logits, Adam's moments, and the last sample with the gradient that is gathered for it. */
#ifndef TSR_LEARN_TILES_H
#define TSR_LEARN_TILES_H

#include "learn/schedule.h"
#include "sparse/mask.h"

struct tile_logits {
  int64_t count;
  float *logit;             /* (count) p */
  float *moment1, *moment2; /* (count) AdamW's */
  float *gradient;          /* (count) dL/dp, summed over micro-batches */
  float *gain;              /* (count) in units of the target; whole numbers */
  float *weights;           /* (count) weights that a tile keeps more when dense */
  float *noise;             /* (count) z of the current sample; zeros without noise */
  float *soft;              /* (count) T of the current sample */
  float *slope;             /* (count) T' = dT/dp at fixed shift */
  double *soft_gradient;    /* (count) dL/dT of the current sample; whoever computes it adds here */
  struct tile_region *regions;
  int region_count;
  bool timed; /* the target is a time */
  struct tile_sum {
    double value, slope;
  } * partial; /* workspace for sums in chunks */
};

/* A run of tiles that has a density target of its own. */
struct tile_region {
  int64_t first, count; /* tiles */
  int64_t total;        /* prunable weights, those of linears left dense included; or time */
  int64_t base;         /* of them kept when every tile is 2:4, those left dense included */
  double target;        /* to keep: share * total */
  double shift;         /* c of the current sample */
  int64_t total_weights, base_weights; /* total and base in weights */
};

/* Tiles of `matrices` in order. region_of (matrix_count) ascends from 0; region_total holds the
 * prunable weights of each region. STATUS_REFUSED when a region cannot reach `density` because too
 * much of it is left dense. The logits are zero. */
enum status tiles_init(struct tile_logits *tiles, const struct mask_matrix *matrices,
                       const int *region_of, int64_t matrix_count, const int64_t *region_total,
                       int region_count, double density, struct error *err);
/* Turns the target of the only region into a time: at most `share` of total_ps, the time when all
 * is dense; price (matrix_count) is what each weight kept more costs, in ps. STATUS_REFUSED when
 * that is out of reach. */
enum status tiles_aim_at_time(struct tile_logits *tiles, const struct mask_matrix *matrices,
                              int64_t matrix_count, const double *price, int64_t total_ps,
                              double share, struct error *err);
void tiles_free(struct tile_logits *tiles);

/* Fills noise with logistic variables that are a function of (seed, sample, tile) alone, or with
 * zeros. `sample` numbers the samples: one a step, or one a micro-batch. */
void tiles_draw_noise(struct tile_logits *tiles, uint64_t seed, uint64_t sample);
void tiles_clear_noise(struct tile_logits *tiles);
/* soft, slope and shift from logit and noise; clears soft_gradient. */
void tiles_relax(struct tile_logits *tiles, struct relaxation r, enum learn_density rule);
/* Adds to gradient what soft_gradient means for the logits, and under the soft rule the gradient
 * of l1 * tiles_density_error. */
void tiles_backward(struct tile_logits *tiles, enum learn_density rule, double l1);

/* Expected density of the current sample over all prunable weights. */
double tiles_density(const struct tile_logits *tiles);
/* The mean over regions of the distance from the target, as a share of total: |density - rho|. */
double tiles_density_error(const struct tile_logits *tiles);

/* dense (count): whether p + c > 0, c being the shift without noise (0 under the soft rule).
 * Overwrites the current sample. */
void tiles_harden(struct tile_logits *tiles, struct relaxation r, enum learn_density rule,
                  bool *dense);
/* Makes the tiles with the largest scores (count) dense until what each region keeps is within one
 * tile of its target. With the logits as scores, that moves the hardened tiles that lie nearest
 * the threshold. *moved gets how many tiles changed (may be NULL). */
enum status tiles_project(const struct tile_logits *tiles, const float *scores, bool *dense,
                          int64_t *moved, struct error *err);
/* Density of a choice of tiles. */
double tiles_hard_density(const struct tile_logits *tiles, const bool *dense);
/* The share of total that it takes, in units of the target. */
double tiles_hard_share(const struct tile_logits *tiles, const bool *dense);

#endif
