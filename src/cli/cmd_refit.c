/* tessera refit: the weights that a mask keeps, fitted anew linear by linear. */
#include <stdio.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "convert/convert.h"
#include "convert/weights.h"
#include "prune/refit.h"
#include "text/tokenizer.h"

struct settings {
  struct common_options common;
  const char *mask, *calib, *out;
  int64_t calib_tokens, iterations, seed;
  double ridge;
  int precision;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "the mask: what it drops stays zero"},
    {"calib", OPTION_TEXT, offsetof(struct settings, calib), NULL, 0, 0, NULL, "FILE",
     "text to fit on: UTF-8, .jsonl, or either as .gz or .zst"},
    {"calib-tokens", OPTION_INT, offsetof(struct settings, calib_tokens), "32768", 2, 1e12, NULL,
     "N", "tokens to fit on; an eighth of them only checks"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "DIR",
     "the Hugging Face directory to write"},
    {"ridge", OPTION_REAL, offsetof(struct settings, ridge), "0.3", 0, 1e6, NULL, "X",
     "what holds the weights to what they were: a share of the mean of the inputs' squares"},
    {"iterations", OPTION_INT, offsetof(struct settings, iterations), "8", 1, 1e6, NULL, "N",
     "steps of conjugate gradients for each linear"},
    {"seed", OPTION_INT, offsetof(struct settings, seed), "0", 0, 1e15, NULL, "K",
     "which windows of the text are taken"},
    {"precision", OPTION_CHOICE, offsetof(struct settings, precision), NULL, 0, 0, "fp32|bf16",
     NULL,
     "what the products of the forward passes round their operands to (default: bf16 where it "
     "is fast)"},
    COMMON_OPTIONS(struct settings, common)};

static enum status check(const struct settings *s, struct error *err) {
  if (!s->mask) return error_set(err, STATUS_USAGE, "--mask is missing: what is to stay zero");
  if (!s->calib) return error_set(err, STATUS_USAGE, "--calib is missing: a text to fit on");
  if (!s->out) return error_set(err, STATUS_USAGE, "say where the model goes with --out DIR");
  return common_check_output(&s->common, s->out, err);
}

static enum status load_text(const struct settings *s, const struct model *model,
                             struct calibration *out, struct error *err) {
  struct tokenizer *tokenizer;
  enum status status = tokenizer_open(&tokenizer, model_path(model), err);
  if (status) return status;
  status =
      calibration_load(out, model, tokenizer, s->calib, s->calib_tokens, (uint64_t)s->seed, err);
  tokenizer_close(tokenizer);
  return status;
}

static enum status report(const struct settings *s, const struct refit_report *r,
                          struct error *err) {
  if (output_to_people(&s->common)) {
    printf("%lld of %lld masked linears refit, %lld weights, %.1f s; the mask is as it was\n",
           (long long)(r->linears - r->kept), (long long)r->linears, (long long)r->weights,
           r->seconds);
    printf("mean error of a linear's outputs on text set aside: %.4f before, %.4f after\n",
           r->error_before, r->error_after);
    printf("%s\n", s->out);
  }
  if (!s->common.json) return STATUS_OK;
  return common_write_json(
      &s->common,
      json_pack("{s:s, s:b, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I}", "path", s->out, "refit", 1,
                "linears", (json_int_t)r->linears, "kept", (json_int_t)r->kept, "weights",
                (json_int_t)r->weights, "error_before", r->error_before, "error_after",
                r->error_after, "seconds", r->seconds, "ridge", s->ridge, "iterations",
                (json_int_t)s->iterations),
      err);
}

static enum status refit(const struct settings *s, struct model *model,
                         const struct mask_set *masks, const struct calibration *text,
                         struct error *err) {
  const struct refit_settings settings = {
      .ridge = s->ridge,
      .iterations = s->iterations,
      .precision = s->precision < 0 ? precision_fastest() : (enum precision)s->precision};
  struct refit_report result;
  char note[256];
  log_info("fitting on %lld windows of %lld tokens", (long long)text->windows,
           (long long)text->length);
  enum status status = refit_run(model, masks, text, &settings, &result, err);
  if (status) return status;
  snprintf(note, sizeof note,
           "The kept weights were then refit (tessera refit, %lld tokens): they are not those of "
           "the original model.",
           (long long)text->windows * text->length);
  status = convert_to_hf_noted(model, masks, note, s->out, weights_natural_dtype(model),
                               s->common.force, err);
  return status ? status : report(s, &result, err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  struct model *model = NULL;
  struct mask_set masks = {0};
  struct calibration text = {0};
  (void)command;
  common_apply(&s->common);
  enum status status = check(s, err);
  if (!status) status = model_open(&model, positionals->items[0], err);
  if (!status) status = mask_load(&masks, s->mask, err);
  if (!status) status = load_text(s, model, &text, err);
  if (!status) status = refit(s, model, &masks, &text, err);
  calibration_free(&text);
  mask_set_free(&masks);
  model_close(model);
  return status;
}

const struct command command_refit = {
    .name = "refit",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "fit the weights that a mask keeps to the dense model's activations",
    .description =
        "After a mask is made, each linear is fitted anew, so that what it gives on the pruned\n"
        "model's activations approaches what the dense one gives on the dense model's. One pass\n"
        "over the blocks, no gradients. Writes another model, labelled as such, which may be\n"
        "packed with the same mask, or tuned further with tessera recover.",
    .example = "tessera refit MODEL --mask run/mask.safetensors --calib text.txt --out refit",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
