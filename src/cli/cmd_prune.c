/* tessera prune: a one-shot mask, and the updated weights if asked for. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "convert/convert.h"
#include "convert/weights.h"
#include "prune/prune.h"
#include "report/table.h"

struct settings {
  struct common_options common;
  int method;
  const char *pattern;
  double sparsity; /* NAN: what the pattern fixes */
  int64_t tile;
  const char *calib;
  int64_t calib_tokens, seed;
  struct text_list skip;
  const char *out, *update_weights;
  const char *from; /* a mask with tile scores */
  double damping;
  int64_t block;
  const char *device;
};

static const struct option options[] = {
    {"method", OPTION_CHOICE, offsetof(struct settings, method), "sparsegpt", 0, 0,
     "magnitude|wanda|sparsegpt|taylor|fisher", NULL,
     "what decides which weights go; taylor and fisher take the loss's gradient, end to end"},
    {"pattern", OPTION_TEXT, offsetof(struct settings, pattern), "2:4", 0, 0, NULL,
     "2:4|N:M|unstructured|hybrid[-N:M]",
     "N:M keeps N of every M weights; hybrid leaves tiles dense, the others are 2:4 or N:M"},
    {"sparsity", OPTION_FRACTION, offsetof(struct settings, sparsity), NULL, 0, 1, NULL, "S",
     "share of weights to drop, 0.45 or 45%; may be left out where the pattern "
     "fixes it"},
    {"calib", OPTION_TEXT, offsetof(struct settings, calib), NULL, 0, 0, NULL, "FILE",
     "text to calibrate on (all but magnitude)"},
    {"calib-tokens", OPTION_INT, offsetof(struct settings, calib_tokens), "0", 0, 1e12, NULL, "N",
     "tokens to calibrate on; 0 means 128 windows of min(2048, context), or "
     "what there is"},
    {"seed", OPTION_INT, offsetof(struct settings, seed), "0", 0, 1e15, NULL, "K",
     "which windows of the text are taken"},
    {"skip", OPTION_LIST, offsetof(struct settings, skip), NULL, 0, 0, NULL, "PATTERN",
     "leave linears dense whose tensor name matches, as in '*.k_proj.*'; may "
     "be repeated"},
    {"tile", OPTION_INT, offsetof(struct settings, tile), "128", 4, SPARSE_TILE_MAX, NULL, "N",
     "side of a tile, a multiple of 4 (all but unstructured)"},
    {"damping", OPTION_REAL, offsetof(struct settings, damping), "0.01", 0, 1e6, NULL, "X",
     "sparsegpt: share of the Hessian's mean diagonal that is added to it"},
    {"block", OPTION_INT, offsetof(struct settings, block), "128", 1, 65536, NULL, "N",
     "sparsegpt: columns whose updates wait for each other"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "MASK",
     "the mask file to write"},
    {"from", OPTION_TEXT, offsetof(struct settings, from), NULL, 0, 0, NULL, "MASK",
     "hybrid: take codes and tile scores from this mask, and only choose the dense tiles anew"},
    {"update-weights", OPTION_TEXT, offsetof(struct settings, update_weights), NULL, 0, 0, NULL,
     "DIR",
     "sparsegpt: also write the model with weights that make up for the "
     "dropped ones"},
    INPUTS_DEVICE_OPTION(struct settings, device),
    COMMON_OPTIONS(struct settings, common)};

static enum status parse_sparsity(const struct settings *s, struct prune_settings *out,
                                  struct error *err) {
  const bool fixed = out->pattern == PRUNE_2_4 || out->pattern == PRUNE_N_M;
  const double own = 1 - (double)out->keep / out->of;
  out->sparsity = s->sparsity;
  if (!fixed && isnan(s->sparsity))
    return error_set(err, STATUS_USAGE, "--pattern %s needs --sparsity", s->pattern);
  if (fixed && !isnan(s->sparsity) && fabs(s->sparsity - own) > 1e-6)
    return error_set(err, STATUS_USAGE,
                     "--pattern %s drops exactly %g of the weights; leave out "
                     "--sparsity, or use "
                     "hybrid for less",
                     s->pattern, own);
  return STATUS_OK;
}

