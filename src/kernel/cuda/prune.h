/* Kernels of SparseGPT: the Hessian and its factor, and the walk over a block of columns. What they
 * compute: kernel/sparsegpt.h; the factorisation is that of kernel/cholesky.c, whose products are
 * the library's. After a vocabulary. */
#ifndef TSR_KERNEL_CUDA_PRUNE_H
#define TSR_KERNEL_CUDA_PRUNE_H

#include "kernel/cuda/common.h"

/* --- matrices --- */

DEVICE void matrix_copy_body(const struct matrix_copy_args *a) {
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint64_t row = i / a->cols, col = i % a->cols;
    global_store(a->to + row * a->to_stride + col,
                 global_load_fresh(a->from + row * a->from_stride + col));
  }
}
KERNEL(matrix_copy, matrix_copy_body, LEARN_THREADS, struct matrix_copy_args)

/* out = J H J, with J the reversal of rows; zeros above the diagonal. */
DEVICE void hessian_body(const struct hessian_args *a) {
  const uint64_t n = a->n;
  for (uint64_t i = first_element(); i < n * n; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint64_t row = i / n, col = i % n;
    float value = 0;
    if (col <= row) {
      const double product = global_load(a->products + n * n - 1 - i);
      double h = a->scale * product;
      if (row == col) h = (product == 0 ? 1.0 : h) + a->added;
      value = (float)h;
    }
    global_store(a->out + i, value);
  }
}
KERNEL(hessian_reverse, hessian_body, LEARN_THREADS, struct hessian_args)

/* J A J in place: element i and the one as far from the end change places. */
DEVICE void matrix_reverse_body(const struct matrix_reverse_args *a) {
  for (uint64_t i = first_element(); i < a->count / 2; i += (uint64_t)a->blocks * LEARN_THREADS) {
    float *low = a->matrix + i, *high = a->matrix + a->count - 1 - i;
    const float x = global_load_fresh(low), y = global_load_fresh(high);
    global_store(low, y);
    global_store(high, x);
  }
}
KERNEL(matrix_reverse, matrix_reverse_body, LEARN_THREADS, struct matrix_reverse_args)

/* --- a block on the diagonal, in fp64: one block of threads, thread t < CHOLESKY_BLOCK has row t
 * of the factor, then column t of its inverse --- */

/* Doubles lie in two planes of words, so that lanes a row apart meet no bank twice. */
enum { CHOLESKY_ROW = CHOLESKY_BLOCK + 1, CHOLESKY_PLANE = 4 * CHOLESKY_BLOCK * CHOLESKY_ROW };

DEVICE uint32_t cholesky_at(uint32_t row, uint32_t col) {
  return shared_base() + 4 * (row * CHOLESKY_ROW + col);
}
DEVICE double cholesky_load(uint32_t row, uint32_t col) {
  const uint32_t at = cholesky_at(row, col);
  const uint32_t low = shared_load4(at), high = shared_load4(at + CHOLESKY_PLANE);
  return double_of_bits((uint64_t)high << 32 | low);
}
DEVICE void cholesky_store(uint32_t row, uint32_t col, double x) {
  const uint32_t at = cholesky_at(row, col);
  const uint64_t bits = bits_of_double(x);
  shared_store4(at, (uint32_t)bits);
  shared_store4(at + CHOLESKY_PLANE, (uint32_t)(bits >> 32));
}

/* The lower factor, in place of the lower triangle; gives the thread's own pivot. One that is not
 * positive counts as 1. All threads load, so that they stay in step; what one above the column
 * finds is not used. */
DEVICE double cholesky_factor(const struct cholesky_args *a, uint32_t t) {
  double own = 1;
  for (uint32_t col = 0; col < a->size; col++) {
    double sum = cholesky_load(t, col);
    for (uint32_t p = 0; p < col; p++) sum -= cholesky_load(t, p) * cholesky_load(col, p);
    if (t == col) {
      const bool positive = sum > 0 && sum <= 1e300;
      if (!positive) global_store(a->failed, 1u);
      own = positive ? sqrt(sum) : 1.0;
      cholesky_store(t, col, own);
    }
    block_barrier();
    const double pivot = cholesky_load(col, col);
    if (t > col) cholesky_store(t, col, sum / pivot);
    block_barrier();
  }
  return own;
}

/* The factor's inverse: element (row, t), row > t, goes to (t, row), where the factor has nothing.
 */
DEVICE void cholesky_invert(const struct cholesky_args *a, uint32_t t, double own) {
  for (uint32_t row = 1; row < a->size; row++) {
    double sum = -cholesky_load(row, t < row ? t : row) / own;
    for (uint32_t p = 1; p < row; p++) { /* in step, so that no bank is met twice */
      const double term = cholesky_load(row, p) * cholesky_load(t, p);
      if (p > t) sum -= term;
    }
    const double x = sum / cholesky_load(row, row);
    if (t < row) cholesky_store(t, row, x);
  }
  block_barrier();
}

