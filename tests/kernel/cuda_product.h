/* What the tests of the GPU product share: a hybrid matrix, everything a launch needs, and the
 * answer in fp64. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernel/cuda/plan.h"
#include "support/quants.h"
#include "support/simt.h"
#include "support/support.h"

struct product_shape {
  int64_t rows, cols;
  double dense_share;
  uint32_t tokens, panel_tokens, blocks, stages;
  bool bias, residual;
};

struct product_case {
  struct product_shape shape;
  struct hybrid_case hybrid;
  struct quant_case quant;    /* in place of hybrid, where `form` is not NULL */
  struct hybrid_case up;      /* the second of a pair, whose gate is hybrid */
  struct quant_case up_quant; /* of a pair of integers */
  const struct quant_form *form;
  bool rounds_weights;          /* prefill rounds the weights of integers to bf16, once */
  enum product_pair activation; /* of a pair */
  struct fragment_matrix fragments;
  struct product_plan plan;
  uint16_t *x, *y, *bias, *residual;
  float *partials;
  uint32_t *counters;
  struct product_args args;
  struct simt_launch launch;
};

static uint16_t *random_bf16(size_t count, uint64_t seed) {
  float *source = test_malloc(count * sizeof *source);
  uint16_t *out = aligned_alloc(64, (count * sizeof *out + 63) / 64 * 64);
  assert_non_null(out);
  fill_normal(source, count, seed, 1);
  dtype_from_f32(DTYPE_BF16, source, (int64_t)count, out);
  test_free(source);
  return out;
}

static void product_case_plan(struct product_case *c, uint32_t blocks) {
  struct error err = {0};
  const struct product_costs bytes = {fragment_tile_bytes(c->fragments.form, true),
                                      fragment_tile_bytes(c->fragments.form, false)};
  product_plan_release(&c->plan);
  must((c->activation ? product_plan_make_pair : product_plan_make)(
           &c->plan, &c->fragments, c->shape.tokens, c->shape.panel_tokens, blocks, bytes, &err),
       err);
  const struct product_plan *plan = &c->plan;
  const size_t slot_bytes = plan->panel_tokens * FRAGMENT_STRIP_ROWS * sizeof(float);
  c->partials = realloc(c->partials, plan->slots * slot_bytes + 1);
  c->counters = realloc(c->counters, plan->outputs * sizeof *c->counters);
  assert_true(c->partials && c->counters);
  memset(c->partials, 0xff, plan->slots * slot_bytes); /* NaN */
  memset(c->counters, 0, plan->outputs * sizeof *c->counters);
  c->args.segments = plan->segment;
  c->args.first_segment = plan->first_segment;
  c->args.partials = c->partials;
  c->args.counters = c->counters;
  struct simt_launch *launch = &c->launch;
  *launch =
      (struct simt_launch){.blocks = blocks,
                           .shared_bytes = product_shared_bytes(
                               c->fragments.form.kind, c->shape.panel_tokens, c->shape.stages)};
  const size_t y_bytes = c->shape.tokens * c->args.y_stride * 2;
  simt_buffer(launch, c->fragments.tiles, c->fragments.tile_bytes, false);
  simt_buffer(launch, c->fragments.columns,
              (size_t)(c->fragments.strips * c->fragments.tiles_per_strip) * 2, false);
  simt_buffer(launch, plan->segment, plan->segments * sizeof *plan->segment, false);
  simt_buffer(launch, plan->first_segment, (blocks + 1) * sizeof *plan->first_segment, false);
  simt_buffer(launch, c->x, c->shape.tokens * c->args.x_stride * 2, false);
  simt_buffer(launch, c->y, y_bytes, true);
  simt_buffer(launch, c->bias, (size_t)c->shape.rows * (c->activation ? 4 : 2), false);
  simt_buffer(launch, c->fragments.row_scales,
              (size_t)c->fragments.strips * FRAGMENT_STRIP_ROWS * sizeof(float), false);
  simt_buffer(launch, c->residual, y_bytes, false);
  simt_buffer(launch, c->partials, plan->slots * slot_bytes, true);
  simt_buffer(launch, c->counters, plan->outputs * sizeof *c->counters, true);
}

