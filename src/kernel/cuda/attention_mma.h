/* Attention on the tensor cores, forward and backward, for products whose operands are bf16: the
 * contract is that of kernel/ops.h. After attention.h.
 *
 * The walk is attention.h's: a block owns rows of one side and the others pass by in tiles, twice
 * in the backward pass, so that nothing is added across blocks. Each of four warps owns 16 or 32
 * rows; a tile arrives by asynchronous copies while the one before is worked on, with one barrier a
 * tile. Scores, the softmax and all sums are fp32 in registers: what a product of 16 x 8 leaves in
 * a lane is, rounded to bf16, what the next product wants there as its first operand (Dao,
 * "FlashAttention-2", 2023), so that probabilities never see shared memory.
 *
 * Rows are `width` bf16 wide, zeros past head_dim. In shared memory the 16-byte chunks of a row
 * change places so that the same chunk of eight rows lies in eight different banks. The functions
 * are compiled for each row of ATTENTION_MMA_KERNELS: `f` is known to the compiler, every loop
 * unrolls. */
#ifndef TSR_KERNEL_CUDA_ATTENTION_MMA_H
#define TSR_KERNEL_CUDA_ATTENTION_MMA_H

#include "kernel/cuda/attention.h"

/* The largest of any form: groups of 16 own rows; of 8 rows of a tile; of 8 columns. */
#define OWN_GROUPS 2
#define TILE_GROUPS 8
#define COLUMN_GROUPS (ATTENTION_HEAD_MAX / 8)
#define LOG2_E 1.4426950408889634f
#define MINUS_INFINITY float_of_bits(0xff800000u)

/* Results of products: of own rows with the rows of a tile, and with its columns. */
typedef float score_fragments[OWN_GROUPS][TILE_GROUPS][4];
typedef float sum_fragments[OWN_GROUPS][COLUMN_GROUPS][4];

/* --- what needs fewer bits: rows of heads (rows, head_dim) fp32 to (rows, width) bf16 --- */

DEVICE float narrow_element(const float *row, uint32_t column, uint32_t head_dim) {
  return column < head_dim ? global_load(row + column) : 0;
}

DEVICE void attention_narrow_body(const struct attention_narrow_args *a) {
  const uint32_t chunks = a->width / 8;
  for (uint32_t t = 0; t < a->tensors; t++)
    for (uint64_t i = first_element(); i < a->rows[t] * chunks;
         i += (uint64_t)a->blocks * LEARN_THREADS) {
      const float *row = a->from[t] + i / chunks * a->head_dim;
      const uint32_t column = (uint32_t)(i % chunks) * 8;
      struct words4 words;
      UNROLL for (uint32_t w = 0; w < 4; w++) words.w[w] =
          bf16_pair(narrow_element(row, column + 2 * w, a->head_dim),
                    narrow_element(row, column + 2 * w + 1, a->head_dim));
      global_store16(a->to[t] + i * 8, words);
    }
}
KERNEL(attention_narrow, attention_narrow_body, LEARN_THREADS, struct attention_narrow_args)

/* --- tiles in shared memory --- */

DEVICE uint32_t tile_chunk(const struct attention_form *f, uint32_t row, uint32_t chunk) {
  const uint32_t turn = f->width % 64 ? row / 2 % 4 : row % 8;
  return 16 * (row * (f->width / 8) + (chunk ^ turn));
}

/* Starts the copy of `count` rows from `first` on of one head; zeros past the last row. */
DEVICE void copy_rows(const struct attention_args *a, const struct attention_form *f,
                      const uint16_t *from, uint32_t sequence, uint32_t first, uint32_t count,
                      uint32_t head, uint32_t heads, uint32_t to) {
  const uint32_t chunks = f->width / 8;
  for (uint32_t i = thread_index(); i < count * chunks; i += ATTENTION_MMA_THREADS) {
    const uint32_t r = i / chunks, c = i % chunks;
    const bool exists = first + r < a->length;
    const uint64_t row = (uint64_t)sequence * a->length + (exists ? first + r : 0);
    async_copy16(to + tile_chunk(f, r, c), from + (row * heads + head) * f->width + 8 * c,
                 exists ? 16 : 0);
  }
}

/* --- products --- */

/* scores = the warp's own rows times the rows of the tile. */
DEVICE void multiply_rows(const struct attention_form *f, uint32_t own, uint32_t tile,
                          score_fragments scores) {
  const uint32_t lane = thread_index() % 32, warp = thread_index() / 32;
  const uint32_t row = warp * 16 * f->groups + lane % 16;
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t n = 0; n < f->tile / 8; n++)
      UNROLL for (int i = 0; i < 4; i++) scores[m][n][i] = 0;
  UNROLL for (uint32_t k = 0; k < f->width / 8; k += 2) {
    struct words4 mine[OWN_GROUPS];
    UNROLL for (uint32_t m = 0; m < f->groups; m++) mine[m] =
        load_matrices(own + tile_chunk(f, row + 16 * m, k + lane / 16));
    UNROLL for (uint32_t n = 0; n < f->tile / 8; n += 2) {
      const uint32_t other = 8 * (n + lane / 16) + lane % 8;
      const struct words4 theirs = load_matrices(tile + tile_chunk(f, other, k + lane / 8 % 2));
      UNROLL for (uint32_t m = 0; m < f->groups; m++) {
        mma_dense(scores[m][n], &mine[m], theirs.w[0], theirs.w[1]);
        mma_dense(scores[m][n + 1], &mine[m], theirs.w[2], theirs.w[3]);
      }
    }
  }
}

