/* Opening inputs: see inputs.h. */
#include "cli/inputs.h"

#include <stdio.h>

#include "base/log.h"
#include "base/parallel.h"
#include "kernel/ops.h"

const enum dtype inputs_kv_types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8};

enum status inputs_model(struct model **out, const char *path, const char *mask,
                         struct error *err) {
  struct mask_set masks = {0};
  *out = NULL;
  enum status status = model_open_to_run(out, path, err);
  if (!status && mask) {
    status = mask_load(&masks, mask, err);
    if (!status) status = model_apply_masks(*out, &masks, err);
    if (!status) log_debug("%s: density %.4f under %s", path, model_density(*out), mask);
  }
  mask_set_free(&masks);
  if (status) {
    model_close(*out);
    *out = NULL;
  }
  return status;
}

void inputs_describe_compute(enum precision precision, char out[96]) {
  int threads = parallel_threads();
  snprintf(out, 96, "%s, %s, %d thread%s", precision_name[precision], kernel_isa(), threads,
           threads == 1 ? "" : "s");
}
