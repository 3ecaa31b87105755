/* Magnitude and Wanda pruning of one matrix: a weight's score is |w| times what its input
 * typically is (Sun et al., "A simple and effective pruning approach for large language models",
 * ICLR 2024), or |w| alone. */
#ifndef TSR_PRUNE_SCORED_H
#define TSR_PRUNE_SCORED_H

#include "prune/rule.h"

/* w (rows, cols). norms (cols): sqrt(mean over tokens of x_j^2), or NULL for magnitude, and for
 * scores that were made elsewhere (prune/gradients.h) and stand in w's place.
 * Unstructured: Wanda drops the same share of every row, magnitude of the whole matrix; the counts
 * are exact over the matrix. Tile scores: the sum of the dropped scores per weight of the tile. */
enum status prune_scored(const struct prune_rule *rule, const char *name, const float *w,
                         int64_t rows, int64_t cols, const float *norms, struct mask_matrix *out,
                         struct error *err);

#endif
