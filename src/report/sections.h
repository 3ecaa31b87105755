/* The sections of the report, each left out where its data is missing. */
#ifndef TSR_REPORT_SECTIONS_H
#define TSR_REPORT_SECTIONS_H

#include "report/data.h"

void section_results(struct strbuf *out, const struct report_data *data);
void section_tradeoff(struct strbuf *out, const struct report_data *data);
void section_learning(struct strbuf *out, const struct report_data *data);
void section_density(struct strbuf *out, const struct report_data *data);
void section_speed(struct strbuf *out, const struct report_data *data);
void section_texts(struct strbuf *out, const struct report_data *data);
void section_settings(struct strbuf *out, const struct report_data *data);

#endif
