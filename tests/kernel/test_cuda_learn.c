/* kernel/cuda: every operation of the CUDA column, on an emulated card, against the CPU's at ragged
 * sizes; noise to the bit; no bank conflicts; the same bits in any order of blocks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "sparse/mask.h"
#include "support/cuda_emulated.h"
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/mask.h"
#include "support/support.h"

/* The same memory on both sides. */
enum side { CPU, CARD, SIDES };
struct array {
  void *at[SIDES];
  size_t bytes;
};
enum { ARRAYS_MAX = 16 };
static struct array arrays[ARRAYS_MAX];
static size_t array_count;
static const struct backend *backends[SIDES];

static void open_card(void) {
  backends[CARD] = emulated_open(64 << 20);
  backends[CPU] = backend_cpu();
}

static void *take(struct array *a, enum side side, const void *from, size_t bytes) {
  struct error err = {0};
  must(backends[side]->alloc(bytes, &a->at[side], &err), err);
  if (from) must(backends[side]->upload(a->at[side], from, bytes, &err), err);
  return a->at[side];
}

/* Both sides of `bytes` bytes that begin as `from`, or zeroed. */
static struct array *array_of(const void *from, size_t bytes) {
  assert_true(array_count < ARRAYS_MAX);
  struct array *a = &arrays[array_count++];
  a->bytes = bytes;
  for (int side = 0; side < SIDES; side++) take(a, (enum side)side, from, bytes);
  return a;
}

static struct array *normals(size_t count, uint64_t seed, float scale) {
  float *values = test_malloc(count * sizeof *values);
  fill_normal(values, count, seed, scale);
  struct array *a = array_of(values, count * sizeof *values);
  test_free(values);
  return a;
}

static void close_card(void) {
  for (size_t i = 0; i < array_count; i++)
    for (int side = 0; side < SIDES; side++) backends[side]->free(arrays[i].at[side]);
  array_count = 0;
  assert_int_equal(emulated_card.bank_conflicts, 0);
  emulated_close();
}

static void *bring(const struct array *a) {
  struct error err = {0};
  void *out = test_malloc(a->bytes + 1);
  must(backends[CARD]->download(out, a->at[CARD], a->bytes, &err), err);
  return out;
}

/* Floats of the two sides. */
static void check_floats(const char *what, const struct array *a, double most) {
  float *card = bring(a);
  const double error = relative_error(card, a->at[CPU], a->bytes / sizeof(float));
  if (!(error <= most)) fail_msg("%s: relative error %g, at most %g", what, error, most);
  test_free(card);
}
static void check_doubles(const char *what, const struct array *a, double most) {
  double *card = bring(a), *cpu = a->at[CPU];
  for (size_t i = 0; i < a->bytes / sizeof *card; i++)
    if (!(fabs(card[i] - cpu[i]) <= most * (fabs(cpu[i]) + 1)))
      fail_msg("%s: %g at %zu, the CPU has %g", what, card[i], i, cpu[i]);
  test_free(card);
}
static void check_bytes(const char *what, const struct array *a) {
  void *card = bring(a);
  if (memcmp(card, a->at[CPU], a->bytes)) fail_msg("%s: not the same bytes", what);
  test_free(card);
}

/* What follows, on either side: `b` is its backend, AT an array's memory there. */
#define EACH_SIDE                          \
  for (int side = 0; side < SIDES; side++) \
    for (const struct backend *b = backends[side]; b; b = NULL)
#define AT(a) ((a)->at[side])

/* --- memory and products --- */

static void memory_is_zeroed_copied_and_cleared(void **state) {
  (void)state;
  open_card();
  struct array *a = array_of(NULL, 1000), *x = normals(77, 1, 1), *y = array_of(NULL, 77 * 4);
  check_bytes("new memory", a);
  EACH_SIDE b->copy_floats(AT(y), AT(x), 77);
  check_bytes("a copy", y);
  EACH_SIDE b->clear(AT(x), 40);
  check_bytes("cleared memory", x);
  close_card();
}

