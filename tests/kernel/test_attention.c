/* Attention against a plain fp64 version, its gradient against finite differences of that version,
 * under every instruction set: grouped heads, windows, soft-caps, ragged lengths, decoding. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "kernel/ops.h"
#include "support/isa.h"

struct buffers {
  float *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv;
  size_t q_count, kv_count;
};

static float *floats(size_t count) {
  float *p = calloc(count, sizeof *p);
  assert_non_null(p);
  return p;
}

static struct buffers make(const struct attention_shape *s) {
  struct buffers b = {
      .q_count = (size_t)(s->sequences * s->q_length * s->heads * s->head_dim),
      .kv_count = (size_t)(s->sequences * s->kv_length * s->kv_heads * s->head_dim)};
  b.q = floats(b.q_count), b.out = floats(b.q_count), b.dout = floats(b.q_count);
  b.dq = floats(b.q_count);
  b.k = floats(b.kv_count), b.v = floats(b.kv_count);
  b.dk = floats(b.kv_count), b.dv = floats(b.kv_count);
  b.lse = floats((size_t)(s->sequences * s->heads * s->q_length));
  fill_normal(b.q, b.q_count, 1, 1.5f);
  fill_normal(b.k, b.kv_count, 2, 1.5f);
  fill_normal(b.v, b.kv_count, 3, 1);
  fill_normal(b.dout, b.q_count, 4, 1);
  fill_normal(b.out, b.q_count, 5, 1); /* must be overwritten */
  fill_normal(b.dq, b.q_count, 6, 1);
  fill_normal(b.dk, b.kv_count, 7, 1);
  fill_normal(b.dv, b.kv_count, 8, 1);
  return b;
}

static void release(struct buffers *b) {
  float *all[] = {b->q, b->k, b->v, b->out, b->lse, b->dout, b->dq, b->dk, b->dv};
  for (int i = 0; i < 9; i++) free(all[i]);
}

/* One query row in fp64: weights[j], out (head_dim), and the log of the denominator. */
static double plain_row(const struct attention_shape *s, const struct buffers *b, int64_t sequence,
                        int64_t head, int64_t row, double *weights, double *out) {
  int64_t hd = s->head_dim, kv_head = head / (s->heads / s->kv_heads), own = s->q_start + row;
  const float *q = b->q + ((sequence * s->q_length + row) * s->heads + head) * hd;
  double max = -INFINITY, sum = 0;
  for (int64_t j = 0; j < s->kv_length; j++) {
    const float *k = b->k + ((sequence * s->kv_length + j) * s->kv_heads + kv_head) * hd;
    double score = 0;
    for (int64_t i = 0; i < hd; i++) score += (double)q[i] * k[i];
    score *= s->scale;
    if (s->softcap > 0) score = s->softcap * tanh(score / s->softcap);
    bool seen = j <= own && (s->window <= 0 || j > own - s->window);
    weights[j] = seen ? score : -INFINITY;
    max = fmax(max, weights[j]);
  }
  for (int64_t j = 0; j < s->kv_length; j++) sum += weights[j] = exp(weights[j] - max);
  for (int64_t i = 0; i < hd; i++) out[i] = 0;
  for (int64_t j = 0; j < s->kv_length; j++) {
    const float *v = b->v + ((sequence * s->kv_length + j) * s->kv_heads + kv_head) * hd;
    weights[j] /= sum;
    for (int64_t i = 0; i < hd; i++) out[i] += weights[j] * v[i];
  }
  return max + log(sum);
}

static double plain_loss(const struct attention_shape *s, const struct buffers *b) {
  double loss = 0, *weights = calloc((size_t)s->kv_length, 8), out[256];
  for (int64_t q = 0; q < s->sequences; q++)
    for (int64_t h = 0; h < s->heads; h++)
      for (int64_t r = 0; r < s->q_length; r++) {
        plain_row(s, b, q, h, r, weights, out);
        const float *d = b->dout + ((q * s->q_length + r) * s->heads + h) * s->head_dim;
        for (int64_t i = 0; i < s->head_dim; i++) loss += d[i] * out[i];
      }
  free(weights);
  return loss;
}

static void check_forward(const struct attention_shape *s) {
  struct buffers b = make(s);
  attention_forward(s, b.q, b.k, b.v, b.out, b.lse);
  double *weights = calloc((size_t)s->kv_length, 8), out[256];
  for (int64_t q = 0; q < s->sequences; q++)
    for (int64_t h = 0; h < s->heads; h++)
      for (int64_t r = 0; r < s->q_length; r += 1 + s->q_length / 40) {
        double lse = plain_row(s, &b, q, h, r, weights, out);
        const float *got = b.out + ((q * s->q_length + r) * s->heads + h) * s->head_dim;
        for (int64_t i = 0; i < s->head_dim; i++)
          if (!(fabs(got[i] - out[i]) < 3e-6))
            fail_msg("%s: sequence %ld head %ld row %ld: %g, not %g", kernel_table()->isa, (long)q,
                     (long)h, (long)r, got[i], out[i]);
        assert_true(fabs(b.lse[(q * s->heads + h) * s->q_length + r] - lse) < 1e-5);
      }
  free(weights);
  release(&b);
}

