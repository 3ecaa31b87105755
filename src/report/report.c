/* The page as a whole: see report.h. */
#include "report/report.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "report/page.h"
#include "report/sections.h"
#include "report/summary.h"
#include "report/svg.h"

static void make_title(const struct report_data *data, struct strbuf *title) {
  const char *given = json_get_string(data->about, "title");
  const char *model = json_get_string(data->about, "model");
  for (int i = 0; i < data->run_count && !model; i++)
    model = json_get_string(data->runs[i].settings, "model");
  const char *slash = model ? strrchr(model, '/') : NULL;
  if (slash && slash[1]) model = slash + 1;
  if (given)
    strbuf_puts(title, given);
  else if (model)
    strbuf_printf(title, "Hybrid sparsity of %s", model);
  else
    strbuf_puts(title, "Hybrid sparsity");
}

/* "model · machine · date", of what is known. */
static void make_subtitle(const struct report_data *data, struct strbuf *out) {
  static const char *const keys[] = {"model", "machine", "date"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    const char *text = json_get_string(data->about, keys[i]);
    if (!text || (i == 0 && !json_get_string(data->about, "title"))) continue;
    if (out->length) strbuf_puts(out, " \xc2\xb7 ");
    strbuf_puts(out, text);
  }
}

static void put_lead(struct strbuf *out, const struct report_data *data) {
  struct strbuf text = {0};
  struct summary summary = summary_of(data->rows);
  summary_sentences(&text, &summary);
  if (!text.length && data->run_count == 1) summary_run_sentences(&text, &data->runs[0]);
  if (text.length) {
    strbuf_puts(out, "<p class=\"lead\">");
    html_text(out, text.data);
    strbuf_puts(out, "</p>\n");
  }
  strbuf_free(&text);
}

void report_html(struct strbuf *out, const struct report_data *data) {
  struct strbuf title = {0}, subtitle = {0}, footer = {0};
  char date[21];
  clock_iso(date);
  make_title(data, &title);
  make_subtitle(data, &subtitle);
  page_begin(out, strbuf_text(&title), strbuf_text(&subtitle));
  put_lead(out, data);
  section_results(out, data);
  section_tradeoff(out, data);
  section_learning(out, data);
  section_density(out, data);
  section_speed(out, data);
  section_texts(out, data);
  section_settings(out, data);
  strbuf_printf(&footer, "Made by tessera on %.10s from records and mask files.", date);
  if (data->damaged_lines)
    strbuf_printf(&footer, " %zu damaged line%s of the records left out.", data->damaged_lines,
                  data->damaged_lines == 1 ? " was" : "s were");
  page_end(out, strbuf_text(&footer));
  strbuf_free(&title);
  strbuf_free(&subtitle);
  strbuf_free(&footer);
}
