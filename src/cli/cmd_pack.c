/* tessera pack: a model, with or without a mask, becomes a packed directory. */
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
  int dtype, group;
  bool mins;
  int64_t tile;
};

#define DTYPES "bf16|f16|f32|int8|int4"
enum { DTYPE_CHOICE_I8 = 3, DTYPE_CHOICE_I4 };

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "the 2:4 or hybrid mask; left out, the one that the zeros of a dense checkpoint speak of, and "
     "for int8 and int4 there need be none"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "without --mask: side of the tiles to look for, a multiple of 4"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "DIR",
     "the directory to write"},
    {"type", OPTION_CHOICE, offsetof(struct settings, dtype), NULL, 0, 0, DTYPES, NULL, NULL},
    {"dtype", OPTION_CHOICE, offsetof(struct settings, dtype), "bf16", 0, 0, DTYPES, "TYPE",
     "what weights are rounded or quantized to; integers of a GGUF's Q8_0, Q4_0, Q4_1 blocks are "
     "taken over as they are, where they are of this type"},
    {"group", OPTION_CHOICE, offsetof(struct settings, group), "32", 0, 0, "32|row", NULL,
     "int8, int4: how many weights of a row share a scale"},
    {"mins", OPTION_FLAG, offsetof(struct settings, mins), NULL, 0, 0, NULL, NULL,
     "int4: a minimum beside each scale, half a bit more a weight"},
    COMMON_OPTIONS(struct settings, common)};

static enum status report(const struct settings *s, const struct model *model,
                          const struct mask_set *masks, double seconds, struct error *err) {
  static const char *const types[] = {"bf16", "f16", "f32", "int8", "int4"};
  const char *type = types[s->dtype];
  char size[32], *path = path_join(s->out, "model.safetensors");
  struct file_map map;
  enum status status = file_map_open(&map, path, err);
  free(path);
  if (status) return status;
  const double bytes = (double)map.size_bytes, density = weights_density(model, masks);
  file_map_close(&map);
  format_bytes(size, bytes);
  if (output_to_people(&s->common))
    printf("%s: %s, %zu of %d linears hybrid, density %.4f, weights %s\n", s->out, type,
           masks->count, model_site_count(model), density, size);
  if (!s->common.json) return STATUS_OK;
  json_t *json =
      json_pack("{s:s, s:s, s:f, s:I, s:f, s:f}", "path", s->out, "dtype", type, "density", density,
                "matrices", (json_int_t)masks->count, "bytes", bytes, "seconds", seconds);
  return common_write_json(&s->common, json, err);
}

static bool quantizes(const struct settings *s) { return s->dtype >= DTYPE_CHOICE_I8; }

static enum status check(const struct settings *s, struct error *err) {
  if (!s->out) return error_set(err, STATUS_USAGE, "say where the model goes with --out DIR");
  if (s->tile % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile);
  if (!quantizes(s) && s->group)
    return error_set(err, STATUS_USAGE, "--group is for --dtype int8 and int4");
  if (s->mins && (s->dtype != DTYPE_CHOICE_I4 || s->group))
    return error_set(err, STATUS_USAGE, "--mins is for --dtype int4 in groups of 32");
  return common_check_output(&s->common, s->out, err);
}

static enum status pack(const struct settings *s, const struct model *model,
                        const struct mask_set *masks, struct error *err) {
  static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
  if (!quantizes(s))
    return convert_pack(model, masks, s->out, dtypes[s->dtype], s->common.force, err);
  const struct pack_quant_settings settings = {
      .form = {.type = s->dtype == DTYPE_CHOICE_I8 ? QUANT_I8 : QUANT_I4,
               .group = s->group ? 0 : QUANT_GROUP,
               .mins = s->mins},
      .blocks_mins = !s->mins,
      .replace = s->common.force};
  return convert_pack_quant(model, masks, s->out, &settings, err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  const double start = clock_seconds();
  struct model *model = NULL;
  struct mask_set masks = {0};
  common_apply(&s->common);
  enum status status = check(s, err);
  if (!status) status = model_open_headers(&model, positionals->items[0], err);
  if (!status)
    status = s->mask ? mask_load(&masks, s->mask, err)
                     : inspect_masks(model, s->tile, quantizes(s), &masks, err);
  if (!status) status = pack(s, model, &masks, err);
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
    .summary = "store a model small: dense tiles and 2:4 tiles, 16-bit weights or integers",
    .description =
        "The result is a Hugging Face directory whose pruned linears are stored as "
        "docs/FORMAT.md says;\ntessera runs it as it is, and `tessera export` makes an "
        "ordinary checkpoint of it. With\n--dtype int8 or int4 all matrices are quantized, "
        "embeddings to int8, and scales are chosen\nfor the weights that the mask keeps.",
    .example =
        "tessera pack model.gguf --mask run/mask.safetensors --out packed\n"
        "  tessera pack model.gguf --mask run/mask.safetensors --dtype int4 --out packed-int4",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
