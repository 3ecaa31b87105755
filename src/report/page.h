/* The pieces that a page is made of: its frame and style sheet, sections, figures, tables. */
#ifndef TSR_REPORT_PAGE_H
#define TSR_REPORT_PAGE_H

#include "base/strbuf.h"
#include "report/table.h"

void page_begin(struct strbuf *out, const char *title, const char *subtitle);
void page_end(struct strbuf *out, const char *footer);
void page_heading(struct strbuf *out, const char *text);
void page_paragraph(struct strbuf *out, const char *text);
/* Between the two goes an SVG; `caption` is plain text. */
void page_figure_begin(struct strbuf *out);
void page_figure_end(struct strbuf *out, const char *caption);
/* A table.h table. Numbers are right-aligned; row `marked` (or -1) stands out. */
void page_table(struct strbuf *out, const struct table *table, int marked);

#endif
