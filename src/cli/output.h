/* Results on standard output: tables for people, numbers for JSON. */
#ifndef TSR_CLI_OUTPUT_H
#define TSR_CLI_OUTPUT_H

#include "cli/options.h"
#include "report/table.h"

/* False when standard output belongs to --json -: then nothing else may be written there. */
bool output_to_people(const struct common_options *common);
/* Prints a table, fitted to the terminal; as wide as it is, and plain, when there is none. */
void output_table(const struct table *table);
/* One line "key  value" of a two-column table without titles, made by output_facts. */
struct table output_facts(void);
void output_fact(struct table *facts, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A JSON number, or null where the value is no finite number. New reference. */
json_t *output_real(double value);
/* A JSON string, or null for NULL. */
json_t *output_text(const char *text);

#endif
