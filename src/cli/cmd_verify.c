/* tessera verify: recounts what a mask file or a model says of itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/output.h"
#include "convert/verify.h"
#include "io/file.h"
#include "io/npz.h"
#include "io/safetensors.h"

struct settings {
  struct common_options common;
  const char *against;
  int64_t tile;
};

static const struct option options[] = {
    {"against", OPTION_TEXT, offsetof(struct settings, against), NULL, 0, 0, NULL, "MODEL",
     "also hold every kept weight against this model's, or the mask's names and shapes"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "side of the tiles to look for in dense checkpoints, a multiple of 4"},
    COMMON_OPTIONS(struct settings, common)};

/* The mask file that `path` is or, as the result of `learn`, holds; NULL when it is a model. The
 * string is malloc'd. */
static char *mask_path(const char *path) {
  if (!file_is_directory(path)) {
    struct safetensors *file = NULL;
    bool mask = npz_recognise(path);
    if (!mask && safetensors_open(&file, path, NULL) == STATUS_OK) {
      const char *format = safetensors_metadata(file, "format");
      mask = format && !strcmp(format, "tessera-mask");
      safetensors_close(file);
    }
    return mask ? strdup(path) : NULL;
  }
  char *inside = path_join(path, "mask.safetensors");
  if (file_exists(inside)) return inside;
  free(inside);
  return NULL;
}

static json_t *verification_json(const struct verification *v, bool mask, bool whole) {
  json_t *json = json_object();
  json_object_set_new(json, "kind", json_string(mask ? "mask" : "model"));
  json_object_set_new(json, "ok", json_true());
  json_object_set_new(json, "density", output_real((double)v->kept / (double)v->positions));
  json_object_set_new(
      json, "nonzero",
      v->nonzero < 0 ? json_null() : output_real((double)v->nonzero / (double)v->positions));
  json_object_set_new(json, "whole_model", json_boolean(whole));
  json_object_set_new(json, "matrices", json_integer(v->matrices));
  json_object_set_new(json, "positions", json_integer(v->positions));
  json_object_set_new(json, "kept", json_integer(v->kept));
  json_object_set_new(json, "tiles_dense", json_integer(v->tiles_dense));
  json_object_set_new(json, "tiles_sparse", json_integer(v->tiles_sparse));
  json_object_set_new(json, "compared", json_integer(v->compared));
  return json;
}

static void print_verification(const struct verification *v, bool whole) {
  struct table facts = output_facts();
  output_fact(&facts, "density", "%.6f over %s", (double)v->kept / (double)v->positions,
              whole ? "all prunable weights" : "the matrices of the mask");
  if (v->nonzero >= 0)
    output_fact(&facts, "nonzero", "%.6f", (double)v->nonzero / (double)v->positions);
  output_fact(&facts, "kept", "%lld of %lld", (long long)v->kept, (long long)v->positions);
  if (v->tiles_dense + v->tiles_sparse)
    output_fact(&facts, "tiles", "%lld dense, %lld 2:4", (long long)v->tiles_dense,
                (long long)v->tiles_sparse);
  if (v->compared)
    output_fact(&facts, "compared", "%lld weights, all equal", (long long)v->compared);
  output_table(&facts);
  table_free(&facts);
  printf("everything agrees\n");
}

static enum status verify(const struct settings *s, const char *path, const char *masks_at,
                          struct verification *out, struct error *err) {
  struct model *model = NULL, *against = NULL;
  struct mask_set masks = {0};
  enum status status = STATUS_OK;
  if (s->against) status = model_open_headers(&against, s->against, err);
  if (!status && masks_at) {
    status = mask_load(&masks, masks_at, err);
    if (!status) status = verify_masks(&masks, against, out, err);
  } else if (!status) {
    status = model_open_headers(&model, path, err);
    if (!status) status = verify_model(model, against, s->tile, out, err);
  }
  mask_set_free(&masks);
  model_close(model);
  model_close(against);
  return status;
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  const char *path = positionals->items[0];
  struct verification found;
  common_apply(&s->common);
  if (s->tile % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile);
  char *masks_at = mask_path(path);
  const bool whole = !masks_at || s->against;
  enum status status = verify(s, path, masks_at, &found, err);
  if (!status && output_to_people(&s->common)) print_verification(&found, whole);
  if (!status && s->common.json)
    status = common_write_json(&s->common, verification_json(&found, masks_at, whole), err);
  free(masks_at);
  return status;
}

const struct command command_verify = {
    .name = "verify",
    .positionals = "PATH",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "recount a mask or a pruned model, and compare it with its source",
    .description =
        "PATH is a mask file, the output of `learn`, or a model. Exits with 3 at the "
        "first thing that\ndoes not agree. Weights that sparsegpt updated differ from "
        "their source, and --against says so.",
    .example = "tessera verify packed --against model.gguf",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
