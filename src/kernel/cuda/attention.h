/* Causal attention with grouped heads, sliding windows and soft-capped scores, forward and
 * backward: the contract is that of kernel/ops.h. After rows.h. Products and sums are fp32.
 *
 * A warp owns ATTENTION_ROWS rows; the block walks over the other side in tiles of 32 rows, which
 * lie in shared memory: a lane to a row for scores, a lane to a column for what they weigh. The
 * backward pass runs twice, once owned by queries for dq and once by keys for dk and dv: scores are
 * made twice, and in exchange nothing is added across blocks, so that the bits are always the same.
 */
#ifndef TSR_KERNEL_CUDA_ATTENTION_H
#define TSR_KERNEL_CUDA_ATTENTION_H

#include "kernel/cuda/rows.h"

/* Columns of a head that a lane holds. */
#define ATTENTION_COLUMNS (ATTENTION_HEAD_MAX / 32)

struct attention_block {
  uint32_t sequence, head, row; /* the first owned row of the block */
};

/* `rows`: that a block owns. */
DEVICE struct attention_block attention_block(const struct attention_args *a, uint32_t heads,
                                              uint32_t rows, bool last_first) {
  const uint32_t block = block_index() % a->row_blocks, item = block_index() / a->row_blocks;
  struct attention_block b;
  b.row = (last_first ? a->row_blocks - 1 - block : block) * rows;
  b.head = item % heads;
  b.sequence = item / heads;
  return b;
}

DEVICE uint64_t row_at(const struct attention_args *a, uint32_t sequence, uint32_t row,
                       uint32_t head, uint32_t heads) {
  return (((uint64_t)sequence * a->length + row) * heads + head) * a->head_dim;
}
DEVICE uint64_t row_number(const struct attention_args *a, uint32_t sequence, uint32_t row,
                           uint32_t head) {
  return ((uint64_t)sequence * a->heads + head) * a->length + row;
}

/* `count` rows from `first` on of one head into shared memory at `to`; zeros past the last row. */
DEVICE void load_rows(const struct attention_args *a, const float *from, uint32_t sequence,
                      uint32_t first, uint32_t count, uint32_t head, uint32_t heads, uint32_t to) {
  const uint32_t width = (a->head_dim + 3) / 4 * 4, stride = a->stride;
  for (uint32_t r = thread_index() / 32; r < count; r += a->warps) {
    const bool exists = first + r < a->length;
    const float *row = from + row_at(a, sequence, exists ? first + r : 0, head, heads);
    for (uint32_t c = thread_index() % 32; c < width; c += 32)
      shared_store4(to + 4 * (r * stride + c),
                    exists && c < a->head_dim ? bits_of_float(global_load(row + c)) : 0);
  }
}

DEVICE bool attention_sees(const struct attention_args *a, uint32_t query, uint32_t key) {
  return query < a->length && key <= query && (!a->window || key + a->window > query);
}
DEVICE float capped(const struct attention_args *a, float score) {
  const float s = a->scale * score;
  return a->softcap > 0 ? a->softcap * tanhf(s / a->softcap) : s;
}

DEVICE float dot_four(const struct words4 *x, const struct words4 *y, float sum) {
  UNROLL for (int i = 0; i < 4; i++) sum =
      fmaf(float_of_bits(x->w[i]), float_of_bits(y->w[i]), sum);
  return sum;
}

/* scores[r] = owned row r of this warp times row `lane` of the tile. */
DEVICE void multiply_tile(const struct attention_args *a, uint32_t owned, uint32_t tile,
                          float scores[ATTENTION_ROWS]) {
  const uint32_t stride = 4 * a->stride, quads = (a->head_dim + 3) / 4;
  const uint32_t row = tile + thread_index() % 32 * stride;
  const uint32_t own = owned + thread_index() / 32 * ATTENTION_ROWS * stride;
  UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) scores[r] = 0;
  for (uint32_t c = 0; c < quads; c++) {
    const struct words4 other = shared_load16(row + 16 * c);
    UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) {
      const struct words4 mine = shared_load16(own + (uint32_t)r * stride + 16 * c);
      scores[r] = dot_four(&mine, &other, scores[r]);
    }
  }
}

/* sums[r][i] += weights[r] of lane j times column lane + 32 i of row j of the tile, for all j. */
DEVICE void weigh_tile(const struct attention_args *a, const float weights[ATTENTION_ROWS],
                       uint32_t tile, float sums[ATTENTION_ROWS][ATTENTION_COLUMNS]) {
  const uint32_t stride = 4 * a->stride, lane = thread_index() % 32;
  for (uint32_t j = 0; j < ATTENTION_TILE; j++) {
    float weight[ATTENTION_ROWS];
    UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) weight[r] =
        float_of_bits(shuffle_from(bits_of_float(weights[r]), j));
    UNROLL for (uint32_t i = 0; i < ATTENTION_COLUMNS; i++) {
      if (32 * i >= a->head_dim) continue;
      /* lanes past the last column read it too, and drop what they make of it */
      const uint32_t column = lane + 32 * i < a->head_dim ? lane + 32 * i : a->head_dim - 1;
      const float value = float_of_bits(shared_load4(tile + j * stride + 4 * column));
      UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) sums[r][i] =
          fmaf(weight[r], value, sums[r][i]);
    }
  }
}

