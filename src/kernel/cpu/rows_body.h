/* The row-wise kernels in the vector vocabulary: included by rows_avx2.c and rows_avx512.c after
 * their vec_*.h and vec_math.h. Contracts: kernel/select.h; formulas: kernel/ops.h.
 *
 * Elements are fp32; sums that run over a whole row (norms, softmax denominators, the divergence)
 * are fp64, in lanes first and then in a fixed tree. Each kernel is one step over VL lanes, called
 * with the constant VL in the loop and with what is left at the end. */
#include <math.h>

#include "kernel/select.h"

INLINE vf load_lanes(const float *p, int64_t lanes) {
  return lanes == VL ? vf_load(p) : vf_load_part(p, lanes);
}
INLINE void store_lanes(float *p, int64_t lanes, vf x) {
  if (lanes == VL)
    vf_store(p, x);
  else
    vf_store_part(p, lanes, x);
}
/* The lanes in use of x, `other` in the rest. */
INLINE vf only_lanes(vf x, int64_t lanes, vf other) {
  return lanes == VL ? x : vf_select(vm_part(lanes), x, other);
}

/* Calls step(i, lanes, ...) over [0, n). */
#define FOR_LANES(n, step, ...)                                                   \
  do {                                                                            \
    int64_t lanes_at = 0;                                                         \
    for (; lanes_at + VL <= (n); lanes_at += VL) step(lanes_at, VL, __VA_ARGS__); \
    if (lanes_at < (n)) step(lanes_at, (n)-lanes_at, __VA_ARGS__);                \
  } while (0)

/* An fp64 sum of fp32 lanes. */
struct wide_sum {
  vd low, high;
};
INLINE struct wide_sum wide_zero(void) { return (struct wide_sum){vd_zero(), vd_zero()}; }
INLINE void wide_add(struct wide_sum *s, vf x) {
  s->low = vd_add(s->low, vd_low(x));
  s->high = vd_add(s->high, vd_high(x));
}
INLINE void wide_add_product(struct wide_sum *s, vf x, vf y) {
  s->low = vd_fma(vd_low(x), vd_low(y), s->low);
  s->high = vd_fma(vd_high(x), vd_high(y), s->high);
}
INLINE double wide_total(const struct wide_sum *s) { return vd_sum(vd_add(s->low, s->high)); }

/* --- norms --- */

INLINE void squares_step(int64_t i, int64_t lanes, const float *x, struct wide_sum *sum) {
  vf v = load_lanes(x + i, lanes);
  wide_add_product(sum, v, v);
}

static double sum_squares_of(const float *x, int64_t n) {
  struct wide_sum sum = wide_zero();
  FOR_LANES(n, squares_step, x, &sum);
  return wide_total(&sum);
}

/* weight, or weight + 1. */
INLINE vf norm_factor(const float *weight, int64_t lanes, vf one) {
  return vf_add(load_lanes(weight, lanes), one);
}

INLINE void rmsnorm_step(int64_t i, int64_t lanes, const float *x, const float *weight, vf one,
                         vf scale, float *y) {
  vf v = vf_mul(load_lanes(x + i, lanes), scale);
  store_lanes(y + i, lanes, vf_mul(v, norm_factor(weight + i, lanes, one)));
}

static void rmsnorm(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                    int64_t n, float *y, float *inverse) {
  vf one = vf_set(plus_one ? 1.0f : 0.0f);
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    float scale = (float)(1.0 / sqrt(sum_squares_of(x, n) / (double)n + eps));
    FOR_LANES(n, rmsnorm_step, x, weight, one, vf_set(scale), y);
    if (inverse) inverse[r] = scale;
  }
}

INLINE void norm_dot_step(int64_t i, int64_t lanes, const float *dy, const float *x,
                          const float *weight, vf one, struct wide_sum *sum) {
  vf g = vf_mul(load_lanes(dy + i, lanes), norm_factor(weight + i, lanes, one));
  wide_add_product(sum, g, load_lanes(x + i, lanes));
}

INLINE void rmsnorm_backward_step(int64_t i, int64_t lanes, const float *dy, const float *x,
                                  const float *weight, vf one, vf scale, vf pull, float *dx,
                                  bool accumulate) {
  vf g = vf_mul(load_lanes(dy + i, lanes), norm_factor(weight + i, lanes, one));
  vf d = vf_mul(scale, vf_fnma(load_lanes(x + i, lanes), pull, g));
  store_lanes(dx + i, lanes, accumulate ? vf_add(load_lanes(dx + i, lanes), d) : d);
}

