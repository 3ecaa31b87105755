/* What of the learner lies in its backend's memory: see learner.h. On the CPU that is the learner's
 * own memory, and nothing is copied. */
#include <string.h>

#include "base/mem.h"
#include "learn/learner.h"

static size_t code_bytes(const struct mask_matrix *m) { return mask_groups_bytes(m); }

/* Room for W * M and its gradient, and the sums of a step. */
static enum status alloc_shared(struct learner *l, int64_t largest, struct error *err) {
  const size_t bytes = (size_t)largest * sizeof(float);
  const size_t sums = 2 * (size_t)l->site_count * sizeof(double);
  enum status status = l->ops->alloc(bytes, &l->masked, err);
  if (status == STATUS_OK) status = l->ops->alloc(bytes, (void **)&l->gradient, err);
  if (status == STATUS_OK) status = l->ops->alloc(sums, (void **)&l->sums, err);
  if (status == STATUS_OK) status = l->ops->alloc(sizeof *l->flips, (void **)&l->flips, err);
  if (status != STATUS_OK) return status;
  l->gradient_squares = l->sums + l->site_count;
  size_t moments = 0;
  for (int i = 0; i < l->site_count; i++)
    if (l->sites[i].groups.moment_bytes > moments) moments = l->sites[i].groups.moment_bytes;
  for (int i = 0; i < BACKEND_BUFFERS && l->settings.offload && status == STATUS_OK; i++)
    status = l->ops->alloc(moments, &l->moment_buffers[i], err);
  if (status != STATUS_OK) return status;
  l->host_sums = mem_alloc((size_t)l->site_count + 1, sizeof *l->host_sums, err);
  return l->host_sums ? STATUS_OK : STATUS_FAILED;
}

static enum status alloc_tiles(struct learner *l, struct error *err) {
  const size_t count = (size_t)l->tiles.count;
  if (l->ops->is_host) {
    l->tile_soft = l->tiles.soft;
    l->tile_gradient = l->tiles.soft_gradient;
    return STATUS_OK;
  }
  enum status status = l->ops->alloc(count * sizeof(float), (void **)&l->tile_soft, err);
  if (status != STATUS_OK) return status;
  return l->ops->alloc(count * sizeof(double), (void **)&l->tile_gradient, err);
}

static enum status alloc_site(struct learner *l, struct learn_site *s, struct error *err) {
  if (l->ops->is_host) {
    s->codes = mask_groups(&s->mask);
    s->dense = s->mask.tiles;
    return STATUS_OK;
  }
  enum status status = l->ops->alloc(code_bytes(&s->mask), (void **)&s->codes, err);
  if (status != STATUS_OK) return status;
  return l->ops->alloc((size_t)mask_tile_count(&s->mask), (void **)&s->dense, err);
}

enum status learner_place(struct learner *l, int64_t largest, struct error *err) {
  enum status status = STATUS_OK;
  l->runs = l->model;
  if (!l->ops->is_host) {
    status = model_place(&l->placed, l->model, l->ops, err);
    l->runs = l->placed;
  }
  if (status == STATUS_OK) status = alloc_shared(l, largest, err);
  if (status == STATUS_OK && learn_uses_tiles(&l->settings)) status = alloc_tiles(l, err);
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++)
    status = alloc_site(l, &l->sites[i], err);
  l->masks_changed = true;
  return status;
}

void learner_unplace(struct learner *l) {
  if (!l->ops) return;
  l->ops->free(l->masked);
  l->ops->free(l->gradient);
  l->ops->free(l->sums);
  l->ops->free(l->flips);
  for (int i = 0; i < BACKEND_BUFFERS; i++) l->ops->free(l->moment_buffers[i]);
  mem_free(l->host_sums);
  if (l->ops->is_host) return;
  l->ops->free(l->tile_soft);
  l->ops->free(l->tile_gradient);
  for (int i = 0; i < l->site_count; i++) {
    l->ops->free(l->sites[i].codes);
    l->ops->free(l->sites[i].dense);
  }
  model_close(l->placed);
}

void learner_masks_changed(struct learner *l) { l->masks_changed = true; }

enum status learner_send_masks(struct learner *l, struct error *err) {
  enum status status = STATUS_OK;
  if (l->ops->is_host || !l->masks_changed) return STATUS_OK;
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++) {
    const struct learn_site *s = &l->sites[i];
    status = l->ops->upload(s->codes, s->mask.codes, code_bytes(&s->mask), err);
    if (status == STATUS_OK)
      status = l->ops->upload(s->dense, s->mask.tiles, (size_t)mask_tile_count(&s->mask), err);
  }
  l->masks_changed = status != STATUS_OK;
  return status;
}

enum status learner_harden_groups(struct learner *l, struct error *err) {
  if (!learn_uses_groups(&l->settings)) return STATUS_OK;
  enum status status = learner_send_masks(l, err);
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++) {
    struct learn_site *s = &l->sites[i];
    if (s->mask.kind == MASK_TILED) {
      pattern_harden(&s->pattern.table, s->pattern.logit, s->mask.rows, s->mask.cols, s->codes);
      continue;
    }
    l->ops->mask_harden(s->groups.logit, groups_dtype(&s->groups), s->mask.rows, s->mask.cols,
                        s->codes, l->flips);
    if (!l->ops->is_host)
      status = l->ops->download(s->mask.codes, s->codes, code_bytes(&s->mask), err);
  }
  return status;
}

enum status learner_send_sample(struct learner *l, struct error *err) {
  if (l->ops->is_host || !learn_uses_tiles(&l->settings)) return STATUS_OK;
  const size_t count = (size_t)l->tiles.count;
  l->ops->clear(l->tile_gradient, count * sizeof *l->tile_gradient);
  return l->ops->upload(l->tile_soft, l->tiles.soft, count * sizeof *l->tile_soft, err);
}

enum status learner_take_tile_gradient(struct learner *l, struct error *err) {
  if (l->ops->is_host) return STATUS_OK;
  return l->ops->download(l->tiles.soft_gradient, l->tile_gradient,
                          (size_t)l->tiles.count * sizeof *l->tile_gradient, err);
}

enum status learner_take_sums(struct learner *l, const double *sums, int count, struct error *err) {
  return l->ops->download(l->host_sums, sums, (size_t)count * sizeof *sums, err);
}