/* Activations, outputs and the launch, for the fragments that the case has. */
static void product_case_fill(struct product_case *c, uint64_t seed) {
  const struct product_shape shape = c->shape;
  const uint64_t x_stride = (uint64_t)(shape.cols + 7) / 8 * 8, y_stride = (uint64_t)shape.rows + 3;
  c->x = random_bf16(shape.tokens * x_stride, seed + 1);
  /* What lies behind a row's last column must not count. */
  for (uint32_t t = 0; t < shape.tokens; t++)
    for (uint64_t k = (uint64_t)shape.cols; k < x_stride; k++) c->x[t * x_stride + k] = 0x7fc0;
  c->y = random_bf16(shape.tokens * y_stride, seed + 2);
  if (shape.bias) c->bias = random_bf16((size_t)shape.rows * 2, seed + 3);
  if (shape.residual) c->residual = random_bf16(shape.tokens * y_stride, seed + 4);
  c->args = (struct product_args){.tiles = c->fragments.tiles,
                                  .columns = c->fragments.columns,
                                  .x = c->x,
                                  .x_stride = x_stride,
                                  .tokens = shape.tokens,
                                  .rows = (uint32_t)shape.rows,
                                  .cols = (uint32_t)shape.cols,
                                  .stages = shape.stages,
                                  .y = c->y,
                                  .bias = c->bias,
                                  .residual = c->residual,
                                  .y_stride = y_stride,
                                  .activation = c->activation,
                                  .gate_strips = (uint32_t)c->fragments.strips / 2,
                                  .sparse_step_bytes = fragment_step_bytes(c->fragments.form, true),
                                  .dense_step_bytes = fragment_step_bytes(c->fragments.form, false),
                                  .scales = c->fragments.form.scales,
                                  .mins = c->fragments.form.mins,
                                  .row_scales = c->fragments.row_scales};
  product_case_plan(c, shape.blocks);
}

static inline void product_case_make(struct product_case *c, struct product_shape shape,
                                     uint64_t seed) {
  struct error err = {0};
  simt_need_fibers();
  *c = (struct product_case){.shape = shape};
  hybrid_case_make(&c->hybrid, shape.rows, shape.cols, 128, shape.dense_share, DTYPE_BF16, seed);
  must(fragment_pack_hybrid(&c->fragments, &c->hybrid.h, &err), err);
  product_case_fill(c, seed);
}

/* Integers in place of bf16; `tile` 0: no mask. */
static inline void product_case_make_quant(struct product_case *c, struct product_shape shape,
                                           const struct quant_form *form, int64_t tile,
                                           uint64_t seed) {
  struct error err = {0};
  simt_need_fibers();
  *c = (struct product_case){.shape = shape, .form = form};
  quant_case_make(&c->quant, form, shape.rows, shape.cols, tile, shape.dense_share, seed);
  must(fragment_pack_quant(&c->fragments, &c->quant.owned.matrix, &err), err);
  product_case_fill(c, seed);
}

static inline void product_case_make_pair(struct product_case *c, struct product_shape shape,
                                          enum product_pair activation, uint64_t seed) {
  struct error err = {0};
  struct fragment_matrix gate, up;
  simt_need_fibers();
  *c = (struct product_case){.shape = shape, .activation = activation};
  hybrid_case_make(&c->hybrid, shape.rows, shape.cols, 128, shape.dense_share, DTYPE_BF16, seed);
  hybrid_case_make(&c->up, shape.rows, shape.cols, 128, shape.dense_share, DTYPE_BF16, seed + 9);
  must(fragment_pack_hybrid(&gate, &c->hybrid.h, &err), err);
  must(fragment_pack_hybrid(&up, &c->up.h, &err), err);
  must(fragment_join(&c->fragments, &gate, &up, &err), err);
  fragment_release(&gate);
  fragment_release(&up);
  product_case_fill(c, seed);
}

static inline void product_case_make_quant_pair(struct product_case *c, struct product_shape shape,
                                                const struct quant_form *form,
                                                enum product_pair activation, uint64_t seed) {
  struct error err = {0};
  struct fragment_matrix gate, up;
  simt_need_fibers();
  *c = (struct product_case){.shape = shape, .form = form, .activation = activation};
  quant_case_make(&c->quant, form, shape.rows, shape.cols, 128, shape.dense_share, seed);
  quant_case_make(&c->up_quant, form, shape.rows, shape.cols, 128, shape.dense_share, seed + 9);
  must(fragment_pack_quant(&gate, &c->quant.owned.matrix, &err), err);
  must(fragment_pack_quant(&up, &c->up_quant.owned.matrix, &err), err);
  must(fragment_join(&c->fragments, &gate, &up, &err), err);
  fragment_release(&gate);
  fragment_release(&up);
  product_case_fill(c, seed);
}