static enum status plan(const struct settings *s, struct prune_settings *out, struct error *err) {
  *out = prune_defaults();
  out->method = (enum prune_method)s->method;
  out->tile_rows = out->tile_cols = s->tile;
  out->damping = s->damping;
  out->block = s->block;
  out->update_weights = s->update_weights != NULL;
  for (int i = 0; i < s->skip.count; i++) out->skip[out->skip_count++] = s->skip.items[i];
  if (!s->out) return error_set(err, STATUS_USAGE, "say where the mask goes with --out MASK");
  if (!s->calib && !s->from && out->method != PRUNE_MAGNITUDE)
    return error_set(err, STATUS_USAGE, "%s needs a text to calibrate on; give --calib FILE",
                     prune_method_name(out->method));
  enum status status = prune_pattern_parse(s->pattern, out, err);
  if (!status) status = parse_sparsity(s, out, err);
  if (!status) status = prune_check(out, err);
  if (!status && s->from && (out->pattern != PRUNE_HYBRID || s->update_weights))
    status =
        error_set(err, STATUS_USAGE,
                  "--from chooses tiles anew: it goes with --pattern hybrid or hybrid-N:M, and "
                  "not with --update-weights");
  if (!status) status = common_check_output(&s->common, s->out, err);
  if (!status && s->update_weights)
    status = common_check_output(&s->common, s->update_weights, err);
  return status;
}

static enum status load_calibration(const struct settings *s, const struct model *model,
                                    struct calibration *out, struct error *err) {
  struct tokenizer *tokenizer;
  if (!s->calib || s->from || s->method == PRUNE_MAGNITUDE) return STATUS_OK;
  enum status status = tokenizer_open(&tokenizer, model_path(model), err);
  if (status) return status;
  status =
      calibration_load(out, model, tokenizer, s->calib, s->calib_tokens, (uint64_t)s->seed, err);
  tokenizer_close(tokenizer);
  if (!status)
    log_info("calibrating on %lld windows of %lld tokens", (long long)out->windows,
             (long long)out->length);
  return status;
}

/* What is printed and what --json gives. */
struct outcome {
  const struct prune_settings *settings;
  const struct mask_set *masks;
  const struct calibration *calibration;
  const struct prune_report *report;
  double density, seconds;
  int64_t kept, positions, tiles_dense, tiles_sparse;
};

static void count_outcome(struct outcome *o, const struct model *model) {
  o->density = weights_density(model, o->masks);
  mask_set_count(o->masks, &o->kept, &o->positions);
  for (size_t i = 0; i < o->masks->count; i++) {
    const struct mask_matrix *m = &o->masks->items[i];
    for (int64_t t = 0; mask_has_tiles(m) && t < mask_tile_count(m); t++) {
      o->tiles_dense += m->tiles[t];
      o->tiles_sparse += !m->tiles[t];
    }
  }
}

/* The method that made the codes: with --from, that of the mask taken. */
static const char *method_of(const struct outcome *o) {
  const char *method = mask_set_meta_get(o->masks, "method");
  return method ? method : "mask";
}

static json_t *outcome_json(const struct outcome *o) {
  char pattern[16];
  prune_pattern_name(o->settings, pattern);
  const struct {
    const char *key;
    int64_t value;
  } counts[] = {{"matrices", (int64_t)o->masks->count},
                {"kept", o->kept},
                {"positions", o->positions},
                {"tiles_dense", o->tiles_dense},
                {"tiles_sparse", o->tiles_sparse},
                {"calibration_windows", o->calibration->windows},
                {"calibration_length", o->calibration->length},
                {"dampened", o->report->dampened},
                {"dead_features", o->report->dead}};
  json_t *json =
      json_pack("{s:s, s:s, s:f, s:f, s:f}", "method", method_of(o), "pattern", pattern, "sparsity",
                1 - o->density, "density", o->density, "seconds", o->seconds);
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    json_object_set_new(json, counts[i].key, json_integer(counts[i].value));
  return json;
}