static const struct attention_shape shapes[] = {
    /* sequences, q, kv, start, heads, kv heads, head_dim, window, scale, softcap, precision */
    {2, 150, 150, 0, 6, 2, 64, 0, 0.125f, 0, 0},   {1, 1, 1, 0, 1, 1, 2, 0, 1, 0, 0},
    {1, 100, 100, 0, 4, 4, 20, 17, 0.3f, 0, 0},    {2, 60, 60, 0, 3, 1, 33, 0, 0.2f, 5, 0},
    {1, 230, 230, 0, 2, 1, 16, 100, 0.25f, 30, 0}, {3, 5, 5, 0, 2, 2, 128, 0, 0.1f, 0, 0},
    {1, 7, 40, 33, 4, 2, 64, 0, 0.125f, 0, 0},     {1, 1, 1200, 1199, 3, 1, 64, 0, 0.125f, 0, 0},
    {1, 1, 700, 699, 3, 1, 72, 64, 0.125f, 50, 0}, {2, 3, 20, 17, 2, 1, 256, 0, 0.06f, 0, 0}};

static void forward_cases(void) {
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) check_forward(&shapes[i]);
}
static void forward_against_fp64(void **state) {
  (void)state;
  for_each_isa(forward_cases);
}

/* --- operands rounded to bf16 --- */

static void round_to_bf16(float *x, size_t count) {
  for (size_t i = 0; i < count; i++) x[i] = bf16_to_f32(bf16_from_f32(x[i]));
}

/* From operands that bf16 holds exactly, rounding changes nothing but the probabilities, each by at
 * most one part in 2^9: the bound says no more. */
static void check_forward_bf16(struct attention_shape s) {
  s.precision = PRECISION_BF16;
  struct buffers b = make(&s);
  round_to_bf16(b.q, b.q_count);
  round_to_bf16(b.k, b.kv_count);
  round_to_bf16(b.v, b.kv_count);
  attention_forward(&s, b.q, b.k, b.v, b.out, b.lse);
  double *weights = calloc((size_t)s.kv_length, 8), out[256];
  for (int64_t q = 0; q < s.sequences; q++)
    for (int64_t h = 0; h < s.heads; h++)
      for (int64_t r = 0; r < s.q_length; r += 1 + s.q_length / 40) {
        double lse = plain_row(&s, &b, q, h, r, weights, out);
        const float *got = b.out + ((q * s.q_length + r) * s.heads + h) * s.head_dim;
        for (int64_t i = 0; i < s.head_dim; i++) {
          double size = 0;
          for (int64_t j = 0; j < s.kv_length; j++)
            size += weights[j] *
                    fabsf(b.v[((q * s.kv_length + j) * s.kv_heads + h / (s.heads / s.kv_heads)) *
                                  s.head_dim +
                              i]);
          if (!(fabs(got[i] - out[i]) < size / 250 + 5e-6))
            fail_msg("%s: sequence %ld head %ld row %ld: %g, not %g", kernel_table()->isa, (long)q,
                     (long)h, (long)r, got[i], out[i]);
        }
        assert_true(fabs(b.lse[(q * s.heads + h) * s.q_length + r] - lse) < 1e-5);
      }
  free(weights);
  release(&b);
}

static void bf16_forward_cases(void) {
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) check_forward_bf16(shapes[i]);
}
static void bf16_forward_against_fp64(void **state) {
  (void)state;
  for_each_isa(bf16_forward_cases);
}

