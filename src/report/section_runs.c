/* How it came about: learning curves, where the density went, and the settings. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "report/chart.h"
#include "report/heatmap.h"
#include "report/page.h"
#include "report/sections.h"
#include "report/summary.h"
#include "report/svg.h"

/* --- learning curves --- */

/* Values that a chart points at and that live until it is drawn. */
struct scratch {
  double *blocks[4 * REPORT_RUNS_MAX];
  int count;
};

static double *scratch_take(struct scratch *s, size_t count) {
  INVARIANT(s->count < 4 * REPORT_RUNS_MAX);
  double *block = mem_alloc(count + 1, sizeof *block, NULL);
  INVARIANT(block != NULL);
  return s->blocks[s->count++] = block;
}

static void scratch_free(struct scratch *s) {
  while (s->count) mem_free(s->blocks[--s->count]);
}

/* Mean over a window centred on each value, cut at the ends; NANs are left out. */
static double *smoothed(struct scratch *s, const double *values, size_t count) {
  double *out = scratch_take(s, count);
  size_t reach = count / 50 + 1;
  for (size_t i = 0; i < count; i++) {
    size_t from = i > reach ? i - reach : 0, to = i + reach < count ? i + reach : count - 1;
    double sum = 0, n = 0;
    for (size_t j = from; j <= to; j++)
      if (isfinite(values[j])) {
        sum += values[j];
        n++;
      }
    out[i] = n > 0 ? sum / n : NAN;
  }
  return out;
}

static double *scaled(struct scratch *s, const double *values, size_t count, double factor) {
  double *out = scratch_take(s, count);
  for (size_t i = 0; i < count; i++) out[i] = values[i] * factor;
  return out;
}

static void add_series(struct chart *chart, struct chart_series series) {
  if (chart->series_count < CHART_SERIES_MAX) chart->series[chart->series_count++] = series;
}

/* Tokens where the record has them, else steps. */
static const double *run_axis(const struct report_curve *curve) {
  for (size_t i = 0; i < curve->count; i++)
    if (!isfinite(curve->values[FIELD_TOKENS][i])) return curve->values[FIELD_STEP];
  return curve->values[FIELD_TOKENS];
}

static void add_curve(struct chart *chart, const struct report_curve *curve, const double *y,
                      const char *label, int color, enum chart_style style) {
  if (curve->count == 0) return;
  add_series(chart, (struct chart_series){.label = label,
                                          .x = run_axis(curve),
                                          .y = y,
                                          .count = curve->count,
                                          .color = color,
                                          .style = style});
}

static struct chart new_chart(const char *title, const char *y_label, double width) {
  return (struct chart){.title = title,
                        .x_label = "tokens learned from",
                        .y_label = y_label,
                        .width = width,
                        .height = width > 600 ? 330 : 270};
}

static void put_chart(struct strbuf *out, const struct chart *chart, const char *caption) {
  struct strbuf picture = {0};
  if (chart_render(&picture, chart)) {
    page_figure_begin(out);
    strbuf_append(out, picture.data, picture.length);
    page_figure_end(out, caption);
  }
  strbuf_free(&picture);
}

static void chart_loss(struct strbuf *out, const struct report_data *data) {
  struct scratch scratch = {0};
  struct chart chart = new_chart("Loss while learning", "nats per token", 900);
  for (int i = 0; i < data->run_count; i++) {
    const struct report_run *run = &data->runs[i];
    const struct report_curve *c = &run->steps;
    if (c->count == 0) continue;
    add_curve(&chart, c, c->values[FIELD_LOSS], NULL, i, CHART_FAINT);
    add_curve(&chart, c, smoothed(&scratch, c->values[FIELD_LOSS], c->count), run->name, i,
              CHART_LINE);
  }
  put_chart(out, &chart,
            "Training loss of each run with the noise of the relaxed mask in it: thin, every step; "
            "thick, its running mean.");
  scratch_free(&scratch);
}

/* Of the first run that measured it; NAN when none did. */
static double dense_loss(const struct report_data *data) {
  for (int i = 0; i < data->run_count; i++)
    if (isfinite(data->runs[i].dense_loss)) return data->runs[i].dense_loss;
  return NAN;
}

static void chart_heldout(struct strbuf *out, const struct report_data *data) {
  struct chart chart = new_chart("Held-out loss of the hard mask", "nats per token", 900);
  for (int i = 0; i < data->run_count; i++) {
    const struct report_run *run = &data->runs[i];
    if (run->heldout.count == 0) continue;
    add_curve(&chart, &run->heldout, run->heldout.values[FIELD_LOSS], run->name, i, CHART_LINE);
    add_curve(&chart, &run->heldout, run->heldout.values[FIELD_LOSS], NULL, i, CHART_DOTS);
  }
  chart.marks[0] = (struct chart_mark){dense_loss(data), "dense model"};
  chart.mark_count = isfinite(chart.marks[0].y);
  put_chart(out, &chart,
            "Loss on windows set aside, with the mask that the run would have written at that "
            "moment. The first point is the prior that the run started from.");
}

