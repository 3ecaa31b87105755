/* tessera export: a pruned model for other programs, or its masks alone. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/output.h"
#include "convert/convert.h"
#include "convert/inspect.h"
#include "convert/weights.h"

enum target { TO_HF, TO_GGUF, TO_MASK_NPZ };

struct settings {
  struct common_options common;
  const char *mask, *out, *type;
  int target;
  int64_t tile;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "drop what this mask file drops"},
    {"to", OPTION_CHOICE, offsetof(struct settings, target), NULL, 0, 0, "hf|gguf|mask-npz", NULL,
     "a Hugging Face directory, a GGUF file for llama.cpp, or the masks as PATCH publishes them"},
    {"type", OPTION_TEXT, offsetof(struct settings, type), NULL, 0, 0, NULL,
     "f32|f16|bf16|q8_0|q4_0",
     "what weights are rounded to (q8_0, q4_0 in a GGUF only); as they are stored when f32, f16 or "
     "bf16, "
     "else bf16"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "mask-npz without --mask: side of the tiles to look for in a dense checkpoint's zeros"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "PATH",
     "the directory or file to write"},
    COMMON_OPTIONS(struct settings, common)};

static enum status parse_type(const struct settings *s, const struct model *model, enum dtype *type,
                              struct error *err) {
  static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
  *type = weights_natural_dtype(model);
  if (!s->type) return STATUS_OK;
  for (int i = 0; i < (s->target == TO_GGUF ? 5 : 3); i++)
    if (!strcmp(s->type, dtype_traits(types[i])->name)) {
      *type = types[i];
      return STATUS_OK;
    }
  return error_set(err, STATUS_USAGE, "--type %s: give f32, f16 or bf16%s", s->type,
                   s->target == TO_GGUF ? ", or q8_0 or q4_0" : "");
}

static enum status export(const struct settings *s, const struct model *model,
                          const struct mask_set *masks, enum dtype type, struct error *err) {
  const bool force = s->common.force; switch ((enum target)s->target){
    case TO_HF : return convert_to_hf(model, masks, s->out, type, force, err);
    case TO_GGUF : return convert_to_gguf(model, masks, s->out, type, force, err);
    case TO_MASK_NPZ : return convert_to_mask_npz(model, masks, s->out, force, err);
  }
return STATUS_USAGE;
}

/* What to leave out: the mask file; for mask-npz without one, what the weights say. */
static enum status load_masks(const struct settings *s, const struct model *model,
                              struct mask_set *out, struct error *err) {
  if (!s->mask)
    return s->target == TO_MASK_NPZ ? inspect_masks(model, s->tile, false, out, err) : STATUS_OK;
  enum status status = mask_load(out, s->mask, err);
  return status ? status : weights_check_masks(model, out, err);
}

static enum status report(const struct settings *s, const struct model *model,
                          const struct mask_set *masks, enum dtype type, struct error *err) {
  const double density = weights_density(model, masks);
  const char *name = s->target == TO_MASK_NPZ ? "bits" : dtype_traits(type)->name;
  if (output_to_people(&s->common)) printf("%s: %s, density %.4f\n", s->out, name, density);
  if (!s->common.json) return STATUS_OK;
  return common_write_json(
      &s->common, json_pack("{s:s, s:s, s:f}", "path", s->out, "type", name, "density", density),
      err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  struct model *model = NULL;
  struct mask_set masks = {0};
  enum dtype type;
  common_apply(&s->common);
  if (s->target < 0 || !s->out)
    return error_set(err, STATUS_USAGE, "export needs --to hf|gguf|mask-npz and --out");
  if (s->tile % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile);
  enum status status = common_check_output(&s->common, s->out, err);
  if (!status) status = model_open_headers(&model, positionals->items[0], err);
  if (!status) status = parse_type(s, model, &type, err);
  if (!status) status = load_masks(s, model, &masks, err);
  const struct mask_set *given = masks.count ? &masks : NULL;
  if (!status) status = export(s, model, given, type, err);
  if (!status) status = report(s, model, given, type, err);
  mask_set_free(&masks);
  model_close(model);
  return status;
}

const struct command command_export = {
    .name = "export",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "write a pruned model for transformers or llama.cpp, or its masks",
    .description =
        "Dropped weights are written as zeros, so that any program runs the result. "
        "Tokenizer, licence\nand base model go along. MODEL may be a packed directory.",
    .example =
        "tessera export model.gguf --mask run/mask.safetensors --to gguf --type q8_0 --out "
        "pruned.gguf",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