/* Gradients against those of fp32, which finite differences hold. */
static void bf16_backward_cases(void) {
  static const struct attention_shape some[] = {
      {2, 150, 150, 0, 6, 2, 64, 0, 0.125f, 0, 0}, {1, 100, 100, 0, 4, 4, 20, 17, 0.3f, 0, 0},
      {2, 60, 60, 0, 3, 1, 33, 0, 0.2f, 5, 0},     {1, 270, 270, 0, 2, 1, 16, 100, 0.25f, 30, 0},
      {3, 5, 5, 0, 2, 2, 128, 0, 0.1f, 0, 0},      {1, 1, 1, 0, 1, 1, 2, 0, 1, 0, 0},
      {1, 257, 257, 0, 2, 2, 80, 0, 0.11f, 0, 0}};
  for (size_t i = 0; i < sizeof some / sizeof some[0]; i++) {
    struct attention_shape s = some[i];
    struct buffers b = make(&s), c = make(&s);
    attention_forward(&s, b.q, b.k, b.v, b.out, b.lse);
    attention_backward(&s, b.q, b.k, b.v, b.out, b.lse, b.dout, b.dq, b.dk, b.dv);
    s.precision = PRECISION_BF16;
    attention_forward(&s, c.q, c.k, c.v, c.out, c.lse);
    attention_backward(&s, c.q, c.k, c.v, c.out, c.lse, c.dout, c.dq, c.dk, c.dv);
    assert_true(relative_error(c.out, b.out, b.q_count) < 1e-2);
    assert_true(relative_error(c.dv, b.dv, b.kv_count) < 1e-2);
    if (s.q_length > 1) { /* one key has no choice: dq and dk are rounding errors */
      assert_true(relative_error(c.dq, b.dq, b.q_count) < 2e-2);
      assert_true(relative_error(c.dk, b.dk, b.kv_count) < 2e-2);
    }
    release(&b);
    release(&c);
  }
}
static void bf16_backward_against_fp32(void **state) {
  (void)state;
  for_each_isa(bf16_backward_cases);
}

static void check_slope(const struct attention_shape *s, struct buffers *b, float *x,
                        const float *d, size_t count, const char *what) {
  for (size_t i = 0; i < count; i += 1 + count / 13) {
    float keep = x[i];
    x[i] = keep + 2e-3f;
    double up = x[i], change = plain_loss(s, b);
    x[i] = keep - 2e-3f;
    change -= plain_loss(s, b);
    double slope = change / (up - x[i]);
    x[i] = keep;
    if (!(fabs(d[i] - slope) < 2e-4 * (1 + fabs(slope))))
      fail_msg("%s: %s[%zu] is %g, not %g", kernel_table()->isa, what, i, d[i], slope);
  }
}

static void backward_cases(void) {
  static const struct attention_shape small[] = {
      {2, 9, 9, 0, 4, 2, 8, 0, 0.4f, 0, 0},      {1, 60, 60, 0, 2, 1, 6, 0, 0.4f, 4, 0},
      {1, 110, 110, 0, 1, 1, 5, 20, 0.4f, 0, 0}, {2, 1, 1, 0, 2, 1, 4, 0, 0.4f, 0, 0},
      {1, 101, 101, 0, 3, 1, 4, 50, 0.4f, 7, 0}, {1, 49, 49, 0, 1, 1, 40, 0, 0.2f, 0, 0}};
  for (size_t i = 0; i < sizeof small / sizeof small[0]; i++) {
    const struct attention_shape *s = &small[i];
    struct buffers b = make(s);
    attention_forward(s, b.q, b.k, b.v, b.out, b.lse);
    attention_backward(s, b.q, b.k, b.v, b.out, b.lse, b.dout, b.dq, b.dk, b.dv);
    check_slope(s, &b, b.q, b.dq, b.q_count, "dq");
    check_slope(s, &b, b.k, b.dk, b.kv_count, "dk");
    check_slope(s, &b, b.v, b.dv, b.kv_count, "dv");
    release(&b);
  }
}
static void backward_against_finite_differences(void **state) {
  (void)state;
  for_each_isa(backward_cases);
}

static void check_threads(enum precision precision) {
  struct attention_shape s = {2, 200, 200, 0, 4, 2, 24, 70, 0.2f, 20, precision};
  struct buffers first = make(&s);
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    struct buffers b = threads == 1 ? first : make(&s);
    attention_forward(&s, b.q, b.k, b.v, b.out, b.lse);
    attention_backward(&s, b.q, b.k, b.v, b.out, b.lse, b.dout, b.dq, b.dk, b.dv);
    if (threads == 1) continue;
    assert_memory_equal(b.out, first.out, b.q_count * 4);
    assert_memory_equal(b.dq, first.dq, b.q_count * 4);
    assert_memory_equal(b.dk, first.dk, b.kv_count * 4);
    assert_memory_equal(b.dv, first.dv, b.kv_count * 4);
    release(&b);
  }
  release(&first);
  parallel_set_threads(0);
}
static void thread_case(void) {
  check_threads(PRECISION_FP32);
  check_threads(PRECISION_BF16);
}
static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(thread_case);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(forward_against_fp64),
      cmocka_unit_test(backward_against_finite_differences),
      cmocka_unit_test(bf16_forward_against_fp64),
      cmocka_unit_test(bf16_backward_against_fp32),
      cmocka_unit_test(same_bits_at_any_thread_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
