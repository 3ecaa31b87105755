/* Fuzz target: mask files, tessera's own and the reference's. */
#include "sparse/mask.h"

static enum status walk_mask(void *ctx, const char *path, struct error *err) {
  struct mask_set set = {0};
  enum status status = mask_load(&set, path, err);
  if (status == STATUS_OK) {
    int64_t kept, total;
    mask_set_count(&set, &kept, &total);
    INVARIANT(kept >= 0 && kept <= total);
  }
  mask_set_free(&set);
  return status;
}

#define FUZZ_WALK walk_mask
#include "fuzz_file.h"
