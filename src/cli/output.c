/* Printing results: see output.h. */
#include "cli/output.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool output_to_people(const struct common_options *common) {
  return !common->json || strcmp(common->json, "-") != 0;
}

static int terminal_width(void) {
  struct winsize size;
  if (!isatty(STDOUT_FILENO) || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col < 20)
    return 0;
  return size.ws_col;
}

void output_table(const struct table *table) {
  const char *no_color = getenv("NO_COLOR");
  struct strbuf text = {0};
  int width = terminal_width();
  table_render(table, width, width > 0 && !(no_color && *no_color), &text);
  fputs(strbuf_text(&text), stdout);
  strbuf_free(&text);
}

struct table output_facts(void) {
  struct table facts = {0};
  table_column(&facts, "", TABLE_LEFT);
  table_column(&facts, "", TABLE_LEFT);
  return facts;
}

void output_fact(struct table *facts, const char *key, const char *format, ...) {
  char value[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(value, sizeof value, format, args);
  va_end(args);
  table_cell(facts, "%s", key);
  table_cell(facts, "%s", value);
}

json_t *output_real(double value) { return isfinite(value) ? json_real(value) : json_null(); }
json_t *output_text(const char *text) { return text ? json_string(text) : json_null(); }
