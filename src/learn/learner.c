/* The learner's state and its hard side: see learner.h. The soft side is in step.c. */
#include "learn/learner.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/ops.h"
#include "learn/cost.h"

/* --- making and releasing --- */

static int64_t site_weights(const struct linear_site *site) {
  return linear_rows(&site->weight) * linear_cols(&site->weight);
}

static enum status init_pattern(struct learn_site *s, const struct learn_settings *set,
                                int64_t rows, int64_t cols, struct error *err) {
  enum status status = mask_matrix_init_tiled(&s->mask, s->site->name, rows, cols, set->tile_rows,
                                              set->tile_cols, set->keep, set->of, err);
  mask_pattern_make(&s->pattern.table, set->keep, set->of); /* settings were checked for it */
  if (status == STATUS_OK && learn_uses_groups(set))
    status = pattern_logits_init(&s->pattern, set, rows, cols, err);
  return status;
}

static enum status init_site(struct learner *l, int index, struct error *err) {
  const struct linear_site *site = model_site(l->model, index);
  const struct learn_settings *set = &l->settings;
  struct learn_site *s = &l->sites[l->site_count];
  int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  if (site->weight.hybrid || site->weight.integers)
    return error_set(err, STATUS_REFUSED,
                     "%s is packed already: learn on the dense model that it was made from",
                     model_path(l->model));
  s->site = site;
  l->site_of[index] = l->site_count++;
  if (!learn_is_24(set)) return init_pattern(s, set, rows, cols, err);
  enum status status = mask_matrix_init_hybrid(&s->mask, site->name, rows, cols, set->tile_rows,
                                               set->tile_cols, err);
  if (status == STATUS_OK && learn_uses_groups(set))
    status = groups_init(&s->groups, l->ops, rows, cols, set->compact, set->offload, err);
  return status;
}

/* Regions and what they hold, linears left dense included: the model, or with per_block each block
 * that has something to learn. region_of_layer (layers) is -1 for the others. */
static int number_regions(const struct learner *l, int *region_of_layer, int64_t *totals) {
  const int layers = model_config(l->model)->layers;
  int regions = l->settings.per_block ? 0 : 1;
  for (int i = 0; i < layers; i++) region_of_layer[i] = l->settings.per_block ? -1 : 0;
  for (int i = 0; i < l->site_count; i++) {
    int *region = &region_of_layer[l->sites[i].site->layer];
    if (*region < 0) *region = regions++;
  }
  for (int i = 0; i < model_site_count(l->model); i++) {
    const struct linear_site *site = model_site(l->model, i);
    const int region = region_of_layer[site->layer];
    if (region >= 0) totals[region] += site_weights(site);
  }
  return regions;
}

/* The target becomes a time: 1 / speedup of what a decoded token takes when all is dense. */
static enum status aim_at_time(struct learner *l, const struct mask_matrix *masks,
                               struct error *err) {
  const struct cost_table *costs = l->settings.costs;
  double *price = mem_alloc((size_t)l->site_count, sizeof *price, err);
  if (!price) return STATUS_FAILED;
  for (int i = 0; i < l->site_count; i++)
    price[i] = cost_saved_per_weight(cost_of_shape(costs, masks[i].rows, masks[i].cols));
  enum status status =
      tiles_aim_at_time(&l->tiles, masks, l->site_count, price, cost_dense_ps(costs, l->model),
                        1 / l->settings.speedup, err);
  mem_free(price);
  return status;
}

static enum status init_tiles(struct learner *l, struct error *err) {
  enum status status = STATUS_FAILED;
  const size_t layers = (size_t)model_config(l->model)->layers;
  struct mask_matrix *masks = mem_alloc((size_t)l->site_count, sizeof *masks, err);
  int *region_of = mem_alloc((size_t)l->site_count, sizeof *region_of, err);
  int *region_of_layer = mem_alloc(layers, sizeof *region_of_layer, err);
  int64_t *totals = mem_alloc(layers, sizeof *totals, err);
  if (!masks || !region_of || !region_of_layer || !totals) goto out;
  const int regions = number_regions(l, region_of_layer, totals);
  int64_t tiles = 0;
  for (int i = 0; i < l->site_count; i++) {
    struct learn_site *s = &l->sites[i];
    region_of[i] = region_of_layer[s->site->layer];
    masks[i] = s->mask;
    s->first_tile = tiles;
    tiles += mask_tile_count(&s->mask);
  }
  status = tiles_init(&l->tiles, masks, region_of, l->site_count, totals, regions,
                      l->settings.costs ? 1 : 1 - l->settings.sparsity, err);
  if (status == STATUS_OK && l->settings.costs) status = aim_at_time(l, masks, err);
out:
  mem_free(masks);
  mem_free(region_of);
  mem_free(region_of_layer);
  mem_free(totals);
  return status;
}