/* sums += weights, rounded to bf16, times f->columns columns of the tile from `first` chunk on. */
DEVICE void weigh_rows(const struct attention_form *f, score_fragments weights, uint32_t tile,
                       uint32_t first, sum_fragments sums) {
  const uint32_t lane = thread_index() % 32;
  UNROLL for (uint32_t n = 0; n < f->tile / 8; n += 2) {
    struct words4 mine[OWN_GROUPS];
    UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (int i = 0; i < 4; i++) {
      const float *pair = weights[m][n + (uint32_t)i / 2] + 2 * (i % 2);
      mine[m].w[i] = bf16_pair(pair[0], pair[1]);
    }
    UNROLL for (uint32_t c = 0; c < f->columns / 8; c += 2) {
      const struct words4 theirs =
          load_matrices_transposed(tile + tile_chunk(f, 8 * n + lane % 16, first + c + lane / 16));
      UNROLL for (uint32_t m = 0; m < f->groups; m++) {
        mma_dense(sums[m][c], &mine[m], theirs.w[0], theirs.w[1]);
        mma_dense(sums[m][c + 1], &mine[m], theirs.w[2], theirs.w[3]);
      }
    }
  }
}

DEVICE void clear_fragments(const struct attention_form *f, sum_fragments sums) {
  UNROLL for (uint32_t m = 0; m < f->groups; m++)
      UNROLL for (uint32_t c = 0; c < f->columns / 8; c++) UNROLL for (int i = 0; i < 4; i++)
          sums[m][c][i] = 0;
}

/* Own row of element i of a lane's fragment m, and its column from the tile's first group on. */
DEVICE uint32_t lane_row(uint32_t m, uint32_t i) {
  return 16 * m + 8 * (i / 2) + thread_index() % 32 / 4;
}
DEVICE uint32_t lane_column(uint32_t n, uint32_t i) {
  return 8 * n + 2 * (thread_index() % 4) + i % 2;
}

/* What is left of the warp's sums, times factor[m][half] of each row, to rows of (.., head_dim). */
DEVICE void store_fragments(const struct attention_args *a, const struct attention_form *f,
                            uint32_t sequence, uint32_t row, uint32_t head, uint32_t heads,
                            uint32_t first, sum_fragments sums, const float factor[OWN_GROUPS][2],
                            float *to) {
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t i = 0; i < 4; i++) {
    const uint32_t at = row + lane_row(m, i);
    if (at >= a->length) continue;
    float *out = to + row_at(a, sequence, at, head, heads);
    UNROLL for (uint32_t c = 0; c < f->columns / 8; c++) {
      const uint32_t column = 8 * first + lane_column(c, i);
      if (column < a->head_dim) global_store(out + column, sums[m][c][i] * factor[m][i / 2]);
    }
  }
}

/* --- scores --- */

/* The exponent of 2 that a score stands for is its multiple; soft-capped scores are capped first.
 */
DEVICE float exponent_of_score(const struct attention_args *a) {
  return LOG2_E * (a->softcap > 0 ? 1 : a->scale);
}
DEVICE void cap_scores(const struct attention_args *a, const struct attention_form *f,
                       score_fragments scores) {
  const float share = a->scale / a->softcap;
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t n = 0; n < f->tile / 8; n++)
      UNROLL for (int i = 0; i < 4; i++) scores[m][n][i] =
          a->softcap * tanhf(share * scores[m][n][i]);
}

/* Whether queries [query, query + queries) see all of keys [key, key + keys), and whether any. */
DEVICE bool sees_all(const struct attention_args *a, uint32_t query, uint32_t queries, uint32_t key,
                     uint32_t keys) {
  return query + queries <= a->length && key + keys - 1 <= query &&
         (!a->window || key + a->window > query + queries - 1);
}
DEVICE bool sees_any(const struct attention_args *a, uint32_t query, uint32_t queries, uint32_t key,
                     uint32_t keys) {
  return query < a->length && key <= query + queries - 1 &&
         (!a->window || key + keys - 1 + a->window > query);
}

/* --- forward --- */

DEVICE float quad_max(float x) {
  UNROLL for (uint32_t step = 1; step < 4; step *= 2) {
    const float other = float_of_bits(shuffle_xor(bits_of_float(x), step));
    x = other > x ? other : x;
  }
  return x;
}
DEVICE float quad_sum(float x) {
  UNROLL for (uint32_t step = 1; step < 4; step *= 2) x +=
      float_of_bits(shuffle_xor(bits_of_float(x), step));
  return x;
}

/* A row's running maximum, of scores, and this lane's share of its sum. */
struct running {
  float max[OWN_GROUPS][2], sum[OWN_GROUPS][2];
};

