/* The kernels of the soft masks in the vector vocabulary: included by mask_avx2.c and mask_avx512.c
 * after their vec_*.h. Formulas and layouts: kernel/mask_ops.h; contracts: kernel/mask_kernels.h.
 *
 * A lane is a group. Logits and gradients lie in planes and load as they are; weights lie group
 * after group, so the four planes of a mask are transposed to meet them ("columns" below: vector i
 * holds the four columns of groups i, i + 4, i + 8 ...), and their gradients transposed back.
 * Most of the time goes into noise: per group a Philox block and twelve logarithms. */
#include "base/rng.h"
#include "kernel/compact_body.h"
#include "kernel/cpu/vec_math.h"
#include "kernel/select.h"
#include "sparse/mask.h"

enum { LANES = MASK_BLOCK, STORED = MASK_STORED, SIX = SPARSE_CANDIDATES, GROUP = 4 };

/* What stays the same along a row. */
struct sampler {
  const struct mask_row *row;
  bool learned; /* from logits, not from fixed codes */
  vi key[PHILOX_ROUNDS][2];
  vi counter; /* of the first VL groups */
  vf slope, inverse_tau;
};

static struct sampler sampler_make(const struct mask_row *row) {
  static const int32_t lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  struct sampler s = {.row = row,
                      .learned = row->logits != NULL,
                      .counter = vi_add(vi_set((int32_t)row->counter), vi_load(lane)),
                      .slope = vf_set(row->slope),
                      .inverse_tau = vf_set(row->inverse_tau)};
  uint32_t key[2] = {row->key[0], row->key[1]};
  for (int round = 0; round < PHILOX_ROUNDS; round++)
    for (int i = 0; i < 2; i++) {
      s.key[round][i] = vi_set((int32_t)key[i]);
      key[i] += PHILOX_STEP[i];
    }
  return s;
}

/* The Philox blocks of VL groups. Even and odd lanes keep vectors of their own, because a vector
 * product takes 32 of every 64 bits; what it leaves in the other half is never looked at. */
INLINE void noise_words(const struct sampler *s, int64_t group, vi words[4]) {
  const vi m0 = vi_set((int32_t)PHILOX_MULTIPLIER[0]), m1 = vi_set((int32_t)PHILOX_MULTIPLIER[1]);
  vi counter = vi_add(s->counter, vi_set((int32_t)group)), c[2][4];
  for (int odd = 0; odd < 2; odd++) {
    c[odd][0] = odd ? vi_odd(counter) : counter;
    c[odd][1] = vi_set(0);
    c[odd][2] = vi_set((int32_t)s->row->tensor);
    c[odd][3] = vi_set((int32_t)s->row->draw);
  }
#pragma GCC unroll 10
  for (int round = 0; round < PHILOX_ROUNDS; round++)
    for (int odd = 0; odd < 2; odd++) {
      vi *x = c[odd], p0 = vi_mul_even(x[0], m0), p1 = vi_mul_even(x[2], m1);
      x[0] = vi_xor(vi_xor(x[1], s->key[round][0]), vi_odd(p1));
      x[2] = vi_xor(vi_xor(x[3], s->key[round][1]), vi_odd(p0));
      x[1] = p1;
      x[3] = p0;
    }
  for (int i = 0; i < 4; i++) words[i] = vi_interleave(c[0][i], c[1][i]);
}

/* rng_six_uniforms in lanes: 21 bits each at the top of a mantissa, half a step below them. */
INLINE void uniforms(const struct sampler *s, int64_t group, vf u[SIX]) {
  vi words[4], bits[SIX];
  noise_words(s, group, words);
  for (int k = 0; k < 4; k++) bits[k] = vi_and(vi_shr(words[k], 9), vi_set(0x7ffffc));
  for (int k = 4; k < SIX; k++) {
    vi a = words[2 * (k - 4)], b = words[2 * (k - 4) + 1];
    bits[k] = vi_or(vi_shl(vi_and(a, vi_set(0x7ff)), 12), vi_shl(vi_and(b, vi_set(0x3ff)), 2));
  }
  for (int k = 0; k < SIX; k++)
    u[k] = vf_sub(vf_of_bits(vi_or(bits[k], vi_set(0x3f800002))), vf_set(1.0f));
}

/* u = log(-log u): minus the Gumbel noise. */
INLINE void minus_gumbel(vf u[SIX]) {
  vf_log_each(SIX, u);
  for (int k = 0; k < SIX; k++) u[k] = vf_abs(u[k]);
  vf_log_each(SIX, u);
}

