/* The formulas of the method against PyTorch's autograd: masks, gradients, every loss term, AdamW.
 * (kernel/mask_ops has tests of its own: noise, ragged groups, finite differences, every ISA.)
 *
 * Given uniforms enter as a shift of the logits: kappa p + z = kappa (p + z / kappa). */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "learn/adamw.h"
#include "learn/groups.h"
#include "learn/tiles.h"
#include "support/support.h"

static struct error err;
enum { K = SPARSE_CANDIDATES };

static json_t *golden_cases(const char *name) {
  static json_t *all;
  if (!all) all = json_read_file(golden("learn.json"), 1 << 20, &err);
  if (!all) fail_msg("%s", err.text);
  return json_object_get(all, name);
}

static double number(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  assert_true(json_is_number(v));
  return json_number_value(v);
}

static float *floats(const json_t *array) {
  assert_true(json_is_array(array));
  size_t n = json_array_size(array);
  float *out = mem_alloc(n, sizeof *out, &err);
  for (size_t i = 0; i < n; i++) out[i] = (float)json_number_value(json_array_get(array, i));
  return out;
}

static float *member(const json_t *o, const char *key) { return floats(json_object_get(o, key)); }

static double gumbel(float u) { return -log(-log(u)); }

/* A golden case: the logits with their noise, T, W and the upstream gradient. */
struct golden_case {
  int64_t rows, cols, tile, groups, tiles;
  struct relaxation r24, rtile;
  struct group_logits g;
  struct mask_matrix shape;
  struct tile_logits tiles_state;
  float *w, *dw;
  struct matrix_view view;
  struct mask_source source;
};

static void case_open(struct golden_case *c, const json_t *json) {
  c->rows = (int64_t)number(json, "rows");
  c->cols = (int64_t)number(json, "cols");
  c->tile = (int64_t)number(json, "tile");
  c->groups = c->rows * c->cols / 4;
  c->r24 = (struct relaxation){number(json, "kappa24"), number(json, "tau24")};
  c->rtile = (struct relaxation){number(json, "kappa_tile"), number(json, "tau_tile")};
  must(groups_init(&c->g, backend_cpu(), c->rows, c->cols, false, false, &err), err);
  float *p = member(json, "p24"), *u = member(json, "u24");
  for (int64_t i = 0; i < c->groups * K; i++) p[i] = (float)(p[i] + gumbel(u[i]) / c->r24.kappa);
  for (int64_t i = 0; i < c->groups; i++)
    groups_set(c->g.logit, c->cols, i / (c->cols / 4), i % (c->cols / 4), p + i * K);
  must(mask_matrix_init_hybrid(&c->shape, "m", c->rows, c->cols, c->tile, c->tile, &err), err);
  int64_t total = c->rows * c->cols;
  must(tiles_init(&c->tiles_state, &c->shape, (int[]){0}, 1, &total, 1, number(json, "rho"), &err),
       err);
  float *pt = member(json, "ptile"), *ut = member(json, "utile");
  c->tiles = c->tiles_state.count;
  for (int64_t i = 0; i < c->tiles; i++) {
    c->tiles_state.logit[i] = pt[i];
    c->tiles_state.noise[i] = (float)(gumbel(ut[2 * i]) - gumbel(ut[2 * i + 1]));
  }
  tiles_relax(&c->tiles_state, c->rtile, DENSITY_SOFT);
  c->w = member(json, "w");
  c->dw = member(json, "g");
  c->view = (struct matrix_view){c->w, DTYPE_F32, c->rows, c->cols};
  c->source = (struct mask_source){.rows = c->rows,
                                   .cols = c->cols,
                                   .tile_rows = c->tile,
                                   .tile_cols = c->tile,
                                   .logits = c->g.logit,
                                   .tile_soft = c->tiles_state.soft,
                                   .kappa = (float)c->r24.kappa,
                                   .tau = (float)c->r24.tau};
  mem_free(p);
  mem_free(u);
  mem_free(pt);
  mem_free(ut);
}

static void case_close(struct golden_case *c) {
  groups_free(&c->g);
  mask_matrix_free(&c->shape);
  tiles_free(&c->tiles_state);
  mem_free(c->w);
  mem_free(c->dw);
}

/* The gradient of the five differences is that of logits 0..4, in the golden file's order. */
static void check_gradients(struct golden_case *c, const json_t *term) {
  float *g24 = member(term, "p24"), *gt = member(term, "ptile");
  float *mine = mem_alloc((size_t)c->groups * 5, sizeof *mine, &err);
  float *theirs = mem_alloc((size_t)c->groups * 5, sizeof *theirs, &err);
  int64_t n = 0;
  for (int64_t row = 0; row < c->rows; row++)
    for (int64_t i = 0; i < c->cols / 4; i++)
      for (int k = 0; k < MASK_STORED; k++, n++) {
        mine[n] = ((float *)c->g.gradient)[mask_logit_index(c->cols, row, i, k)];
        theirs[n] = g24[(row * c->cols / 4 + i) * K + k];
      }
  assert_true(relative_error(mine, theirs, (size_t)n) < 2e-5);
  assert_true(relative_error(c->tiles_state.gradient, gt, (size_t)c->tiles) < 2e-5);
  double squares = 0;
  for (int64_t i = 0; i < c->groups * K; i++) squares += (double)g24[i] * g24[i];
  assert_true(fabs(mask_gradient_squares(c->g.gradient, c->rows, c->cols) / squares - 1) < 1e-4);
  mem_free(g24);
  mem_free(gt);
  mem_free(mine);
  mem_free(theirs);
}

