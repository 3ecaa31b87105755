/* Soft masks: the sample against the formula in fp64 with its own noise, gradients against finite
 * differences of that formula, AdamW on five differences against AdamW on six logits; under every
 * instruction set, ragged shapes included, with equal bits at any number of threads. */
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/mask_ops.h"
#include "sparse/mask.h"
#include "support/isa.h"

struct problem {
  struct mask_source s;
  float *logits, *tile_soft, *w, *dw, *out, *dlogits;
  double *dtile;
  uint8_t *codes;
  void *stored; /* w in its dtype */
  struct matrix_view view;
  int64_t groups, tile_rows, tile_cols;
};

static void *zeroed(size_t count, size_t size) {
  void *p = calloc(count + 1, size);
  assert_non_null(p);
  return p;
}

enum mode { JOINT, TILE, MASKLLM };

static void fill_codes(struct problem *p) {
  struct rng rng = rng_make(4, 4);
  for (int64_t r = 0; r < p->s.rows; r++)
    for (int64_t g = 0; g < p->groups; g++) {
      int64_t width = p->s.cols - 4 * g < 4 ? p->s.cols - 4 * g : 4;
      uint8_t code;
      do code = sparse_candidate_code[rng_below(&rng, 6)];
      while (!sparse_code_fits(code, width));
      p->codes[r * ((p->s.cols + 7) / 8) + g / 2] |= (uint8_t)(code << g % 2 * 4);
    }
}

static struct problem problem_make(int64_t rows, int64_t cols, int64_t tile, enum mode mode,
                                   enum dtype dtype) {
  struct problem p = {.groups = mask_row_groups(cols)};
  p.tile_rows = (rows + tile - 1) / tile;
  p.tile_cols = (cols + tile - 1) / tile;
  size_t n = (size_t)(rows * cols), tiles = (size_t)(p.tile_rows * p.tile_cols);
  size_t logits = (size_t)mask_logit_count(rows, cols);
  p.logits = zeroed(logits, 4), p.dlogits = zeroed(logits, 4);
  p.w = zeroed(n, 4), p.dw = zeroed(n, 4), p.out = zeroed(n, 4), p.stored = zeroed(n, 4);
  p.tile_soft = zeroed(tiles, 4), p.dtile = zeroed(tiles, 8);
  p.codes = zeroed((size_t)(rows * ((cols + 7) / 8)), 1);
  struct rng rng = rng_make(6, 1);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < p.groups; g++)
      for (int k = 0; k < 5; k++)
        p.logits[mask_logit_index(cols, r, g, k)] = 0.05f * (float)rng_normal(&rng);
  for (size_t i = 0; i < tiles; i++) p.tile_soft[i] = (float)rng_uniform(&rng);
  fill_normal(p.w, n, 2, 1);
  fill_normal(p.dw, n, 3, 1);
  dtype_from_f32(dtype, p.w, (int64_t)n, p.stored);
  dtype_to_f32(dtype, p.stored, (int64_t)n, p.w);
  p.s = (struct mask_source){.rows = rows,
                             .cols = cols,
                             .tile_rows = tile,
                             .tile_cols = tile,
                             .kappa = 60,
                             .tau = 1.5f,
                             .noise = true,
                             .key = {11, 12},
                             .tensor = 5,
                             .draw = 77};
  fill_codes(&p);
  if (mode != TILE) p.s.logits = p.logits;
  if (mode == TILE) p.s.codes = p.codes;
  if (mode != MASKLLM) p.s.tile_soft = p.tile_soft;
  p.view = (struct matrix_view){p.stored, dtype, rows, cols};
  return p;
}

static void problem_free(struct problem *p) {
  void *all[] = {p->logits, p->dlogits,   p->w,     p->dw,   p->out,
                 p->stored, p->tile_soft, p->dtile, p->codes};
  for (int i = 0; i < 9; i++) free(all[i]);
}

