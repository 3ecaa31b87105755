/* Soft masks, their gradients, and the optimizer of 2:4 logits: what kernel/mask_ops.h says, a
 * thread to a group of four weights. After rows.h.
 *
 * A warp takes 32 consecutive groups of a row: planes of logits are read 64 bytes at a time,
 * weights 512 (fp32) or 256. Noise is made again in the backward pass, from the same counters as
 * the CPU's; the mask's gradient exists in registers only. */
#ifndef TSR_KERNEL_CUDA_MASK_H
#define TSR_KERNEL_CUDA_MASK_H

#include "kernel/cuda/rows.h"
#include "kernel/mask_compact.h"

#define MASK_SIX 6
#define MASK_FIVE 5
#define MASK_LANES 16

/* --- noise --- */

/* base/rng.h's philox4x32 and rng_six_uniforms, bit for bit. */
DEVICE void philox(const uint32_t key[2], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                   uint32_t out[4]) {
  uint32_t k0 = key[0], k1 = key[1];
  UNROLL for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

DEVICE void noise_words(const uint32_t key[2], uint32_t counter, uint32_t tensor, uint32_t draw,
                        uint32_t out[4]) {
  philox(key, counter, 0, tensor, draw, out);
}

DEVICE void noise_uniforms(const uint32_t words[4], float u[MASK_SIX]) {
  UNROLL for (int k = 0; k < 4; k++) u[k] = (float)(words[k] >> 11);
  u[4] = (float)((words[0] & 0x7ff) << 10 | (words[1] & 0x3ff));
  u[5] = (float)((words[2] & 0x7ff) << 10 | (words[3] & 0x3ff));
  UNROLL for (int k = 0; k < MASK_SIX; k++) u[k] = (u[k] + 0.5f) * (1.0f / 2097152.0f);
}

/* --- candidates --- */

/* 1100, 1010, 1001, 0110, 0101, 0011: the code of candidate k. */
DEVICE uint32_t candidate_code(int k) { return 0xED9C84u >> (4 * k) & 15; }
/* Whether its second position exists in a group of `width` columns; one column has 1100 alone. */
DEVICE bool candidate_fits(int k, uint32_t width) {
  return k == 0 || candidate_code(k) >> 2 < width;
}
DEVICE uint32_t group_width(uint32_t cols, uint32_t group) {
  const uint32_t left = cols - 4 * group;
  return left < 4 ? left : 4;
}

struct group {
  float y[MASK_SIX]; /* probabilities; of fixed codes unset */
  float m[4];        /* M24 */
  float tile;        /* T */
};

/* Where a difference of a group lies. */
DEVICE uint64_t logit_at(uint32_t row_blocks, uint32_t row, uint32_t group, int k) {
  const uint64_t block = (uint64_t)row * row_blocks + group / MASK_LANES;
  return (block * MASK_FIVE + (uint32_t)k) * MASK_LANES + group % MASK_LANES;
}

/* An element of logits or gradients, fp32 or compact. */
DEVICE float load_logit(const void *from, bool compact, uint64_t at) {
  return compact ? bf16_widen(global_load((const uint16_t *)from + at))
                 : global_load((const float *)from + at);
}

DEVICE void group_probabilities(const struct mask_args *a, uint32_t row, uint32_t group,
                                uint32_t width, float y[MASK_SIX]) {
  UNROLL for (int k = 0; k < MASK_FIVE; k++) y[k] =
      a->slope * load_logit(a->logits, a->compact, logit_at(a->row_blocks, row, group, k));
  y[MASK_FIVE] = 0;
  if (a->noise) {
    uint32_t words[4];
    float u[MASK_SIX];
    noise_words(a->key, row * a->groups + group, a->tensor, a->draw, words);
    noise_uniforms(words, u);
    UNROLL for (int k = 0; k < MASK_SIX; k++) y[k] -= log_fast(-logf(u[k])) * a->inverse_tau;
  }
  float top = -3.0e38f, sum = 0;
  UNROLL for (int k = 0; k < MASK_SIX; k++) {
    if (!candidate_fits(k, width)) y[k] = -1.0e30f;
    top = y[k] > top ? y[k] : top;
  }
  UNROLL for (int k = 0; k < MASK_SIX; k++) {
    y[k] = exp_fast(y[k] - top);
    sum += y[k];
  }
  UNROLL for (int k = 0; k < MASK_SIX; k++) y[k] /= sum;
}

DEVICE uint32_t load_code(const uint8_t *codes, uint32_t stride, uint32_t row, uint32_t group) {
  const uint32_t pair = global_load(codes + (uint64_t)row * stride + group / 2);
  return group % 2 ? pair >> 4 : pair & 15;
}

DEVICE void load_group(const struct mask_args *a, uint32_t row, uint32_t group, uint32_t width,
                       struct group *g) {
  const uint32_t tile = row / a->tile_rows * a->tile_columns + group / a->tile_groups;
  g->tile = a->tile_soft ? global_load(a->tile_soft + tile) : 0;
  if (a->logits) {
    group_probabilities(a, row, group, width, g->y);
    g->m[0] = g->y[0] + g->y[1] + g->y[2];
    g->m[1] = g->y[0] + g->y[3] + g->y[4];
    g->m[2] = g->y[1] + g->y[3] + g->y[5];
    g->m[3] = g->y[2] + g->y[4] + g->y[5];
    return;
  }
  const uint32_t code = load_code(a->codes, a->code_stride, row, group);
  UNROLL for (uint32_t c = 0; c < 4; c++) g->m[c] = (code & 3) == c || code >> 2 == c ? 1.0f : 0.0f;
}

/* Four consecutive elements from column 4 * group on, zeros past the last column. Rows whose length
 * is a multiple of four are aligned for one access. */
DEVICE void load_four(const void *from, uint32_t type, uint32_t cols, uint64_t at, uint32_t width,
                      float out[4]) {
  if (cols % 4 == 0 && type == ELEMENT_F32) {
    const struct words4 v = global_load16((const float *)from + at);
    UNROLL for (int c = 0; c < 4; c++) out[c] = float_of_bits(v.w[c]);
    return;
  }
  if (cols % 4 == 0) {
    const uint64_t v = global_load((const uint64_t *)((const uint16_t *)from + at));
    UNROLL for (int c = 0; c < 4; c++) {
      const uint16_t half = (uint16_t)(v >> (16 * c));
      out[c] = type == ELEMENT_BF16 ? bf16_widen(half) : f16_widen(half);
    }
    return;
  }
  UNROLL for (uint32_t c = 0; c < 4; c++) out[c] = c < width ? load_element(from, at + c, type) : 0;
}

DEVICE void store_four(void *to, bool bf16, uint32_t cols, uint64_t at, uint32_t width,
                       const float x[4]) {
  if (cols % 4 == 0 && !bf16) {
    struct words4 v;
    UNROLL for (int c = 0; c < 4; c++) v.w[c] = bits_of_float(x[c]);
    global_store16((float *)to + at, v);
    return;
  }
  if (cols % 4 == 0) {
    uint64_t v = 0;
    UNROLL for (int c = 0; c < 4; c++) v |= (uint64_t)bf16_round(x[c]) << (16 * c);
    global_store((uint64_t *)((uint16_t *)to + at), v);
    return;
  }
  for (uint32_t c = 0; c < width; c++)
    if (bf16)
      global_store((uint16_t *)to + at + c, bf16_round(x[c]));
    else
      global_store((float *)to + at + c, x[c]);
}

/* --- a block's part of a tile --- */

struct strip {
  uint32_t row, rows, group, groups, tile;
};

DEVICE struct strip block_strip(const struct mask_args *a) {
  const uint32_t strip = block_index() / a->tile_columns, column = block_index() % a->tile_columns;
  const uint32_t tile_row = strip / a->strips_per_tile, top = tile_row * a->tile_rows;
  uint32_t end = top + a->tile_rows < a->rows ? top + a->tile_rows : a->rows;
  struct strip s;
  s.row = top + strip % a->strips_per_tile * MASK_STRIP_ROWS;
  if (s.row + MASK_STRIP_ROWS < end) end = s.row + MASK_STRIP_ROWS;
  s.rows = s.row < end ? end - s.row : 0;
  s.group = column * a->tile_groups;
  s.groups = s.group + a->tile_groups < a->groups ? a->tile_groups : a->groups - s.group;
  s.tile = tile_row * a->tile_columns + column;
  return s;
}

DEVICE void sample_body(const struct mask_args *a) {
  const struct strip s = block_strip(a);
  float squares = 0;
  for (uint32_t i = thread_index(); i < s.rows * s.groups; i += LEARN_THREADS) {
    const uint32_t row = s.row + i / s.groups, group = s.group + i % s.groups;
    const uint32_t width = group_width(a->cols, group);
    const uint64_t at = (uint64_t)row * a->cols + 4 * group;
    struct group g;
    float x[4];
    load_group(a, row, group, width, &g);
    load_four(a->w, a->type, a->cols, at, width, x);
    UNROLL for (int c = 0; c < 4; c++) {
      x[c] *= g.tile + (1 - g.tile) * g.m[c];
      squares = fmaf(x[c], x[c], squares);
    }
    store_four(a->out, a->out_is_bf16, a->cols, at, width, x);
  }
  const double sum = block_sum((double)squares);
  if (thread_index() == 0) global_store(a->parts + block_index(), sum);
  if (!last_to_arrive(a->counters, a->blocks)) return;
  const double total = sum_parts(a->parts, a->blocks);
  if (thread_index() == 0) global_store(a->squares, total);
}
KERNEL(mask_sample_tiles, sample_body, LEARN_THREADS, struct mask_args)

DEVICE float decay_of(const struct mask_args *a) {
  if (!a->decay_squares) return (float)a->decay;
  const double squares = global_load(a->decay_squares);
  return squares > 0 ? (float)(a->decay / sqrt(squares)) : 0;
}

/* x to bf16: its neighbours with probabilities that make the mean x. */
DEVICE uint16_t bf16_at_random(float x, uint32_t noise) {
  const uint32_t bits = bits_of_float(x);
  return (uint16_t)(((bits & 0x7f800000u) == 0x7f800000u ? bits : bits + noise) >> 16);
}
/* Number k of the 16-bit halves of Philox's words. */
DEVICE uint32_t noise_half(const uint32_t *words, int k) {
  return words[k / 2] >> (16 * (k % 2)) & 0xffff;
}
/* The slot's words of a stream of kernel/mask_compact.h. */
DEVICE void storage_words(const uint32_t key[2], uint64_t slot, uint32_t stream, uint32_t tensor,
                          uint32_t draw, uint32_t out[4]) {
  philox(key, (uint32_t)slot, stream | (uint32_t)(slot >> 32) << 8, tensor, draw, out);
}

/* d(logit)_k = slope * y_k * (dy_k - sum_j y_j dy_j), dy_k = sum of dM24 over its positions; the
 * sum over j is the sum of m_c * dM24_c. */
DEVICE void store_logit_gradients(const struct mask_args *a, uint32_t row, uint32_t group,
                                  const struct group *g, const float dm24[4]) {
  float mean = 0;
  uint32_t words[4] = {0};
  UNROLL for (int c = 0; c < 4; c++) mean = fmaf(g->m[c], dm24[c], mean);
  if (a->compact)
    storage_words(a->key, (uint64_t)row * a->row_blocks * MASK_LANES + group,
                  COMPACT_GRADIENT_STREAM, a->tensor, a->pass, words);
  UNROLL for (int k = 0; k < MASK_FIVE; k++) {
    const uint32_t code = candidate_code(k);
    const uint64_t at = logit_at(a->row_blocks, row, group, k);
    float dy = 0;
    UNROLL for (uint32_t c = 0; c < 4; c++) if ((code & 3) == c || code >> 2 == c) dy += dm24[c];
    const float d = a->slope * g->y[k] * (dy - mean);
    if (a->compact) {
      uint16_t *to = (uint16_t *)a->dlogits + at;
      const float x = a->accumulate ? bf16_widen(global_load_fresh(to)) + d : d;
      global_store(to, bf16_at_random(x, noise_half(words, k)));
    } else {
      float *to = (float *)a->dlogits + at;
      global_store(to, a->accumulate ? global_load_fresh(to) + d : d);
    }
  }
}

/* The sum of a tile's strips, by the block that comes last. */
DEVICE void finish_tile(const struct mask_args *a, const struct strip *s, float dtile) {
  const double sum = block_sum((double)dtile);
  const uint32_t first =
      s->tile / a->tile_columns * a->strips_per_tile * a->tile_columns + s->tile % a->tile_columns;
  if (thread_index() == 0) global_store(a->parts + block_index(), sum);
  if (!last_to_arrive(a->counters + s->tile, a->strips_per_tile) || thread_index() != 0) return;
  double total = a->accumulate ? global_load_fresh(a->dtile + s->tile) : 0;
  for (uint32_t i = 0; i < a->strips_per_tile; i++)
    total += global_load_fresh(a->parts + first + i * a->tile_columns);
  global_store(a->dtile + s->tile, total);
}

DEVICE void mask_back_body(const struct mask_args *a) {
  const struct strip s = block_strip(a);
  const float decay = decay_of(a);
  float dtile = 0;
  for (uint32_t i = thread_index(); i < s.rows * s.groups; i += LEARN_THREADS) {
    const uint32_t row = s.row + i / s.groups, group = s.group + i % s.groups;
    const uint32_t width = group_width(a->cols, group);
    const uint64_t at = (uint64_t)row * a->cols + 4 * group;
    struct group g;
    float w[4], dw[4], x[4];
    load_group(a, row, group, width, &g);
    load_four(a->w, a->type, a->cols, at, width, w);
    load_four(a->dw, ELEMENT_F32, a->cols, at, width, dw);
    UNROLL for (int c = 0; c < 4; c++) {
      x[c] = w[c] * (g.tile + (1 - g.tile) * g.m[c]);
      const float dm = w[c] * fmaf(decay, x[c], dw[c]);
      dtile = fmaf(dm, 1 - g.m[c], dtile);
      dw[c] = dm * (1 - g.tile);
    }
    if (a->out) store_four(a->out, a->out_is_bf16, a->cols, at, width, x);
    if (a->logits) store_logit_gradients(a, row, group, &g, dw);
  }
  if (a->dtile) finish_tile(a, &s, dtile);
}
KERNEL(mask_back_tiles, mask_back_body, LEARN_THREADS, struct mask_args)

/* --- hard masks --- */

/* The first candidate with the largest logit, as a code; logits[5] is 0. */
DEVICE uint32_t best_code(const float logits[MASK_SIX], uint32_t width) {
  float top = logits[0];
  uint32_t code = candidate_code(0);
  UNROLL for (int k = 1; k < MASK_SIX; k++) if (candidate_fits(k, width) && logits[k] > top) {
    top = logits[k];
    code = candidate_code(k);
  }
  return code;
}

/* Two groups a byte: neighbours' codes meet in the even lane, which alone reads and writes it. All
 * lanes of the warp call this; returns how many groups changed. A group that does not exist leaves
 * what is there. */
DEVICE uint32_t put_code(const struct mask_update_args *a, uint32_t row, uint32_t group,
                         uint32_t code) {
  const uint32_t other = shuffle_xor(code, 1);
  if (group % 2 || group >= a->groups) return 0;
  uint8_t *at = a->codes + (uint64_t)row * a->code_stride + group / 2;
  const uint32_t before = global_load_fresh(at);
  const uint32_t after = code | (group + 1 < a->groups ? other << 4 : before & 0xf0);
  global_store(at, (uint8_t)after);
  return ((before ^ after) & 0x0f ? 1u : 0u) + ((before ^ after) & 0xf0 ? 1u : 0u);
}

/* Slots of a matrix's groups, padding included: walked over by whole warps. */
DEVICE uint64_t slot_count(const struct mask_update_args *a) {
  return (uint64_t)a->rows * a->row_blocks * MASK_LANES;
}

DEVICE void add_flips(const struct mask_update_args *a, uint32_t flips) {
  UNROLL for (uint32_t step = 16; step; step /= 2) flips += shuffle_xor(flips, step);
  if (thread_index() % 32 == 0 && flips) global_add_long(a->flips, flips);
}

DEVICE void choose_body(const struct mask_update_args *a) {
  const uint64_t step = (uint64_t)a->blocks * LEARN_THREADS, slots = slot_count(a);
  uint32_t flips = 0;
  for (uint64_t base = first_element() / 32 * 32; base < slots; base += step) {
    const uint64_t slot = base + thread_index() % 32, row_slots = a->row_blocks * MASK_LANES;
    const uint32_t row = (uint32_t)(slot / row_slots);
    const uint32_t group = slot < slots ? (uint32_t)(slot % row_slots) : a->groups;
    float logits[MASK_SIX];
    UNROLL for (int k = 0; k < MASK_FIVE; k++) logits[k] =
        group < a->groups
            ? load_logit(a->logits, a->compact, logit_at(a->row_blocks, row, group, k))
            : 0;
    logits[MASK_FIVE] = 0;
    flips += put_code(a, row, group, best_code(logits, group_width(a->cols, group)));
  }
  add_flips(a, flips);
}
KERNEL(mask_choose, choose_body, LEARN_THREADS, struct mask_update_args)

DEVICE void keep_body(const struct mask_keep_args *a) {
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint32_t row = (uint32_t)(i / a->groups), group = (uint32_t)(i % a->groups);
    const uint32_t width = group_width(a->cols, group);
    const uint64_t at = (uint64_t)row * a->cols + 4 * group;
    const uint32_t tile = row / a->tile_rows * a->tile_columns + group / a->tile_groups;
    const bool dense = global_load(a->tiles + tile);
    const uint32_t code = load_code(a->codes, a->code_stride, row, group);
    float x[4];
    load_four(a->w, a->type, a->cols, at, width, x);
    UNROLL for (uint32_t c = 0; c < 4; c++) if (!dense && (code & 3) != c && code >> 2 != c) x[c] =
        0;
    store_four(a->out, false, a->cols, at, width, x);
  }
}
KERNEL(mask_keep_hard, keep_body, LEARN_THREADS, struct mask_keep_args)