static void product_case_free(struct product_case *c) {
  if (c->hybrid.map) hybrid_case_free(&c->hybrid);
  if (c->up.map) hybrid_case_free(&c->up);
  if (c->form) quant_case_free(&c->quant);
  if (c->form && c->activation) quant_case_free(&c->up_quant);
  fragment_release(&c->fragments);
  product_plan_release(&c->plan);
  free(c->x);
  free(c->y);
  free(c->bias);
  free(c->residual);
  free(c->partials);
  free(c->counters);
}

/* Row `row` of a weight times token `t`, and the size of its terms. */
static double product_case_dot(const struct product_case *c, const float *w, uint32_t t,
                               double *size) {
  double sum = 0;
  *size = 0;
  for (int64_t k = 0; k < c->shape.cols; k++) {
    const double term = (double)w[k] * bf16_to_f32(c->x[t * c->args.x_stride + (uint64_t)k]);
    sum += term;
    *size += fabs(term);
  }
  return sum;
}

/* A row as the kernels see it. */
static void product_case_row(const struct product_case *c, const struct quant_matrix *quant,
                             const struct hybrid_matrix *hybrid, int64_t row, float *out) {
  if (quant)
    quant_row(quant, row, out);
  else
    hybrid_row(hybrid, row, out);
  for (int64_t k = 0; k < c->shape.cols && c->rounds_weights; k++)
    out[k] = bf16_to_f32(bf16_from_f32(out[k]));
}

static double activate(enum product_pair activation, double x) {
  if (activation == PAIR_SILU) return x / (1 + exp(-x));
  return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/* The number of elements of y that are wrong; an untouched border counts too. An element may be off
 * by its rounding to bf16 and by what fp32 sums of its terms lose, which an activation passes on.
 */
static int64_t product_case_count_wrong(const struct product_case *c, const uint16_t *y_before) {
  const struct product_shape *s = &c->shape;
  float *w = test_malloc((size_t)s->cols * sizeof *w);
  float *up = test_malloc((size_t)s->cols * sizeof *up);
  int64_t wrong = 0;
  for (int64_t row = 0; row < s->rows; row++) {
    product_case_row(c, c->form ? &c->quant.owned.matrix : NULL, &c->hybrid.h, row, w);
    if (c->activation)
      product_case_row(c, c->form ? &c->up_quant.owned.matrix : NULL, &c->up.h, row, up);
    for (uint32_t t = 0; t < s->tokens; t++) {
      double size, up_size;
      const uint64_t at = t * c->args.y_stride + (uint64_t)row;
      double sum = product_case_dot(c, w, t, &size);
      if (c->bias) sum += bf16_to_f32(c->bias[row]);
      double allowed = 1e-5 * (1 + size);
      if (c->activation) {
        double other = product_case_dot(c, up, t, &up_size);
        if (c->bias) other += bf16_to_f32(c->bias[s->rows + row]);
        const double f = activate(c->activation, sum);
        allowed = 1e-5 * (1 + 1.2 * size * fabs(other) + fabs(f) * up_size);
        sum = f * other;
      }
      if (c->residual) sum += bf16_to_f32(c->residual[at]);
      const double off = fabs(bf16_to_f32(c->y[at]) - sum);
      wrong += !(off <= fabs(sum) / 256 + allowed);
    }
  }
  for (uint32_t t = 0; t < s->tokens; t++)
    for (uint64_t row = (uint64_t)s->rows; row < c->args.y_stride; row++)
      wrong += c->y[t * c->args.y_stride + row] != y_before[t * c->args.y_stride + row];
  test_free(w);
  test_free(up);
  return wrong;
}

/* Runs the kernel and compares. */
static inline int64_t product_case_run(struct product_case *c, void (*kernel)(const void *),
                                       uint32_t threads, uint32_t order,
                                       struct simt_report *report) {
  const size_t bytes = c->shape.tokens * c->args.y_stride * 2;
  uint16_t *before = test_malloc(bytes);
  memcpy(before, c->y, bytes);
  c->launch.threads = threads;
  c->launch.order = order;
  simt_run(&c->launch, kernel, &c->args, report);
  const int64_t wrong = report->failed ? -1 : product_case_count_wrong(c, before);
  test_free(before);
  return wrong;
}