/* M24 of one group in fp64, by the letter of the method. */
static void plain_group(const struct problem *p, int64_t row, int64_t group, double *m) {
  const struct mask_source *s = &p->s;
  int64_t width = s->cols - 4 * group < 4 ? s->cols - 4 * group : 4;
  double y[6], top = -INFINITY, sum = 0;
  for (int c = 0; c < 4; c++) m[c] = 0;
  if (!s->logits) {
    uint8_t code = s->codes[row * ((s->cols + 7) / 8) + group / 2] >> group % 2 * 4 & 15;
    m[code & 3] = m[code >> 2] = 1;
    return;
  }
  uint32_t index = (uint32_t)(row * p->groups + group), words[4];
  philox4x32(s->key, (uint32_t[4]){index, 0, s->tensor, s->draw}, words);
  float u[6];
  rng_six_uniforms(words, u);
  for (int k = 0; k < 6; k++) {
    double logit = k < 5 ? p->logits[mask_logit_index(s->cols, row, group, k)] : 0;
    double z = s->noise ? -log(-log(u[k])) : 0;
    y[k] = (s->kappa * logit + z) / s->tau;
    if (!sparse_code_fits(sparse_candidate_code[k], width)) y[k] = -INFINITY;
    top = fmax(top, y[k]);
  }
  for (int k = 0; k < 6; k++) sum += y[k] = exp(y[k] - top);
  for (int k = 0; k < 6; k++)
    for (int c = 0; c < 4; c++) m[c] += y[k] / sum * sparse_candidate_table[k][c];
}

/* The loss sum(dw * w * M) + decay / 2 * sum((w M)^2) over a row's group, T included. */
static double plain_group_loss(const struct problem *p, int64_t row, int64_t group, double decay) {
  double m[4], loss = 0, tile = 0;
  plain_group(p, row, group, m);
  if (p->s.tile_soft)
    tile = p->tile_soft[row / p->s.tile_rows * p->tile_cols + 4 * group / p->s.tile_cols];
  for (int64_t c = 0; c < 4 && 4 * group + c < p->s.cols; c++) {
    double w = p->w[row * p->s.cols + 4 * group + c];
    double out = w * (tile + (1 - tile) * m[c]);
    loss += p->dw[row * p->s.cols + 4 * group + c] * out + decay / 2 * out * out;
  }
  return loss;
}

static void check_sample(struct problem *p) {
  const struct mask_source *s = &p->s;
  double energy = mask_sample(s, p->view, DTYPE_F32, p->out), want_energy = 0;
  for (int64_t r = 0; r < s->rows; r++)
    for (int64_t g = 0; g < p->groups; g++) {
      double m[4], tile = 0;
      plain_group(p, r, g, m);
      if (s->tile_soft) tile = p->tile_soft[r / s->tile_rows * p->tile_cols + 4 * g / s->tile_cols];
      for (int64_t c = 0; c < 4 && 4 * g + c < s->cols; c++) {
        int64_t at = r * s->cols + 4 * g + c;
        double want = p->w[at] * (tile + (1 - tile) * m[c]);
        if (!(fabs(p->out[at] - want) < 2e-5))
          fail_msg("%s: row %ld col %ld: %g, not %g", kernel_table()->isa, (long)r,
                   (long)(4 * g + c), p->out[at], want);
        want_energy += want * want;
      }
    }
  assert_true(fabs(energy - want_energy) < 1e-5 * want_energy);
}

static void check_logit_slopes(struct problem *p, float decay) {
  int64_t cols = p->s.cols;
  for (int64_t r = 0; r < p->s.rows; r += 3)
    for (int64_t g = r % 5; g < p->groups; g += g + 5 < p->groups ? 5 : 1)
      for (int k = 0; k < 5; k++) {
        float *x = &p->logits[mask_logit_index(cols, r, g, k)], keep = *x;
        *x = keep + 1e-3f;
        double up = *x, change = plain_group_loss(p, r, g, decay);
        *x = keep - 1e-3f;
        change -= plain_group_loss(p, r, g, decay);
        double slope = change / (up - *x), got = p->dlogits[x - p->logits];
        *x = keep;
        if (!(fabs(got - slope) < 2e-2 + 2e-3 * fabs(slope)))
          fail_msg("%s: dlogit %d of row %ld group %ld: %g, not %g", kernel_table()->isa, k,
                   (long)r, (long)g, got, slope);
      }
}

