/* Estimates: see plan.h. They count the products, at the rate of one product measured now, and add
 * what the rest took beside them when it was measured. */
#include "learn/plan.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kernel/linear.h"
#include "learn/pattern_cost.h"

/* GFLOP/s of a product of a typical shape; best of a few, so that the first touch of the memory
 * does not count. 0 when there is no memory to measure with. */
static double measure_gflops(enum precision precision) {
  enum { M = 512, N = 1024, K = 768, TRIES = 4 };
  struct error err;
  float *a = mem_alloc((size_t)M * K, sizeof *a, &err),
        *b = mem_alloc((size_t)N * K, sizeof *b, &err);
  float *c = mem_alloc((size_t)M * N, sizeof *c, &err);
  const struct linear_weight w = {.dense = {b, DTYPE_F32, N, K}};
  double best_s = 0;
  for (int i = 0; a && b && c && i < TRIES; i++) {
    double start = clock_seconds();
    linear_forward(&w, NULL, a, M, precision, c);
    double spent = clock_seconds() - start;
    if (i == 1 || (i > 1 && spent < best_s)) best_s = spent;
  }
  mem_free(a);
  mem_free(b);
  mem_free(c);
  return best_s > 0 ? 2.0 * M * N * K / best_s / 1e9 : 0;
}

struct counts {
  double linears, learned, head; /* weights */
  double hessians;               /* flops a calibration token, and once, of SparseGPT */
  double solves;
  double saved; /* logits and moments, of which a checkpoint consists */
  int64_t tiles;
};

static struct counts count(const struct model *model, const struct learn_settings *s,
                           const bool *skip) {
  const struct model_config *config = model_config(model);
  struct counts c = {.head = (double)config->vocab_size * (double)config->hidden_size};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    double rows = (double)linear_rows(&site->weight), cols = (double)linear_cols(&site->weight);
    c.linears += rows * cols;
    if (skip[i]) continue;
    c.learned += rows * cols;
    c.saved += learn_is_24(s) ? rows * cols / 4 * (s->compact ? 5.5 : 16)
                              : 3 * (double)pattern_logits_count(s, linear_rows(&site->weight),
                                                                 linear_cols(&site->weight));
    c.tiles += ((linear_rows(&site->weight) + s->tile_rows - 1) / s->tile_rows) *
               ((linear_cols(&site->weight) + s->tile_cols - 1) / s->tile_cols);
    bool own_input = site->role != SITE_K && site->role != SITE_V && site->role != SITE_UP;
    if (own_input) c.hessians += 2 * cols * cols;
    if (own_input) c.solves += cols * cols * cols;
    c.solves += 2 * rows * cols * cols;
  }
  return c;
}

/* What the masks of another pattern take in all steps; those of 2:4 are in OVERHEAD. */
static double pattern_seconds(const struct learn_settings *s, double learned_weights) {
  if (learn_is_24(s)) return 0;
  const struct pattern_cost cost = pattern_cost_measure(s);
  const double micro_batches = (double)(s->steps * (s->batch / s->micro));
  return learned_weights * (micro_batches * cost.micro_batch + (double)s->steps * cost.step);
}

struct learn_plan learn_plan_make(const struct model *model, const struct learn_settings *s,
                                  const bool *skip, int64_t calibration_tokens) {
  const double OVERHEAD = 1.35; /* norms, attention, softmax, masks, beside the products */
  const struct counts c = count(model, s, skip);
  struct learn_plan plan = {.learned_weights = (int64_t)c.learned, .tiles = c.tiles};
  plan.gflops = measure_gflops((enum precision)s->precision);
  double second = plan.gflops * 1e9 / OVERHEAD; /* flops that one second does */
  double forward = 2 * (c.linears + c.head);
  double step_token = 2 * forward + 2 * c.learned + (learn_has_teacher(s) ? forward : 0);
  if (second > 0) {
    plan.prior_seconds =
        calibration_tokens
            ? ((double)calibration_tokens * (4 * c.linears + c.hessians) + c.solves) / second
            : 0;
    plan.learn_seconds = (double)(s->steps * s->batch * s->window) * step_token / second +
                         pattern_seconds(s, c.learned);
    plan.heldout_seconds =
        (double)((s->evaluations + 2) * s->heldout_windows * s->window) * forward / second;
  }
  plan.memory = learn_memory_plan(model, s, skip);
  double mask = c.learned / 8 + 2 * (double)c.tiles;
  double checkpoint = mask + (learn_uses_groups(s) ? 4 * c.saved : 0);
  plan.memory_bytes =
      (double)model_parameters(model) * sizeof(float) + (double)learner_bytes(model, s) + 2 * mask;
  plan.disk_bytes = 3 * checkpoint + 2 * mask;
  return plan;
}
