/* The backward pass of attention on the tensor cores, and the kernels of both passes: after
 * attention_mma.h. Probabilities are made again from lse. */
#ifndef TSR_KERNEL_CUDA_ATTENTION_MMA_BACK_H
#define TSR_KERNEL_CUDA_ATTENTION_MMA_BACK_H

#include "kernel/cuda/attention_mma.h"

/* What turns scores into probabilities, and their gradients into those of scores. */
struct score_pull {
  float factor, inverse_cap; /* the latter 0 without a cap */
};
DEVICE struct score_pull score_pull(const struct attention_args *a) {
  return (struct score_pull){exponent_of_score(a), a->softcap > 0 ? 1 / a->softcap : 0};
}
/* score becomes the probability; slope (in: that of the probability) the gradient of the score but
 * for `scale`, which is left to the end. lse in exponents of 2. */
DEVICE void pull_score(const struct score_pull *by, float lse, float delta, bool seen, float *score,
                       float *slope) {
  const float t = by->inverse_cap * *score; /* the tanh of the cap */
  const float p = seen ? exp2_fast(fmaf(by->factor, *score, -lse)) : 0;
  *score = p;
  *slope = p * (*slope - delta) * fmaf(-t, t, 1);
}

/* What the softmax of a query left behind. */
struct query_stats {
  float lse, delta;
};
DEVICE struct query_stats load_stats(const struct attention_args *a, uint32_t sequence,
                                     uint32_t row, uint32_t head) {
  if (row >= a->length) return (struct query_stats){0, 0};
  const uint64_t at = row_number(a, sequence, row, head);
  return (struct query_stats){LOG2_E * global_load(a->lse_in + at), global_load(a->delta + at)};
}

/* --- dq: queries own, keys pass by --- */

DEVICE void pull_by_queries(const struct attention_args *a, const struct attention_form *f,
                            uint32_t row, uint32_t key, struct query_stats stats[OWN_GROUPS][2],
                            score_fragments scores, score_fragments slopes) {
  const struct score_pull by = score_pull(a);
  const bool all = sees_all(a, row, 16 * f->groups, key, f->tile);
  if (a->softcap > 0) cap_scores(a, f, scores);
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t n = 0; n < f->tile / 8; n++)
      UNROLL for (uint32_t i = 0; i < 4; i++) {
    const struct query_stats *s = &stats[m][i / 2];
    const bool seen = all || attention_sees(a, row + lane_row(m, i), key + lane_column(n, i));
    pull_score(&by, s->lse, s->delta, seen, &scores[m][n][i], &slopes[m][n][i]);
  }
}

DEVICE void attention_mma_back_q(const struct attention_mma_args *args,
                                 const struct attention_form *f) {
  const struct attention_args *a = &args->a;
  const struct attention_block b = attention_block(a, a->heads, form_rows(f), true);
  const uint32_t kv_head = b.head / (a->heads / a->kv_heads), warp_rows = 16 * f->groups;
  const uint32_t own = shared_base(), own_bytes = form_rows(f) * form_row_bytes(f);
  const uint32_t stages = own + 2 * own_bytes, tile_bytes = f->tile * form_row_bytes(f);
  const uint32_t row = b.row + thread_index() / 32 * warp_rows;
  struct query_stats stats[OWN_GROUPS][2];
  float factor[OWN_GROUPS][2];
  sum_fragments sums;
  uint32_t first, end, at = stages;
  clear_fragments(f, sums);
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t half = 0; half < 2; half++) {
    stats[m][half] = load_stats(a, b.sequence, row + lane_row(m, 2 * half), b.head);
    factor[m][half] = a->scale;
  }
  keys_of(a, b.row, form_rows(f), f->tile, &first, &end);
  copy_rows(a, f, args->q, b.sequence, b.row, form_rows(f), b.head, a->heads, own);
  copy_rows(a, f, args->dout, b.sequence, b.row, form_rows(f), b.head, a->heads, own + own_bytes);
  copy_rows(a, f, args->k, b.sequence, first, f->tile, kv_head, a->kv_heads, at);
  copy_rows(a, f, args->v, b.sequence, first, f->tile, kv_head, a->kv_heads, at + tile_bytes);
  async_commit();
  for (uint32_t key = first; key < end; key += f->tile) {
    const uint32_t now = at, next = key + f->tile;
    at = at == stages ? stages + 2 * tile_bytes : stages;
    async_wait(0);
    block_barrier();
    if (next < end) {
      copy_rows(a, f, args->k, b.sequence, next, f->tile, kv_head, a->kv_heads, at);
      copy_rows(a, f, args->v, b.sequence, next, f->tile, kv_head, a->kv_heads, at + tile_bytes);
    }
    async_commit();
    if (!sees_any(a, row, warp_rows, key, f->tile)) continue;
    score_fragments scores, slopes;
    multiply_rows(f, own, now, scores);
    multiply_rows(f, own + own_bytes, now + tile_bytes, slopes);
    pull_by_queries(a, f, row, key, stats, scores, slopes);
    weigh_rows(f, slopes, now, 0, sums);
  }
  store_fragments(a, f, b.sequence, row, b.head, a->heads, 0, sums, factor, a->dq);
}

/* --- dk and dv: keys own, the queries of all heads that share them pass by --- */

/* Statistics of a tile of queries to `to`: (tile) of lse, then (tile) of delta. */
DEVICE void copy_stats(const struct attention_args *a, const struct attention_form *f,
                       uint32_t sequence, uint32_t row, uint32_t head, uint32_t to) {
  const uint32_t i = thread_index();
  if (i >= f->tile) return;
  const struct query_stats s = load_stats(a, sequence, row + i, head);
  shared_store4(to + 4 * i, bits_of_float(s.lse));
  shared_store4(to + 4 * (f->tile + i), bits_of_float(s.delta));
}