static enum status init_sites(struct learner *l, const bool *skip, struct error *err) {
  int count = model_site_count(l->model);
  l->sites = mem_alloc((size_t)count, sizeof *l->sites, err);
  l->site_of = mem_alloc((size_t)count, sizeof *l->site_of, err);
  if (!l->sites || !l->site_of) return err->status;
  for (int i = 0; i < count; i++) {
    l->site_of[i] = -1;
    if (skip[i]) {
      l->left_dense_weights += site_weights(model_site(l->model, i));
      continue;
    }
    enum status status = init_site(l, i, err);
    if (status != STATUS_OK) return status;
    l->learned_weights += site_weights(model_site(l->model, i));
  }
  if (l->site_count) return STATUS_OK;
  return error_set(err, STATUS_USAGE, "--skip leaves nothing to learn in %s", model_path(l->model));
}

static enum status init_scratch(struct learner *l, struct error *err) {
  const struct learn_settings *s = &l->settings;
  int64_t largest = 0;
  for (int i = 0; i < l->site_count; i++)
    if (site_weights(l->sites[i].site) > largest) largest = site_weights(l->sites[i].site);
  l->ids = mem_alloc((size_t)(s->micro * s->window), sizeof *l->ids, err);
  if (!l->ids) return STATUS_FAILED;
  enum status status = learner_place(l, largest, err);
  if (status != STATUS_OK) return status;
  status = model_workspace_new(&l->workspace, l->runs, (struct model_shape){s->micro, s->window},
                               true, s->recompute, err);
  if (status == STATUS_OK && learn_has_teacher(s))
    status = model_workspace_distill(l->workspace, s->match > 0, err);
  if (!status) model_workspace_set_precision(l->workspace, (enum precision)s->precision);
  return status;
}

static double measure_site(const struct learn_site *s, float *row) {
  double squares = 0;
  for (int64_t r = 0; r < s->mask.rows; r++) {
    linear_row(&s->site->weight, r, row);
    squares += sum_squares(row, s->mask.cols);
  }
  return squares;
}

/* ||W|| of every site, for the regularizers; finds weights that are no numbers on the way. */
static enum status measure_weights(struct learner *l, struct error *err) {
  int64_t widest = 0;
  for (int i = 0; i < l->site_count; i++)
    if (l->sites[i].mask.cols > widest) widest = l->sites[i].mask.cols;
  float *row = mem_alloc((size_t)widest, sizeof *row, err);
  enum status status = row ? STATUS_OK : STATUS_FAILED;
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++) {
    struct learn_site *s = &l->sites[i];
    s->weight_squares = measure_site(s, row);
    if (!isfinite(s->weight_squares))
      status = error_set(err, STATUS_REFUSED,
                         "%s of %s holds NaN or infinity: a mask cannot be learned on it",
                         s->site->name, model_path(l->model));
    l->weight_squares += s->weight_squares;
    l->weight_norms += sqrt(s->weight_squares);
  }
  mem_free(row);
  return status;
}

/* What there is no kernel for on a card. */
static enum status check_backend(const struct learner *l, struct error *err) {
  const struct learn_settings *s = &l->settings;
  if (l->ops->is_host) return STATUS_OK;
  if (!learn_is_24(s))
    return error_set(err, STATUS_USAGE,
                     "--pattern %d:%d is learned on the CPU only: leave out --device", s->keep,
                     s->of);
  if (s->distill_kind != DISTILL_FORWARD)
    return error_set(err, STATUS_USAGE,
                     "--distill-kind %s is made on the CPU only: leave out --device, or distill by "
                     "forward",
                     distill_kind_name[s->distill_kind]);
  if (s->match > 0)
    return error_set(err, STATUS_USAGE, "--match is made on the CPU only: leave out --device");
  return STATUS_OK;
}

enum status learner_init(struct learner *l, const struct model *model,
                         const struct learn_settings *settings, const bool *skip,
                         struct error *err) {
  *l = (struct learner){.model = model, .settings = *settings, .formed = -1};
  l->ops = settings->backend ? settings->backend : backend_cpu();
  enum status status = check_backend(l, err);
  if (status != STATUS_OK) return status;
  status = init_sites(l, skip, err);
  if (status == STATUS_OK && learn_uses_tiles(settings)) status = init_tiles(l, err);
  if (status == STATUS_OK) status = init_scratch(l, err);
  if (status == STATUS_OK) status = measure_weights(l, err);
  if (status == STATUS_OK && settings->graphs) status = l->ops->record(true, err);
  if (status == STATUS_FAILED && !l->ops->is_host) {
    const struct error reason = *err;
    error_set(err, reason.status,
              "%s. A run takes less with --recompute, with --compact, with a smaller --micro or "
              "--window, with --offload, or in --mode tile; --dry-run says what each part takes",
              reason.text);
  }
  if (status != STATUS_OK) learner_free(l);
  return status;
}