/* The loss is quadratic in T at most, so a central difference is exact. */
static void check_tile_slopes(struct problem *p, float decay) {
  for (int64_t t = 0; t < p->tile_rows * p->tile_cols; t++) {
    double loss[2];
    float keep = p->tile_soft[t];
    for (int side = 0; side < 2; side++) {
      p->tile_soft[t] = keep + (side ? 0.25f : -0.25f);
      loss[side] = 0;
      for (int64_t r = 0; r < p->s.rows; r++)
        for (int64_t g = 0; g < p->groups; g++)
          if (r / p->s.tile_rows * p->tile_cols + 4 * g / p->s.tile_cols == t)
            loss[side] += plain_group_loss(p, r, g, decay);
    }
    p->tile_soft[t] = keep;
    double slope = (loss[1] - loss[0]) / 0.5;
    if (!(fabs(p->dtile[t] - slope) < 1e-3 + 1e-4 * fabs(slope)))
      fail_msg("%s: dtile %ld: %g, not %g", kernel_table()->isa, (long)t, p->dtile[t], slope);
  }
}

/* The backward pass gives w M as well, with the sample's bits; in bf16 both round them. */
static void check_by_product(struct problem *p) {
  int64_t count = p->s.rows * p->s.cols;
  float *again = zeroed((size_t)count, 4);
  uint16_t *half = zeroed((size_t)count, 2), *half_again = zeroed((size_t)count, 2);
  mask_sample(&p->s, p->view, DTYPE_F32, p->out);
  mask_backward(&p->s, p->view, p->dw, 0.3f, false, p->dlogits, p->dtile, DTYPE_F32, again);
  assert_memory_equal(again, p->out, (size_t)count * 4);
  mask_sample(&p->s, p->view, DTYPE_BF16, half);
  mask_backward(&p->s, p->view, p->dw, 0.3f, false, p->dlogits, p->dtile, DTYPE_BF16, half_again);
  assert_memory_equal(half, half_again, (size_t)count * 2);
  for (int64_t i = 0; i < count; i++) /* hardware takes what is denormal for zero */
    assert_true(half[i] == bf16_from_f32(p->out[i]) || fabsf(p->out[i]) < 1e-37f);
  free(again), free(half), free(half_again);
}

static void check_problem(int64_t rows, int64_t cols, int64_t tile, enum mode mode,
                          enum dtype dtype) {
  struct problem p = problem_make(rows, cols, tile, mode, dtype);
  const float decay = 0.3f;
  check_sample(&p);
  mask_backward(&p.s, p.view, p.dw, decay, false, p.dlogits, p.dtile, DTYPE_F32, NULL);
  if (p.s.logits) check_logit_slopes(&p, decay);
  if (p.s.tile_soft) check_tile_slopes(&p, decay);
  /* adding the same once more doubles all */
  float *once = zeroed((size_t)mask_logit_count(rows, cols), 4);
  memcpy(once, p.dlogits, (size_t)mask_logit_count(rows, cols) * 4);
  double tile_once = p.dtile[0];
  mask_backward(&p.s, p.view, p.dw, decay, true, p.dlogits, p.dtile, DTYPE_F32, NULL);
  for (int64_t i = 0; i < mask_logit_count(rows, cols); i++)
    assert_true(p.dlogits[i] == 2 * once[i]);
  assert_true(p.dtile[0] == 2 * tile_once);
  free(once);
  check_by_product(&p);
  p.s.noise = false;
  check_sample(&p);
  problem_free(&p);
}

