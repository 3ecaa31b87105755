/* SparseGPT pruning of one matrix (Frantar and Alistarh, "SparseGPT: massive language models can be
 * accurately pruned in one-shot", ICML 2023). */
#ifndef TSR_PRUNE_SPARSEGPT_H
#define TSR_PRUNE_SPARSEGPT_H

#include "prune/rule.h"

enum { SPARSEGPT_BLOCK = 128 }; /* columns per block, unless told otherwise */

/* Columns are visited from left to right. A weight's score is w^2 / u_jj^2; what a dropped weight
 * loses is made up for by the weights to its right: w_k -= w_j / u_jj * u_jk.
 *   w (rows, cols)  in: the weights, zero in dead columns; out: pruned and updated
 *   u (cols, cols)  the upper Cholesky factor of the inverse Hessian
 *   block           columns whose updates wait for one product; unstructured masks are chosen
 *                   block by block, over all rows. Rounded down to whole groups.
 * Tile scores: the sum of w^2 / u_jj^2 over the dropped weights, per weight of the tile; tiles that
 * rule->dense_tiles keeps drop nothing. */
enum status prune_sparsegpt(const struct prune_rule *rule, const char *name, float *w, int64_t rows,
                            int64_t cols, const float *u, int64_t block, struct mask_matrix *out,
                            struct error *err);

/* --- what the walk on a card shares (prune/far_sparsegpt.h) --- */

int64_t sparsegpt_group(
    const struct prune_rule *rule); /* columns that are decided about together */
int64_t sparsegpt_block(const struct prune_rule *rule, int64_t block); /* rounded, as said above */
/* Unstructured: sets the bits of columns begin .. begin + width from their scores (rows, width):
 * the smallest of the block over all rows go. */
void sparsegpt_cut(const struct prune_rule *rule, const float *scores, int64_t begin, int64_t width,
                   struct mask_matrix *mask);

#endif
