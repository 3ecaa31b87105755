/* tessera.h: what makes masks and files. */
#include "api/api.h"
#include "convert/convert.h"
#include "learn/run.h"
#include "prune/prune.h"

enum { TILE_DEFAULT = 128 };

static enum status prune_settings_of(const tsr_prune_options *options, struct prune_settings *out,
                                     struct error *err) {
  *out = prune_defaults();
  out->method = (enum prune_method)options->method;
  out->sparsity = options->sparsity;
  out->tile_rows = out->tile_cols = options->tile > 0 ? options->tile : TILE_DEFAULT;
  if (out->method != PRUNE_MAGNITUDE && !options->calibration)
    return error_set(err, STATUS_USAGE, "%s needs a text to calibrate on",
                     prune_method_name(out->method));
  enum status status = prune_pattern_parse(options->pattern ? options->pattern : "2:4", out, err);
  return status ? status : prune_check(out, err);
}

tsr_status tsr_prune(tsr_model *model, const tsr_prune_options *options, const char *mask_path,
                     tsr_error *err) {
  struct prune_settings settings;
  struct calibration calibration = {0};
  struct mask_set masks = {0};
  struct prune_report report;
  enum status status = prune_settings_of(options, &settings, api_error(err));
  if (!status && options->calibration) {
    status = api_need_tokenizer(model, api_error(err));
    if (!status)
      status = calibration_load(&calibration, model->model, model->tokenizer, options->calibration,
                                options->calibration_tokens, options->seed, api_error(err));
  }
  if (!status)
    status =
        prune_run(model->model, &settings, &calibration, &masks, NULL, &report, api_error(err));
  if (!status) status = mask_save(&masks, mask_path, api_error(err));
  mask_set_free(&masks);
  calibration_free(&calibration);
  return (tsr_status)status;
}

tsr_status tsr_pack(const char *model_path, const char *mask_path, const char *directory,
                    tsr_error *err) {
  struct model *model;
  struct mask_set masks = {0};
  enum status status = model_open_headers(&model, model_path, api_error(err));
  if (status) return (tsr_status)status;
  status = mask_load(&masks, mask_path, api_error(err));
  if (!status) status = convert_pack(model, &masks, directory, DTYPE_BF16, false, api_error(err));
  mask_set_free(&masks);
  model_close(model);
  return (tsr_status)status;
}

enum { CHECKPOINT_SECONDS = 120 };

tsr_status tsr_learn(const char *model_path, const tsr_learn_options *options, const char *run_path,
                     tsr_error *err) {
  struct learn_request request = {.model = model_path,
                                  .data = options->data,
                                  .out = run_path,
                                  .checkpoint_seconds = CHECKPOINT_SECONDS,
                                  .resume = options->resume != 0};
  struct learn_report report;
  learn_settings_unset(&request.settings, (enum learn_mode)options->mode);
  request.settings.sparsity = options->sparsity;
  request.settings.tokens = options->tokens;
  request.settings.seed = options->seed;
  request.settings.window = options->window;
  request.settings.tile_rows = request.settings.tile_cols =
      options->tile > 0 ? options->tile : TILE_DEFAULT;
  if (options->prior) request.priors[request.prior_count++] = options->prior;
  return (tsr_status)learn_run(&request, &report, api_error(err));
}
