/* What a card offers to SparseGPT beyond kernel/backend.h: the factor of the Hessian and the walk
 * over columns. The method is prune/sparsegpt.h's, the factorisation kernel/cholesky.h's; on the
 * CPU those do it, and a backend's table of these is NULL.
 *
 * All pointers lie in the backend's memory. Operations are queued, as in backend.h: the first that
 * fails is said by the next `download` or `wait`. The same calls give the same bits. */
#ifndef TSR_KERNEL_SPARSEGPT_H
#define TSR_KERNEL_SPARSEGPT_H

#include <stdint.h>

/* Columns of a walk at most, and the words of 32 columns that say what stays of a row of them. */
enum { SPARSEGPT_WALK_MAX = 128, SPARSEGPT_WORDS = SPARSEGPT_WALK_MAX / 32 };

/* One block of columns of one matrix. */
struct sparsegpt_walk {
  float *w; /* (rows, cols): pruned in the block, made up for behind it */
  int64_t rows, cols;
  const float *u;       /* (cols, cols), as in prune/sparsegpt.h */
  int64_t begin, width; /* the block's columns, 1 to SPARSEGPT_WALK_MAX; whole groups */
  int keep, of;         /* of each group of `of` columns the best `keep` stay; keep 0: `chosen`
                           was filled beforehand */
  uint32_t *chosen;     /* (rows, SPARSEGPT_WORDS): bit i % 32 of word i / 32 is column begin + i */
  const uint8_t *tiles; /* (tile rows, tile columns): 1 drops nothing, whatever was chosen; NULL */
  int64_t tile_rows, tile_cols; /* tile_cols a multiple of `of`; where there are tiles or costs */
  float *cost;   /* (rows, tile columns) += (w / u_jj)^2 of what is dropped, or NULL */
  float *errors; /* scratch (rows, width) */
};

struct sparsegpt_ops {
  /* u (n, n) = the upper Cholesky factor of the inverse of H, as cholesky_inverse_upper gives it.
   * H = scale * products + added * I, with 1 for scale * products_ii where that is 0; products
   * (n, n) is symmetric. *failed (zero before) becomes 1 where H is not positive definite. */
  void (*factor)(const float *products, int64_t n, double scale, double added, float *u,
                 uint32_t *failed);
  /* to[r * to_stride + c] = from[r * from_stride + c]: rows of a matrix, or with strides of n + 1
   * its diagonal. */
  void (*copy_matrix)(float *to, int64_t to_stride, const float *from, int64_t from_stride,
                      int64_t rows, int64_t cols);
  /* scores (rows, width) of the block's weights as they are now. */
  void (*score)(const struct sparsegpt_walk *walk, float *scores);
  void (*walk)(const struct sparsegpt_walk *walk);
};

#endif