static void products_match(void **state) {
  (void)state;
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
  const int64_t tokens = 19, rows = 37, cols = 45;
  for (size_t d = 0; d < 3; d++)
    for (int p = 0; p < 2; p++) {
      const enum precision precision = p ? PRECISION_BF16 : PRECISION_FP32;
      open_card();
      float w[37 * 45];
      uint16_t stored[2 * 37 * 45];
      fill_normal(w, 37 * 45, 5, 1);
      dtype_from_f32(dtypes[d], w, 37 * 45, stored);
      struct array *weight = array_of(stored, 37 * 45 * (d ? 2 : 4));
      struct array *x = normals((size_t)(tokens * cols), 1, 1), *bias = normals(37, 2, 1);
      struct array *y = normals((size_t)(tokens * rows), 3, 1);
      struct array *dx = normals((size_t)(tokens * cols), 4, 1);
      struct array *dw = normals((size_t)(rows * cols), 5, 1);
      EACH_SIDE {
        const struct linear_weight linear = {.dense = {AT(weight), dtypes[d], rows, cols}};
        b->linear_forward(&linear, AT(bias), AT(x), tokens, precision, AT(y));
        b->linear_backward_input(&linear, AT(y), tokens, precision, AT(dx), d == 1);
        b->linear_backward_weight(AT(y), AT(x), tokens, rows, cols, precision, AT(dw), d == 2);
      }
      const double most = p ? 5e-3 : 1e-5;
      check_floats("forward", y, most);
      check_floats("dx", dx, most);
      check_floats("dw", dw, most);
      close_card();
    }
}

/* --- rows --- */

static void embeddings_match(void **state) {
  (void)state;
  static const int32_t ids[] = {3, 0, 10, 3, 7};
  open_card();
  struct array *table = normals(11 * 33, 1, 1), *hidden = array_of(NULL, 5 * 33 * 4);
  EACH_SIDE {
    const struct linear_weight w = {.dense = {AT(table), DTYPE_F32, 11, 33}};
    b->embed(&w, ids, 5, 1.5f, AT(hidden));
  }
  check_bytes("embeddings", hidden);
  close_card();
}

static void norms_match(void **state) {
  (void)state;
  static const int64_t sizes[][2] = {{1, 3}, {13, 64}, {9, 77}, {300, 8}};
  for (size_t i = 0; i < 4; i++) {
    const int64_t rows = sizes[i][0], n = sizes[i][1];
    const size_t count = (size_t)(rows * n);
    open_card();
    struct array *x = normals(count, 1, 2), *w = normals((size_t)n, 2, 1);
    struct array *y = array_of(NULL, count * 4), *inverse = array_of(NULL, (size_t)rows * 4);
    struct array *dy = normals(count, 3, 1), *dx = normals(count, 4, 1);
    EACH_SIDE {
      b->rmsnorm_forward(AT(x), AT(w), i % 2, 1e-5, rows, n, AT(y), AT(inverse));
      b->rmsnorm_backward(AT(dy), AT(x), AT(w), i % 2, AT(inverse), rows, n, AT(dx), i > 1);
    }
    check_floats("norm", y, 1e-6);
    check_floats("inverse", inverse, 1e-6);
    check_floats("norm's gradient", dx, 1e-5);
    EACH_SIDE b->rmsnorm_forward(AT(x), AT(w), false, 1e-5, rows, n, AT(x), NULL);
    check_floats("norm in place", x, 1e-6);
    close_card();
  }
}

static void rotations_match(void **state) {
  (void)state;
  const int64_t rows = 14, length = 7, heads = 3, head_dim = 10;
  open_card();
  struct array *x = normals((size_t)(rows * heads * head_dim), 1, 1);
  struct array *cos = normals((size_t)(length * head_dim / 2), 2, 1);
  struct array *sin = normals((size_t)(length * head_dim / 2), 3, 1);
  EACH_SIDE b->rope_apply(AT(x), rows, length, NULL, heads, head_dim, AT(cos), AT(sin), +1);
  check_floats("rotated", x, 1e-6);
  EACH_SIDE b->rope_apply(AT(x), rows, length, NULL, heads, head_dim, AT(cos), AT(sin), -1);
  check_floats("rotated back", x, 1e-6);
  close_card();
}