static void mask_cases(void) {
  for (int mode = JOINT; mode <= MASKLLM; mode++) {
    check_problem(40, 128, 32, mode, DTYPE_F32);
    check_problem(70, 200, 64, mode, DTYPE_BF16);
    check_problem(5, 7, 4, mode, DTYPE_F32);
    check_problem(9, 65, 128, mode, DTYPE_F16);
    check_problem(33, 330, 128, mode, DTYPE_F32);
    check_problem(3, 2, 16, mode, DTYPE_F32);
  }
}
static void samples_and_gradients(void **state) {
  (void)state;
  for_each_isa(mask_cases);
}

/* Sharp schedules: probabilities saturate, nothing becomes NaN. Kernels that flush subnormals leave
 * the caller's arithmetic as it was. */
static void sharp_case(void) {
  struct problem p = problem_make(16, 128, 64, JOINT, DTYPE_F32);
  p.s.kappa = 500;
  p.s.tau = 0.05f;
  for (int64_t i = 0; i < mask_logit_count(16, 128); i++) p.logits[i] *= 100;
  mask_sample(&p.s, p.view, DTYPE_F32, p.out);
  mask_backward(&p.s, p.view, p.dw, 0, false, p.dlogits, p.dtile, DTYPE_F32, NULL);
  for (int64_t i = 0; i < 16 * 128; i++) assert_true(isfinite(p.out[i]));
  for (int64_t i = 0; i < mask_logit_count(16, 128); i++) assert_true(isfinite(p.dlogits[i]));
  volatile float small = 1e-38f;
  assert_true(small / 16 > 0);
  problem_free(&p);
}
static void sharp_schedules_stay_finite(void **state) {
  (void)state;
  for_each_isa(sharp_case);
}

/* --- hardening --- */

static void harden_case(void) {
  for (int64_t cols = 61; cols <= 64; cols++) {
    struct problem p = problem_make(50, cols, 32, MASKLLM, DTYPE_F32);
    uint8_t *codes = zeroed((size_t)(50 * ((cols + 7) / 8)), 1);
    assert_int_equal(mask_harden(p.logits, 50, cols, codes), 50 * p.groups);
    assert_int_equal(mask_harden(p.logits, 50, cols, codes), 0);
    for (int64_t r = 0; r < 50; r++)
      for (int64_t g = 0; g < p.groups; g++) {
        int64_t width = cols - 4 * g < 4 ? cols - 4 * g : 4;
        uint8_t code = codes[r * ((cols + 7) / 8) + g / 2] >> g % 2 * 4 & 15;
        assert_true(sparse_code_fits(code, width));
        int chosen = sparse_code_candidate(code);
        double best = chosen < 5 ? p.logits[mask_logit_index(cols, r, g, chosen)] : 0;
        for (int k = 0; k < 6; k++)
          if (sparse_code_fits(sparse_candidate_code[k], width))
            assert_true(best >= (k < 5 ? p.logits[mask_logit_index(cols, r, g, k)] : 0));
      }
    free(codes);
    problem_free(&p);
  }
}
static void hardening(void **state) {
  (void)state;
  for_each_isa(harden_case);
}

/* Of equal logits the first candidate that fits is chosen. */
static void tie_case(void) {
  enum { COLS = 67 };
  struct problem p = problem_make(2, COLS, 32, MASKLLM, DTYPE_F32);
  uint8_t codes[2 * ((COLS + 7) / 8)] = {0};
  for (int64_t g = 0; g < p.groups; g++)
    for (int k = 0; k < 5; k++) {
      p.logits[mask_logit_index(COLS, 0, g, k)] = -1;             /* the last, 0, is largest */
      p.logits[mask_logit_index(COLS, 1, g, k)] = k < 3 ? -1 : 0; /* three share 0 */
    }
  mask_harden(p.logits, 2, COLS, codes);
  for (int64_t g = 0; g + 1 < p.groups; g++) {
    assert_int_equal(codes[g / 2] >> g % 2 * 4 & 15, sparse_candidate_code[5]);
    assert_int_equal(codes[(COLS + 7) / 8 + g / 2] >> g % 2 * 4 & 15, sparse_candidate_code[3]);
  }
  /* the last group has three columns: 1100, 1010 and 0110 fit */
  assert_int_equal(codes[p.groups / 2] & 15, sparse_candidate_code[0]);
  assert_int_equal(codes[(COLS + 7) / 8 + p.groups / 2] & 15, sparse_candidate_code[3]);
  problem_free(&p);
}
static void ties(void **state) {
  (void)state;
  for_each_isa(tie_case);
}

