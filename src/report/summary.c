/* Headline and table: see summary.h. */
#include "report/summary.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Densities closer than this are the same budget: a tile of a small model, or rounding. */
static const double SAME_DENSITY = 0.006;

void format_figure(char out[32], double value) {
  double size = fabs(value);
  if (!isfinite(value))
    snprintf(out, 32, "-");
  else if (size >= 999.5 && size < 1e15)
    format_integer(out, llround(value));
  else if (size >= 1e15)
    snprintf(out, 32, "%.2e", value);
  else
    snprintf(out, 32, "%.*f", size >= 99.95 ? 1 : size >= 0.9995 ? 2 : 4, value);
}

bool row_is_learned(const json_t *row) {
  return json_get_string(row, "run") || report_number(row, "learning_tokens") > 0;
}

double summary_distance(const json_t *row, const json_t *dense) {
  if (!row || !dense) return NAN;
  return log(report_number(row, "perplexity") / report_number(dense, "perplexity"));
}

static bool better(const json_t *row, const json_t *best) {
  double perplexity = report_number(row, "perplexity");
  return isfinite(perplexity) && (!best || perplexity < report_number(best, "perplexity"));
}

struct summary summary_of(const json_t *rows) {
  struct summary s = {0};
  for (size_t i = 0; i < json_array_size(rows); i++) {
    const json_t *row = json_array_get(rows, i);
    double density = report_number(row, "density");
    if (density >= 0.99999 && !s.dense) s.dense = row;
    if (density < 0.99999 && row_is_learned(row) && better(row, s.learned)) s.learned = row;
  }
  for (size_t i = 0; i < json_array_size(rows) && s.learned; i++) {
    const json_t *row = json_array_get(rows, i);
    double apart = report_number(row, "density") - report_number(s.learned, "density");
    if (!row_is_learned(row) && fabs(apart) < SAME_DENSITY && better(row, s.one_shot))
      s.one_shot = row;
  }
  return s;
}

static const char *name_of(const json_t *row) {
  const char *name = json_get_string(row, "name");
  return name ? name : "?";
}

void summary_sentences(struct strbuf *out, const struct summary *s) {
  char learned[32], dense[32], one_shot[32];
  if (!s->learned || !s->dense) return;
  format_figure(learned, report_number(s->learned, "perplexity"));
  format_figure(dense, report_number(s->dense, "perplexity"));
  strbuf_printf(out,
                "With %.1f %% of the prunable weights removed, \"%s\" reaches a perplexity of %s; "
                "the dense model has %s.",
                100 * (1 - report_number(s->learned, "density")), name_of(s->learned), learned,
                dense);
  if (!s->one_shot) return;
  format_figure(one_shot, report_number(s->one_shot, "perplexity"));
  double reached = summary_distance(s->learned, s->dense);
  double before = summary_distance(s->one_shot, s->dense);
  strbuf_printf(out, " The best mask of that density made without learning, \"%s\", has %s.",
                name_of(s->one_shot), one_shot);
  if (!(before > 0)) return;
  if (reached < before)
    strbuf_printf(out, " Learning took away %.0f %% of what pruning cost, in log-perplexity.",
                  100 * (1 - reached / before));
  else
    strbuf_puts(out, " Learning did not improve on it in this run.");
}

void summary_run_sentences(struct strbuf *out, const struct report_run *run) {
  double dense = report_number(run->final, "dense_loss");
  double prior = report_number(run->final, "prior_loss");
  double best = report_number(run->final, "best_loss");
  if (!(best > 0) || !(prior > 0) || !(dense > 0)) return;
  strbuf_printf(
      out,
      "The mask of \"%s\" keeps %.2f %% of the prunable weights. On the windows set aside "
      "its loss is %.4f nats per token; the dense model's is %.4f, and the mask that "
      "learning started from has %.4f.",
      run->name, 100 * report_number(run->final, "density"), best, dense, prior);
  if (!(best < prior)) strbuf_puts(out, " Learning did not improve on its prior in this run.");
}

/* --- the table --- */

struct column {
  const char *title, *brief; /* for pages, and for terminals of 80 columns */
  const char *key;
  enum { CELL_FIGURE, CELL_PERCENT, CELL_SHARE, CELL_COUNT, CELL_BYTES, CELL_TIME } kind;
};

static const struct column columns[] = {
    {"density", "density", "density", CELL_PERCENT},
    {"perplexity", "perplexity", "perplexity", CELL_FIGURE},
    {"\xc2\xb1", "\xc2\xb1", "perplexity_stderr", CELL_FIGURE},
    {"KL to dense", "KL", "kl", CELL_FIGURE},
    {"same top-1", "top-1", "top1_agreement", CELL_SHARE},
    {"learned from", "tokens", "learning_tokens", CELL_COUNT},
    {"made in", "made in", "seconds_to_make", CELL_TIME},
    {"on disk", "on disk", "disk_bytes", CELL_BYTES},
};
enum { COLUMNS = sizeof columns / sizeof *columns };

static bool any_row_has(const json_t *rows, const char *key) {
  for (size_t i = 0; i < json_array_size(rows); i++)
    if (!isnan(report_number(json_array_get(rows, i), key))) return true;
  return false;
}

static void put_cell(struct table *table, const struct column *column, double value) {
  char text[32];
  if (isnan(value)) {
    table_cell(table, "-");
    return;
  }
  switch (column->kind) {
    case CELL_FIGURE:
      format_figure(text, value);
      break;
    case CELL_PERCENT:
      snprintf(text, sizeof text, "%.2f %%", 100 * value);
      break;
    case CELL_SHARE:
      snprintf(text, sizeof text, "%.1f %%", 100 * value);
      break;
    case CELL_COUNT:
      if (fabs(value) < 1e15)
        format_integer(text, llround(value));
      else
        format_figure(text, value);
      break;
    case CELL_BYTES:
      format_bytes(text, value);
      break;
    case CELL_TIME:
      format_duration(text, value);
      break;
  }
  table_cell(table, "%s", text);
}

void summary_table(struct table *table, const json_t *rows, bool pages) {
  bool shown[COLUMNS];
  table_column(table, "model", TABLE_LEFT);
  for (int c = 0; c < COLUMNS; c++) {
    shown[c] = any_row_has(rows, columns[c].key);
    if (shown[c]) table_column(table, pages ? columns[c].title : columns[c].brief, TABLE_RIGHT);
  }
  for (size_t i = 0; i < json_array_size(rows); i++) {
    const json_t *row = json_array_get(rows, i);
    const char *note = pages ? json_get_string(row, "note") : NULL;
    table_cell(table, "%s%s%s", name_of(row), note ? "\n" : "", note ? note : "");
    for (int c = 0; c < COLUMNS; c++)
      if (shown[c]) put_cell(table, &columns[c], report_number(row, columns[c].key));
  }
}