static void elements_match(void **state) {
  (void)state;
  enum { N = 1003 };
  for (int gelu = 0; gelu < 2; gelu++) {
    open_card();
    struct array *gate = normals(N, 1, 2), *up = normals(N, 2, 1), *dout = normals(N, 3, 1);
    struct array *out = array_of(NULL, N * 4), *x = normals(N, 4, 20);
    EACH_SIDE {
      b->glu_forward(gelu, AT(gate), AT(up), N, AT(out));
      b->glu_backward(gelu, AT(gate), AT(up), AT(dout), N, AT(gate), AT(up));
      b->softcap_forward(AT(x), N, 15.0);
      b->softcap_backward(AT(dout), AT(x), N, 15.0);
      b->add_inplace(AT(out), AT(x), N);
    }
    check_floats("glu", out, 1e-6);
    check_floats("dgate", gate, 1e-5);
    check_floats("dup", up, 1e-5);
    check_floats("softcap", x, 1e-6);
    check_floats("softcap's gradient", dout, 1e-5);
    close_card();
  }
}

/* --- losses --- */

static void losses_match(void **state) {
  (void)state;
  static const int64_t vocabs[] = {5, 300, 1111};
  static const int32_t targets[] = {0, 4, -1, 2};
  enum { ROWS = 4 };
  for (size_t i = 0; i < 3; i++) {
    const int64_t vocab = vocabs[i];
    const struct distill_rule rule = {.weight = 0.3};
    const size_t count = (size_t)(ROWS * vocab);
    open_card();
    struct array *logits = normals(count, 1, 3), *teacher = normals(count, 2, 3);
    struct array *nll = normals(ROWS, 3, 1), *kl = normals(ROWS, 4, 1),
                 *agree = array_of(NULL, ROWS);
    struct array *d = array_of(NULL, count * 4);
    EACH_SIDE {
      b->distill_loss(AT(logits), AT(teacher), targets, ROWS, vocab, rule, 0.5f, AT(nll), AT(kl),
                      AT(d));
    }
    check_floats("distillation's nll", nll, 1e-5);
    check_floats("distillation's kl", kl, 1e-5);
    check_floats("distillation's gradient", d, 1e-5);
    EACH_SIDE {
      b->softmax_kl(AT(teacher), AT(logits), ROWS, vocab, AT(kl), AT(agree));
      b->cross_entropy(AT(logits), targets, ROWS, vocab, 1, AT(nll), NULL);
    }
    check_floats("divergence", kl, 1e-5);
    check_bytes("agreement", agree);
    check_floats("nll", nll, 1e-5);
    EACH_SIDE b->cross_entropy(AT(logits), targets, ROWS, vocab, 2, AT(nll), AT(logits));
    check_floats("gradient in place", logits, 1e-5);
    close_card();
  }
}

/* Ties count as the first, and far logits do not overflow. */
static void extreme_logits_match(void **state) {
  (void)state;
  enum { VOCAB = 600, ROWS = 3 };
  static const int32_t targets[] = {0, 1, 2};
  float logits[ROWS][VOCAB], teacher[ROWS][VOCAB];
  for (int i = 0; i < VOCAB; i++) {
    logits[0][i] = teacher[0][i] = -1e4f;
    logits[1][i] = 1e4f * (float)(i % 2), teacher[1][i] = 0;
    logits[2][i] = (float)-i, teacher[2][i] = i == 599 ? 50.0f : 0.0f;
  }
  open_card();
  struct array *x = array_of(logits, sizeof logits), *t = array_of(teacher, sizeof teacher);
  struct array *nll = array_of(NULL, 12), *kl = array_of(NULL, 12), *agree = array_of(NULL, 3);
  EACH_SIDE {
    b->cross_entropy(AT(x), targets, ROWS, VOCAB, 1, AT(nll), NULL);
    b->softmax_kl(AT(t), AT(x), ROWS, VOCAB, AT(kl), AT(agree));
  }
  check_floats("nll", nll, 1e-6);
  check_floats("kl", kl, 1e-6);
  check_bytes("agreement", agree);
  for (int32_t first = 0; first < 2; first++) { /* targets that are the likeliest, and are not */
    const int32_t likely[] = {first, 1 + 2 * first, 0};
    EACH_SIDE b->score_targets(AT(x), likely, ROWS, VOCAB, AT(nll), AT(agree));
    const uint8_t wanted[] = {!first, !first, 1}, *found = agree->at[CPU];
    check_floats("scores", nll, 1e-6);
    check_bytes("likeliest", agree);
    assert_memory_equal(found, wanted, ROWS);
  }
  close_card();
}

