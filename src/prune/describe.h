/* What a mask says of itself in its metadata: how it was made, and nothing about where or when. */
#ifndef TSR_PRUNE_DESCRIBE_H
#define TSR_PRUNE_DESCRIBE_H

#include "prune/prune.h"

/* Both masks of a pass (`unstructured` may be NULL) of a model with `total` prunable weights.
 * `calibration`: NULL where none was used. */
enum status prune_describe(struct mask_set *masks, struct mask_set *unstructured,
                           const struct prune_settings *settings,
                           const struct calibration *calibration, int64_t total, struct error *err);
/* What is kept, alone: pattern, sparsity asked for, density reached. */
enum status prune_describe_kept(struct mask_set *set, const char *pattern, double sparsity,
                                int64_t total, struct error *err);

#endif