DEVICE void cholesky_body(const struct cholesky_args *a) {
  const uint32_t t = thread_index(), all = CHOLESKY_BLOCK * CHOLESKY_BLOCK;
  for (uint32_t i = t; i < all; i += CHOLESKY_BLOCK) {
    const uint32_t row = i / CHOLESKY_BLOCK, col = i % CHOLESKY_BLOCK;
    const bool inside = row < a->size && col <= row;
    const float x = inside ? global_load_fresh(a->matrix + (uint64_t)row * a->stride + col) : 0;
    cholesky_store(row, col, inside ? (double)x : row == col ? 1.0 : 0.0);
  }
  block_barrier();
  cholesky_invert(a, t, cholesky_factor(a, t)); /* past the size is the identity */
  for (uint32_t i = t; i < all; i += CHOLESKY_BLOCK) {
    const uint32_t row = i / CHOLESKY_BLOCK, col = i % CHOLESKY_BLOCK;
    const double factor = cholesky_load(row, col), inverse = cholesky_load(col, row);
    const double below = row == col ? 1 / factor : inverse;
    global_store(a->inverse + i, col <= row ? (float)below : 0.0f);
    if (row < a->size && col <= row)
      global_store(a->matrix + (uint64_t)row * a->stride + col, (float)factor);
  }
}
KERNEL(cholesky_diagonal, cholesky_body, CHOLESKY_BLOCK, struct cholesky_args)

/* Rows of a block get their inverted diagonal block, and zeros behind it. */
DEVICE void cholesky_settle_body(const struct cholesky_settle_args *a) {
  const uint64_t width = a->n - a->begin, count = a->size * width;
  for (uint64_t i = first_element(); i < count; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint64_t row = i / width, col = i % width;
    const float x = col < a->size ? global_load(a->inverse + row * CHOLESKY_BLOCK + col) : 0;
    global_store(a->matrix + (a->begin + row) * a->n + a->begin + col, x);
  }
}
KERNEL(cholesky_settle, cholesky_settle_body, LEARN_THREADS, struct cholesky_settle_args)

/* --- the walk: a warp to a row, column i of the block in slot i / 32 of lane i % 32 --- */

DEVICE float walk_pick(const float x[SPARSEGPT_WORDS], uint32_t slot) {
  return slot == 0 ? x[0] : slot == 1 ? x[1] : slot == 2 ? x[2] : x[3];
}
DEVICE uint32_t walk_pick_word(const uint32_t x[SPARSEGPT_WORDS], uint32_t slot) {
  return slot == 0 ? x[0] : slot == 1 ? x[1] : slot == 2 ? x[2] : x[3];
}
/* What column i has, for all lanes. */
DEVICE float walk_tell(const float x[SPARSEGPT_WORDS], uint32_t i) {
  return float_of_bits(shuffle_from(bits_of_float(walk_pick(x, i / 32)), i % 32));
}

/* u_jj of the lane's columns; 1 past the block. */
DEVICE void walk_diagonal(const struct walk_args *a, float d[SPARSEGPT_WORDS]) {
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    const uint32_t i = 32 * s + thread_index() % 32;
    d[s] = i < a->width ? global_load(a->u + (uint64_t)(a->begin + i) * (a->cols + 1)) : 1;
  }
}

DEVICE void walk_load(const struct walk_args *a, uint32_t row, float w[SPARSEGPT_WORDS]) {
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    const uint32_t i = 32 * s + thread_index() % 32;
    const float *from = a->w + (uint64_t)row * a->cols + a->begin + i;
    w[s] = i < a->width ? global_load_fresh(from) : 0;
  }
}

/* The key of (w / u_jj)^2 that orders scores (prune/select.h): NaN is the largest. */
DEVICE uint32_t walk_key(float w, float d) {
  const float scaled = w / d, score = scaled * scaled;
  return score != score ? 0xffffffffu : bits_of_float(score);
}

/* Of the columns first .. end, those that fewer than `keep` others of them go before: 1 in `mine`
 * where the lane's column stays. Equal scores go to the left. */
DEVICE void walk_choose(const float w[SPARSEGPT_WORDS], const float d[SPARSEGPT_WORDS],
                        uint32_t first, uint32_t end, uint32_t keep,
                        uint32_t mine[SPARSEGPT_WORDS]) {
  uint32_t key[SPARSEGPT_WORDS], before[SPARSEGPT_WORDS];
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    key[s] = walk_key(w[s], d[s]);
    before[s] = 0;
  }
  for (uint32_t j = first; j < end; j++) {
    const uint32_t other = shuffle_from(walk_pick_word(key, j / 32), j % 32);
    UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
      const uint32_t i = 32 * s + thread_index() % 32;
      before[s] += other > key[s] || (other == key[s] && j < i);
    }
  }
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    const uint32_t i = 32 * s + thread_index() % 32;
    if (i >= first && i < end) mine[s] = before[s] < keep;
  }
}

