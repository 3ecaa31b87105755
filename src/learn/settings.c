/* Settings and their defaults: see settings.h. No state. */
#include "learn/settings.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernel/pattern_ops.h"
#include "learn/cost.h"

const char *const learn_mode_name[LEARN_MODES] = {"joint", "tile", "maskllm"};
const char *const learn_density_name[DENSITY_RULES] = {"held", "soft"};
const char *const learn_noise_name[NOISE_RULES] = {"step", "micro", "none"};
const char *const learn_regularizer_name[REGULARIZERS] = {"none", "paper", "reference", "maskllm"};
const char *const learn_tile_prior_name[TILE_PRIORS] = {"linear", "global", "rank"};

/* Budgets at whose ends the two columns of the table below hold: the shortest run it was tuned on,
 * and the paper's 2000 steps of 256 sequences of 4096 tokens. */
#define SHORT_TOKENS 20e3
#define PAPER_TOKENS (2000.0 * 256 * 4096)

/* A real setting and its default for joint, tile, maskllm. Between the two budgets it goes
 * geometrically with the number of tokens, or linearly in its logarithm where an end is 0. */
struct real_default {
  const char *name;
  size_t offset;
  double least, most; /* what is accepted, inclusive */
  double at_short[LEARN_MODES], at_paper[LEARN_MODES];
};

/* Why the 2:4 logits of a short run look as they do: a group sees few gradients, most of them
 * noise. AdamW moves a logit by up to the rate a step when its gradients agree, and by about the
 * square root of that when they do not; so the prior stands some 14 steps' worth of the rate away
 * from its neighbours, and what crosses that distance has earned it. The masks stay nearly hard
 * from the first step (kappa, tau), else the loss is that of another model; the softmax is then so
 * peaked that the gradients of the other candidates are tiny, which AdamW undoes when its epsilon
 * is smaller still. */
