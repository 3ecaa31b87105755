/* What a model is: its size, and which of its linears are pruned how. */
#ifndef TSR_CONVERT_INSPECT_H
#define TSR_CONVERT_INSPECT_H

#include "model/model.h"
#include "sparse/detect.h"

struct inspected_linear {
  const char *name; /* the model's */
  int64_t rows, cols;
  char pattern[16];                  /* "hybrid", "2:4", "dense", ...; empty when not known */
  int64_t tiles_dense, tiles_sparse; /* -1 when not known */
  int64_t kept, nonzero;             /* positions; -1 when not known */
};

struct inspection {
  struct inspected_linear *linears; /* (count), in the model's order */
  int count;
  int64_t parameters, linear_parameters;
  int64_t kept, nonzero; /* over all linears; -1 when one is not known */
};

/* With `scan` the weights of all linears are read, and the tile map (tiles of `tile` x `tile`) and
 * pattern of dense checkpoints found. Without, headers only: a packed linear's tile map is known,
 * of others nothing. A packed linear is never looked for other tiles than its own. */
enum status inspect_model(struct inspection *out, const struct model *model, bool scan,
                          int64_t tile, struct error *err);
void inspection_free(struct inspection *i);

/* Bits of the positions of a site's weight that are not zero (NaN counts as not zero). */
enum status inspect_nonzero(const struct model *model, int site, struct mask_matrix *out,
                            struct error *err);

/* The masks that a model's weights speak of: of packed linears their own, of others those that
 * their zeros fit in tiles of `tile` x `tile`. Linears without a 2:4 tile get none; STATUS_REFUSED
 * when that is all of them, unless there may be none. */
enum status inspect_masks(const struct model *model, int64_t tile, bool may_be_none,
                          struct mask_set *out, struct error *err);

#endif