/* With g = dy * weight and s the inverse: dx = s (g - x s^2 mean(g x)). */
static void rmsnorm_backward(const float *dy, const float *x, const float *weight, bool plus_one,
                             const float *inverse, int64_t rows, int64_t n, float *dx,
                             bool accumulate) {
  vf one = vf_set(plus_one ? 1.0f : 0.0f);
  for (int64_t r = 0; r < rows; r++, dy += n, x += n, dx += n) {
    struct wide_sum sum = wide_zero();
    FOR_LANES(n, norm_dot_step, dy, x, weight, one, &sum);
    double s = inverse[r];
    vf pull = vf_set((float)(s * s * wide_total(&sum) / (double)n));
    FOR_LANES(n, rmsnorm_backward_step, dy, x, weight, one, vf_set((float)s), pull, dx, accumulate);
  }
}

/* --- rope --- */

INLINE void rope_step(int64_t i, int64_t lanes, float *x, int64_t half, const float *cos,
                      const float *sin, vf sign) {
  vf c = load_lanes(cos + i, lanes), s = vf_mul(sign, load_lanes(sin + i, lanes));
  vf a = load_lanes(x + i, lanes), b = load_lanes(x + half + i, lanes);
  store_lanes(x + i, lanes, vf_fnma(b, s, vf_mul(a, c)));
  store_lanes(x + half + i, lanes, vf_fma(a, s, vf_mul(b, c)));
}

static void rope(float *x, int64_t heads, int64_t head_dim, const float *cos, const float *sin,
                 int direction) {
  vf sign = vf_set(direction < 0 ? -1.0f : 1.0f);
  for (int64_t h = 0; h < heads; h++, x += head_dim)
    FOR_LANES(head_dim / 2, rope_step, x, head_dim / 2, cos, sin, sign);
}

/* --- gated units --- */

/* s = 1 / (1 + exp(-x)) and 1 - s, both to full relative precision. */
INLINE vf sigmoid(vf x, vf *rest) {
  const vf one = vf_set(1.0f);
  vf e = vf_exp(vf_sub(vf_zero(), vf_abs(x)));
  vf large = vf_div(one, vf_add(one, e)), small = vf_mul(e, large);
  vm negative = vf_less(x, vf_zero());
  *rest = vf_select(negative, large, small);
  return vf_select(negative, small, large);
}

/* The activation at x; *slope its derivative. Both are x sigmoid(z): z = x for silu; for gelu with
 * the tanh approximation, (1 + tanh(u)) / 2 = sigmoid(2 u) and z = 2 sqrt(2 / pi) (x + c x^3). */
INLINE vf activation(const bool gelu, vf x, vf *slope) {
  vf z = x, dz = vf_set(1.0f), rest;
  if (gelu) {
    const vf scale = vf_set(1.5957691216057308f), cubic = vf_set(1.5957691216057308f * 0.044715f);
    vf square = vf_mul(x, x);
    z = vf_mul(x, vf_fma(cubic, square, scale));
    dz = vf_fma(vf_mul(vf_set(3.0f), cubic), square, scale);
  }
  vf s = sigmoid(z, &rest);
  *slope = vf_mul(s, vf_fma(vf_mul(x, rest), dz, vf_set(1.0f)));
  return vf_mul(x, s);
}

INLINE void glu_step(int64_t i, int64_t lanes, const bool gelu, const float *gate, const float *up,
                     float *out) {
  vf slope, value = activation(gelu, load_lanes(gate + i, lanes), &slope);
  store_lanes(out + i, lanes, vf_mul(value, load_lanes(up + i, lanes)));
}

static void glu(bool gelu, const float *gate, const float *up, int64_t n, float *out) {
  if (gelu)
    FOR_LANES(n, glu_step, true, gate, up, out);
  else
    FOR_LANES(n, glu_step, false, gate, up, out);
}

INLINE void glu_backward_step(int64_t i, int64_t lanes, const bool gelu, const float *gate,
                              const float *up, const float *dout, float *dgate, float *dup) {
  vf slope, value = activation(gelu, load_lanes(gate + i, lanes), &slope);
  vf d = load_lanes(dout + i, lanes), u = load_lanes(up + i, lanes);
  store_lanes(dgate + i, lanes, vf_mul(vf_mul(d, u), slope));
  store_lanes(dup + i, lanes, vf_mul(d, value));
}

static void glu_backward(bool gelu, const float *gate, const float *up, const float *dout,
                         int64_t n, float *dgate, float *dup) {
  if (gelu)
    FOR_LANES(n, glu_backward_step, true, gate, up, dout, dgate, dup);
  else
    FOR_LANES(n, glu_backward_step, false, gate, up, dout, dgate, dup);
}

/* --- losses --- */

/* Elements whose maximum is found at once; the first place of the maximum is then looked for in
 * one such chunk alone. */
enum { MAX_CHUNK = 1024 };

