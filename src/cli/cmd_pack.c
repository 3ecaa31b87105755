/* tessera pack: a model and a mask become a packed directory. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "convert/convert.h"
#include "convert/inspect.h"
#include "convert/weights.h"
#include "io/file.h"

struct settings {
  struct common_options common;
  const char *mask, *out;
  int type;
  int64_t tile;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "the 2:4 or hybrid mask; left out, the one that the zeros of a dense checkpoint speak of"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "without --mask: side of the tiles to look for, a multiple of 4"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "DIR",
     "the directory to write"},
    {"type", OPTION_CHOICE, offsetof(struct settings, type), "bf16", 0, 0, "bf16|f16|f32", NULL,
     "what weights are rounded to"},
    COMMON_OPTIONS(struct settings, common)};

static enum status report(const struct settings *s, const struct model *model,
                          const struct mask_set *masks, double seconds, struct error *err) {
  char size[32], *path = path_join(s->out, "model.safetensors");
  struct file_map map;
  enum status status = file_map_open(&map, path, err);
  free(path);
  if (status) return status;
  const double bytes = (double)map.size_bytes, density = weights_density(model, masks);
  file_map_close(&map);
  format_bytes(size, bytes);
  if (output_to_people(&s->common))
    printf("%s: %zu linears packed, density %.4f, weights %s\n", s->out, masks->count, density,
           size);
  if (!s->common.json) return STATUS_OK;
  json_t *json =
      json_pack("{s:s, s:f, s:I, s:f, s:f}", "path", s->out, "density", density, "matrices",
                (json_int_t)masks->count, "bytes", bytes, "seconds", seconds);
  return common_write_json(&s->common, json, err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  static const enum dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
  const struct settings *s = settings_pointer;
  const double start = clock_seconds();
  struct model *model = NULL;
  struct mask_set masks = {0};
  common_apply(&s->common);
  if (!s->out) return error_set(err, STATUS_USAGE, "say where the model goes with --out DIR");
  if (s->tile % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile);
  enum status status = common_check_output(&s->common, s->out, err);
  if (!status) status = model_open_headers(&model, positionals->items[0], err);
  if (!status)
    status = s->mask ? mask_load(&masks, s->mask, err) : inspect_masks(model, s->tile, &masks, err);
  if (!status) status = convert_pack(model, &masks, s->out, types[s->type], s->common.force, err);
  if (!status) status = report(s, model, &masks, clock_seconds() - start, err);
  mask_set_free(&masks);
  model_close(model);
  return status;
}

const struct command command_pack = {
    .name = "pack",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "store a pruned model small: dense tiles and 2:4 tiles",
    .description =
        "The result is a Hugging Face directory whose pruned linears are stored as "
        "docs/FORMAT.md says;\ntessera runs it as it is, and `tessera export` makes an "
        "ordinary checkpoint of it.",
    .example = "tessera pack model.gguf --mask run/mask.safetensors --out packed",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