/* --- the optimizer --- */

DEVICE void six_gradients(const struct mask_update_args *a, uint64_t at, float scale,
                          float g[MASK_SIX]) {
  g[MASK_FIVE] = 0;
  UNROLL for (int k = 0; k < MASK_FIVE; k++) {
    g[k] = scale * load_logit(a->gradient, a->compact, at + (uint32_t)k * MASK_LANES);
    g[MASK_FIVE] -= g[k];
  }
}

DEVICE void squares_body(const struct mask_update_args *a) {
  const uint64_t step = (uint64_t)a->blocks * LEARN_THREADS;
  double sum = 0;
  for (uint64_t slot = first_element(); slot < slot_count(a); slot += step) {
    float g[MASK_SIX], squares = 0;
    six_gradients(a, slot / MASK_LANES * (MASK_FIVE * MASK_LANES) + slot % MASK_LANES, 1, g);
    UNROLL for (int k = 0; k < MASK_SIX; k++) squares = fmaf(g[k], g[k], squares);
    sum += (double)squares;
  }
  sum = block_sum(sum);
  if (thread_index() == 0) global_store(a->parts + block_index(), sum);
  if (!last_to_arrive(a->counters, a->blocks)) return;
  const double total = sum_parts(a->parts, a->blocks);
  if (thread_index() == 0) global_store(a->squares, total);
}
KERNEL(mask_squares, squares_body, LEARN_THREADS, struct mask_update_args)

