/* What came out: the table of rows, quality against density, speed, and sampled texts. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "report/chart.h"
#include "report/page.h"
#include "report/sections.h"
#include "report/summary.h"
#include "report/svg.h"

static int index_of(const json_t *rows, const json_t *row) {
  for (size_t i = 0; row && i < json_array_size(rows); i++)
    if (json_array_get(rows, i) == row) return (int)i;
  return -1;
}

/* How the figures were measured, from the first row that says so. */
static void measured_on(struct strbuf *out, const json_t *rows) {
  for (size_t i = 0; i < json_array_size(rows); i++) {
    const json_t *row = json_array_get(rows, i);
    double predictions = report_number(row, "predictions"), window = report_number(row, "window");
    if (!(predictions > 0 && predictions < 1e15) || isnan(window)) continue;
    char count[32];
    format_integer(count, llround(predictions));
    strbuf_printf(out,
                  "Measured on held-out text: %s next-token predictions in non-overlapping windows "
                  "of %.0f tokens (the window changes the number, so compare only at the same "
                  "one). ",
                  count, window);
    return;
  }
}

void section_results(struct strbuf *out, const struct report_data *data) {
  if (json_array_size(data->rows) == 0) return;
  struct table table = {0};
  struct strbuf text = {0};
  struct summary summary = summary_of(data->rows);
  page_heading(out, "Results");
  summary_table(&table, data->rows, true);
  page_table(out, &table, index_of(data->rows, summary.learned));
  measured_on(&text, data->rows);
  strbuf_puts(&text,
              "Density is the share of prunable weights that are kept, counted from the mask. "
              "Perplexity is exp of the mean negative log-likelihood per token: lower is better; "
              "\xc2\xb1 is its standard error over windows. KL is the divergence of the model's "
              "next-token distribution from the dense model's, in nats per token; same top-1 is "
              "how often both find the same token likeliest.");
  page_paragraph(out, strbuf_text(&text));
  strbuf_free(&text);
  table_free(&table);
}

/* --- quality against density --- */

/* Colours say what kind of row it is: dense, one-shot, learned. */
static int color_of(const json_t *row) {
  if (report_number(row, "density") >= 0.99999) return 7;
  return row_is_learned(row) ? 0 : 1;
}

static bool render_scatter(struct strbuf *out, const json_t *rows) {
  size_t count = json_array_size(rows);
  struct scatter_point *points = mem_alloc(count + 1, sizeof *points, NULL);
  INVARIANT(points != NULL);
  for (size_t i = 0; i < count; i++) {
    const json_t *row = json_array_get(rows, i);
    const char *name = json_get_string(row, "name");
    points[i] = (struct scatter_point){.x = 100 * report_number(row, "density"),
                                       .y = report_number(row, "perplexity"),
                                       .label = name ? name : "",
                                       .color = color_of(row),
                                       .hollow = !row_is_learned(row)};
  }
  struct chart axes = {.x_label = "weights kept in the prunable matrices, %",
                       .y_label = "perplexity (log scale)",
                       .width = 900,
                       .height = 420,
                       .y_log = true};
  bool shown = scatter_render(out, &axes, points, count);
  mem_free(points);
  return shown;
}

void section_tradeoff(struct strbuf *out, const struct report_data *data) {
  struct strbuf picture = {0};
  if (json_array_size(data->rows) > 1 && render_scatter(&picture, data->rows)) {
    page_heading(out, "Quality against density");
    page_figure_begin(out);
    strbuf_append(out, picture.data, picture.length);
    page_figure_end(out,
                    "Each model by what it keeps and how well it predicts: lower is better, "
                    "further left is smaller. Filled: learned. Open: made without learning. Fully "
                    "2:4 models lie at 50 %, hybrids between 50 % and 100 %.");
  }
  strbuf_free(&picture);
}

/* --- speed --- */

static void put_figure_or_dash(struct table *table, const json_t *row, const char *key,
                               double scale, int decimals, const char *unit) {
  double value = report_number(row, key);
  if (isnan(value))
    table_cell(table, "-");
  else
    table_cell(table, "%.*f%s", decimals, value * scale, unit);
}

static void put_speed(struct table *table, const json_t *row) {
  char bytes[32];
  const char *model = json_get_string(row, "model"), *form = json_get_string(row, "form");
  const char *dtype = json_get_string(row, "dtype"), *phase = json_get_string(row, "phase");
  const char *slash = model ? strrchr(model, '/') : NULL;
  bool prefill = phase && !strcmp(phase, "prefill");
  table_cell(table, "%s", slash ? slash + 1 : model ? model : "?");
  table_cell(table, "%s %s", form ? form : "", dtype ? dtype : "");
  table_cell(table, prefill ? "prefill, %.0f tokens" : "decode, batch %.0f",
             fmax(0, report_number(row, "batch")));
  put_figure_or_dash(table, row, "tokens_per_s", 1, 1, "");
  double per_token = report_number(row, "bytes_per_token");
  if (!isnan(per_token)) format_bytes(bytes, per_token);
  table_cell(table, "%s", isnan(per_token) ? "-" : bytes);
  put_figure_or_dash(table, row, "read_share", 100, 0, " %");
  put_figure_or_dash(table, row, "speedup", 1, 2, "x");
  put_figure_or_dash(table, row, "roofline", 1, 2, "x");
}

void section_speed(struct strbuf *out, const struct report_data *data) {
  static const char *const titles[] = {"model",
                                       "weights",
                                       "phase",
                                       "tokens/s",
                                       "bytes a token",
                                       "of read bandwidth",
                                       "over its dense form",
                                       "by bytes alone"};
  if (json_array_size(data->speeds) == 0) return;
  struct table table = {0};
  for (int c = 0; c < 8; c++) table_column(&table, titles[c], c < 3 ? TABLE_LEFT : TABLE_RIGHT);
  for (size_t i = 0; i < json_array_size(data->speeds); i++)
    put_speed(&table, json_array_get(data->speeds, i));
  page_heading(out, "Speed on this machine");
  page_table(out, &table, -1);
  page_paragraph(out,
                 "Medians of interleaved runs. Decoding reads every weight once for each token, so "
                 "the share of the measured read bandwidth says how close to the machine's limit a "
                 "kernel is, and \"by bytes alone\" what a perfect kernel would gain from the "
                 "smaller weights.");
  table_free(&table);
}

/* --- texts --- */

static void put_text(struct strbuf *out, const json_t *line) {
  const char *name = json_get_string(line, "name"), *text = json_get_string(line, "text");
  const char *prompt = json_get_string(line, "prompt");
  if (!text) return;
  strbuf_puts(out, "<div class=\"sample\"><b>");
  html_text(out, name ? name : "");
  strbuf_puts(out, "</b><p>");
  if (prompt) {
    strbuf_puts(out, "<span class=\"prompt\">");
    html_text(out, prompt);
    strbuf_puts(out, "</span>");
  }
  html_text(out, text);
  strbuf_puts(out, "</p></div>\n");
}

void section_texts(struct strbuf *out, const struct report_data *data) {
  if (json_array_size(data->texts) == 0) return;
  page_heading(out, "Sampled texts");
  page_paragraph(out,
                 "The prompt in grey, then how each model goes on. A single sample shows what a "
                 "difference in perplexity reads like; it measures nothing.");
  for (size_t i = 0; i < json_array_size(data->texts); i++)
    put_text(out, json_array_get(data->texts, i));
}