/* The kept share that a run aims at, in percent; NAN when its settings do not say. */
static double target_density(const struct report_run *run) {
  double density = report_number(run->settings, "target_density");
  if (isnan(density)) density = 1 - report_number(run->settings, "sparsity");
  return 100 * density;
}

static void chart_density(struct strbuf *out, const struct report_run *run, int color) {
  const struct report_curve *c = &run->steps;
  struct scratch scratch = {0};
  char title[160];
  snprintf(title, sizeof title, "%s: density", run->name);
  struct chart chart = new_chart(title, "% of weights kept", 440);
  add_curve(&chart, c, scaled(&scratch, c->values[FIELD_DENSITY_HARD], c->count, 100),
            "hard, solid", color, CHART_LINE);
  add_curve(&chart, c, scaled(&scratch, c->values[FIELD_DENSITY_SOFT], c->count, 100),
            "soft, dashed", color, CHART_DASHED);
  chart.marks[0] = (struct chart_mark){target_density(run), "target"};
  chart.mark_count = isfinite(chart.marks[0].y);
  put_chart(out, &chart, "");
  scratch_free(&scratch);
}

/* False where the density is 2:4's from the first step to the last. */
static bool learns_tiles(const struct report_run *run) {
  const struct report_curve *c = &run->steps;
  for (size_t i = 0; i < c->count; i++)
    if (fabs(c->values[FIELD_DENSITY_HARD][i] - 0.5) > 1e-4 ||
        fabs(c->values[FIELD_DENSITY_SOFT][i] - 0.5) > 1e-4)
      return true;
  return false;
}

static void chart_flips(struct strbuf *out, const struct report_run *run, int color) {
  const struct report_curve *c = &run->steps;
  struct scratch scratch = {0};
  char title[160];
  snprintf(title, sizeof title, "%s: flips a step", run->name);
  struct chart chart = new_chart(title, "changed since the step before", 440);
  chart.y_log = true;
  add_curve(&chart, c, smoothed(&scratch, c->values[FIELD_FLIPS_TILE], c->count), "tiles", color,
            CHART_LINE);
  add_curve(&chart, c, smoothed(&scratch, c->values[FIELD_FLIPS_24], c->count), "2:4 groups", color,
            CHART_DASHED);
  put_chart(out, &chart, "");
  scratch_free(&scratch);
}

/* What each run ended with. */
static void put_runs_table(struct strbuf *out, const struct report_data *data) {
  static const char *const titles[] = {"run",        "mode",    "density", "before projection",
                                       "dense loss", "prior's", "learned", "tokens/s",
                                       "time",       "memory"};
  struct table table = {0};
  char text[32];
  for (int c = 0; c < 10; c++) table_column(&table, titles[c], c < 2 ? TABLE_LEFT : TABLE_RIGHT);
  for (int i = 0; i < data->run_count; i++) {
    const struct report_run *run = &data->runs[i];
    const char *mode = json_get_string(run->settings, "mode");
    if (!run->final) continue;
    table_cell(&table, "%s", run->name);
    table_cell(&table, "%s", mode ? mode : "");
    table_cell(&table, "%.2f %%", 100 * report_number(run->final, "density"));
    table_cell(&table, "%.2f %%", 100 * report_number(run->final, "density_before"));
    table_cell(&table, "%.4f", report_number(run->final, "dense_loss"));
    table_cell(&table, "%.4f", report_number(run->final, "prior_loss"));
    table_cell(&table, "%.4f", report_number(run->final, "best_loss"));
    table_cell(&table, "%.0f", report_number(run->final, "tokens_per_second"));
    format_duration(text, report_number(run->final, "seconds"));
    table_cell(&table, "%s", text);
    format_bytes(text, report_number(run->final, "peak_bytes"));
    table_cell(&table, "%s", text);
  }
  if (table.cell_count) page_table(out, &table, -1);
  if (table.cell_count)
    page_paragraph(out,
                   "Losses in nats per token on the windows set aside for the run: of the dense "
                   "model, of the mask that the run started from, and of the mask it wrote, which "
                   "is the best it met. Density before projection is what the tile logits alone "
                   "would have given.");
  table_free(&table);
}

void section_learning(struct strbuf *out, const struct report_data *data) {
  int learned = 0;
  for (int i = 0; i < data->run_count; i++) learned += data->runs[i].steps.count > 0;
  if (!learned) return;
  page_heading(out, "Learning");
  put_runs_table(out, data);
  chart_loss(out, data);
  chart_heldout(out, data);
  for (int i = 0; i < data->run_count; i++) {
    if (data->runs[i].steps.count == 0) continue;
    strbuf_puts(out, "<div class=\"pair\">\n");
    if (learns_tiles(&data->runs[i])) chart_density(out, &data->runs[i], i);
    chart_flips(out, &data->runs[i], i);
    strbuf_puts(out, "</div>\n");
  }
  page_paragraph(out,
                 "Hard density counts the tiles whose logit says dense; soft density is the mean "
                 "of the relaxed mask, which the learning step sees. Flips are the tiles and the "
                 "groups of four that changed their hard choice in a step (running mean, log "
                 "scale): they die down as the mask settles.");
}

/* --- where the density went --- */

