/* One optimizer step: the tap that gives the model soft masks and takes gradients, micro-batches,
 * clipping, AdamW. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "kernel/ops.h"
#include "learn/learner.h"

/* --- the tap --- */

/* The soft mask of a linear in the current sample. */
static struct mask_source site_source(const struct learner *l, const struct learn_site *s) {
  const struct learn_settings *set = &l->settings;
  return (struct mask_source){
      .rows = s->mask.rows,
      .cols = s->mask.cols,
      .tile_rows = s->mask.tile_rows,
      .tile_cols = s->mask.tile_cols,
      .logits = learn_uses_groups(set) ? s->groups.logit : NULL,
      .logit_dtype = groups_dtype(&s->groups),
      .codes = learn_uses_groups(set) ? NULL : s->codes,
      .tile_soft = learn_uses_tiles(set) ? l->tile_soft + s->first_tile : NULL,
      .kappa = (float)l->relax_24.kappa,
      .tau = (float)l->relax_24.tau,
      .noise = l->noise,
      .key = {(uint32_t)set->seed, (uint32_t)(set->seed >> 32)},
      .tensor = (uint32_t)s->site->index,
      .draw = l->draw,
      .pass = (uint32_t)(l->step * (set->batch / set->micro) + l->micro),
  };
}

/* W * M is made in what the products round it to. */
static enum dtype masked_dtype(const struct learner *l) {
  return l->settings.precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

/* W * M of the current sample in l->masked: in the forward pass, for in the backward pass it is a
 * by-product of the masks' gradients. */
static void form_masked(struct learner *l, struct learn_site *s, const struct linear_site *site) {
  if (l->formed == site->index) return;
  const struct mask_source source = site_source(l, s);
  const double start = clock_seconds();
  if (s->mask.kind == MASK_TILED)
    learner_pattern_sample(l, s, site->weight.dense, masked_dtype(l));
  else
    l->ops->mask_sample(&source, site->weight.dense, masked_dtype(l), l->masked,
                        &l->sums[s - l->sites]);
  l->formed = site->index;
  l->mask_seconds += clock_seconds() - start;
}

static struct learn_site *learned_site(struct learner *l, const struct linear_site *site) {
  int index = l->site_of[site->index];
  return index < 0 ? NULL : &l->sites[index];
}

static const struct linear_weight *soft_weight(void *ctx, const struct linear_site *site,
                                               enum tap_pass pass) {
  struct learner *l = ctx;
  struct learn_site *s = learned_site(l, site);
  if (!s) return NULL;
  form_masked(l, s, site);
  l->masked_weight.dense =
      (struct matrix_view){l->masked, masked_dtype(l), s->mask.rows, s->mask.cols};
  return &l->masked_weight;
}

/* Every R depends on a linear through the sum of its (w M)^2: twice the derivative of -weight * R
 * by that sum, which is what (w M) is multiplied with in the gradient. */
static struct mask_decay regularizer_slope(const struct learner *l, const struct learn_site *s) {
  const double weight = l->regularizer_weight;
  const double norms = learn_uses_tiles(&l->settings) ? l->weight_norms : 1;
  switch (l->settings.regularizer) {
    case REGULARIZER_PAPER:
      return (struct mask_decay){-weight * 2 / l->weight_squares, NULL};
    case REGULARIZER_REFERENCE:
      return (struct mask_decay){-weight / norms, &l->sums[s - l->sites]};
    default:
      return (struct mask_decay){-weight * 2, NULL};
  }
}

/* Adds R of the sample to the step's value. */
static enum status add_regularizer(struct learner *l, struct error *err) {
  const double share = (double)l->settings.micro / (double)l->settings.batch;
  const double norms = learn_uses_tiles(&l->settings) ? l->weight_norms : 1;
  if (l->regularizer_weight == 0) return STATUS_OK;
  enum status status = learner_take_sums(l, l->sums, l->site_count, err);
  for (int i = l->site_count - 1; i >= 0 && status == STATUS_OK; i--) {
    const double kept = l->host_sums[i];
    switch (l->settings.regularizer) {
      case REGULARIZER_PAPER:
        l->regularizer_value += share * kept / l->weight_squares;
        break;
      case REGULARIZER_REFERENCE:
        l->regularizer_value += share * sqrt(kept) / norms;
        break;
      default:
        l->regularizer_value += share * kept;
    }
  }
  return status;
}

static void take_gradient(void *ctx, const struct linear_site *site, const float *x,
                          const float *dy, int64_t tokens) {
  struct learner *l = ctx;
  struct learn_site *s = learned_site(l, site);
  if (!s) return;
  struct mask_decay slope = {0, NULL};
  if (l->regularizer_weight != 0) slope = regularizer_slope(l, s);
  l->ops->linear_backward_weight(dy, x, tokens, s->mask.rows, s->mask.cols,
                                 (enum precision)l->settings.precision, l->gradient, false);
  const struct mask_source source = site_source(l, s);
  double *soft_gradient = learn_uses_tiles(&l->settings) ? l->tile_gradient + s->first_tile : NULL;
  const double start = clock_seconds();
  /* the first micro-batch of a step overwrites what the last step left */
  if (s->mask.kind == MASK_TILED)
    learner_pattern_gradient(l, s, site->weight.dense, slope, masked_dtype(l));
  else
    l->ops->mask_backward(&source, site->weight.dense, l->gradient, slope, l->micro > 0,
                          s->groups.gradient, soft_gradient, masked_dtype(l), l->masked);
  l->formed = site->index;
  l->mask_seconds += clock_seconds() - start;
}

/* --- micro-batches --- */

static enum status draw_sample(struct learner *l, int64_t micro, struct error *err) {
  const struct learn_settings *s = &l->settings;
  const int64_t micros = s->batch / s->micro;
  const uint64_t sample = (uint64_t)(s->noise == NOISE_STEP ? l->step : l->step * micros + micro);
  l->noise = s->noise != NOISE_NONE;
  l->draw = (uint32_t)sample; /* settings keep it below 2^32 */
  l->micro = micro;
  l->formed = -1;
  if (!learn_uses_tiles(s)) return STATUS_OK;
  if (s->noise == NOISE_NONE)
    tiles_clear_noise(&l->tiles);
  else
    tiles_draw_noise(&l->tiles, s->seed, sample);
  tiles_relax(&l->tiles, l->relax_tile, (enum learn_density)s->density);
  return learner_send_sample(l, err);
}

static void gather_ids(struct learner *l, const struct windows *windows, const int64_t *train,
                       int64_t train_count, int64_t micro) {
  const struct learn_settings *s = &l->settings;
  for (int64_t i = 0; i < s->micro; i++) {
    uint64_t draw = (uint64_t)(l->step * s->batch + micro * s->micro + i);
    int64_t window = train[windows_draw(train_count, s->seed, draw)];
    memcpy(l->ids + i * s->window, windows_at(windows, window), (size_t)s->window * sizeof *l->ids);
  }
}

static enum status run_micros(struct learner *l, const struct windows *windows,
                              const int64_t *train, int64_t train_count, struct model_losses *sums,
                              struct error *err) {
  const struct learn_settings *s = &l->settings;
  const struct tap tap = {.ctx = l, .weight = soft_weight, .gradient = take_gradient};
  const struct model_shape shape = {s->micro, s->window};
  const int64_t micros = s->batch / s->micro;
  const double scale = 1 / (double)(s->batch * (s->window - 1));
  const struct model_objective objective = learn_objective(s);
  *sums = (struct model_losses){0, 0, 0};
  for (int64_t m = 0; m < micros; m++) {
    struct model_losses here;
    enum status status = draw_sample(l, m, err);
    if (status != STATUS_OK) return status;
    gather_ids(l, windows, train, train_count, m);
    status =
        model_distill(l->runs, l->ids, shape, scale, &objective, &tap, l->workspace, &here, err);
    if (status == STATUS_OK) status = add_regularizer(l, err);
    if (status == STATUS_OK && learn_uses_tiles(s)) status = learner_take_tile_gradient(l, err);
    if (status != STATUS_OK) return status;
    sums->nll += here.nll;
    sums->kl += here.kl;
    sums->distance += here.distance;
    if (learn_uses_tiles(s))
      tiles_backward(&l->tiles, (enum learn_density)s->density, s->l1 / (double)micros);
  }
  return STATUS_OK;
}

/* --- the update --- */

static enum status gradient_norm(struct learner *l, double *norm, struct error *err) {
  double squares =
      learn_uses_tiles(&l->settings) ? sum_squares(l->tiles.gradient, l->tiles.count) : 0;
  enum status status = STATUS_OK;
  for (int i = 0; i < l->site_count; i++)
    squares += sum_squares(l->sites[i].pattern.gradient, l->sites[i].pattern.count);
  if (learn_uses_groups(&l->settings) && learn_is_24(&l->settings)) {
    for (int i = 0; i < l->site_count; i++)
      l->ops->mask_gradient_squares(l->sites[i].groups.gradient, groups_dtype(&l->sites[i].groups),
                                    l->sites[i].mask.rows, l->sites[i].mask.cols,
                                    &l->gradient_squares[i]);
    status = learner_take_sums(l, l->gradient_squares, l->site_count, err);
    for (int i = 0; i < l->site_count && status == STATUS_OK; i++) squares += l->host_sums[i];
  }
  *norm = sqrt(squares);
  return status;
}

/* With --offload: the moments of linear `i` set out for their buffer. */
static void fetch_moments(struct learner *l, int i) {
  if (i >= l->site_count) return;
  const struct group_logits *g = &l->sites[i].groups;
  const int buffer = i % BACKEND_BUFFERS;
  l->ops->fetch(buffer, l->moment_buffers[buffer], g->moments, g->moment_bytes);
}

/* *flips gets how many groups' hard choices changed. */
static enum status update(struct learner *l, double rate, double norm, int64_t *flips,
                          struct error *err) {
  const struct learn_settings *s = &l->settings;
  struct mask_adamw a = {.rate = (float)(s->lr_tile * rate),
                         .beta1 = (float)s->beta1,
                         .beta2 = (float)s->beta2,
                         .epsilon = (float)s->adam_eps,
                         .weight_decay = (float)s->weight_decay,
                         .gradient_scale = norm > s->clip ? (float)(s->clip / norm) : 1,
                         .step = l->step + 1};
  struct tile_logits *t = &l->tiles;
  /* a checkpoint may still be on its way from what changes now (learn/background.h) */
  if (l->ops->await_aside) l->ops->await_aside();
  if (learn_uses_tiles(s)) adamw_step(&a, t->count, t->gradient, t->logit, t->moment1, t->moment2);
  *flips = 0;
  if (!learn_uses_groups(s)) return STATUS_OK;
  a.rate = (float)(s->lr_24 * rate);
  l->ops->clear(l->flips, sizeof *l->flips);
  if (!learn_is_24(s)) {
    for (int i = 0; i < l->site_count; i++) *flips += learner_pattern_update(&l->sites[i], &a);
    return STATUS_OK;
  }
  if (s->offload) fetch_moments(l, 0);
  for (int i = 0; i < l->site_count; i++) {
    const struct learn_site *site = &l->sites[i];
    const struct group_logits *g = &site->groups;
    const struct mask_rounding rounding = {{(uint32_t)s->seed, (uint32_t)(s->seed >> 32)},
                                           (uint32_t)site->site->index};
    const int buffer = i % BACKEND_BUFFERS;
    if (s->offload) {
      fetch_moments(l, i + 1);
      l->ops->arrive(buffer);
    }
    void *moments = s->offload ? l->moment_buffers[buffer] : g->moments;
    groups_step(g, &a, &rounding, moments, site->codes, l->flips);
    if (s->offload) l->ops->put(buffer, g->moments, moments, g->moment_bytes);
  }
  return l->ops->download(flips, l->flips, sizeof *flips, err);
}

static enum status diverged(const struct learner *l, const char *what, double value,
                            struct error *err) {
  return error_set(
      err, STATUS_FAILED,
      "the %s became %g in step %lld: lower --lr (now %g for tiles, %g for 2:4 logits) "
      "or --clip, or look for damaged weights in %s; the last checkpoint is kept",
      what, value, (long long)l->step + 1, l->settings.lr_tile, l->settings.lr_24,
      model_path(l->model));
}

enum status learner_gradient(struct learner *l, const struct windows *windows, const int64_t *train,
                             int64_t train_count, struct step_result *result, struct error *err) {
  const struct learn_settings *s = &l->settings;
  const double predictions = (double)(s->batch * (s->window - 1));
  struct model_losses sums;
  l->relax_tile = schedule_relaxation(&s->tile, l->step, s->steps);
  l->relax_24 = schedule_relaxation(&s->two_four, l->step, s->steps);
  l->regularizer_weight = schedule_regularizer(s, l->step) * (double)s->micro / (double)s->batch;
  l->regularizer_value = 0;
  if (learn_uses_tiles(s)) memset(l->tiles.gradient, 0, (size_t)l->tiles.count * sizeof(float));
  double norm = 0;
  enum status status = learner_send_masks(l, err);
  if (status == STATUS_OK) status = run_micros(l, windows, train, train_count, &sums, err);
  if (status == STATUS_OK) status = gradient_norm(l, &norm, err);
  if (status != STATUS_OK) return status;
  *result = (struct step_result){
      .loss = sums.nll / predictions,
      .kl = sums.kl / predictions,
      .distance = sums.distance / predictions,
      .regularizer = l->regularizer_value,
      .density_soft = learn_uses_tiles(s) ? tiles_density(&l->tiles) : 1 - learn_most_sparsity(s),
      .gradient_norm = norm,
      .learning_rate = schedule_rate(s, l->step),
  };
  const double losses = result->loss + result->kl + result->distance;
  if (!isfinite(losses)) return diverged(l, "loss", losses, err);
  if (!isfinite(result->gradient_norm))
    return diverged(l, "gradient's norm", result->gradient_norm, err);
  return STATUS_OK;
}

enum status learner_step(struct learner *l, const struct windows *windows, const int64_t *train,
                         int64_t train_count, struct step_result *result, struct error *err) {
  l->mask_seconds = 0;
  enum status status = learner_gradient(l, windows, train, train_count, result, err);
  if (status != STATUS_OK) return status;
  const double start = clock_seconds();
  status = update(l, result->learning_rate, result->gradient_norm, &result->flips_24, err);
  if (status != STATUS_OK) return status;
  result->mask_seconds = l->mask_seconds + clock_seconds() - start;
  l->step++;
  return STATUS_OK;
}