INLINE void max_step(int64_t i, int64_t lanes, const float *x, vf *max) {
  vf v = only_lanes(load_lanes(x + i, lanes), lanes, vf_set(-INFINITY));
  *max = vf_max(v, *max); /* the second operand wins beside a NaN: NaNs are passed over */
}

struct top {
  float value;
  int64_t index; /* the first such */
};

static struct top top_of(const float *x, int64_t n) {
  struct top top = {-INFINITY, 0};
  int64_t chunk = 0;
  for (int64_t i = 0; i < n; i += MAX_CHUNK) {
    vf max = vf_set(-INFINITY);
    FOR_LANES(n - i < MAX_CHUNK ? n - i : MAX_CHUNK, max_step, x + i, &max);
    float value = vf_largest(max);
    if (value > top.value) {
      top.value = value;
      chunk = i;
    }
  }
  int64_t end = n - chunk < MAX_CHUNK ? n : chunk + MAX_CHUNK;
  for (top.index = chunk; top.index < end - 1 && x[top.index] != top.value;) top.index++;
  return top;
}

/* exp(x - top), zero in the lanes that are not in use. */
INLINE vf exponentials(const float *x, int64_t lanes, vf top) {
  return only_lanes(vf_exp(vf_sub(load_lanes(x, lanes), top)), lanes, vf_zero());
}

INLINE void exp_sum_step(int64_t i, int64_t lanes, const float *x, vf top, struct wide_sum *sum) {
  wide_add(sum, exponentials(x + i, lanes, top));
}
INLINE void exp_store_step(int64_t i, int64_t lanes, const float *x, vf top, struct wide_sum *sum,
                           float *out) {
  vf e = exponentials(x + i, lanes, top);
  wide_add(sum, e);
  store_lanes(out + i, lanes, e);
}
INLINE void scale_step(int64_t i, int64_t lanes, float *x, vf factor) {
  store_lanes(x + i, lanes, vf_mul(load_lanes(x + i, lanes), factor));
}

static void scale(float *x, int64_t n, float factor) {
  FOR_LANES(n, scale_step, x, vf_set(factor));
}

static float cross_entropy_row(const float *logits, int64_t vocab, int32_t target,
                               float gradient_scale, float *dlogits) {
  float max = top_of(logits, vocab).value, own = logits[target];
  struct wide_sum sum = wide_zero();
  if (dlogits)
    FOR_LANES(vocab, exp_store_step, logits, vf_set(max), &sum, dlogits);
  else
    FOR_LANES(vocab, exp_sum_step, logits, vf_set(max), &sum);
  double total = wide_total(&sum);
  if (dlogits) {
    scale(dlogits, vocab, (float)(gradient_scale / total));
    dlogits[target] -= gradient_scale;
  }
  return (float)(max + log(total) - own);
}

/* What the divergence sums: exp(a), exp(b), and exp(a) (a - b). */
struct divergence {
  struct wide_sum reference, model, difference;
};

INLINE void divergence_step(int64_t i, int64_t lanes, const float *reference, const float *model,
                            vf reference_top, vf model_top, struct divergence *d) {
  vf p = exponentials(reference + i, lanes, reference_top);
  wide_add(&d->reference, p);
  wide_add(&d->model, exponentials(model + i, lanes, model_top));
  wide_add_product(&d->difference, p,
                   vf_sub(load_lanes(reference + i, lanes), load_lanes(model + i, lanes)));
}

/* With A and B the logs of the denominators: sum p (a - A - b + B) = sum p (a - b) - (A - B). The
 * difference of two close logits is exact in fp32, so that close models are told apart. */
static float softmax_kl_row(const float *reference, const float *model, int64_t vocab,
                            uint8_t *agree) {
  struct top p = top_of(reference, vocab), q = top_of(model, vocab);
  struct divergence d = {wide_zero(), wide_zero(), wide_zero()};
  FOR_LANES(vocab, divergence_step, reference, model, vf_set(p.value), vf_set(q.value), &d);
  double p_sum = wide_total(&d.reference), q_sum = wide_total(&d.model);
  *agree = p.index == q.index;
  return (float)(wide_total(&d.difference) / p_sum -
                 ((double)p.value - q.value + log(p_sum) - log(q_sum)));
}

/* --- the rest --- */

INLINE void add_step(int64_t i, int64_t lanes, float *x, const float *y) {
  store_lanes(x + i, lanes, vf_add(load_lanes(x + i, lanes), load_lanes(y + i, lanes)));
}

static void add(float *x, const float *y, int64_t n) { FOR_LANES(n, add_step, x, y); }

/* --- attention --- */