/* --- AdamW --- */

struct six {
  double p[6], m[6], v[6];
};

static void plain_adamw(struct six *x, const double *g, const struct mask_adamw *o) {
  for (int k = 0; k < 6; k++) {
    double s = o->gradient_scale * g[k];
    x->m[k] = o->beta1 * x->m[k] + (1 - (double)o->beta1) * s;
    x->v[k] = o->beta2 * x->v[k] + (1 - (double)o->beta2) * s * s;
    double m = x->m[k] / (1 - pow(o->beta1, (double)o->step));
    double v = x->v[k] / (1 - pow(o->beta2, (double)o->step));
    x->p[k] -= o->rate * (o->weight_decay * x->p[k] + m / (sqrt(v) + o->epsilon));
  }
}

static void adamw_cases(void) {
  enum { LOGIT_ROWS = 7, COLS = 150 };
  int64_t groups = mask_row_groups(COLS), count = mask_logit_count(LOGIT_ROWS, COLS);
  float *logits = zeroed((size_t)count, 4), *gradient = zeroed((size_t)count, 4);
  float *first = zeroed((size_t)count, 4);
  float *second = zeroed((size_t)mask_second_count(LOGIT_ROWS, COLS), 4);
  uint8_t codes[LOGIT_ROWS * ((COLS + 7) / 8)] = {0}, again[sizeof codes];
  struct six *six = zeroed((size_t)(LOGIT_ROWS * groups), sizeof *six);
  struct rng rng = rng_make(3, 3);
  for (int64_t i = 0; i < LOGIT_ROWS * groups; i++)
    for (int k = 0; k < 6; k++) six[i].p[k] = 0.1 * rng_normal(&rng);
  for (int64_t i = 0; i < LOGIT_ROWS * groups; i++)
    for (int k = 0; k < 5; k++)
      logits[mask_logit_index(COLS, i / groups, i % groups, k)] =
          (float)(six[i].p[k] - six[i].p[5]);
  struct mask_adamw o = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 0};
  for (o.step = 1; o.step <= 20; o.step++) {
    double squares = 0;
    for (int64_t i = 0; i < LOGIT_ROWS * groups; i++) {
      double g[6] = {0};
      for (int k = 0; k < 5; k++) {
        float value = (float)(rng_normal(&rng) * exp(3 * rng_normal(&rng)));
        gradient[mask_logit_index(COLS, i / groups, i % groups, k)] = value;
        g[k] = value;
        g[5] -= value;
      }
      for (int k = 0; k < 6; k++) squares += g[k] * g[k];
      plain_adamw(&six[i], g, &o);
    }
    double got = mask_gradient_squares(gradient, LOGIT_ROWS, COLS);
    assert_true(fabs(got - squares) < 1e-5 * squares);
    int64_t changed = mask_adamw_step(&o, LOGIT_ROWS, COLS, gradient, logits, first, second, codes);
    assert_true(changed > 0 || o.step > 1);
    memcpy(again, codes, sizeof again);
    assert_int_equal(mask_harden(logits, LOGIT_ROWS, COLS, again), 0);
  }
  for (int64_t i = 0; i < LOGIT_ROWS * groups; i++)
    for (int k = 0; k < 5; k++) {
      float difference = logits[mask_logit_index(COLS, i / groups, i % groups, k)];
      double want = six[i].p[k] - six[i].p[5];
      if (!(fabs(difference - want) < 2e-5))
        fail_msg("%s: difference %d of group %ld: %g, not %g", kernel_table()->isa, k, (long)i,
                 difference, want);
    }
  void *all[] = {logits, gradient, first, second, six};
  for (int i = 0; i < 5; i++) free(all[i]);
}
static void adamw_equals_six_logits(void **state) {
  (void)state;
  for_each_isa(adamw_cases);
}

