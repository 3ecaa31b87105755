/* The archive of masks that PATCH publishes (docs/FORMAT.md). */
#ifndef TSR_SPARSE_MASK_NPZ_H
#define TSR_SPARSE_MASK_NPZ_H

#include "sparse/mask.h"

/* Reads one; hybrid and 2:4 masks are recognised, with the largest tile of 128, 64, ... 4 that fits
 * all matrices; otherwise they stay bit masks. mask_load calls this. */
enum status mask_npz_load(struct mask_set *set, const char *path, struct error *err);
/* Writes one. `meta_json` is the text of its __meta__. */
enum status mask_npz_save(const struct mask_set *set, const char *path, const char *meta_json,
                          struct error *err);

#endif