#define REAL(field, least, most, ...) \
  { #field, offsetof(struct learn_settings, field), least, most, __VA_ARGS__ }
static const struct real_default reals[] = {
    REAL(lr_tile, 0, 1e3, {2e-2, 2e-2, 2e-2}, {1e-3, 1e-4, 1e-3}),
    REAL(lr_24, 0, 1e3, {5e-3, 5e-3, 4e-3}, {1e-3, 1e-3, 1e-4}),
    REAL(lr_floor, 0, 1, {0, 0, 0.1}, {0, 0, 0.1}),
    REAL(beta1, 0, 0.9999, {0.9, 0.9, 0.9}, {0.9, 0.9, 0.9}),
    REAL(beta2, 0, 0.999999, {0.95, 0.95, 0.95}, {0.95, 0.95, 0.95}),
    REAL(adam_eps, 0, 1, {1e-15, 1e-8, 1e-15}, {1e-8, 1e-8, 1e-5}),
    REAL(weight_decay, 0, 10, {0, 0, 0}, {0, 0, 0.1}),
    REAL(clip, 1e-12, 1e12, {1, 1, 1}, {1, 1, 1}),
    REAL(tile.kappa_first, 0, 1e9, {100, 100, 100}, {25, 100, 25}),
    REAL(tile.kappa_last, 0, 1e9, {500, 500, 500}, {350, 500, 350}),
    REAL(tile.tau_first, 1e-4, 1e4, {16, 16, 16}, {2, 2, 2}),
    REAL(tile.tau_last, 1e-4, 1e4, {0.05, 0.05, 0.05}, {0.05, 0.05, 0.05}),
    REAL(two_four.kappa_first, 0, 1e9, {500, 500, 500}, {100, 100, 100}),
    REAL(two_four.kappa_last, 0, 1e9, {500, 500, 500}, {500, 500, 500}),
    REAL(two_four.tau_first, 1e-4, 1e4, {4, 4, 4}, {4, 4, 4}),
    REAL(two_four.tau_last, 1e-4, 1e4, {1, 1, 1}, {0.05, 0.05, 0.05}),
    REAL(l1, 0, 1e6, {7, 3, 0}, {7, 3, 0}),
    REAL(l2, 0, 1e6, {0, 0, 0}, {10, 0.1, 1e-5}),
    REAL(distill, 0, 1, {0, 0, 0}, {0, 0, 0}),
    REAL(match, 0, 1, {0, 0, 0}, {0, 0, 0}),
    REAL(init_std, 0, 1e3, {0.014, 0.014, 0.01}, {0.014, 0.014, 0.01}),
    REAL(prior_strength_tile, 0, 1e3, {3, 3, 3}, {3, 3, 3}),
    REAL(prior_strength_24, 0, 1e3, {5, 5, 5}, {3, 3, 3}),
};
#undef REAL
enum { REALS = sizeof reals / sizeof *reals };

static void *member(struct learn_settings *s, size_t offset) { return (char *)s + offset; }

static double *real_at(struct learn_settings *s, const struct real_default *d) {
  return member(s, d->offset);
}

void learn_settings_unset(struct learn_settings *s, enum learn_mode mode) {
  memset(s, 0, sizeof *s);
  s->mode = mode;
  s->sparsity = s->speedup = NAN;
  s->density = s->noise = s->regularizer = s->tile_prior = s->precision = s->distill_kind = -1;
  s->warmup_steps = s->evaluations = s->heldout_windows = -1;
  for (int i = 0; i < REALS; i++) *real_at(s, &reals[i]) = NAN;
}

/* 0 at the short budget, 1 at the paper's, by the logarithm. */
static double budget_position(int64_t tokens) {
  double x = log((double)tokens / SHORT_TOKENS) / log(PAPER_TOKENS / SHORT_TOKENS);
  return x < 0 ? 0 : x > 1 ? 1 : x;
}

static double between(double low, double high, double x) {
  if (low > 0 && high > 0) return low * pow(high / low, x);
  return low + x * (high - low);
}

static int64_t clamp(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

/* The number of steps grows slowly with the budget (40 at the short one, 2000 at the paper's), the
 * tokens of a step with the rest; a step of less than a window's worth makes the window smaller. */
static void resolve_shape(struct learn_settings *s, int64_t context) {
  enum { WINDOW_MOST = 4096, WINDOW_LEAST = 16, MICRO_TOKENS = 2048 };
  double steps = 40 * pow(50, budget_position(s->tokens));
  int64_t step_tokens = clamp((int64_t)((double)s->tokens / steps), WINDOW_LEAST, INT64_MAX);
  if (!s->window) {
    int64_t most = clamp(context, 2, WINDOW_MOST);
    if (s->batch) step_tokens /= s->batch;
    s->window = WINDOW_LEAST;
    while (s->window * 2 <= step_tokens * 5 / 4) s->window *= 2; /* the nearest power of two */
    if (s->window > most) s->window = most;
  }
  if (!s->batch) s->batch = clamp(llround((double)step_tokens / (double)s->window), 1, 1 << 20);
  if (!s->micro) { /* the largest divisor of the batch that fits */
    s->micro = clamp(MICRO_TOKENS / s->window, 1, s->batch);
    while (s->batch % s->micro) s->micro--;
  }
  s->steps = s->tokens / (s->window * s->batch);
}

static enum status check_shape(const struct learn_settings *s, int64_t context, struct error *err) {
  if (s->window < 2 || s->window > context)
    return error_set(err, STATUS_USAGE,
                     "--window is %lld; this model takes windows of 2 to %lld tokens",
                     (long long)s->window, (long long)context);
  if (s->batch % s->micro)
    return error_set(err, STATUS_USAGE, "--micro %lld does not divide --batch %lld",
                     (long long)s->micro, (long long)s->batch);
  if (s->steps < 1)
    return error_set(err, STATUS_USAGE,
                     "--tokens %lld is less than one step of %lld sequences of %lld tokens; raise "
                     "it, or lower --window or --batch",
                     (long long)s->tokens, (long long)s->batch, (long long)s->window);
  if (s->steps * (s->batch / s->micro) > UINT32_MAX) /* the noise numbers its samples in 32 bits */
    return error_set(err, STATUS_USAGE,
                     "--tokens %lld makes too many forward passes of --micro %lld",
                     (long long)s->tokens, (long long)s->micro);
  if (s->tile_cols % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile_cols);
  if (s->tile_cols % s->of)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of the %d in --pattern %d:%d",
                     (long long)s->tile_cols, s->of, s->keep, s->of);
  return STATUS_OK;
}

static enum status check_pattern(struct learn_settings *s, struct error *err) {
  struct mask_pattern table;
  if (!s->of) s->keep = 2, s->of = 4;
  if (mask_pattern_make(&table, s->keep, s->of)) return STATUS_OK;
  return error_set(err, STATUS_USAGE,
                   "--pattern %d:%d cannot be learned: n:m is learned with n < m <= %d and at most "
                   "%d ways to keep n of m, which 4:8 has",
                   s->keep, s->of, PATTERN_GROUP_MAX, PATTERN_CANDIDATES_MAX);
}

static enum status check_sparsity(struct learn_settings *s, struct error *err) {
  const double most = learn_most_sparsity(s);
  if (s->mode == LEARN_MASKLLM && isnan(s->sparsity)) s->sparsity = most;
  if (isnan(s->sparsity))
    return error_set(err, STATUS_USAGE,
                     "--sparsity is missing (or --speedup); --mode %s takes 0 to %.4g",
                     learn_mode_name[s->mode], most);
  if (!(s->sparsity >= 0 && s->sparsity <= most + 1e-9))
    return error_set(err, STATUS_USAGE,
                     "--sparsity %g is outside 0 to %.4g: tiles are dense or %d:%d", s->sparsity,
                     most, s->keep, s->of);
  if (s->mode == LEARN_MASKLLM && fabs(s->sparsity - most) > 1e-9)
    return error_set(err, STATUS_USAGE,
                     "--mode maskllm makes every group %d:%d, so --sparsity is %.4g; choose --mode "
                     "joint or tile for %g",
                     s->keep, s->of, most, s->sparsity);
  if (s->sparsity > most) s->sparsity = most;
  return STATUS_OK;
}

/* A time is held for the model as a whole, and only by the shift. */
static enum status check_speedup(const struct learn_settings *s, struct error *err) {
  if (isnan(s->speedup)) return STATUS_OK;
  if (!learn_is_24(s))
    return error_set(err, STATUS_USAGE,
                     "--speedup needs 2:4: no kernel runs --pattern %d:%d faster than dense",
                     s->keep, s->of);
  if (s->mode == LEARN_MASKLLM)
    return error_set(err, STATUS_USAGE,
                     "--mode maskllm makes every group 2:4, which has one speed; choose --mode "
                     "joint or tile for --speedup");
  if (!(s->speedup >= 1))
    return error_set(err, STATUS_USAGE, "--speedup %g is below 1, the dense model's", s->speedup);
  if (s->per_block || s->density == DENSITY_SOFT)
    return error_set(err, STATUS_USAGE, "--speedup is no target for --per-block or --density soft");
  return STATUS_OK;
}

static enum status check_storage(const struct learn_settings *s, struct error *err) {
  if (!s->compact) return STATUS_OK;
  if (!learn_is_24(s))
    return error_set(err, STATUS_USAGE,
                     "--compact stores 2:4 logits; those of --pattern %d:%d stay fp32", s->keep,
                     s->of);
  if (learn_uses_groups(s)) return STATUS_OK;
  return error_set(err, STATUS_USAGE,
                   "--compact is about the storage of 2:4 logits, and --mode tile has none");
}

static void resolve_choices(struct learn_settings *s) {
  static const int regularizer[LEARN_MODES] = {REGULARIZER_PAPER, REGULARIZER_PAPER,
                                               REGULARIZER_MASKLLM};
  if (s->density < 0) s->density = DENSITY_HELD;
  if (s->noise < 0) s->noise = NOISE_MICRO;
  if (s->regularizer < 0) s->regularizer = regularizer[s->mode];
  if (s->tile_prior < 0) s->tile_prior = TILE_PRIOR_RANK;
  if (s->precision < 0) s->precision = precision_fastest();
  if (s->evaluations < 0) s->evaluations = 4;
  if (s->heldout_windows < 1) s->heldout_windows = clamp(2048 / s->window, 2, 64);
  if (!s->tile_rows) s->tile_rows = s->tile_cols ? s->tile_cols : 128;
  if (!s->tile_cols) s->tile_cols = s->tile_rows;
}

enum status learn_check_distill(int *kind, int64_t *k, double share, struct error *err) {
  if (*kind < 0) *kind = DISTILL_FORWARD;
  if (*kind != DISTILL_FORWARD && !(share > 0))
    return error_set(err, STATUS_USAGE,
                     "--distill-kind %s says how --distill teaches, which is 0: give it a share",
                     distill_kind_name[*kind]);
  if (*k && *kind != DISTILL_TOP)
    return error_set(err, STATUS_USAGE, "--distill-k is for --distill-kind top-k, not for %s",
                     distill_kind_name[*kind]);
  if (*kind == DISTILL_TOP && !*k) *k = DISTILL_TOP_DEFAULT;
  if (*k >= 0 && *k <= DISTILL_TOP_MOST) return STATUS_OK;
  return error_set(err, STATUS_USAGE, "--distill-k is %lld; it takes 1 to %d", (long long)*k,
                   DISTILL_TOP_MOST);
}

enum status learn_settings_resolve(struct learn_settings *s, int64_t context, struct error *err) {
  enum status status = check_pattern(s, err);
  if (status == STATUS_OK) status = check_speedup(s, err);
  if (status == STATUS_OK) status = check_sparsity(s, err);
  if (status == STATUS_OK) status = check_storage(s, err);
  if (status != STATUS_OK) return status;
  if (s->tokens < 1) return error_set(err, STATUS_USAGE, "--tokens is missing; give a budget");
  resolve_shape(s, context);
  resolve_choices(s);
  if ((status = check_shape(s, context, err)) != STATUS_OK) return status;
  if (s->warmup_steps < 0) {
    s->warmup_steps = s->mode == LEARN_MASKLLM ? 0 : 5;
    if (s->warmup_steps > s->steps / 4) s->warmup_steps = s->steps / 4;
  }
  double x = budget_position(s->tokens);
  for (int i = 0; i < REALS; i++) {
    const struct real_default *d = &reals[i];
    double *value = real_at(s, d);
    if (isnan(*value)) *value = between(d->at_short[s->mode], d->at_paper[s->mode], x);
    if (!(*value >= d->least && *value <= d->most))
      return error_set(err, STATUS_USAGE, "%s is %g; it takes %g to %g", d->name, *value, d->least,
                       d->most);
  }
  return learn_check_distill(&s->distill_kind, &s->distill_k, s->distill, err);
}

json_t *learn_settings_to_json(const struct learn_settings *s) {
  json_t *o = json_pack(
      "{s:s, s:f, s:I, s:I, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "mode",
      learn_mode_name[s->mode], "sparsity", s->sparsity, "tile_rows", (json_int_t)s->tile_rows,
      "tile_cols", (json_int_t)s->tile_cols, "per_block", s->per_block, "seed", (json_int_t)s->seed,
      "tokens", (json_int_t)s->tokens, "window", (json_int_t)s->window, "batch",
      (json_int_t)s->batch, "micro", (json_int_t)s->micro, "steps", (json_int_t)s->steps,
      "heldout_windows", (json_int_t)s->heldout_windows, "evaluations", (json_int_t)s->evaluations,
      "warmup_steps", (json_int_t)s->warmup_steps);
  INVARIANT(o);
  json_object_set_new(o, "density", json_string(learn_density_name[s->density]));
  json_object_set_new(o, "noise", json_string(learn_noise_name[s->noise]));
  json_object_set_new(o, "regularizer", json_string(learn_regularizer_name[s->regularizer]));
  json_object_set_new(o, "tile_prior", json_string(learn_tile_prior_name[s->tile_prior]));
  json_object_set_new(o, "precision", json_string(precision_name[s->precision]));
  if (!learn_is_24(s)) json_object_set_new(o, "pattern", json_sprintf("%d:%d", s->keep, s->of));
  if (s->compact) json_object_set_new(o, "storage", json_string("compact"));
  if (s->distill_kind != DISTILL_FORWARD)
    json_object_set_new(o, "distill_kind", json_string(distill_kind_name[s->distill_kind]));
  if (s->distill_k) json_object_set_new(o, "distill_k", json_integer(s->distill_k));
  if (s->costs) {
    json_object_set_new(o, "speedup", json_real(s->speedup));
    json_object_set_new(o, "costs", cost_to_json(s->costs));
  }
  for (int i = 0; i < REALS; i++) {
    double value;
    memcpy(&value, (const char *)s + reals[i].offset, sizeof value);
    if (reals[i].offset == offsetof(struct learn_settings, match) && value == 0)
      continue; /* runs from before there was this setting go on */
    json_object_set_new(o, reals[i].name, json_real(value));
  }
  return o;
}
