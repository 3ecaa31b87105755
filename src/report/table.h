/* Tables for people: aligned columns in plain text, fitted to a width. */
#ifndef TSR_REPORT_TABLE_H
#define TSR_REPORT_TABLE_H

#include <stdbool.h>

#include "base/strbuf.h"

enum { TABLE_COLUMNS_MAX = 24 };
enum table_align { TABLE_LEFT, TABLE_RIGHT };

struct table {
  struct table_column {
    char *title;
    enum table_align align;
  } columns[TABLE_COLUMNS_MAX];
  int column_count;
  char **cells; /* row by row, complete rows only once rendered; owned */
  size_t cell_count, capacity;
};
/* Initialise with {0}. Running out of memory stops the program, as with struct strbuf. */
void table_column(struct table *t, const char *title, enum table_align align);
/* Appends the next cell, row by row. */
void table_cell(struct table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void table_free(struct table *t);

/* Appends the table to `out`. `width` columns at most, 0 = as wide as it is: where it would be
 * wider, gaps shrink first, then the widest text columns are cut with "..". `styled` adds terminal
 * escapes. A table without titles has no header. */
void table_render(const struct table *t, int width, bool styled, struct strbuf *out);

/* 1234567 -> "1,234,567"; 1610612736 -> "1.50 GiB"; 93.4 -> "1 min 33 s". */
void format_integer(char out[32], long long value);
void format_bytes(char out[32], double bytes);
void format_duration(char out[32], double seconds);

#endif
