/* Attention over caches against a plain fp64 version on the elements that the cache holds, under
 * every instruction set: element types, grouped heads, windows, soft-caps, ragged lengths. */
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"
#include "support/isa.h"

enum { SEQUENCES_MAX = 5 };

/* Sequences of starts[i] + q_length positions. */
struct cached {
  struct attention_shape s;
  enum dtype dtype;
  int64_t starts[SEQUENCES_MAX], longest;
  struct kv_cache caches[SEQUENCES_MAX];
  float *k[SEQUENCES_MAX], *v[SEQUENCES_MAX]; /* (length, kv_heads, head_dim), as cached */
  float *q, *out, *partials;
  size_t q_count;
};

static struct error err;

static float *floats(size_t count) {
  float *p = mem_alloc(count, sizeof *p, &err);
  assert_non_null(p);
  return p;
}

/* What a row is after it was cached, in plain C. */
static void as_cached(enum dtype dtype, float *row, int64_t n) {
  char room[1024];
  if (dtype != DTYPE_I8) {
    dtype_from_f32(dtype, row, n, room);
    dtype_to_f32(dtype, room, n, row);
    return;
  }
  float most = 0;
  for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(row[i]));
  for (int64_t i = 0; i < n; i++) {
    float steps = rintf(row[i] * (127 / most));
    assert_true(fabsf(steps * (most / 127) - row[i]) <= most / 127 * 0.5001f);
    row[i] = steps * (most / 127);
  }
}

static void fill_sequence(struct cached *x, int64_t i) {
  const struct attention_shape *s = &x->s;
  int64_t length = x->starts[i] + s->q_length, width = s->kv_heads * s->head_dim, zero = 0;
  size_t count = (size_t)(length * width), bytes;
  struct kv_cache shape;
  x->k[i] = floats(count), x->v[i] = floats(count);
  fill_normal(x->k[i], count, (uint64_t)(10 + i), 1.5f);
  fill_normal(x->v[i], count, (uint64_t)(20 + i), 1);
  assert_true(kv_cache_shape(&shape, x->dtype, s->kv_heads, s->head_dim, x->longest, &bytes));
  x->caches[i] = kv_cache_at(&shape, floats(bytes / 4 + 1));
  /* an older text that was longer leaves what must not be seen */
  float *stale = floats((size_t)(x->longest * width));
  fill_normal(stale, (size_t)(x->longest * width), 30, 50);
  kv_cache_append(&x->caches[i], &zero, 1, x->longest, stale, stale);
  mem_free(stale);
  if (x->starts[i]) kv_cache_append(&x->caches[i], &zero, 1, x->starts[i], x->k[i], x->v[i]);
}

static void make(struct cached *x, float **new_k, float **new_v) {
  const struct attention_shape *s = &x->s;
  int64_t width = s->kv_heads * s->head_dim, rows = s->q_length;
  x->q_count = (size_t)(s->sequences * rows * s->heads * s->head_dim);
  x->q = floats(x->q_count), x->out = floats(x->q_count);
  fill_normal(x->q, x->q_count, 1, 1.5f);
  fill_normal(x->out, x->q_count, 2, 1); /* must be overwritten */
  *new_k = floats((size_t)(s->sequences * rows * width));
  *new_v = floats((size_t)(s->sequences * rows * width));
  x->longest = 0;
  for (int64_t i = 0; i < s->sequences; i++)
    if (x->starts[i] + rows > x->longest) x->longest = x->starts[i] + rows;
  x->partials = floats(attention_cached_floats(s, x->longest));
  for (int64_t i = 0; i < s->sequences; i++) {
    fill_sequence(x, i);
    int64_t at = x->starts[i] * width;
    memcpy(*new_k + i * rows * width, x->k[i] + at, (size_t)(rows * width) * 4);
    memcpy(*new_v + i * rows * width, x->v[i] + at, (size_t)(rows * width) * 4);
    for (int64_t r = 0; r < (x->starts[i] + rows) * s->kv_heads; r++) {
      as_cached(x->dtype, x->k[i] + r * s->head_dim, s->head_dim);
      as_cached(x->dtype, x->v[i] + r * s->head_dim, s->head_dim);
    }
  }
}

static void release(struct cached *x) {
  for (int64_t i = 0; i < x->s.sequences; i++) {
    mem_free(x->k[i]), mem_free(x->v[i]);
    mem_free(x->caches[i].keys); /* where its memory begins */
  }
  mem_free(x->q), mem_free(x->out), mem_free(x->partials);
}

