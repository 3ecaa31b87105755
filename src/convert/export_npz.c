/* The masks alone, in the reference's form. */
#include <stdlib.h>

#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"
#include "sparse/hybrid.h"
#include "sparse/mask_npz.h"

/* The masks that the packed linears of a model stand for. */
static enum status packed_masks(const struct model *model, struct mask_set *set,
                                struct error *err) {
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    struct mask_matrix m = {0};
    if (!site->weight.hybrid) continue;
    enum status status = hybrid_check(site->weight.hybrid, site->name, err);
    if (!status) status = hybrid_mask(site->weight.hybrid, site->name, &m, err);
    if (!status) status = mask_set_add(set, &m, err);
    mask_matrix_free(&m);
    if (status) return status;
  }
  if (!set->count)
    return error_set(err, STATUS_REFUSED,
                     "%s is not packed, so its masks are not known; give --mask",
                     model_path(model));
  return STATUS_OK;
}

static char *meta_text(const struct model *model, const struct mask_set *masks, struct error *err) {
  struct model_card card;
  if (directory_card(model, &card, err)) return NULL;
  const char *pattern = mask_set_meta_get(masks, "pattern");
  json_t *meta =
      json_pack("{s:s, s:s, s:f}", "base_model", card.base_count ? card.bases[0] : "", "pattern",
                pattern ? pattern : "hybrid", "sparsity", 1 - weights_density(model, masks));
  char *text = json_dumps(meta, JSON_SORT_KEYS | JSON_REAL_PRECISION(10));
  json_decref(meta);
  if (!text) error_set(err, STATUS_FAILED, "out of memory");
  return text;
}

enum status convert_to_mask_npz(const struct model *model, const struct mask_set *masks,
                                const char *out, bool replace, struct error *err) {
  struct mask_set own = {0};
  if (!replace && file_exists(out))
    return error_set(err, STATUS_REFUSED, "%s exists; give --force to replace it", out);
  enum status status =
      masks ? weights_check_masks(model, masks, err) : packed_masks(model, &own, err);
  if (!masks) masks = &own;
  char *meta = status ? NULL : meta_text(model, masks, err);
  if (!status) status = meta ? mask_npz_save(masks, out, meta, err) : STATUS_FAILED;
  free(meta);
  mask_set_free(&own);
  return status;
}