/* --- attention --- */

static const struct attention_shape attentions[] = {
    {1, 1, 1, 0, 1, 1, 8, 0, 0.3f, 0, PRECISION_FP32},
    {2, 40, 40, 0, 4, 2, 16, 0, 0.25f, 0, PRECISION_FP32},
    {1, 70, 70, 0, 2, 2, 40, 20, 0.2f, 0, PRECISION_FP32},
    {1, 65, 65, 0, 3, 1, 10, 33, 0.5f, 5, PRECISION_FP32},
    {1, 33, 33, 0, 1, 1, 128, 0, 0.1f, 30, PRECISION_FP32},
    {1, 34, 34, 0, 2, 1, 256, 0, 0.06f, 0, PRECISION_FP32},
};

static void attention_matches(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof attentions / sizeof *attentions; i++) {
    const struct attention_shape *s = &attentions[i];
    const size_t q_count = (size_t)(s->sequences * s->q_length * s->heads * s->head_dim);
    const size_t kv_count = (size_t)(s->sequences * s->q_length * s->kv_heads * s->head_dim);
    open_card();
    struct array *q = normals(q_count, 1, 1), *k = normals(kv_count, 2, 1);
    struct array *v = normals(kv_count, 3, 1), *out = array_of(NULL, q_count * 4);
    struct array *lse = array_of(NULL, (size_t)(s->sequences * s->heads * s->q_length) * 4);
    struct array *dout = normals(q_count, 4, 1), *dq = array_of(NULL, q_count * 4);
    struct array *dk = array_of(NULL, kv_count * 4), *dv = array_of(NULL, kv_count * 4);
    EACH_SIDE {
      b->attention_forward(s, AT(q), AT(k), AT(v), AT(out), AT(lse));
      b->attention_backward(s, AT(q), AT(k), AT(v), AT(out), AT(lse), AT(dout), AT(dq), AT(dk),
                            AT(dv));
    }
    check_floats("attention", out, 1e-5);
    check_floats("lse", lse, 1e-5);
    check_floats("dq", dq, 2e-5);
    check_floats("dk", dk, 2e-5);
    check_floats("dv", dv, 2e-5);
    close_card();
  }
}

/* Head sizes of every kernel, ragged lengths, groups, windows that begin inside and outside of a
 * tile, caps. */
static const struct attention_shape bf16_attentions[] = {
    {1, 3, 3, 0, 1, 1, 64, 0, 0.3f, 0, PRECISION_BF16},
    {2, 70, 70, 0, 4, 2, 12, 0, 0.25f, 0, PRECISION_BF16},
    {1, 150, 150, 0, 2, 1, 64, 20, 0.12f, 0, PRECISION_BF16},
    {1, 129, 129, 0, 1, 1, 80, 64, 0.1f, 5, PRECISION_BF16},
    {1, 97, 97, 0, 3, 1, 96, 0, 0.1f, 0, PRECISION_BF16},
    {1, 140, 140, 0, 2, 2, 128, 70, 0.09f, 0, PRECISION_BF16},
    {1, 90, 90, 0, 2, 1, 256, 33, 0.06f, 30, PRECISION_BF16},
};

struct attention_arrays {
  struct array *q, *k, *v, *dout, *out, *lse, *dq, *dk, *dv;
};
static struct array *rounded_normals(size_t count, uint64_t seed) {
  float *values = test_malloc(count * sizeof *values);
  fill_normal(values, count, seed, 1);
  for (size_t i = 0; i < count; i++) values[i] = bf16_to_f32(bf16_from_f32(values[i]));
  struct array *a = array_of(values, count * sizeof *values);
  test_free(values);
  return a;
}

