/* The CUDA column's part in SparseGPT: see kernel/sparsegpt.h. The factor goes the way of
 * kernel/cholesky.c: blocks on the diagonal by a kernel of their own, in fp64, all else as products
 * of the library. */
#include "base/error.h"
#include "kernel/cuda/column_internal.h"

/* Columns of the trailing matrix that are updated at a time, from their diagonal down. */
enum { TRAILING_STRIP = 2048 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void copy_matrix(float *to, int64_t to_stride, const float *from, int64_t from_stride,
                        int64_t rows, int64_t cols) {
  struct matrix_copy_args args = {.from = from,
                                  .to = to,
                                  .count = (uint64_t)(rows * cols),
                                  .cols = (uint64_t)cols,
                                  .from_stride = (uint64_t)from_stride,
                                  .to_stride = (uint64_t)to_stride,
                                  .blocks = column_blocks((uint64_t)(rows * cols), LEARN_THREADS)};
  column_launch(LEARN_matrix_copy, args.blocks, LEARN_THREADS, 0, &args);
}

/* --- the factor --- */

/* Memory of a factorisation, in the column's scratch. */
struct factor_room {
  float *inverses; /* (blocks, CHOLESKY_BLOCK, CHOLESKY_BLOCK) */
  float *strip;    /* (n, CHOLESKY_BLOCK), or the other way round */
};

static struct factor_room factor_room(int64_t n) {
  const int64_t blocks = (n + CHOLESKY_BLOCK - 1) / CHOLESKY_BLOCK;
  const int64_t inverses = blocks * CHOLESKY_BLOCK * CHOLESKY_BLOCK, strip = n * CHOLESKY_BLOCK;
  float *memory = column_scratch(COLUMN_FACTOR, (size_t)(inverses + strip) * sizeof *memory);
  return (struct factor_room){memory, memory ? memory + inverses : NULL};
}

static float *inverse_of(const struct factor_room *room, int64_t k) {
  return room->inverses + k * CHOLESKY_BLOCK;
}

static void factor_diagonal(float *a, int64_t n, int64_t k, const struct factor_room *room,
                            uint32_t *failed) {
  struct cholesky_args args = {.matrix = a + k * n + k,
                               .inverse = inverse_of(room, k),
                               .failed = failed,
                               .stride = (uint64_t)n,
                               .size = (uint32_t)least(CHOLESKY_BLOCK, n - k)};
  column_launch(LEARN_cholesky_diagonal, 1, CHOLESKY_BLOCK, CHOLESKY_SHARED_BYTES, &args);
}

/* The lower triangle of a (n, n) becomes its factor L. */
static void factor_lower(float *a, int64_t n, const struct factor_room *room, uint32_t *failed) {
  for (int64_t k = 0; k < n; k += CHOLESKY_BLOCK) {
    const int64_t size = least(CHOLESKY_BLOCK, n - k), below = n - k - size;
    factor_diagonal(a, n, k, room, failed);
    if (!below) return;
    float *under = a + (k + size) * n + k; /* L21 = A21 L11^-T */
    copy_matrix(room->strip, CHOLESKY_BLOCK, under, n, below, size);
    column_multiply((struct dense_product){.m = below,
                                           .n = size,
                                           .k = size,
                                           .a = room->strip,
                                           .b = inverse_of(room, k),
                                           .b_transposed = true,
                                           .c = under,
                                           .b_stride = CHOLESKY_BLOCK,
                                           .a_stride = CHOLESKY_BLOCK,
                                           .c_stride = n});
    for (int64_t j = 0; j < below; j += TRAILING_STRIP) /* A22 -= L21 L21^T, its lower part */
      column_multiply((struct dense_product){.m = below - j,
                                             .n = least(TRAILING_STRIP, below - j),
                                             .k = size,
                                             .a = under + j * n,
                                             .b = under + j * n,
                                             .b_transposed = true,
                                             .accumulate = true,
                                             .negative = true,
                                             .c = under + j * n + size + j,
                                             .a_stride = n,
                                             .b_stride = n,
                                             .c_stride = n});
  }
}

static void settle(float *a, int64_t n, int64_t k, const struct factor_room *room) {
  const int64_t size = least(CHOLESKY_BLOCK, n - k);
  struct cholesky_settle_args args = {.matrix = a,
                                      .inverse = inverse_of(room, k),
                                      .n = (uint64_t)n,
                                      .begin = (uint64_t)k,
                                      .size = (uint64_t)size};
  args.blocks = column_blocks((uint64_t)(size * (n - k)), LEARN_THREADS);
  column_launch(LEARN_cholesky_settle, args.blocks, LEARN_THREADS, 0, &args);
}

/* L becomes its inverse X, block row by block row: X_k = -L_kk^-1 (L_k X_above), X_kk = L_kk^-1. */
static void invert_lower(float *a, int64_t n, const struct factor_room *room) {
  for (int64_t k = 0; k < n; k += CHOLESKY_BLOCK) {
    const int64_t size = least(CHOLESKY_BLOCK, n - k);
    if (k) {
      column_multiply((struct dense_product){.m = size,
                                             .n = k,
                                             .k = k,
                                             .a = a + k * n,
                                             .b = a,
                                             .c = room->strip,
                                             .a_stride = n,
                                             .b_stride = n});
      column_multiply((struct dense_product){.m = size,
                                             .n = k,
                                             .k = size,
                                             .a = inverse_of(room, k),
                                             .b = room->strip,
                                             .negative = true,
                                             .c = a + k * n,
                                             .a_stride = CHOLESKY_BLOCK,
                                             .c_stride = n});
    }
    settle(a, n, k, room);
  }
}

static void factor(const float *products, int64_t n, double scale, double added, float *u,
                   uint32_t *failed) {
  const uint64_t count = (uint64_t)(n * n);
  const struct factor_room room = factor_room(n);
  struct hessian_args fill = {products, u,           scale,
                              added,    (uint32_t)n, column_blocks(count, LEARN_THREADS)};
  struct matrix_reverse_args reverse = {u, count, column_blocks(count / 2, LEARN_THREADS)};
  if (!room.inverses) return;
  column_launch(LEARN_hessian_reverse, fill.blocks, LEARN_THREADS, 0, &fill);
  factor_lower(u, n, &room, failed);
  invert_lower(u, n, &room);
  column_launch(LEARN_matrix_reverse, reverse.blocks, LEARN_THREADS, 0, &reverse);
}

/* --- the walk --- */

static struct walk_args arguments(const struct sparsegpt_walk *walk) {
  INVARIANT(walk->width >= 1 && walk->width <= SPARSEGPT_WALK_MAX && walk->of >= 1);
  INVARIANT((!walk->tiles && !walk->cost) || walk->tile_cols % walk->of == 0);
  return (struct walk_args){
      .w = walk->w,
      .cost = walk->cost,
      .errors = walk->errors,
      .u = walk->u,
      .chosen = walk->chosen,
      .tiles = walk->tiles,
      .rows = (uint32_t)walk->rows,
      .cols = (uint32_t)walk->cols,
      .begin = (uint32_t)walk->begin,
      .width = (uint32_t)walk->width,
      .keep = (uint32_t)walk->keep,
      .of = (uint32_t)walk->of,
      .tile_rows = (uint32_t)walk->tile_rows,
      .tile_cols = (uint32_t)walk->tile_cols,
      .tile_columns =
          walk->tile_cols ? (uint32_t)((walk->cols + walk->tile_cols - 1) / walk->tile_cols) : 0};
}

static void score(const struct sparsegpt_walk *walk, float *scores) {
  struct walk_args args = arguments(walk);
  args.errors = scores;
  args.blocks = column_blocks((uint64_t)(walk->rows * walk->width), LEARN_THREADS);
  column_launch(LEARN_sparsegpt_scores, args.blocks, LEARN_THREADS, 0, &args);
}

static void walk_block(const struct sparsegpt_walk *walk) {
  const int64_t end = walk->begin + walk->width;
  struct walk_args args = arguments(walk);
  args.blocks = column_blocks((uint64_t)walk->rows, LEARN_WARPS);
  column_launch(LEARN_sparsegpt_walk_rows, args.blocks, LEARN_THREADS, 0, &args);
  if (end == walk->cols) return;
  column_multiply((struct dense_product){.m = walk->rows,
                                         .n = walk->cols - end,
                                         .k = walk->width,
                                         .a = walk->errors,
                                         .b = walk->u + walk->begin * walk->cols + end,
                                         .accumulate = true,
                                         .negative = true,
                                         .c = walk->w + end,
                                         .b_stride = walk->cols,
                                         .c_stride = walk->cols});
}

const struct sparsegpt_ops column_sparsegpt_ops = {
    .factor = factor, .copy_matrix = copy_matrix, .score = score, .walk = walk_block};
