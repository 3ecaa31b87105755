/* What the rows of a comparison say in a sentence or two, and as a table for the terminal. */
#ifndef TSR_REPORT_SUMMARY_H
#define TSR_REPORT_SUMMARY_H

#include "report/data.h"
#include "report/table.h"

/* The rows that the headline is about; NULL where there is none. */
struct summary {
  const json_t *dense;    /* density 1 */
  const json_t *learned;  /* the learned row of the lowest perplexity below full density */
  const json_t *one_shot; /* the best row that is not learned, at about the same density */
};
struct summary summary_of(const json_t *rows);

/* log(perplexity / dense perplexity): what pruning cost, in nats per token. NAN when unknown. */
double summary_distance(const json_t *row, const json_t *dense);

/* Appends plain sentences; nothing when the rows do not suffice. */
void summary_sentences(struct strbuf *out, const struct summary *summary);

/* The same for a learning run that stands alone. */
void summary_run_sentences(struct strbuf *out, const struct report_run *run);

/* True for rows that a learning run made. */
bool row_is_learned(const json_t *row);

/* The rows as a table; columns that no row fills are left out. For pages: with longer titles, and
 * with each row's "note" behind a line feed in its first cell (page.h shows it small). */
void summary_table(struct table *table, const json_t *rows, bool pages);

/* "35.2", "1,115", "0.0612": as many digits as a figure of this size deserves. "-" for NAN. */
void format_figure(char out[32], double value);

#endif