/* With inputs that are bf16 already, against fp32 and fp64 sums on the CPU: what is left is the
 * rounding of probabilities and of the scores' gradients, 2^-9 of each. Against the CPU's own bf16,
 * which rounds the same against other maxima, the same holds. */
static void bf16_attention_matches(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof bf16_attentions / sizeof *bf16_attentions; i++)
    for (int exact = 0; exact < 2; exact++) {
      const struct attention_shape *s = &bf16_attentions[i];
      struct attention_shape cpu = *s;
      const size_t q_count = (size_t)(s->sequences * s->q_length * s->heads * s->head_dim);
      const size_t kv_count = (size_t)(s->sequences * s->q_length * s->kv_heads * s->head_dim);
      if (exact) cpu.precision = PRECISION_FP32;
      open_card();
      const struct attention_arrays x = {
          .q = rounded_normals(q_count, 1),
          .k = rounded_normals(kv_count, 2),
          .v = rounded_normals(kv_count, 3),
          .dout = rounded_normals(q_count, 4),
          .out = array_of(NULL, q_count * 4),
          .lse = array_of(NULL, (size_t)(s->sequences * s->heads * s->q_length) * 4),
          .dq = array_of(NULL, q_count * 4),
          .dk = array_of(NULL, kv_count * 4),
          .dv = array_of(NULL, kv_count * 4)};
      emulated_card.order = (uint32_t)i;
      EACH_SIDE {
        const struct attention_shape *shape = side == CPU ? &cpu : s;
        b->attention_forward(shape, AT(x.q), AT(x.k), AT(x.v), AT(x.out), AT(x.lse));
        b->attention_backward(shape, AT(x.q), AT(x.k), AT(x.v), AT(x.out), AT(x.lse), AT(x.dout),
                              AT(x.dq), AT(x.dk), AT(x.dv));
      }
      check_floats("attention", x.out, 3e-3);
      check_floats("lse", x.lse, 1e-5);
      check_floats("dq", x.dq, 4e-3);
      check_floats("dk", x.dk, 4e-3);
      check_floats("dv", x.dv, 3e-3);
      assert_int_equal(emulated_card.launches[LEARN_attention_rows], 0);
      close_card();
    }
}

/* --- masks --- */

static void noise_is_the_cpus_to_the_bit(void **state) {
  (void)state;
  struct rng rng = rng_make(1, 1);
  for (int i = 0; i < 2000; i++) {
    const uint32_t key[2] = {rng_next(&rng), rng_next(&rng)};
    const uint32_t counter[4] = {rng_next(&rng), 0, rng_next(&rng), rng_next(&rng)};
    uint32_t expected[4], words[4];
    float u[6], v[6];
    philox4x32(key, counter, expected);
    noise_words(key, counter[0], counter[2], counter[3], words);
    assert_memory_equal(words, expected, sizeof words);
    rng_six_uniforms(expected, u);
    noise_uniforms(words, v);
    assert_memory_equal(u, v, sizeof u);
  }
  for (int k = 0; k < 6; k++) {
    assert_int_equal(candidate_code(k), sparse_candidate_code[k]);
    for (uint32_t width = 1; width <= 4; width++)
      assert_int_equal(candidate_fits(k, width), sparse_code_fits(sparse_candidate_code[k], width));
  }
}

enum mode { JOINT, TILE, MASKLLM };
struct mask_case {
  int64_t rows, cols, tile_rows, tile_cols;
  enum mode mode;
  enum dtype dtype, out_dtype;
  bool noise;
};
static const struct mask_case mask_cases[] = {
    {70, 128, 64, 64, JOINT, DTYPE_F32, DTYPE_F32, true},
    {70, 130, 128, 128, JOINT, DTYPE_BF16, DTYPE_BF16, true},
    {33, 61, 16, 20, JOINT, DTYPE_F32, DTYPE_BF16, true},
    {40, 100, 32, 36, TILE, DTYPE_F16, DTYPE_F32, true},
    {9, 7, 128, 128, MASKLLM, DTYPE_F32, DTYPE_F32, true},
    {65, 264, 128, 128, MASKLLM, DTYPE_BF16, DTYPE_F32, false},
};