/* Moves one group's moments; u = rate * m^_k / (sqrt(v^_k) + epsilon). `second_at`: of the second
 * moments, of which there are six. */
DEVICE void group_moments(const struct mask_update_args *a, uint64_t at, uint64_t second_at,
                          const float g[MASK_SIX], float u[MASK_SIX]) {
  float last = 0;
  UNROLL for (int k = 0; k < MASK_SIX; k++) {
    float m = last, *second = a->second + second_at + (uint32_t)k * MASK_LANES;
    if (k < MASK_FIVE) {
      float *first = a->first + at + (uint32_t)k * MASK_LANES;
      m = fmaf(a->beta1, global_load_fresh(first), (1 - a->beta1) * g[k]);
      global_store(first, m);
      last -= m;
    }
    const float v = fmaf(a->beta2, global_load_fresh(second), (1 - a->beta2) * g[k] * g[k]);
    global_store(second, v);
    u[k] = a->rate * m / (sqrtf(v * a->second_scale) + a->epsilon);
  }
  if (u[MASK_FIVE] > a->most) u[MASK_FIVE] = a->most;
  if (u[MASK_FIVE] < -a->most) u[MASK_FIVE] = -a->most;
}

DEVICE void adamw_body(const struct mask_update_args *a) {
  const uint64_t step = (uint64_t)a->blocks * LEARN_THREADS, slots = slot_count(a);
  uint32_t flips = 0;
  for (uint64_t base = first_element() / 32 * 32; base < slots; base += step) {
    const uint64_t slot = base + thread_index() % 32, row_slots = a->row_blocks * MASK_LANES;
    const uint32_t row = (uint32_t)(slot / row_slots);
    const uint32_t group = slot < slots ? (uint32_t)(slot % row_slots) : a->groups;
    const uint64_t block = slot / MASK_LANES, lane = slot % MASK_LANES;
    const uint64_t at = block * (MASK_FIVE * MASK_LANES) + lane;
    float g[MASK_SIX], u[MASK_SIX], logits[MASK_SIX];
    UNROLL for (int k = 0; k < MASK_SIX; k++) logits[k] = 0;
    if (group < a->groups) {
      six_gradients(a, at, a->gradient_scale, g);
      group_moments(a, at, block * (MASK_SIX * MASK_LANES) + lane, g, u);
      UNROLL for (int k = 0; k < MASK_FIVE; k++) {
        float *logit = (float *)a->logits + at + (uint32_t)k * MASK_LANES;
        logits[k] = a->keep * global_load_fresh(logit) - (u[k] - u[MASK_FIVE]);
        global_store(logit, logits[k]);
      }
    }
    if (a->codes) flips += put_code(a, row, group, best_code(logits, group_width(a->cols, group)));
  }
  if (a->codes) add_flips(a, flips);
}
KERNEL(mask_adamw, adamw_body, LEARN_THREADS, struct mask_update_args)

#endif