DEVICE void store_row(const struct attention_args *a, float *to, const float sums[], float factor) {
  UNROLL for (uint32_t i = 0; i < ATTENTION_COLUMNS; i++) {
    const uint32_t column = thread_index() % 32 + 32 * i;
    if (column < a->head_dim) global_store(to + column, sums[i] * factor);
  }
}

DEVICE void clear_sums(float sums[ATTENTION_ROWS][ATTENTION_COLUMNS]) {
  UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) UNROLL for (int i = 0; i < ATTENTION_COLUMNS; i++)
      sums[r][i] = 0;
}

/* Keys that `rows` queries from `row` on see: [first, end), first at the start of a tile. */
DEVICE void keys_of(const struct attention_args *a, uint32_t row, uint32_t rows, uint32_t tile,
                    uint32_t *first, uint32_t *end) {
  const uint32_t last = row + rows;
  const uint32_t low = a->window && row + 1 > a->window ? row + 1 - a->window : 0;
  *first = low / tile * tile;
  *end = last < a->length ? last : a->length;
}
/* Queries that see `rows` keys from `row` on, the same way. */
DEVICE void queries_of(const struct attention_args *a, uint32_t row, uint32_t rows, uint32_t tile,
                       uint32_t *first, uint32_t *end) {
  const uint64_t last = (uint64_t)row + rows - 1 + a->window;
  *first = row / tile * tile;
  *end = a->window && last < a->length ? (uint32_t)last : a->length;
}

/* --- forward --- */

/* Turns a row's scores with the tile's keys into weights against the largest so far. Returns by
 * what the sums so far are to be scaled. */
DEVICE float soften(const struct attention_args *a, uint32_t query, uint32_t key, float *score,
                    float *max, float *sum) {
  const bool seen = attention_sees(a, query, key);
  const float s = capped(a, *score), top = warp_max(seen ? s : -3.0e38f);
  const float most = top > *max ? top : *max, rescale = expf(*max - most);
  *score = seen ? expf(s - most) : 0;
  *sum = *sum * rescale + warp_sum(*score);
  *max = most;
  return rescale;
}

DEVICE void attention_body(const struct attention_args *a) {
  const uint32_t rows = a->warps * ATTENTION_ROWS;
  const struct attention_block b = attention_block(a, a->heads, rows, true);
  const uint32_t bytes = 4 * a->stride, lane = thread_index() % 32;
  const uint32_t keys = shared_base(), values = keys + ATTENTION_TILE * bytes;
  const uint32_t owned = values + ATTENTION_TILE * bytes;
  const uint32_t kv_head = b.head / (a->heads / a->kv_heads);
  const uint32_t row = b.row + thread_index() / 32 * ATTENTION_ROWS;
  float sums[ATTENTION_ROWS][ATTENTION_COLUMNS], max[ATTENTION_ROWS], sum[ATTENTION_ROWS];
  uint32_t first, end;
  clear_sums(sums);
  UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) {
    max[r] = -3.0e38f;
    sum[r] = 0;
  }
  keys_of(a, b.row, rows, ATTENTION_TILE, &first, &end);
  load_rows(a, a->q, b.sequence, b.row, rows, b.head, a->heads, owned);
  for (uint32_t key = first; key < end; key += ATTENTION_TILE) {
    float scores[ATTENTION_ROWS];
    block_barrier();
    load_rows(a, a->k, b.sequence, key, ATTENTION_TILE, kv_head, a->kv_heads, keys);
    load_rows(a, a->v, b.sequence, key, ATTENTION_TILE, kv_head, a->kv_heads, values);
    block_barrier();
    multiply_tile(a, owned, keys, scores);
    UNROLL for (int r = 0; r < ATTENTION_ROWS; r++) {
      const float rescale = soften(a, row + (uint32_t)r, key + lane, &scores[r], &max[r], &sum[r]);
      UNROLL for (int i = 0; i < ATTENTION_COLUMNS; i++) sums[r][i] *= rescale;
    }
    weigh_tile(a, scores, values, sums);
  }
  UNROLL for (uint32_t r = 0; r < ATTENTION_ROWS; r++) {
    if (row + r >= a->length) continue;
    store_row(a, a->out + row_at(a, b.sequence, row + r, b.head, a->heads), sums[r], 1 / sum[r]);
    if (a->lse && lane == 0)
      global_store(a->lse + row_number(a, b.sequence, row + r, b.head), max[r] + logf(sum[r]));
  }
}
KERNEL(attention_rows, attention_body, LEARN_THREADS, struct attention_args)

/* --- backward --- */