/* Logits (rows, blocks, 5, 16) with zeros in the padding. */
static struct array *some_logits(const struct mask_case *c, uint64_t seed, float scale) {
  const size_t count = (size_t)mask_logit_count(c->rows, c->cols);
  float *values = test_calloc(count, sizeof *values);
  struct rng rng = rng_make(seed, 1);
  for (int64_t r = 0; r < c->rows; r++)
    for (int64_t g = 0; g < mask_row_groups(c->cols); g++)
      for (int k = 0; k < 5; k++)
        values[mask_logit_index(c->cols, r, g, k)] = scale * (float)rng_normal(&rng);
  struct array *a = array_of(values, count * sizeof *values);
  test_free(values);
  return a;
}

static struct array *some_codes(const struct mask_case *c) {
  const size_t stride = (size_t)(c->cols + 7) / 8, bytes = (size_t)c->rows * stride;
  uint8_t *codes = test_calloc(bytes, 1);
  struct rng rng = rng_make(4, 4);
  for (int64_t r = 0; r < c->rows; r++)
    for (int64_t g = 0; g < mask_row_groups(c->cols); g++) {
      const int64_t width = c->cols - 4 * g < 4 ? c->cols - 4 * g : 4;
      uint8_t code;
      do code = sparse_candidate_code[rng_below(&rng, 6)];
      while (!sparse_code_fits(code, width));
      codes[(size_t)r * stride + (size_t)g / 2] |= (uint8_t)(code << g % 2 * 4);
    }
  struct array *a = array_of(codes, bytes);
  test_free(codes);
  return a;
}

static struct array *some_weights(const struct mask_case *c) {
  const size_t count = (size_t)(c->rows * c->cols);
  float *values = test_malloc(count * sizeof *values), *stored = test_malloc(count * 4);
  fill_normal(values, count, 9, 1);
  dtype_from_f32(c->dtype, values, (int64_t)count, stored);
  struct array *a = array_of(stored, count * (c->dtype == DTYPE_F32 ? 4 : 2));
  test_free(values);
  test_free(stored);
  return a;
}

static size_t tiles_of(const struct mask_case *c) {
  return (size_t)((c->rows + c->tile_rows - 1) / c->tile_rows *
                  ((c->cols + c->tile_cols - 1) / c->tile_cols));
}

/* What w * M is compared as: bf16 may round to a neighbour. */
static void check_masked(const struct mask_case *c, const struct array *out) {
  if (c->out_dtype == DTYPE_F32) {
    check_floats("w * M", out, 1e-5);
    return;
  }
  const int64_t count = c->rows * c->cols;
  uint16_t *card = bring(out);
  float *a = test_malloc((size_t)count * 4), *b = test_malloc((size_t)count * 4);
  dtype_to_f32(DTYPE_BF16, card, count, a);
  dtype_to_f32(DTYPE_BF16, out->at[CPU], count, b);
  assert_true(relative_error(a, b, (size_t)count) < 1e-3);
  test_free(card);
  test_free(a);
  test_free(b);
}