static void plain_row(const struct cached *x, int64_t sequence, int64_t row, int64_t head,
                      double *weights, double *out) {
  const struct attention_shape *s = &x->s;
  int64_t hd = s->head_dim, own = x->starts[sequence] + row;
  int64_t low = s->window > 0 && own + 1 > s->window ? own + 1 - s->window : 0;
  int64_t kv_head = head / (s->heads / s->kv_heads);
  const float *q = x->q + ((sequence * s->q_length + row) * s->heads + head) * hd;
  double max = -INFINITY, sum = 0;
  for (int64_t j = low; j <= own; j++) {
    const float *k = x->k[sequence] + (j * s->kv_heads + kv_head) * hd;
    double score = 0;
    for (int64_t i = 0; i < hd; i++) score += (double)q[i] * k[i];
    score *= s->scale;
    if (s->softcap > 0) score = s->softcap * tanh(score / s->softcap);
    weights[j] = score;
    max = fmax(max, score);
  }
  for (int64_t j = low; j <= own; j++) sum += weights[j] = exp(weights[j] - max);
  for (int64_t i = 0; i < hd; i++) out[i] = 0;
  for (int64_t j = low; j <= own; j++) {
    const float *v = x->v[sequence] + (j * s->kv_heads + kv_head) * hd;
    for (int64_t i = 0; i < hd; i++) out[i] += weights[j] / sum * v[i];
  }
}

static void check(const struct cached *x) {
  const struct attention_shape *s = &x->s;
  double *weights = calloc((size_t)x->longest, 8), out[256];
  for (int64_t q = 0; q < s->sequences; q++)
    for (int64_t r = 0; r < s->q_length; r += 1 + s->q_length / 20)
      for (int64_t h = 0; h < s->heads; h++) {
        plain_row(x, q, r, h, weights, out);
        const float *got = x->out + ((q * s->q_length + r) * s->heads + h) * s->head_dim;
        /* rounding keys, values and probabilities to bf16: values are a few units large */
        double most = s->precision == PRECISION_BF16 && s->q_length > 4 ? 0.05 : 5e-6;
        for (int64_t i = 0; i < s->head_dim; i++)
          if (!(fabs(got[i] - out[i]) < most))
            fail_msg("%s, %s: sequence %ld row %ld head %ld: %g, not %g", kernel_table()->isa,
                     dtype_traits(x->dtype)->name, (long)q, (long)r, (long)h, got[i], out[i]);
      }
  free(weights);
}

/* The same sequence alone gives the same bits. */
static void check_alone(const struct cached *x) {
  struct attention_shape one = x->s;
  one.sequences = 1;
  size_t count = x->q_count / (size_t)x->s.sequences;
  float *out = floats(count);
  for (int64_t i = 0; i < x->s.sequences; i++) {
    attention_cached(&one, &x->caches[i], &x->starts[i], x->q + (size_t)i * count, out,
                     x->partials);
    assert_memory_equal(out, x->out + (size_t)i * count, count * 4);
  }
  mem_free(out);
}

static void check_case(const struct attention_shape *s, const int64_t *starts, enum dtype dtype) {
  struct cached x = {.s = *s, .dtype = dtype};
  float *new_k, *new_v, *first;
  memcpy(x.starts, starts, sizeof x.starts);
  make(&x, &new_k, &new_v);
  kv_cache_append(x.caches, x.starts, s->sequences, s->q_length, new_k, new_v);
  first = floats(x.q_count);
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    attention_cached(s, x.caches, x.starts, x.q, x.out, x.partials);
    if (threads == 1) memcpy(first, x.out, x.q_count * 4);
    assert_memory_equal(first, x.out, x.q_count * 4);
  }
  check(&x);
  check_alone(&x);
  mem_free(first), mem_free(new_k), mem_free(new_v);
  release(&x);
}

