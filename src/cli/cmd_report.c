/* tessera report: records and masks to one HTML file, and the table on standard output. */
#include <stdio.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "io/file.h"
#include "report/report.h"
#include "report/summary.h"

struct settings {
  const char *out;
  struct common_options common;
};

static const struct option options[] = {{"out", OPTION_TEXT, offsetof(struct settings, out), NULL,
                                         0, 0, NULL, "FILE.html", "the file to write"},
                                        COMMON_OPTIONS(struct settings, common)};

static enum status write_page(const struct settings *s, const struct report_data *data,
                              struct error *err) {
  struct strbuf page = {0};
  report_html(&page, data);
  enum status status = file_write_all(s->out, page.data, page.length, err);
  strbuf_free(&page);
  if (!status) log_info("wrote %s", s->out);
  return status;
}

static void print_rows(const struct settings *s, const struct report_data *data) {
  if (json_array_size(data->rows) == 0 || !output_to_people(&s->common)) return;
  struct table table = {0};
  summary_table(&table, data->rows, false);
  output_table(&table);
  table_free(&table);
}

static json_t *result_of(const struct settings *s, const struct report_data *data) {
  return json_pack("{s:s, s:O, s:i, s:I}", "out", s->out, "rows", data->rows, "runs",
                   data->run_count, "damaged_lines", (json_int_t)data->damaged_lines);
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct settings *s = settings;
  common_apply(&s->common);
  if (!s->out) return error_set(err, STATUS_USAGE, "tessera report needs --out FILE.html");
  enum status status = common_check_output(&s->common, s->out, err);
  if (status) return status;
  struct report_data data;
  report_data_init(&data);
  for (int i = 0; i < positionals->count && !status; i++)
    status = report_data_add(&data, positionals->items[i], err);
  if (!status) status = write_page(s, &data, err);
  if (!status) print_rows(s, &data);
  if (!status) status = common_write_json(&s->common, result_of(s, &data), err);
  report_data_free(&data);
  return status;
}

const struct command command_report = {
    .name = "report",
    .positionals = "RUN [RUN ...]",
    .least_positionals = 1,
    .most_positionals = TEXT_LIST_MAX,
    .summary = "make one HTML file with tables and pictures from records",
    .description =
        "RUN is the directory of a learning run, or a comparison: results.jsonl or a "
        "directory that holds it\n(docs/RECORD.md). The page needs no other file and no "
        "network, and prints well.",
    .example = "tessera report run --out report.html",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run};