void learner_free(struct learner *l) {
  struct error ignored; /* what is on its way to memory that goes has to come to rest */
  if (l->ops && l->settings.offload) l->ops->wait(&ignored);
  if (l->ops && l->settings.graphs) l->ops->record(false, &ignored);
  if (l->workspace) model_workspace_free(l->workspace);
  learner_unplace(l);
  for (int i = 0; i < l->site_count; i++) {
    mask_matrix_free(&l->sites[i].mask);
    groups_free(&l->sites[i].groups);
    pattern_logits_free(&l->sites[i].pattern);
  }
  tiles_free(&l->tiles);
  mem_free(l->sites);
  mem_free(l->site_of);
  mem_free(l->ids);
  *l = (struct learner){0};
}

size_t learner_bytes(const struct model *model, const struct learn_settings *s) {
  int64_t weights = 0, largest = 0, tiles = 0;
  size_t groups = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    int64_t rows = linear_rows(w), cols = linear_cols(w), here = rows * cols;
    weights += here;
    if (learn_is_24(s)) {
      const struct groups_bytes g = groups_bytes(rows, cols, s->compact);
      groups += g.logits + g.gradients + g.moments;
    } else {
      groups += 4 * sizeof(float) * (size_t)pattern_logits_count(s, rows, cols);
    }
    tiles +=
        ((rows + s->tile_rows - 1) / s->tile_rows) * ((cols + s->tile_cols - 1) / s->tile_cols);
    if (here > largest) largest = here;
  }
  size_t bytes = (size_t)largest * 2 * sizeof(float) + (size_t)weights / 8;
  if (learn_uses_tiles(s)) bytes += (size_t)tiles * 10 * sizeof(float);
  if (learn_uses_groups(s)) bytes += groups;
  const struct model_shape shape = {s->micro, s->window};
  if (learn_has_teacher(s)) bytes += model_workspace_distill_bytes(model, shape, s->match > 0);
  return bytes + model_workspace_bytes(model, shape, true, s->recompute);
}

/* --- hard masks --- */

void learner_place_tiles(struct learner *l, const bool *dense) {
  for (int i = 0; i < l->site_count; i++) {
    struct learn_site *s = &l->sites[i];
    for (int64_t k = 0; k < mask_tile_count(&s->mask); k++)
      s->mask.tiles[k] = dense[s->first_tile + k];
  }
  learner_masks_changed(l);
}

enum status learner_harden(struct learner *l, bool project, double *density_before, int64_t *moved,
                           struct error *err) {
  *density_before = 1 - l->settings.sparsity;
  *moved = 0;
  enum status status = learner_harden_groups(l, err);
  if (status != STATUS_OK || !learn_uses_tiles(&l->settings)) return status;
  bool *dense = mem_alloc((size_t)l->tiles.count, sizeof *dense, err);
  if (!dense) return err->status;
  int64_t last = l->step > 0 ? l->step - 1 : 0;
  tiles_harden(&l->tiles, schedule_relaxation(&l->settings.tile, last, l->settings.steps),
               (enum learn_density)l->settings.density, dense);
  *density_before = tiles_hard_density(&l->tiles, dense);
  if (project) status = tiles_project(&l->tiles, l->tiles.logit, dense, moved, err);
  learner_place_tiles(l, dense);
  mem_free(dense);
  return status;
}

static const struct linear_weight *hard_weight(void *ctx, const struct linear_site *site,
                                               enum tap_pass pass) {
  struct learner *l = ctx;
  if (l->site_of[site->index] < 0) return NULL;
  struct learn_site *s = &l->sites[l->site_of[site->index]];
  if (s->mask.kind == MASK_TILED)
    pattern_keep(&s->mask, site->weight.dense, l->masked);
  else
    l->ops->mask_keep(site->weight.dense, s->codes, s->dense, s->mask.tile_rows, s->mask.tile_cols,
                      l->masked);
  l->masked_weight.dense = (struct matrix_view){l->masked, DTYPE_F32, s->mask.rows, s->mask.cols};
  return &l->masked_weight;
}

enum status learner_loss(struct learner *l, const struct windows *windows, const int64_t *which,
                         int64_t count, bool dense, double *nll, struct error *err) {
  const int64_t length = windows->length, most = l->settings.micro;
  const struct tap tap = {.ctx = l, .weight = hard_weight};
  double sum = 0;
  l->formed = -1;
  float *each = mem_alloc((size_t)(most * (length - 1)), sizeof *each, err);
  if (!each) return err->status;
  enum status status = learner_send_masks(l, err);
  for (int64_t first = 0; first < count && status == STATUS_OK; first += most) {
    int64_t here = count - first < most ? count - first : most;
    for (int64_t i = 0; i < here; i++)
      memcpy(l->ids + i * length, windows_at(windows, which[first + i]),
             (size_t)length * sizeof *l->ids);
    status = model_nll(l->runs, l->ids, (struct model_shape){here, length}, dense ? NULL : &tap,
                       l->workspace, each, err);
    for (int64_t i = 0; status == STATUS_OK && i < here * (length - 1); i++) sum += each[i];
  }
  mem_free(each);
  *nll = sum / (double)(count * (length - 1));
  return status;
}