static void all_cases(void) {
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8};
  static const struct {
    struct attention_shape s; /* sequences, q_length, -, -, heads, kv_heads, head_dim, window, .. */
    int64_t starts[SEQUENCES_MAX];
  } cases[] = {
      {{5, 1, 0, 0, 9, 3, 64, 0, 0.125f, 0, 0}, {0, 700, 15, 255, 256}},
      {{2, 1, 0, 0, 2, 2, 33, 0, 0.2f, 0, 0}, {31, 16}},
      {{3, 1, 0, 0, 7, 1, 128, 0, 0.09f, 30, 0}, {300, 40, 2}},
      {{2, 1, 0, 0, 11, 1, 80, 0, 0.11f, 0, 0}, {513, 3}},
      {{3, 1, 0, 0, 4, 2, 20, 64, 0.3f, 0, 0}, {1000, 64, 600}},
      {{2, 1, 0, 0, 8, 1, 256, 300, 0.06f, 50, 0}, {900, 299}},
      {{1, 1, 0, 0, 5, 1, 2, 0, 1, 0, 0}, {100}},
      {{2, 4, 0, 0, 6, 2, 64, 0, 0.125f, 0, 0}, {254, 0}},
      {{1, 3, 0, 0, 3, 3, 24, 10, 0.2f, 5, 0}, {520}},
      {{2, 70, 0, 0, 6, 2, 64, 0, 0.125f, 0, 0}, {130, 0}},
      {{1, 21, 0, 0, 3, 1, 40, 33, 0.2f, 20, 0}, {95}},
      {{1, 200, 0, 0, 4, 2, 64, 0, 0.125f, 0, 0}, {300}},
      {{2, 1, 0, 0, 2, 1, 16, 0, 0.2f, 0, 0}, {1700, 1023}},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (int d = 0; d < 8; d++) {
      struct attention_shape s = cases[i].s;
      s.precision = d < 4 ? PRECISION_FP32 : PRECISION_BF16;
      check_case(&s, cases[i].starts, dtypes[d % 4]);
    }
  parallel_set_threads(0);
}
static void cached_against_fp64(void **state) {
  (void)state;
  for_each_isa(all_cases);
}

/* Rounding is that of plain C, to the bit, under every instruction set. */
static void rounding_cases(void) {
  enum { N = 37 };
  float x[N], again[N], scale;
  char got[N * 4], expected[N * 4];
  fill_normal(x, N, 5, 3);
  x[3] = 0, x[7] = -0.0f, x[11] = 65519, x[12] = 1e-7f, x[13] = 0x1.01p0f, x[14] = 0x1.03p0f;
  static const enum dtype plain[] = {DTYPE_F32, DTYPE_F16};
  for (int d = 0; d < 2; d++)
    for (int64_t n = 1; n <= N; n++) {
      size_t bytes = (size_t)n * (plain[d] == DTYPE_F32 ? 4 : 2);
      dtype_from_f32(plain[d], x, n, expected);
      scale = kernel_table()->kv_round(plain[d], x, n, got);
      assert_true(scale == 1);
      assert_memory_equal(got, expected, bytes);
    }
  scale = kernel_table()->kv_round(DTYPE_I8, x, N, got);
  assert_true(scale == 65519.0f / 127);
  assert_int_equal((signed char)got[11], 127);
  x[11] = -2;
  for (int64_t n = 1; n <= N; n++) {
    scale = kernel_table()->kv_round(DTYPE_I8, x, n, got);
    for (int64_t i = 0; i < n; i++)
      assert_true(fabsf((signed char)got[i] * scale - x[i]) <= 0.501f * scale);
  }
  memset(x, 0, sizeof x);
  assert_true(kernel_table()->kv_round(DTYPE_I8, x, N, got) == 0);
  for (int i = 0; i < N; i++) assert_int_equal(got[i], 0);
  /* what is not a number must not become one */
  x[5] = NAN;
  kernel_table()->kv_round(DTYPE_F16, x, 32, got);
  kernel_table()->kv_widen(DTYPE_F16, got, 32, again);
  assert_true(isnan(again[5]) && again[4] == 0);
}
static void rounding(void **state) {
  (void)state;
  for_each_isa(rounding_cases);
}

static void sizes(void **state) {
  (void)state;
  struct kv_cache c;
  size_t bytes;
  assert_true(kv_cache_shape(&c, DTYPE_F16, 3, 64, 1000, &bytes));
  assert_int_equal(kv_cache_position_bytes(&c), 2 * 3 * 64 * 2);
  assert_true(bytes >= 1000 * 768 && bytes < 1100 * 768);
  assert_true(kv_cache_shape(&c, DTYPE_I8, 3, 64, 1000, &bytes));
  assert_int_equal(kv_cache_position_bytes(&c), 2 * 3 * (64 + 4));
  assert_false(kv_cache_shape(&c, DTYPE_F32, 1 << 20, 1 << 20, INT64_MAX / 2, &bytes));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cached_against_fp64),
      cmocka_unit_test(rounding),
      cmocka_unit_test(sizes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