static void masks_and_their_gradients_match(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof mask_cases / sizeof *mask_cases; i++) {
    const struct mask_case *c = &mask_cases[i];
    const size_t count = (size_t)(c->rows * c->cols), tiles = tiles_of(c);
    open_card();
    float soft[64];
    for (size_t t = 0; t < tiles; t++) soft[t] = (float)(t % 7) / 6;
    struct array *logits = some_logits(c, 3, 0.05f), *codes = some_codes(c), *w = some_weights(c);
    struct array *tile_soft = array_of(soft, tiles * 4), *dw = normals(count, 6, 1);
    struct array *dlogits = some_logits(c, 7, 1), *dtile = array_of(NULL, tiles * 8);
    struct array *out = array_of(NULL, count * 4), *squares = array_of(NULL, 8);
    struct array *again = array_of(NULL, count * 4);
    EACH_SIDE {
      const struct mask_source s = {.rows = c->rows,
                                    .cols = c->cols,
                                    .tile_rows = c->tile_rows,
                                    .tile_cols = c->tile_cols,
                                    .logits = c->mode == TILE ? NULL : AT(logits),
                                    .codes = c->mode == TILE ? AT(codes) : NULL,
                                    .tile_soft = c->mode == MASKLLM ? NULL : AT(tile_soft),
                                    .kappa = 60,
                                    .tau = 1.5f,
                                    .noise = c->noise,
                                    .key = {11, 12},
                                    .tensor = 5,
                                    .draw = 77};
      const struct matrix_view view = {AT(w), c->dtype, c->rows, c->cols};
      const struct mask_decay decay = {-0.3 * (i % 2 ? 1 : 100), i % 2 ? NULL : AT(squares)};
      b->mask_sample(&s, view, c->out_dtype, AT(out), AT(squares));
      b->mask_backward(&s, view, AT(dw), decay, i % 3 == 1, AT(dlogits), AT(dtile), c->out_dtype,
                       AT(again));
      b->mask_backward(&s, view, AT(dw), decay, true, AT(dlogits), AT(dtile), c->out_dtype, NULL);
    }
    check_masked(c, out);
    check_doubles("squares", squares, 1e-5);
    check_floats("logits' gradient", dlogits, 2e-5);
    if (c->mode != MASKLLM) check_doubles("tiles' gradient", dtile, 1e-4);
    void *first = bring(out), *second = bring(again);
    assert_memory_equal(first, second, count * (c->out_dtype == DTYPE_F32 ? 4 : 2));
    test_free(first);
    test_free(second);
    close_card();
  }
}

static void updates_match(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof mask_cases / sizeof *mask_cases; i++) {
    const struct mask_case *c = &mask_cases[i];
    open_card();
    struct array *logits = some_logits(c, 3, 1), *gradient = some_logits(c, 4, 1);
    struct array *first = some_logits(c, 5, 0.1f), *codes = some_codes(c), *other = some_codes(c);
    struct array *second = array_of(NULL, (size_t)mask_second_count(c->rows, c->cols) * 4);
    struct array *flips = array_of(NULL, 16), *squares = array_of(NULL, 8);
    EACH_SIDE {
      struct mask_adamw a = {.rate = 0.1f,
                             .beta1 = 0.9f,
                             .beta2 = 0.99f,
                             .epsilon = 1e-8f,
                             .weight_decay = 0.1f,
                             .gradient_scale = 0.5f};
      b->mask_gradient_squares(AT(gradient), DTYPE_F32, c->rows, c->cols, AT(squares));
      for (a.step = 1; a.step < 4; a.step++)
        b->mask_adamw_step(&a, c->rows, c->cols, AT(gradient), AT(logits), AT(first), AT(second),
                           a.step == 2 ? NULL : AT(codes), AT(flips));
      b->mask_harden(AT(logits), DTYPE_F32, c->rows, c->cols, AT(other), (uint64_t *)AT(flips) + 1);
    }
    check_doubles("squares", squares, 1e-5);
    check_floats("logits", logits, 1e-6);
    check_floats("first moments", first, 1e-6);
    check_floats("second moments", second, 1e-6);
    check_bytes("codes", codes);
    check_bytes("hardened codes", other);
    check_bytes("flips", flips);
    close_card();
  }
}

static void hard_masks_match(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof mask_cases / sizeof *mask_cases; i++) {
    const struct mask_case *c = &mask_cases[i];
    const size_t count = (size_t)(c->rows * c->cols), n = tiles_of(c);
    uint8_t dense[64];
    for (size_t t = 0; t < n; t++) dense[t] = t % 3 == 1;
    open_card();
    struct array *w = some_weights(c), *codes = some_codes(c), *tiles = array_of(dense, n);
    struct array *out = array_of(NULL, count * 4);
    EACH_SIDE {
      const struct matrix_view view = {AT(w), c->dtype, c->rows, c->cols};
      b->mask_keep(view, AT(codes), AT(tiles), c->tile_rows, c->tile_cols, AT(out));
    }
    check_bytes("kept weights", out);
    close_card();
  }
}

/* --- what the emulator and the column must notice --- */

