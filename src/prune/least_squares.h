/* Least squares under a mask: which kept weights make up best for the dropped ones. */
#ifndef TSR_PRUNE_LEAST_SQUARES_H
#define TSR_PRUNE_LEAST_SQUARES_H

#include "sparse/mask.h"

/* For each row, v minimizes
 *   sum over tokens of (w . x - v . z)^2 + ridge * |v - w o m|^2,   v = 0 where m drops,
 * w being the row's weights, m its mask, x the input that the dense linear sees and z the one that
 * the masked linear sees. The tokens come as two sums over them:
 *   h (cols, cols)  z z^T, both triangles
 *   c (cols, cols)  x z^T
 *   w, v (rows, cols)
 * Conjugate gradients from w o m, all rows at a time, preconditioned by the diagonal: each
 * iteration is one product with h instead of a factorization for every row, and few iterations stay
 * near where they began, which is a second ridge. The same bits at any number of threads. */
enum status least_squares_masked(const struct mask_matrix *mask, const float *w, const float *h,
                                 const float *c, double ridge, int64_t iterations, float *v,
                                 struct error *err);

#endif