/* Softmax over the six exponents of the VL groups from `group` on: y. */
INLINE void probabilities(const struct sampler *s, int64_t group, vf y[SIX]) {
  const struct mask_row *row = s->row;
  const float *logits = row->logits + group / LANES * (STORED * LANES) + group % LANES;
  for (int k = 0; k < STORED; k++) y[k] = vf_mul(vf_load(logits + k * LANES), s->slope);
  y[STORED] = vf_zero();
  if (row->noise) {
    vf u[SIX];
    uniforms(s, group, u);
    minus_gumbel(u);
    for (int k = 0; k < SIX; k++) y[k] = vf_fnma(u[k], s->inverse_tau, y[k]);
  }
  if (row->bias && group / LANES == row->blocks - 1)
    for (int k = 0; k < SIX; k++)
      y[k] = vf_add(y[k], vf_load(row->bias + k * LANES + group % LANES));
  vf top = vf_max(vf_max(vf_max(y[0], y[1]), vf_max(y[2], y[3])), vf_max(y[4], y[5]));
  vf sum = vf_zero();
  for (int k = 0; k < SIX; k++) y[k] = vf_sub(y[k], top);
  vf_exp_each(SIX, y);
  for (int k = 0; k < SIX; k++) sum = vf_add(sum, y[k]);
  vf factor = vf_div(vf_set(1.0f), sum);
  for (int k = 0; k < SIX; k++) y[k] = vf_mul(y[k], factor);
}

/* M24 of fixed codes. */
INLINE void fixed_mask(const uint8_t *codes, vf m[GROUP]) {
  vi code = vi_nibbles(codes), first = vi_and(code, vi_set(3)), second = vi_shr(code, 2);
  for (int c = 0; c < GROUP; c++) {
    vf kept = vf_select(vi_equal(first, vi_set(c)), vf_set(1.0f), vf_zero());
    m[c] = vf_select(vi_equal(second, vi_set(c)), vf_set(1.0f), kept);
  }
}

/* M24 of VL groups as planes, and the probabilities behind it: y, of fixed codes untouched.
 * The sums spell out sparse_candidate_table: 1100, 1010, 1001, 0110, 0101, 0011. */
INLINE void group_masks(const struct sampler *s, int64_t group, vf y[SIX], vf m[GROUP]) {
  if (!s->learned) {
    fixed_mask(s->row->codes + group / 2, m);
    return;
  }
  probabilities(s, group, y);
  m[0] = vf_add(vf_add(y[0], y[1]), y[2]);
  m[1] = vf_add(vf_add(y[0], y[3]), y[4]);
  m[2] = vf_add(vf_add(y[1], y[3]), y[5]);
  m[3] = vf_add(vf_add(y[2], y[4]), y[5]);
}

/* M = T + (1 - T) * M24 as columns. */
INLINE void whole_masks(vf tile, vf rest, const vf m[GROUP], vf mask[GROUP]) {
  for (int c = 0; c < GROUP; c++) mask[c] = vf_fma(rest, m[c], tile);
  vf_transpose_quads(mask);
}

static double sample(const struct mask_row *row, const float *w, float *out) {
  const struct sampler s = sampler_make(row);
  unsigned mode = flush_begin();
  vd sum = vd_zero();
  for (int64_t group = 0; group < row->blocks * LANES; group += VL) {
    vf y[SIX], m[GROUP], mask[GROUP], squares = vf_zero();
    vf tile = vf_load(row->tile + group);
    group_masks(&s, group, y, m);
    whole_masks(tile, vf_sub(vf_set(1.0f), tile), m, mask);
    for (int i = 0; i < GROUP; i++) {
      vf x = vf_mul(vf_load_quads(w + GROUP * (group + i), GROUP), mask[i]);
      vf_store_quads(out + GROUP * (group + i), GROUP, x);
      squares = vf_fma(x, x, squares); /* of four columns only: the long sum is fp64 */
    }
    sum = vd_add(sum, vd_add(vd_low(squares), vd_high(squares)));
  }
  flush_end(mode);
  return vd_sum(sum);
}

/* d(logit)_k = slope * y_k * (dy_k - sum_j y_j dy_j), dy_k = sum of dM24 over its positions; the
 * sum over j is the sum of m_c * dM24_c. The last logit's needs no store. */
INLINE void logit_gradients(const struct sampler *s, const vf y[SIX], const vf m[GROUP],
                            const vf dm24[GROUP], bool accumulate, float *dlogits) {
  static const int8_t kept[STORED][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}};
  vf mean = vf_zero();
  for (int c = 0; c < GROUP; c++) mean = vf_fma(m[c], dm24[c], mean);
#pragma GCC unroll 5
  for (int k = 0; k < STORED; k++) {
    vf dy = vf_add(dm24[kept[k][0]], dm24[kept[k][1]]);
    vf d = vf_mul(vf_mul(s->slope, y[k]), vf_sub(dy, mean));
    vf_store(dlogits + k * LANES, accumulate ? vf_add(vf_load(dlogits + k * LANES), d) : d);
  }
}