static void masks_and_gradients_match_pytorch(void **state) {
  json_t *cases = golden_cases("masks");
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *json = json_array_get(cases, i);
    struct golden_case c;
    case_open(&c, json);
    size_t n = (size_t)(c.rows * c.cols);
    float *t = member(json, "t"), *mask = member(json, "mask");
    assert_true(largest_difference(c.tiles_state.soft, t, (size_t)c.tiles) < 1e-6);
    assert_true(fabs(tiles_density(&c.tiles_state) - number(json, "expected_density")) < 1e-6);
    float *out = mem_alloc(n, sizeof *out, &err);
    mask_sample(&c.source, c.view, DTYPE_F32, out);
    for (size_t k = 0; k < n; k++) mask[k] *= c.w[k];
    assert_true(largest_difference(out, mask, n) < 2e-5);
    mask_backward(&c.source, c.view, c.dw, 0, true, c.g.gradient, c.tiles_state.soft_gradient,
                  DTYPE_F32, NULL);
    tiles_backward(&c.tiles_state, DENSITY_SOFT, 0);
    check_gradients(&c, json_object_get(json, "lm"));
    mem_free(t);
    mem_free(mask);
    mem_free(out);
    case_close(&c);
  }
}

/* Every R is a function of the sum of (w M)^2. */
static void regularizers_match_pytorch(void **state) {
  static const char *const names[] = {"paper", "reference", "maskllm"};
  json_t *cases = golden_cases("masks");
  for (size_t i = 0; i < json_array_size(cases); i++)
    for (int which = 0; which < 3; which++) {
      const json_t *json = json_array_get(cases, i);
      struct golden_case c;
      case_open(&c, json);
      int64_t n = c.rows * c.cols;
      double kept = mask_sample(&c.source, c.view, DTYPE_F32, c.dw), all = 0;
      for (int64_t k = 0; k < n; k++) all += (double)c.w[k] * c.w[k];
      memset(c.dw, 0, (size_t)n * sizeof *c.dw);
      const double value[] = {kept / all, sqrt(kept / all), kept};
      const double slope[] = {2 / all, 1 / sqrt(kept * all), 2};
      const json_t *term = json_object_get(json, names[which]);
      assert_true(fabs(value[which] / number(term, "value") - 1) < 1e-5);
      mask_backward(&c.source, c.view, c.dw, (float)slope[which], true, c.g.gradient,
                    c.tiles_state.soft_gradient, DTYPE_F32, NULL);
      tiles_backward(&c.tiles_state, DENSITY_SOFT, 0);
      check_gradients(&c, term);
      case_close(&c);
    }
}

static void density_term_matches_pytorch(void **state) {
  json_t *cases = golden_cases("masks");
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *json = json_array_get(cases, i), *term = json_object_get(json, "density");
    struct golden_case c;
    case_open(&c, json);
    tiles_backward(&c.tiles_state, DENSITY_SOFT, 1);
    float *gt = member(term, "ptile");
    assert_true(relative_error(c.tiles_state.gradient, gt, (size_t)c.tiles) < 1e-5);
    assert_true(fabs(tiles_density_error(&c.tiles_state) - number(term, "value")) < 1e-6);
    mem_free(gt);
    case_close(&c);
  }
}

/* On the six logits themselves (adamw_step) and on their five differences (mask_adamw_step). */
static void adamw_matches_pytorch(void **state) {
  json_t *cases = golden_cases("adamw");
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *json = json_array_get(cases, i);
    int64_t groups = (int64_t)number(json, "groups");
    struct group_logits g;
    must(groups_init(&g, backend_cpu(), 1, 4 * groups, false, false, &err), err);
    float *p = member(json, "start"), *end = member(json, "end");
    float *first = mem_alloc((size_t)(groups * K), sizeof *first, &err);
    float *second = mem_alloc((size_t)(groups * K), sizeof *second, &err);
    for (int64_t n = 0; n < groups; n++) groups_set(g.logit, g.cols, 0, n, p + n * K);
    struct mask_adamw a = {.rate = (float)number(json, "lr"),
                           .beta1 = (float)number(json, "beta1"),
                           .beta2 = (float)number(json, "beta2"),
                           .epsilon = (float)number(json, "eps"),
                           .weight_decay = (float)number(json, "decay"),
                           .gradient_scale = 0.5f};
    json_t *gradients = json_object_get(json, "gradients");
    for (size_t s = 0; s < json_array_size(gradients); s++) {
      float *gradient = floats(json_array_get(gradients, s));
      for (int64_t n = 0; n < groups * K; n++) gradient[n] *= 2;
      for (int64_t n = 0; n < groups; n++)
        for (int k = 0; k < MASK_STORED; k++)
          ((float *)g.gradient)[mask_logit_index(g.cols, 0, n, k)] = gradient[n * K + k];
      a.step = (int64_t)s + 1;
      mask_adamw_step(&a, 1, g.cols, g.gradient, g.logit, g.moment1, g.moment2, NULL);
      adamw_step(&a, groups * K, gradient, p, first, second);
      mem_free(gradient);
    }
    assert_true(largest_difference(p, end, (size_t)(groups * K)) < 1e-7);
    for (int64_t n = 0; n < groups; n++)
      for (int k = 0; k < MASK_STORED; k++) {
        double wanted = (double)end[n * K + k] - end[n * K + MASK_STORED];
        assert_true(fabs(((float *)g.logit)[mask_logit_index(g.cols, 0, n, k)] - wanted) < 1e-7);
      }
    mem_free(p);
    mem_free(end);
    mem_free(first);
    mem_free(second);
    groups_free(&g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(masks_and_gradients_match_pytorch),
      cmocka_unit_test(regularizers_match_pytorch),
      cmocka_unit_test(density_term_matches_pytorch),
      cmocka_unit_test(adamw_matches_pytorch),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
