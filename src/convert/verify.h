/* Recounting what a file says of itself, and holding it against the model it came from. */
#ifndef TSR_CONVERT_VERIFY_H
#define TSR_CONVERT_VERIFY_H

#include "model/model.h"

struct verification {
  int64_t matrices;        /* pruned or quantized ones */
  int64_t positions, kept; /* over all prunable weights that are known */
  int64_t nonzero;         /* -1 for a mask */
  int64_t tiles_dense, tiles_sparse;
  int64_t compared; /* weights held against the other model */
};

/* A mask file: every code and count; that the density it names is the one it has (with `against`
 * alone can linears without a mask be counted), that an n:m mask keeps n of every m; and that it
 * fits `against`, unless NULL. The first thing wrong is STATUS_REFUSED. */
enum status verify_masks(const struct mask_set *masks, const struct model *against,
                         struct verification *out, struct error *err);

/* A model: packed matrices nibble by nibble, the density and number of matrices its config.json
 * names, no NaN among the weights. With `against`, every weight that is kept (in a dense
 * checkpoint: that is not zero), and every other tensor, equals the one of that model, rounded to
 * the stored type, or quantized as `pack` does it. `tile` is the side of the tiles looked for in
 * dense checkpoints. */
enum status verify_model(const struct model *model, const struct model *against, int64_t tile,
                         struct verification *out, struct error *err);

#endif