static void print_outcome(const struct outcome *o, const char *path) {
  char pattern[16], time[32];
  prune_pattern_name(o->settings, pattern);
  format_duration(time, o->seconds);
  printf("%s %s: density %.4f over the prunable weights, %zu matrices, %s\n", method_of(o), pattern,
         o->density, o->masks->count, time);
  if (o->tiles_dense + o->tiles_sparse)
    printf("%lld dense and %lld %d:%d tiles of %lld x %lld\n", (long long)o->tiles_dense,
           (long long)o->tiles_sparse, o->settings->keep, o->settings->of,
           (long long)o->settings->tile_rows, (long long)o->settings->tile_cols);
  if (o->report->dampened)
    printf("%d Hessians needed more damping than asked for, the worst %g\n", o->report->dampened,
           o->report->worst_damping);
  printf("mask: %s\n", path);
}

static enum status report(const struct settings *s, struct outcome *o, struct error *err) {
  if (!s->common.json || strcmp(s->common.json, "-") != 0) print_outcome(o, s->out);
  return s->common.json ? common_write_json(&s->common, outcome_json(o), err) : STATUS_OK;
}

/* Fills *masks: by a pass over the model, or from the tile scores of --from. */
static enum status make_masks(const struct settings *s, const struct prune_settings *settings,
                              struct model *model, const struct calibration *calibration,
                              struct mask_set *masks, struct prune_report *findings,
                              struct error *err) {
  *findings = (struct prune_report){0};
  if (!s->from) return prune_run(model, settings, calibration, masks, NULL, findings, err);
  enum status status = mask_load(masks, s->from, err);
  const struct mask_matrix *first = masks->items;
  if (!status && masks->count && mask_has_tiles(first) &&
      (first->keep != settings->keep || first->of != settings->of))
    status = error_set(err, STATUS_USAGE,
                       "%s holds %d:%d masks: choose their tiles with --pattern hybrid-%d:%d",
                       s->from, first->keep, first->of, first->keep, first->of);
  return status ? status : prune_retile(model, masks, settings->sparsity, err);
}

static enum status prune(const struct settings *s, const struct prune_settings *settings,
                         struct model *model, struct error *err) {
  const double start = clock_seconds();
  struct calibration calibration = {0};
  struct mask_set masks = {0};
  struct prune_report findings;
  enum status status = load_calibration(s, model, &calibration, err);
  if (!status) status = make_masks(s, settings, model, &calibration, &masks, &findings, err);
  if (!status) status = mask_save(&masks, s->out, err);
  if (!status && s->update_weights)
    status = convert_to_hf(model, &masks, s->update_weights, weights_natural_dtype(model),
                           s->common.force, err);
  if (!status) {
    struct outcome o = {.settings = settings,
                        .masks = &masks,
                        .calibration = &calibration,
                        .report = &findings,
                        .seconds = clock_seconds() - start};
    count_outcome(&o, model);
    status = report(s, &o, err);
  }
  mask_set_free(&masks);
  calibration_free(&calibration);
  return status;
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  const struct settings *s = settings_pointer;
  struct prune_settings settings;
  struct model *model = NULL;
  const struct backend *backend = NULL;
  common_apply(&s->common);
  enum status status = plan(s, &settings, err);
  if (!status) status = backend_open(&backend, s->device, err);
  settings.backend = backend;
  if (!status) status = model_open(&model, positionals->items[0], err);
  if (!status) status = prune(s, &settings, model, err);
  model_close(model);
  backend_close(backend);
  return status;
}

const struct command command_prune = {
    .name = "prune",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "make a one-shot mask: magnitude, Wanda or SparseGPT",
    .description =
        "Blocks are pruned in order, each calibrated on what the pruned ones before it give. A\n"
        "hybrid leaves the tiles dense that cost most when pruned, so many that the sparsity is\n"
        "met to within one tile over the whole model. lm_head and embeddings are never pruned.",
    .example =
        "tessera prune model.gguf --pattern hybrid --sparsity 45% --calib text.txt --out "
        "greedy.mask",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
