/* One-shot pruning of a model: magnitude, Wanda, SparseGPT or scores from the loss's gradient, as
 * 2:4, n:m, unstructured or hybrid.
 *
 * Blocks are pruned in order. Each is calibrated on what the pruned blocks before it give: the
 * block runs over the calibration tokens once to gather its inputs' moments, its seven linears are
 * pruned (q, k, v share one Hessian, gate and up another), and it runs again, pruned, to make the
 * next block's input. Memory: one buffer of hidden states for all calibration tokens, the Hessians
 * of one block, and the weights of one block in fp32.
 *
 * Hybrid masks come out of the pass that makes a 2:4 mask: it notes what each tile loses per weight
 * (prune/scored.h, prune/sparsegpt.h), and afterwards the costliest tiles of the whole model stay
 * dense, so many that the density is met to within one tile (sparse/project.h). While the pass
 * runs, later blocks see every earlier tile as 2:4: which stay dense is known only at its end. When
 * the weights are updated too, a second pass prunes with the tiles fixed. */
#ifndef TSR_PRUNE_PRUNE_H
#define TSR_PRUNE_PRUNE_H

#include "kernel/backend.h"
#include "model/model.h"
#include "prune/calibration.h"
#include "prune/rule.h"

enum prune_method {
  PRUNE_MAGNITUDE,
  PRUNE_WANDA,
  PRUNE_SPARSEGPT,
  PRUNE_TAYLOR, /* first-order scores of the loss's gradient (prune/gradients.h) */
  PRUNE_FISHER  /* second-order ones */
};
/* Methods that score the dense model once, before the layer loop, which they do without. */
static inline bool prune_takes_gradients(enum prune_method method) {
  return method == PRUNE_TAYLOR || method == PRUNE_FISHER;
}

enum { PRUNE_SKIP_MAX = 64 };
struct prune_settings {
  const struct backend *backend; /* where passes over the model run (not owned); NULL: the CPU */
  enum prune_method method;
  enum prune_pattern pattern;
  int keep, of;                 /* n and m of PRUNE_N_M and PRUNE_HYBRID */
  double sparsity;              /* of all prunable weights (hybrid), of the pruned linears
                                   (unstructured); ignored by 2:4 and n:m */
  int64_t tile_rows, tile_cols; /* all but unstructured */
  double damping;               /* SparseGPT: share of the mean diagonal */
  int64_t block;                /* SparseGPT: columns per block */
  bool update_weights;          /* SparseGPT: later blocks see, and the model keeps, the weights
                                   that make up for what was dropped */
  double unstructured_sparsity; /* for a second, unstructured mask; see prune_run */
  const char
      *skip[PRUNE_SKIP_MAX]; /* globs (fnmatch) on tensor names; matching linears stay dense */
  int skip_count;
};
/* SparseGPT, 2:4, tiles of 128, damping 0.01, nothing skipped. */
struct prune_settings prune_defaults(void);

/* STATUS_USAGE with a sentence when the settings contradict each other. */
enum status prune_check(const struct prune_settings *settings, struct error *err);
bool prune_skips(const struct prune_settings *settings, const char *name);

struct prune_report {
  int dampened;         /* Hessians that needed more damping than asked for */
  double worst_damping; /* the most that one took */
  int64_t dead;         /* input features that no calibration token uses, over all linears */
};

/* Prunes into *masks (and its metadata), which must be zeroed. `calibration` may be NULL for
 * magnitude. With `unstructured` (zeroed, or NULL), the same pass also makes an unstructured mask
 * of unstructured_sparsity from the same moments. The model keeps its weights unless
 * settings->update_weights. Polls for interrupts; on failure nothing is left in the sets. */
enum status prune_run(struct model *model, const struct prune_settings *settings,
                      const struct calibration *calibration, struct mask_set *masks,
                      struct mask_set *unstructured, struct prune_report *report,
                      struct error *err);

/* Chooses the dense tiles of hybrid, 2:4 or n:m masks anew, for another sparsity (0 to 1 - n / m),
 * from the tile scores that they carry: what a pruning pass with that sparsity would have chosen.
 * Updates their metadata. STATUS_REFUSED when a mask has no scores or another pattern than the
 * others, or does not fit the model. */
enum status prune_retile(const struct model *model, struct mask_set *masks, double sparsity,
                         struct error *err);

/* "hybrid", "hybrid-n:m", "unstructured", "2:4" or another "n:m" into settings->pattern, keep and
 * of. */
enum status prune_pattern_parse(const char *text, struct prune_settings *settings,
                                struct error *err);
const char *prune_method_name(enum prune_method method);
/* "2:4", "4:8", "unstructured", "hybrid" (of 2:4) or "hybrid-4:8" into text[16]. */
void prune_pattern_name(const struct prune_settings *settings, char text[16]);
/* The last two, of n and m. */
void prune_hybrid_name(int keep, int of, char text[16]);

#endif