/* delta = sum of dout * out: a warp to a row of a head. row_blocks: how many blocks there are. */
DEVICE void attention_delta_body(const struct attention_args *a) {
  const uint32_t rows = a->sequences * a->length * a->heads, lane = thread_index() % 32;
  for (uint32_t i = block_index() * LEARN_WARPS + thread_index() / 32; i < rows;
       i += a->row_blocks * LEARN_WARPS) {
    const uint64_t at = (uint64_t)i * a->head_dim;
    const uint32_t token = i / a->heads;
    float sum = 0;
    for (uint32_t c = lane; c < a->head_dim; c += 32)
      sum = fmaf(global_load(a->dout + at + c), global_load(a->out_in + at + c), sum);
    sum = warp_sum(sum);
    if (lane == 0)
      global_store(a->delta + row_number(a, token / a->length, token % a->length, i % a->heads),
                   sum);
  }
}
KERNEL(attention_delta, attention_delta_body, LEARN_THREADS, struct attention_args)

/* scores[r]: raw scores in, probabilities out; slopes[r]: the probabilities' gradients in, the raw
 * scores' out. Rows and the tile's lanes are queries and keys, or the other way round. */
DEVICE void pull_scores(const struct attention_args *a, const struct attention_block *b,
                        uint32_t head, bool keys_own, uint32_t row, uint32_t other,
                        float scores[ATTENTION_ROWS], float slopes[ATTENTION_ROWS]) {
  UNROLL for (uint32_t r = 0; r < ATTENTION_ROWS; r++) {
    const uint32_t query = keys_own ? other : row + r, key = keys_own ? row + r : other;
    if (!attention_sees(a, query, key)) {
      scores[r] = slopes[r] = 0;
      continue;
    }
    const uint64_t at = row_number(a, b->sequence, query, head);
    const float s = capped(a, scores[r]), t = a->softcap > 0 ? s / a->softcap : 0;
    const float p = expf(s - global_load(a->lse_in + at));
    scores[r] = p;
    slopes[r] = p * (slopes[r] - global_load(a->delta + at)) * (1 - t * t) * a->scale;
  }
}

DEVICE void attention_back(const struct attention_args *a, bool keys_own) {
  const uint32_t heads = keys_own ? a->kv_heads : a->heads,
                 others = keys_own ? a->heads : a->kv_heads;
  const uint32_t bytes = 4 * a->stride, rows = a->warps * ATTENTION_ROWS;
  const struct attention_block b = attention_block(a, heads, rows, !keys_own);
  const uint32_t tile0 = shared_base(), tile1 = tile0 + ATTENTION_TILE * bytes;
  const uint32_t own0 = tile1 + ATTENTION_TILE * bytes, own1 = own0 + rows * bytes;
  const uint32_t group = a->heads / a->kv_heads, lane = thread_index() % 32;
  const uint32_t row = b.row + thread_index() / 32 * ATTENTION_ROWS;
  float sums0[ATTENTION_ROWS][ATTENTION_COLUMNS], sums1[ATTENTION_ROWS][ATTENTION_COLUMNS];
  uint32_t first, end;
  clear_sums(sums0);
  clear_sums(sums1);
  if (keys_own)
    queries_of(a, b.row, rows, ATTENTION_TILE, &first, &end);
  else
    keys_of(a, b.row, rows, ATTENTION_TILE, &first, &end);
  load_rows(a, keys_own ? a->k : a->q, b.sequence, b.row, rows, b.head, heads, own0);
  load_rows(a, keys_own ? a->v : a->dout, b.sequence, b.row, rows, b.head, heads, own1);
  for (uint32_t g = 0; g < (keys_own ? group : 1); g++) {
    const uint32_t head = keys_own ? b.head * group + g : b.head;
    const uint32_t other_head = keys_own ? head : head / group;
    for (uint32_t at = first; at < end; at += ATTENTION_TILE) {
      float scores[ATTENTION_ROWS], slopes[ATTENTION_ROWS];
      block_barrier();
      load_rows(a, keys_own ? a->q : a->k, b.sequence, at, ATTENTION_TILE, other_head, others,
                tile0);
      load_rows(a, keys_own ? a->dout : a->v, b.sequence, at, ATTENTION_TILE, other_head, others,
                tile1);
      block_barrier();
      multiply_tile(a, own0, tile0, scores);
      multiply_tile(a, own1, tile1, slopes);
      pull_scores(a, &b, head, keys_own, row, at + lane, scores, slopes);
      weigh_tile(a, slopes, tile0, sums0);
      if (keys_own) weigh_tile(a, scores, tile1, sums1);
    }
  }
  UNROLL for (uint32_t r = 0; r < ATTENTION_ROWS; r++) {
    if (row + r >= a->length) continue;
    const uint64_t to = row_at(a, b.sequence, row + r, b.head, heads);
    store_row(a, (keys_own ? a->dk : a->dq) + to, sums0[r], 1);
    if (keys_own) store_row(a, a->dv + to, sums1[r], 1);
  }
}
DEVICE void back_q_body(const struct attention_args *a) { attention_back(a, false); }
DEVICE void back_kv_body(const struct attention_args *a) { attention_back(a, true); }
KERNEL(attention_back_q, back_q_body, LEARN_THREADS, struct attention_args)
KERNEL(attention_back_kv, back_kv_body, LEARN_THREADS, struct attention_args)

#endif
