/* tessera inspect: what a model is, from its headers; with --scan, its zeros. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/output.h"
#include "convert/inspect.h"
#include "model/model.h"

struct settings {
  struct common_options common;
  bool scan, all;
  int64_t tile;
};

static const struct option options[] = {
    {"scan", OPTION_FLAG, offsetof(struct settings, scan), NULL, 0, 0, NULL, NULL,
     "read the weights, and find the tile map and pattern of checkpoints that hold zeros"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "side of the tiles to look for, a multiple of 4"},
    {"all", OPTION_FLAG, offsetof(struct settings, all), NULL, 0, 0, NULL, NULL,
     "list every linear instead of one line per kind"},
    COMMON_OPTIONS(struct settings, common)};

/* -1 stands for what is not known. */
static json_t *known(int64_t value) { return value < 0 ? json_null() : json_integer(value); }

static double share(int64_t part, int64_t whole) {
  return part < 0 ? NAN : (double)part / (double)whole;
}

static json_t *linear_json(const struct inspected_linear *l) {
  json_t *json = json_object();
  json_object_set_new(json, "name", json_string(l->name));
  json_object_set_new(json, "rows", json_integer(l->rows));
  json_object_set_new(json, "cols", json_integer(l->cols));
  json_object_set_new(json, "pattern", *l->pattern ? json_string(l->pattern) : json_null());
  json_object_set_new(json, "tiles_dense", known(l->tiles_dense));
  json_object_set_new(json, "tiles_sparse", known(l->tiles_sparse));
  json_object_set_new(json, "kept", known(l->kept));
  json_object_set_new(json, "nonzero", known(l->nonzero));
  return json;
}

static json_t *inspection_json(const struct model *model, const struct inspection *found) {
  const struct model_config *config = model_config(model);
  json_t *json = json_object(), *linears = json_array();
  json_object_set_new(json, "family", json_string(model_family_name(config)));
  json_object_set_new(json, "parameters", json_integer(found->parameters));
  json_object_set_new(json, "linear_parameters", json_integer(found->linear_parameters));
  json_object_set_new(json, "density", output_real(share(found->kept, found->linear_parameters)));
  json_object_set_new(json, "nonzero",
                      output_real(share(found->nonzero, found->linear_parameters)));
  json_object_set_new(json, "layers", json_integer(config->layers));
  json_object_set_new(json, "hidden_size", json_integer(config->hidden_size));
  json_object_set_new(json, "vocab_size", json_integer(config->vocab_size));
  json_object_set_new(json, "context_length", json_integer(config->context_length));
  for (int i = 0; i < found->count; i++)
    json_array_append_new(linears, linear_json(&found->linears[i]));
  json_object_set_new(json, "linears", linears);
  return json;
}

static void share_cell(struct table *t, int64_t part, int64_t whole) {
  if (part < 0)
    table_cell(t, "-");
  else
    table_cell(t, "%.4f", share(part, whole));
}

/* Sums of the linears of one role over all layers, or one linear. */
struct line {
  char name[128], pattern[16];
  int64_t rows, cols, area, tiles_dense, tiles_sparse, kept, nonzero;
};

static int64_t add_known(int64_t sum, int64_t value) {
  return sum < 0 || value < 0 ? -1 : sum + value;
}

static void line_add(struct line *line, const struct inspected_linear *l) {
  if (line->area && strcmp(line->pattern, l->pattern) != 0)
    snprintf(line->pattern, sizeof line->pattern, "mixed");
  if (!line->area) snprintf(line->pattern, sizeof line->pattern, "%s", l->pattern);
  line->rows = l->rows;
  line->cols = l->cols;
  line->area += l->rows * l->cols;
  line->tiles_dense = add_known(line->tiles_dense, l->tiles_dense);
  line->tiles_sparse = add_known(line->tiles_sparse, l->tiles_sparse);
  line->kept = add_known(line->kept, l->kept);
  line->nonzero = add_known(line->nonzero, l->nonzero);
}

static void line_print(struct table *t, const struct line *line) {
  table_cell(t, "%s", line->name);
  table_cell(t, "%lld x %lld", (long long)line->rows, (long long)line->cols);
  table_cell(t, "%s", *line->pattern ? line->pattern : "-");
  if (line->tiles_dense < 0)
    table_cell(t, "-");
  else
    table_cell(t, "%lld / %lld", (long long)line->tiles_dense,
               (long long)line->tiles_dense + line->tiles_sparse);
  share_cell(t, line->kept, line->area);
  share_cell(t, line->nonzero, line->area);
}

static void print_linears(const struct inspection *found, bool all) {
  struct table t = {0};
  table_column(&t, all ? "linear" : "linears", TABLE_LEFT);
  table_column(&t, "shape", TABLE_RIGHT);
  table_column(&t, "pattern", TABLE_LEFT);
  table_column(&t, "dense tiles", TABLE_RIGHT);
  table_column(&t, "density", TABLE_RIGHT);
  table_column(&t, "nonzero", TABLE_RIGHT);
  const int lines = all ? found->count : SITE_ROLES;
  for (int i = 0; i < lines; i++) {
    struct line line = {0};
    snprintf(line.name, sizeof line.name, "%s", all ? found->linears[i].name : site_role_name[i]);
    for (int j = i; j < (all ? i + 1 : found->count); j += SITE_ROLES)
      line_add(&line, &found->linears[j]);
    line_print(&t, &line);
  }
  output_table(&t);
  table_free(&t);
}

static void print_inspection(const struct model *model, const struct inspection *found, bool all) {
  const struct model_config *config = model_config(model);
  struct table facts = output_facts();
  char number[32];
  output_fact(&facts, "family", "%s, %d layers, hidden %lld, vocabulary %lld, context %lld",
              model_family_name(config), config->layers, (long long)config->hidden_size,
              (long long)config->vocab_size, (long long)config->context_length);
  format_integer(number, found->parameters);
  output_fact(&facts, "parameters", "%s", number);
  format_integer(number, found->linear_parameters);
  output_fact(&facts, "prunable", "%s", number);
  if (found->kept >= 0)
    output_fact(&facts, "density", "%.4f", share(found->kept, found->linear_parameters));
  else
    output_fact(&facts, "density", "not known from headers; --scan reads the weights");
  if (found->nonzero >= 0)
    output_fact(&facts, "nonzero", "%.4f", share(found->nonzero, found->linear_parameters));
  output_table(&facts);
  table_free(&facts);
  putchar('\n');
  print_linears(found, all);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  struct model *model;
  struct inspection found;
  common_apply(&s->common);
  if (s->tile % 4)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of 4", (long long)s->tile);
  enum status status = model_open_headers(&model, positionals->items[0], err);
  if (status) return status;
  status = inspect_model(&found, model, s->scan, s->tile, err);
  if (!status) {
    if (output_to_people(&s->common)) print_inspection(model, &found, s->all);
    if (s->common.json) status = common_write_json(&s->common, inspection_json(model, &found), err);
    inspection_free(&found);
  }
  model_close(model);
  return status;
}

const struct command command_inspect = {
    .name = "inspect",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "show what a model is and how it is pruned",
    .description =
        "Reads headers only. With --scan the weights are read, too, and zeros in dense "
        "checkpoints are\nunderstood: which tiles are 2:4, or which other pattern there "
        "is.",
    .example = "tessera inspect model.gguf --scan",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