/* Gradients of three candidates that cancel exactly, so that the sixth has none, in every step. The
 * moments of the three round, each on its own; with an epsilon below what that leaves, the sixth
 * would leap. No step may move a difference further than two updates can. */
static void cancelling_case(void) {
  enum { COLS = 256, STEPS = 12 };
  const int64_t groups = mask_row_groups(COLS);
  const size_t count = (size_t)mask_logit_count(1, COLS);
  float *logits = zeroed(count, 4), *before = zeroed(count, 4), *gradient = zeroed(count, 4);
  float *first = zeroed(count, 4), *second = zeroed((size_t)mask_second_count(1, COLS), 4);
  struct mask_adamw o = {5e-3f, 0.9f, 0.95f, 1e-15f, 0, 1, 0};
  struct rng rng = rng_make(8, 1);
  for (o.step = 1; o.step <= STEPS; o.step++) {
    for (int64_t g = 0; g < groups; g++) {
      const float a = (float)(1e-4 * rng_normal(&rng)), b = (float)(1e-4 * rng_normal(&rng));
      const float sum = a + b, rest = sum - a; /* -sum + (sum - rest) + rest is exactly 0 */
      gradient[mask_logit_index(COLS, 0, g, 0)] = -sum;
      gradient[mask_logit_index(COLS, 0, g, 1)] = sum - rest;
      gradient[mask_logit_index(COLS, 0, g, 2)] = rest;
    }
    memcpy(before, logits, count * sizeof *logits);
    mask_adamw_step(&o, 1, COLS, gradient, logits, first, second, NULL);
    for (size_t i = 0; i < count; i++)
      if (!(fabs((double)logits[i] - (double)before[i]) <= 2.4 * (double)o.rate))
        fail_msg("%s: a logit moved by %g in step %ld, at rate %g", kernel_table()->isa,
                 (double)logits[i] - (double)before[i], (long)o.step, (double)o.rate);
  }
  void *all[] = {logits, before, gradient, first, second};
  for (int i = 0; i < 5; i++) free(all[i]);
}
static void no_update_leaps(void **state) {
  (void)state;
  for_each_isa(cancelling_case);
}

static void thread_case(void) {
  struct problem first = problem_make(300, 260, 64, JOINT, DTYPE_BF16);
  double energy = 0;
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    struct problem p = problem_make(300, 260, 64, JOINT, DTYPE_BF16);
    struct problem *x = threads == 1 ? &first : &p;
    double sum = mask_sample(&x->s, x->view, DTYPE_F32, x->out);
    mask_backward(&x->s, x->view, x->dw, 0.1f, false, x->dlogits, x->dtile, DTYPE_F32, NULL);
    if (threads == 1) energy = sum;
    assert_true(sum == energy);
    if (threads > 1) {
      assert_memory_equal(p.out, first.out, 300 * 260 * 4);
      assert_memory_equal(p.dlogits, first.dlogits, (size_t)mask_logit_count(300, 260) * 4);
      assert_memory_equal(p.dtile, first.dtile, (size_t)(p.tile_rows * p.tile_cols) * 8);
    }
    problem_free(&p);
  }
  problem_free(&first);
  parallel_set_threads(0);
}
static void same_bits_at_any_thread_count(void **state) {
  (void)state;
  for_each_isa(thread_case);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(samples_and_gradients),
      cmocka_unit_test(sharp_schedules_stay_finite),
      cmocka_unit_test(hardening),
      cmocka_unit_test(ties),
      cmocka_unit_test(adamw_equals_six_logits),
      cmocka_unit_test(no_update_leaps),
      cmocka_unit_test(same_bits_at_any_thread_count),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