DEVICE void pull_by_keys(const struct attention_args *a, const struct attention_form *f,
                         uint32_t row, uint32_t query, uint32_t stats, score_fragments scores,
                         score_fragments slopes) {
  const struct score_pull by = score_pull(a);
  const bool all = sees_all(a, query, f->tile, row, 16 * f->groups);
  if (a->softcap > 0) cap_scores(a, f, scores);
  UNROLL for (uint32_t n = 0; n < f->tile / 8; n++) {
    /* of the queries of this lane's two columns */
    const uint32_t at = stats + 4 * lane_column(n, 0);
    const struct words2 lse = shared_load8(at), delta = shared_load8(at + 4 * f->tile);
    UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t i = 0; i < 4; i++) {
      const bool seen = all || attention_sees(a, query + lane_column(n, i), row + lane_row(m, i));
      pull_score(&by, float_of_bits(lse.w[i % 2]), float_of_bits(delta.w[i % 2]), seen,
                 &scores[m][n][i], &slopes[m][n][i]);
    }
  }
}

/* The tiles of queries that pass by: those of one head after the other. */
struct query_walk {
  uint32_t first, end, head, last_head, row;
};
DEVICE void copy_queries(const struct attention_mma_args *args, const struct attention_form *f,
                         uint32_t sequence, const struct query_walk *w, uint32_t to) {
  const struct attention_args *a = &args->a;
  const uint32_t tile_bytes = f->tile * form_row_bytes(f);
  copy_rows(a, f, args->q, sequence, w->row, f->tile, w->head, a->heads, to);
  copy_rows(a, f, args->dout, sequence, w->row, f->tile, w->head, a->heads, to + tile_bytes);
  copy_stats(a, f, sequence, w->row, w->head, to + 2 * tile_bytes);
}
/* False past the last tile. */
DEVICE bool next_queries(const struct attention_form *f, struct query_walk *w) {
  w->row += f->tile;
  if (w->row < w->end) return true;
  w->row = w->first;
  return w->head++ < w->last_head;
}

DEVICE void attention_mma_back_kv(const struct attention_mma_args *args,
                                  const struct attention_form *f) {
  const struct attention_args *a = &args->a;
  const uint32_t parts = f->width / f->columns, group = a->heads / a->kv_heads;
  /* blocks that own the same rows are counted as heads that share a key head */
  struct attention_block b = attention_block(a, a->kv_heads * parts, form_rows(f), false);
  const uint32_t chunk = b.head % parts * (f->columns / 8), warp_rows = 16 * f->groups;
  const uint32_t own = shared_base(), own_bytes = form_rows(f) * form_row_bytes(f);
  const uint32_t stages = own + 2 * own_bytes, tile_bytes = f->tile * form_row_bytes(f);
  const uint32_t stage_bytes = 2 * tile_bytes + 8 * f->tile;
  const uint32_t row = b.row + thread_index() / 32 * warp_rows;
  float k_factor[OWN_GROUPS][2], v_factor[OWN_GROUPS][2];
  sum_fragments dk, dv;
  struct query_walk walk;
  uint32_t at = stages;
  b.head /= parts;
  clear_fragments(f, dk);
  clear_fragments(f, dv);
  UNROLL for (uint32_t m = 0; m < f->groups; m++) UNROLL for (uint32_t half = 0; half < 2; half++) {
    k_factor[m][half] = a->scale;
    v_factor[m][half] = 1;
  }
  queries_of(a, b.row, form_rows(f), f->tile, &walk.first, &walk.end);
  walk.row = walk.first;
  walk.head = b.head * group;
  walk.last_head = walk.head + group - 1;
  copy_rows(a, f, args->k, b.sequence, b.row, form_rows(f), b.head, a->kv_heads, own);
  copy_rows(a, f, args->v, b.sequence, b.row, form_rows(f), b.head, a->kv_heads, own + own_bytes);
  copy_queries(args, f, b.sequence, &walk, at);
  async_commit();
  for (bool more = true; more;) {
    const uint32_t now = at, query = walk.row;
    at = at == stages ? stages + stage_bytes : stages;
    more = next_queries(f, &walk);
    async_wait(0);
    block_barrier();
    if (more) copy_queries(args, f, b.sequence, &walk, at);
    async_commit();
    if (row >= a->length || !sees_any(a, query, f->tile, row, warp_rows)) continue;
    score_fragments scores, slopes;
    multiply_rows(f, own, now, scores);
    multiply_rows(f, own + own_bytes, now + tile_bytes, slopes);
    pull_by_keys(a, f, row, query, now + 2 * tile_bytes, scores, slopes);
    weigh_rows(f, scores, now + tile_bytes, chunk, dv);
    weigh_rows(f, slopes, now, chunk, dk);
  }
  store_fragments(a, f, b.sequence, row, b.head, a->kv_heads, chunk, dk, k_factor, a->dk);
  store_fragments(a, f, b.sequence, row, b.head, a->kv_heads, chunk, dv, v_factor, a->dv);
}

/* --- the kernels --- */

#define ATTENTION_MMA_KERNEL(name, body, width, groups, tile, columns) \
  DEVICE void name##_body(const struct attention_mma_args *args) {     \
    const struct attention_form form = {width, groups, tile, columns}; \
    body(args, &form);                                                 \
  }                                                                    \
  KERNEL(name, name##_body, ATTENTION_MMA_THREADS, struct attention_mma_args)
ATTENTION_MMA_KERNELS(ATTENTION_MMA_KERNEL)

#endif
