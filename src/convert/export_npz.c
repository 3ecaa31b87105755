/* The masks alone, in the reference's form. */
#include <stdlib.h>

#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"
#include "sparse/mask_npz.h"

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
  if (!replace && file_exists(out))
    return error_set(err, STATUS_REFUSED, "%s exists; give --force to replace it", out);
  char *meta = meta_text(model, masks, err);
  enum status status = meta ? mask_npz_save(masks, out, meta, err) : STATUS_FAILED;
  free(meta);
  return status;
}