static void backward(const struct mask_row *row, const float *w, const float *dw, float decay,
                     bool accumulate, float *dlogits, float *dtile, float *out) {
  const struct sampler s = sampler_make(row);
  unsigned mode = flush_begin();
  for (int64_t group = 0; group < row->blocks * LANES; group += VL) {
    vf y[SIX], m[GROUP], mask[GROUP], dm[GROUP];
    vf tile = vf_load(row->tile + group), rest = vf_sub(vf_set(1.0f), tile);
    group_masks(&s, group, y, m);
    whole_masks(tile, rest, m, mask);
    for (int i = 0; i < GROUP; i++) {
      vf weight = vf_load_quads(w + GROUP * (group + i), GROUP);
      vf d = vf_load_quads(dw + GROUP * (group + i), GROUP);
      if (out) vf_store_quads(out + GROUP * (group + i), GROUP, vf_mul(weight, mask[i]));
      d = vf_fma(vf_mul(vf_set(decay), weight), mask[i], d);
      dm[i] = vf_mul(weight, d);
    }
    vf_transpose_quads(dm);
    vf dt = vf_zero();
    for (int c = 0; c < GROUP; c++) {
      dt = vf_fma(dm[c], vf_sub(vf_set(1.0f), m[c]), dt);
      dm[c] = vf_mul(dm[c], rest);
    }
    vf_store(dtile + group, vf_add(vf_load(dtile + group), dt));
    if (s.learned)
      logit_gradients(&s, y, m, dm, accumulate,
                      dlogits + group / LANES * (STORED * LANES) + group % LANES);
  }
  flush_end(mode);
}

/* All six gradients of VL groups, scaled. */
INLINE void six_gradients(const float *gradient, vf scale, vf g[SIX]) {
  vf sum = vf_zero();
  for (int k = 0; k < STORED; k++) {
    g[k] = vf_mul(scale, vf_load(gradient + k * LANES));
    sum = vf_add(sum, g[k]);
  }
  g[STORED] = vf_sub(vf_zero(), sum);
}

static double gradient_squares(const float *gradient, int64_t blocks) {
  vd low = vd_zero(), high = vd_zero();
  for (int64_t b = 0; b < blocks; b++, gradient += STORED * LANES)
    for (int lane = 0; lane < LANES; lane += VL) {
      vf g[SIX];
      six_gradients(gradient + lane, vf_set(1.0f), g);
      for (int k = 0; k < SIX; k++) {
        low = vd_fma(vd_low(g[k]), vd_low(g[k]), low);
        high = vd_fma(vd_high(g[k]), vd_high(g[k]), high);
      }
    }
  return vd_sum(vd_add(low, high));
}

/* Moves the moments of VL groups and returns rate * m^_k / (sqrt(v^_k) + epsilon) in u. */
INLINE void group_moments(const struct mask_adamw_factors *f, const vf g[SIX], float *first,
                          float *second, vf u[SIX]) {
  vf sum = vf_zero();
  for (int k = 0; k < SIX; k++) {
    vf m, v = vf_mul(vf_set(f->beta2), vf_load(second + k * LANES));
    if (k < STORED) {
      m = vf_mul(vf_set(f->beta1), vf_load(first + k * LANES));
      m = vf_fma(vf_set(1 - f->beta1), g[k], m);
      sum = vf_add(sum, m);
      vf_store(first + k * LANES, m);
    } else {
      m = vf_sub(vf_zero(), sum);
    }
    v = vf_fma(vf_mul(vf_set(1 - f->beta2), g[k]), g[k], v);
    vf_store(second + k * LANES, v);
    vf root = vf_sqrt(vf_mul(v, vf_set(f->second_scale)));
    u[k] = vf_div(vf_mul(vf_set(f->rate), m), vf_add(root, vf_set(f->epsilon)));
  }
  /* in this order a NaN stays one */
  u[STORED] = vf_min(vf_set(f->most), vf_max(vf_set(-f->most), u[STORED]));
}

static void adamw(const struct mask_adamw_factors *f, int64_t blocks, const float *gradient,
                  float *logits, float *first, float *second) {
  unsigned mode = flush_begin();
  for (int64_t b = 0; b < blocks; b++)
    for (int lane = 0; lane < LANES; lane += VL) {
      int64_t at = b * STORED * LANES + lane;
      vf g[SIX], u[SIX];
      six_gradients(gradient + at, vf_set(f->gradient_scale), g);
      group_moments(f, g, first + at, second + b * SIX * LANES + lane, u);
      for (int k = 0; k < STORED; k++) {
        vf change = vf_sub(u[k], u[STORED]), x = vf_load(logits + at + k * LANES);
        vf_store(logits + at + k * LANES, vf_sub(vf_mul(vf_set(f->keep), x), change));
      }
    }
  flush_end(mode);
}

static void choose(const float *logits, int64_t blocks, int32_t *code) {
  for (int64_t group = 0; group < blocks * LANES; group += VL) {
    const float *at = logits + group / LANES * (STORED * LANES) + group % LANES;
    vf top = vf_load(at);
    vi best = vi_set(sparse_candidate_code[0]);
    for (int k = 1; k < SIX; k++) {
      vf value = k < STORED ? vf_load(at + k * LANES) : vf_zero();
      vm larger = vf_less(top, value);
      top = vf_select(larger, value, top);
      best = vi_select(larger, vi_set(sparse_candidate_code[k]), best);
    }
    vi_store(code + group, best);
  }
}

static void fill_mask(struct kernel_table *table) {
  table->mask = (struct mask_kernels){sample, backward,     gradient_squares, adamw,
                                      choose, compact_step, compact_round};
}
