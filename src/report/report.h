/* The report: one HTML file that needs nothing else, made from records and mask files alone. */
#ifndef TSR_REPORT_REPORT_H
#define TSR_REPORT_REPORT_H

#include "report/data.h"

/* Appends the whole page. Sections without data are left out. */
void report_html(struct strbuf *out, const struct report_data *data);

#endif