/* The scores as the softmax sees them. */
INLINE vf capped(vf score, const bool cap, vf scale, vf inverse_cap, vf cap_value, vf *t) {
  vf s = vf_mul(scale, score);
  if (!cap) return s;
  *t = vf_tanh(vf_mul(s, inverse_cap));
  return vf_mul(cap_value, *t);
}

/* What a row of attention has for constants. */
struct attention_constants {
  vf scale, softcap, inverse_cap;
};
INLINE struct attention_constants attention_constants_of(float factor, float softcap) {
  return (struct attention_constants){vf_set(factor), vf_set(softcap),
                                      vf_set(softcap > 0 ? 1.0f / softcap : 0.0f)};
}

INLINE void capped_step(int64_t i, int64_t lanes, float *scores, const bool cap,
                        const struct attention_constants *c, vf *max) {
  vf t, s = capped(load_lanes(scores + i, lanes), cap, c->scale, c->inverse_cap, c->softcap, &t);
  store_lanes(scores + i, lanes, s);
  *max = vf_max(only_lanes(s, lanes, *max), *max);
}

INLINE void probability_step(int64_t i, int64_t lanes, float *scores, vf top, vf *sum) {
  vf e = exponentials(scores + i, lanes, top);
  store_lanes(scores + i, lanes, e);
  *sum = vf_add(*sum, e);
}

static void zero_outside(float *scores, int64_t low, int64_t high, int64_t n) {
  memset(scores, 0, (size_t)low * sizeof(float));
  memset(scores + high, 0, (size_t)(n - high) * sizeof(float));
}

static float attention_row(float *scores, int64_t low, int64_t high, int64_t n, float factor,
                           float softcap, float *max, float *sum) {
  struct attention_constants c = attention_constants_of(factor, softcap);
  vf largest = vf_set(*max), total = vf_zero();
  if (softcap > 0)
    FOR_LANES(high - low, capped_step, scores + low, true, &c, &largest);
  else
    FOR_LANES(high - low, capped_step, scores + low, false, &c, &largest);
  float top = vf_largest(largest), rescale = expf(*max - top);
  FOR_LANES(high - low, probability_step, scores + low, vf_set(top), &total);
  zero_outside(scores, low, high, n);
  *sum = *sum * rescale + vf_sum(total);
  *max = top;
  return rescale;
}

INLINE void attention_backward_step(int64_t i, int64_t lanes, float *scores, float *dscores,
                                    const bool cap, const struct attention_constants *c, vf lse,
                                    vf delta) {
  vf t, s = capped(load_lanes(scores + i, lanes), cap, c->scale, c->inverse_cap, c->softcap, &t);
  vf p = vf_exp(vf_sub(s, lse)), slope = c->scale;
  if (cap) slope = vf_mul(slope, vf_fnma(t, t, vf_set(1.0f)));
  vf d = vf_mul(vf_mul(p, vf_sub(load_lanes(dscores + i, lanes), delta)), slope);
  store_lanes(scores + i, lanes, p);
  store_lanes(dscores + i, lanes, d);
}

static void attention_row_backward(float *scores, float *dscores, int64_t low, int64_t high,
                                   int64_t n, float factor, float softcap, float lse, float delta) {
  struct attention_constants c = attention_constants_of(factor, softcap);
  if (softcap > 0)
    FOR_LANES(high - low, attention_backward_step, scores + low, dscores + low, true, &c,
              vf_set(lse), vf_set(delta));
  else
    FOR_LANES(high - low, attention_backward_step, scores + low, dscores + low, false, &c,
              vf_set(lse), vf_set(delta));
  zero_outside(scores, low, high, n);
  zero_outside(dscores, low, high, n);
}

/* Four sums at once, to keep both multiply-add units busy over their latency. */
static float dot(const float *x, const float *y, int64_t n) {
  vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL)
    for (int j = 0; j < 4; j++)
      sum[j] = vf_fma(vf_load(x + i + j * VL), vf_load(y + i + j * VL), sum[j]);
  for (; i + VL <= n; i += VL) sum[0] = vf_fma(vf_load(x + i), vf_load(y + i), sum[0]);
  if (i < n) sum[1] = vf_fma(vf_load_part(x + i, n - i), vf_load_part(y + i, n - i), sum[1]);
  return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

static void fill_rows(struct kernel_table *table) {
  table->rmsnorm = rmsnorm;
  table->rmsnorm_backward = rmsnorm_backward;
  table->rope = rope;
  table->glu = glu;
  table->glu_backward = glu_backward;
  table->cross_entropy = cross_entropy_row;
  table->softmax_kl = softmax_kl_row;
  table->add = add;
  table->sum_squares = sum_squares_of;
  table->attention_row = attention_row;
  table->attention_row_backward = attention_row_backward;
  table->scale = scale;
  table->dot = dot;
}
