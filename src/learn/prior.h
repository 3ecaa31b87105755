/* What a run starts from: a one-shot 2:4 (n:m) mask and a score for every tile.
 *
 * In its canonical form a prior is a set of hybrid (tiled) masks, one for each learned linear, with
 * tile scores at the run's tile size. It comes from mask files, or is made by SparseGPT. */
#ifndef TSR_LEARN_PRIOR_H
#define TSR_LEARN_PRIOR_H

#include "learn/learner.h"
#include "prune/prune.h"

enum { PRIOR_FILES_MAX = 2 };

/* Where calibration tokens come from when a prior has to be made or completed: called at most
 * once. */
struct prior_calibration {
  void *ctx;
  enum status (*get)(void *ctx, const struct calibration **out, struct error *err);
};

/* The prior of `files` (at most PRIOR_FILES_MAX): the mask of the run's pattern of the first that
 * has one, tile scores of the first that has them: its own at the run's tile size, the share of
 * kept entries of an unstructured mask, or the tile map of a hybrid one. Scores that none gives are
 * Wanda's. No files: SparseGPT's. `prune` carries the skips. STATUS_REFUSED when the files do not
 * fit the model, or when none has a mask of the pattern. */
enum status prior_prepare(struct mask_set *prior, struct learner *l, struct model *model,
                          const struct prune_settings *prune, const char *const *files,
                          int file_count, const struct prior_calibration *calibration,
                          struct error *err);

/* Sets codes and all logits from the prior and the seed, as the settings say:
 *   2:4   (overlap - 1) * init_std * prior_strength_24, in place of random logits; added to them in
 *         maskllm mode. overlap = kept entries that candidate and prior share.
 *   tile  random + init_std * prior_strength_tile * s. s is +1 for the best-scored tiles (of each
 *         linear, or of the region) and -1 for the rest, or a unit logistic quantile of the tile's
 *         rank, 0 where the prior's dense tiles end. */
enum status prior_apply(const struct mask_set *prior, struct learner *l, struct error *err);

/* The prior's own hard mask at the exact density, in the sites' masks. */
enum status prior_harden(const struct mask_set *prior, struct learner *l, struct error *err);

#endif