/* Scores become weights against the largest so far; what was summed up is rescaled to that. */
DEVICE void soften_rows(const struct attention_args *a, const struct attention_form *f,
                        uint32_t row, uint32_t key, score_fragments scores, struct running *r,
                        sum_fragments sums) {
  const float factor = exponent_of_score(a);
  if (a->softcap > 0) cap_scores(a, f, scores);
  if (!sees_all(a, row, 16 * f->groups, key, f->tile))
    UNROLL for (uint32_t m = 0; m < f->groups; m++)
        UNROLL for (uint32_t n = 0; n < f->tile / 8; n++)
            UNROLL for (uint32_t i = 0; i < 4;
                        i++) if (!attention_sees(a, row + lane_row(m, i), key + lane_column(n, i)))
                scores[m][n][i] = MINUS_INFINITY;
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t half = 0; half < 2; half++) {
    float top = r->max[m][half];
    UNROLL for (uint32_t n = 0; n < f->tile / 8; n++) UNROLL for (uint32_t i = 0; i < 2; i++) {
      const float s = scores[m][n][2 * half + i];
      top = s > top ? s : top;
    }
    top = quad_max(top);
    /* a row that has seen no key yet: every exponent is minus infinity */
    const float base = top == MINUS_INFINITY ? 0 : factor * top;
    const float rescale = exp2_fast(fmaf(factor, r->max[m][half], -base));
    float sum = 0;
    UNROLL for (uint32_t n = 0; n < f->tile / 8; n++) UNROLL for (uint32_t i = 0; i < 2; i++) {
      float *s = &scores[m][n][2 * half + i];
      *s = exp2_fast(fmaf(factor, *s, -base));
      sum += *s;
    }
    r->max[m][half] = top;
    r->sum[m][half] = fmaf(r->sum[m][half], rescale, sum);
    UNROLL for (uint32_t c = 0; c < f->columns / 8; c++) UNROLL for (uint32_t i = 0; i < 2; i++)
        sums[m][c][2 * half + i] *= rescale;
  }
}

DEVICE void finish_rows(const struct attention_args *a, const struct attention_form *f,
                        const struct attention_block *b, uint32_t row, struct running *r,
                        sum_fragments sums) {
  float factor[OWN_GROUPS][2];
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t half = 0; half < 2; half++) {
    const float sum = quad_sum(r->sum[m][half]);
    const uint32_t at = row + lane_row(m, 2 * half);
    factor[m][half] = 1 / sum;
    if (a->lse && at < a->length && thread_index() % 4 == 0)
      global_store(a->lse + row_number(a, b->sequence, at, b->head),
                   r->max[m][half] * (a->softcap > 0 ? 1 : a->scale) + logf(sum));
  }
  store_fragments(a, f, b->sequence, row, b->head, a->heads, 0, sums, factor, a->out);
}

DEVICE void attention_mma_rows(const struct attention_mma_args *args,
                               const struct attention_form *f) {
  const struct attention_args *a = &args->a;
  const struct attention_block b = attention_block(a, a->heads, form_rows(f), true);
  const uint32_t kv_head = b.head / (a->heads / a->kv_heads), warp_rows = 16 * f->groups;
  const uint32_t own = shared_base(), stages = own + form_rows(f) * form_row_bytes(f);
  const uint32_t row = b.row + thread_index() / 32 * warp_rows;
  const uint32_t tile_bytes = f->tile * form_row_bytes(f);
  sum_fragments sums;
  struct running r;
  uint32_t first, end, at = stages;
  clear_fragments(f, sums);
  UNROLL for (int m = 0; m < OWN_GROUPS; m++) UNROLL for (int half = 0; half < 2; half++) {
    r.max[m][half] = MINUS_INFINITY;
    r.sum[m][half] = 0;
  }
  keys_of(a, b.row, form_rows(f), f->tile, &first, &end);
  copy_rows(a, f, args->q, b.sequence, b.row, form_rows(f), b.head, a->heads, own);
  copy_rows(a, f, args->k, b.sequence, first, f->tile, kv_head, a->kv_heads, at);
  copy_rows(a, f, args->v, b.sequence, first, f->tile, kv_head, a->kv_heads, at + tile_bytes);
  async_commit();
  for (uint32_t key = first; key < end; key += f->tile) {
    const uint32_t now = at, next = key + f->tile;
    at = at == stages ? stages + 2 * tile_bytes : stages;
    async_wait(0);
    block_barrier(); /* the tile is here, and the other stage is done with */
    if (next < end) {
      copy_rows(a, f, args->k, b.sequence, next, f->tile, kv_head, a->kv_heads, at);
      copy_rows(a, f, args->v, b.sequence, next, f->tile, kv_head, a->kv_heads, at + tile_bytes);
    }
    async_commit();
    if (!sees_any(a, row, warp_rows, key, f->tile)) continue;
    score_fragments scores;
    multiply_rows(f, own, now, scores);
    soften_rows(a, f, row, key, scores, &r, sums);
    weigh_rows(f, scores, now + tile_bytes, 0, sums);
  }
  if (row < a->length) finish_rows(a, f, &b, row, &r, sums);
}

#endif