/* Drops column j of the row; the rest of the block makes up for it. Gives w / u_jj. */
DEVICE float walk_drop(const struct walk_args *a, float w[SPARSEGPT_WORDS],
                       const float d[SPARSEGPT_WORDS], float errors[SPARSEGPT_WORDS], uint32_t j) {
  const float error = walk_tell(w, j) / walk_tell(d, j);
  const float *u = a->u + (uint64_t)(a->begin + j) * a->cols + a->begin;
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    const uint32_t i = 32 * s + thread_index() % 32;
    if (i > j && i < a->width) w[s] -= error * global_load(u + i);
    if (i == j) {
      w[s] = 0;
      errors[s] = error;
    }
  }
  return error;
}

/* Bit `lane` of the word is what the lane brings, 0 or 1. */
DEVICE uint32_t walk_gather(uint32_t bit) {
  uint32_t word = bit << (thread_index() % 32);
  UNROLL for (uint32_t step = 16; step; step /= 2) word |= shuffle_xor(word, step);
  return word;
}

/* What a row's columns of one tile have cost so far; the same in all lanes. */
struct walk_cost {
  float *at; /* NULL: not begun, or not asked for */
  float sum;
};

DEVICE void walk_pay(const struct walk_cost *cost) {
  if (cost->at && thread_index() % 32 == 0) global_store(cost->at, cost->sum);
}
/* Goes on with the tile of column `col`. */
DEVICE void walk_enter(const struct walk_args *a, uint32_t row, uint32_t col,
                       struct walk_cost *cost) {
  if (!a->cost) return;
  float *at = a->cost + (uint64_t)row * a->tile_columns + col / a->tile_cols;
  if (at == cost->at) return;
  walk_pay(cost);
  cost->at = at;
  cost->sum = global_load_fresh(at);
}

DEVICE void walk_row(const struct walk_args *a, uint32_t row, const float d[SPARSEGPT_WORDS]) {
  const uint32_t lane = thread_index() % 32;
  uint32_t *chosen = a->chosen + (uint64_t)row * SPARSEGPT_WORDS;
  float w[SPARSEGPT_WORDS], errors[SPARSEGPT_WORDS] = {0, 0, 0, 0};
  uint32_t mine[SPARSEGPT_WORDS];
  struct walk_cost cost = {NULL, 0};
  walk_load(a, row, w);
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) mine[s] =
      a->keep ? 0 : global_load_fresh(chosen + s) >> lane & 1;
  for (uint32_t first = 0; first < a->width; first += a->of) {
    const uint32_t end = a->width - first < a->of ? a->width : first + a->of;
    const uint32_t col = a->begin + first;
    if (a->keep) walk_choose(w, d, first, end, a->keep, mine);
    if (a->tiles && global_load(a->tiles + (uint64_t)(row / a->tile_rows) * a->tile_columns +
                                col / a->tile_cols))
      continue;
    walk_enter(a, row, col, &cost);
    for (uint32_t j = first; j < end; j++) {
      if (shuffle_from(walk_pick_word(mine, j / 32), j % 32)) continue;
      const float error = walk_drop(a, w, d, errors, j);
      cost.sum += error * error;
    }
  }
  walk_pay(&cost);
  UNROLL for (uint32_t s = 0; s < SPARSEGPT_WORDS; s++) {
    const uint32_t i = 32 * s + lane, word = walk_gather(mine[s]);
    if (a->keep && lane == 0) global_store(chosen + s, word);
    if (i < a->width) {
      global_store(a->w + (uint64_t)row * a->cols + a->begin + i, w[s]);
      global_store(a->errors + (uint64_t)row * a->width + i, errors[s]);
    }
  }
}

DEVICE void walk_body(const struct walk_args *a) {
  float d[SPARSEGPT_WORDS];
  walk_diagonal(a, d);
  for (uint32_t row = block_index() * LEARN_WARPS + thread_index() / 32; row < a->rows;
       row += a->blocks * LEARN_WARPS)
    walk_row(a, row, d);
}
KERNEL(sparsegpt_walk_rows, walk_body, LEARN_THREADS, struct walk_args)

DEVICE void walk_score_body(const struct walk_args *a) {
  const uint64_t count = (uint64_t)a->rows * a->width;
  for (uint64_t i = first_element(); i < count; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint64_t row = i / a->width, col = a->begin + i % a->width;
    const float scaled =
        global_load_fresh(a->w + row * a->cols + col) / global_load(a->u + col * (a->cols + 1));
    global_store(a->errors + i, scaled * scaled);
  }
}
KERNEL(sparsegpt_scores, walk_score_body, LEARN_THREADS, struct walk_args)

#endif
