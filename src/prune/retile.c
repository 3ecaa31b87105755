/* Another sparsity for masks that carry tile scores, without a pass over the model. */
#include <string.h>

#include "prune/describe.h"
#include "sparse/project.h"

static const struct linear_site *find_site(const struct model *model, const char *name) {
  for (int i = 0; i < model_site_count(model); i++)
    if (!strcmp(model_site(model, i)->name, name)) return model_site(model, i);
  return NULL;
}

static enum status check_retile(const struct model *model, const struct mask_set *masks,
                                struct error *err) {
  for (size_t i = 0; i < masks->count; i++) {
    const struct mask_matrix *m = &masks->items[i];
    const struct linear_site *site = find_site(model, m->name);
    if (!site || linear_rows(&site->weight) != m->rows || linear_cols(&site->weight) != m->cols)
      return error_set(err, STATUS_REFUSED, "%s of the mask does not fit the model", m->name);
    if (!m->tile_scores)
      return error_set(err, STATUS_REFUSED,
                       "%s of the mask has no tile scores; make it with tessera prune --pattern "
                       "2:4, n:m or hybrid",
                       m->name);
    if (m->keep != masks->items[0].keep || m->of != masks->items[0].of)
      return error_set(err, STATUS_REFUSED, "%s of the mask is %d:%d, where %s is %d:%d", m->name,
                       m->keep, m->of, masks->items[0].name, masks->items[0].keep,
                       masks->items[0].of);
  }
  return STATUS_OK;
}

enum status prune_retile(const struct model *model, struct mask_set *masks, double sparsity,
                         struct error *err) {
  const int64_t total = model_prunable_weights(model);
  char pattern[16];
  enum status status = check_retile(model, masks, err);
  if (status) return status;
  const int keep = masks->count ? masks->items[0].keep : 2,
            of = masks->count ? masks->items[0].of : 4;
  const double most = 1 - (double)keep / of;
  if (!(sparsity >= 0 && sparsity <= most))
    return error_set(err, STATUS_USAGE, "a hybrid of %d:%d has a sparsity of 0 to %.4g, not %g",
                     keep, of, most, sparsity);
  prune_hybrid_name(keep, of, pattern);
  status = project_set(masks, total, 1 - sparsity, err);
  if (status) return status;
  return prune_describe_kept(masks, pattern, sparsity, total, err);
}