static void put_heatmaps(struct strbuf *out, const struct report_run *run,
                         const struct mask_grid *grid) {
  char caption[512];
  int64_t kept = 0, total = 0;
  mask_set_count(&run->mask, &kept, &total);
  strbuf_puts(out, "<h3>");
  html_text(out, run->name);
  strbuf_puts(out, "</h3>\n");
  page_figure_begin(out);
  heatmap_densities(out, grid);
  snprintf(caption, sizeof caption,
           "Rows are transformer blocks, columns the matrices of a block. 50 means that every tile "
           "is 2:4, 100 that every tile is dense; the whole mask keeps %.2f %%. The bars weigh "
           "each matrix by its size.",
           total > 0 ? 100.0 * (double)kept / (double)total : 100.0);
  page_figure_end(out, caption);
  page_figure_begin(out);
  heatmap_tiles(out, grid);
  page_figure_end(out,
                  "The same mask tile by tile, each matrix to scale (outputs downwards, inputs to "
                  "the right) with its block's number. Filled: stays dense. Pale: 2:4. Where one "
                  "cell stands for several tiles its shade is their mean.");
}

void section_density(struct strbuf *out, const struct report_data *data) {
  bool begun = false;
  for (int i = 0; i < data->run_count; i++) {
    const struct report_run *run = &data->runs[i];
    struct mask_grid grid;
    if (!run->has_mask || !mask_has_dense_tiles(&run->mask)) continue;
    if (!mask_grid_init(&grid, &run->mask)) continue;
    if (!begun) page_heading(out, "Where the dense tiles are");
    begun = true;
    put_heatmaps(out, run, &grid);
    mask_grid_release(&grid);
  }
}

/* --- settings and machine --- */

static void put_value(struct strbuf *out, const json_t *value) {
  if (json_is_string(value))
    html_text(out, json_string_value(value));
  else if (json_is_real(value))
    strbuf_printf(out, "%.6g", json_real_value(value));
  else if (json_is_integer(value)) {
    char text[32];
    format_integer(text, json_integer_value(value));
    strbuf_puts(out, text);
  } else {
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    INVARIANT(text != NULL);
    html_text(out, text);
    free(text);
  }
}

/* Key-value pairs as a list; inner objects are written out with dotted names. */
static void put_pairs(struct strbuf *out, const char *before, const json_t *object) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)object, key, value) {
    struct strbuf name = {0};
    strbuf_printf(&name, "%s%s", before, key);
    bool skipped = !strcmp(key, "type") || !strcmp(key, "title") || json_is_null(value);
    if (json_is_object(value)) {
      strbuf_putc(&name, '.');
      put_pairs(out, strbuf_text(&name), value);
    } else if (!skipped) {
      strbuf_puts(out, "<div><dt>");
      html_text(out, strbuf_text(&name));
      strbuf_puts(out, "</dt><dd>");
      put_value(out, value);
      strbuf_puts(out, "</dd></div>\n");
    }
    strbuf_free(&name);
  }
}

static void put_list(struct strbuf *out, const char *heading, const json_t *object) {
  if (json_object_size(object) == 0) return;
  strbuf_puts(out, "<h3>");
  html_text(out, heading);
  strbuf_puts(out, "</h3>\n<dl class=\"keys\">\n");
  put_pairs(out, "", object);
  strbuf_puts(out, "</dl>\n");
}

/* Moves what all runs have in common out of `own` (runs) objects. New reference. */
static json_t *take_common(json_t **own, int count) {
  json_t *common = json_copy(own[0]);
  const char *key;
  json_t *value;
  void *next;
  INVARIANT(common != NULL);
  for (int i = 1; i < count; i++) json_object_foreach_safe(common, next, key, value) {
      if (!json_equal(value, json_object_get(own[i], key))) json_object_del(common, key);
    }
  for (int i = 0; i < count; i++) json_object_foreach(common, key, value) {
      json_object_del(own[i], key);
    }
  return common;
}

static void put_run_settings(struct strbuf *out, const struct report_data *data) {
  json_t *own[REPORT_RUNS_MAX];
  const char *name[REPORT_RUNS_MAX];
  int count = 0;
  for (int i = 0; i < data->run_count; i++) {
    if (json_object_size(data->runs[i].settings) == 0) continue;
    name[count] = data->runs[i].name;
    own[count] = json_copy(data->runs[i].settings);
    INVARIANT(own[count] != NULL);
    count++;
  }
  if (count > 1) {
    json_t *common = take_common(own, count);
    put_list(out, "All runs", common);
    json_decref(common);
  }
  for (int i = 0; i < count; i++) {
    char heading[256];
    snprintf(heading, sizeof heading, "Run: %s", name[i]);
    put_list(out, heading, own[i]);
    json_decref(own[i]);
  }
}

void section_settings(struct strbuf *out, const struct report_data *data) {
  bool any = json_object_size(data->about) > 0;
  for (int i = 0; i < data->run_count; i++)
    any = any || json_object_size(data->runs[i].settings) > 0;
  if (!any) return;
  page_heading(out, "Settings and machine");
  put_list(out, "The comparison", data->about);
  put_run_settings(out, data);
}