/* The block that comes last adds the others' sums: who that is does not show. */
static void blocks_in_any_order_give_the_same_bits(void **state) {
  (void)state;
  const struct mask_case c = {90, 200, 64, 64, JOINT, DTYPE_F32, DTYPE_F32, true};
  const size_t tiles = tiles_of(&c);
  double *kept = NULL, kept_squares = 0;
  for (uint32_t order = 0; order < 4; order++) {
    open_card();
    emulated_card.order = order;
    struct array *logits = some_logits(&c, 3, 0.05f), *w = some_weights(&c);
    struct array *soft = array_of(NULL, tiles * 4), *dw = normals(90 * 200, 6, 1);
    struct array *dlogits = some_logits(&c, 7, 1), *dtile = array_of(NULL, tiles * 8);
    struct array *out = array_of(NULL, 90 * 200 * 4), *squares = array_of(NULL, 8);
    const struct mask_source s = {.rows = 90,
                                  .cols = 200,
                                  .tile_rows = 64,
                                  .tile_cols = 64,
                                  .logits = logits->at[CARD],
                                  .tile_soft = soft->at[CARD],
                                  .kappa = 1,
                                  .tau = 1,
                                  .noise = true};
    const struct matrix_view view = {w->at[CARD], DTYPE_F32, 90, 200};
    const struct backend *b = backends[CARD];
    b->mask_sample(&s, view, DTYPE_F32, out->at[CARD], squares->at[CARD]);
    b->mask_backward(&s, view, dw->at[CARD], (struct mask_decay){0, NULL}, false, dlogits->at[CARD],
                     dtile->at[CARD], DTYPE_F32, NULL);
    double *here = bring(dtile), *sum = bring(squares);
    if (!kept) {
      kept = test_malloc(tiles * 8);
      memcpy(kept, here, tiles * 8);
      kept_squares = *sum;
    }
    assert_memory_equal(kept, here, tiles * 8);
    assert_memory_equal(&kept_squares, sum, 8);
    test_free(here);
    test_free(sum);
    close_card();
  }
  test_free(kept);
}

/* The first failure of what was queued is what the caller gets when it waits. */
static void a_failure_is_kept_until_it_is_asked_for(void **state) {
  (void)state;
  struct error err = {0};
  backends[CARD] = emulated_open(1 << 16);
  float *x;
  must(backends[CARD]->alloc(40000, (void **)&x, &err), err);
  const struct attention_shape s = {1, 100, 100, 0, 1, 1, 8, 0, 1, 0, PRECISION_FP32};
  /* 400 bytes for delta are there, 60 thousand ids are not */
  int32_t *ids = test_calloc(60000, sizeof *ids);
  const struct linear_weight w = {.dense = {x, DTYPE_F32, 1, 1}};
  backends[CARD]->embed(&w, ids, 60000, 1, x);
  backends[CARD]->attention_forward(&s, x, x, x, x, NULL);
  assert_int_equal(emulated_card.launches[LEARN_attention_rows], 0);
  assert_int_equal(backends[CARD]->download(ids, x, 4, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "no room for 240000 bytes"));
  assert_int_equal(backends[CARD]->wait(&err), STATUS_FAILED);
  backends[CARD]->free(x);
  test_free(ids);
  emulated_close();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(memory_is_zeroed_copied_and_cleared),
      cmocka_unit_test(products_match),
      cmocka_unit_test(embeddings_match),
      cmocka_unit_test(norms_match),
      cmocka_unit_test(rotations_match),
      cmocka_unit_test(elements_match),
      cmocka_unit_test(losses_match),
      cmocka_unit_test(extreme_logits_match),
      cmocka_unit_test(attention_matches),
      cmocka_unit_test(bf16_attention_matches),
      cmocka_unit_test(noise_is_the_cpus_to_the_bit),
      cmocka_unit_test(masks_and_their_gradients_match),
      cmocka_unit_test(updates_match),
      cmocka_unit_test(hard_masks_match),
      cmocka_unit_test(blocks_in_any_order_give_the_same_bits),
      cmocka_unit_test(a_failure_is_kept_until_it_is_asked_for),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
