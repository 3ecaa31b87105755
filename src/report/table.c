/* Text tables: see table.h. Widths count characters of UTF-8, each taken as one column. */
#include "report/table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { TEXT_WIDTH_LEAST = 12 };

static char *copy_text(const char *text) {
  char *copy = mem_strdup(text, NULL);
  INVARIANT(copy != NULL);
  return copy;
}

void table_column(struct table *t, const char *title, enum table_align align) {
  INVARIANT(t->column_count < TABLE_COLUMNS_MAX && t->cell_count == 0);
  t->columns[t->column_count++] = (struct table_column){copy_text(title), align};
}

void table_cell(struct table *t, const char *format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, format, args);
  va_end(args);
  INVARIANT(n >= 0);
  char *cell = malloc((size_t)n + 1);
  INVARIANT(cell != NULL);
  vsnprintf(cell, (size_t)n + 1, format, again);
  va_end(again);
  enum status status =
      mem_grow((void **)&t->cells, &t->capacity, t->cell_count + 1, sizeof *t->cells, NULL);
  INVARIANT(status == STATUS_OK);
  t->cells[t->cell_count++] = cell;
}

void table_free(struct table *t) {
  for (int c = 0; c < t->column_count; c++) free(t->columns[c].title);
  for (size_t i = 0; i < t->cell_count; i++) free(t->cells[i]);
  free(t->cells);
  *t = (struct table){0};
}

static int text_width(const char *text) {
  int width = 0;
  for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80;
  return width;
}

/* Bytes of the first `width` characters. */
static size_t text_prefix(const char *text, int width) {
  size_t at = 0;
  for (; text[at]; at++)
    if (((unsigned char)text[at] & 0xc0) != 0x80 && width-- == 0) break;
  return at;
}

/* Widths of the columns and the gap between them, so that the whole fits. */
struct layout {
  int width[TABLE_COLUMNS_MAX];
  int gap;
};

static int total_width(const struct table *t, const struct layout *l) {
  int total = l->gap * (t->column_count - 1);
  for (int c = 0; c < t->column_count; c++) total += l->width[c];
  return total;
}

static struct layout lay_out(const struct table *t, int width) {
  struct layout l = {.gap = 2};
  for (int c = 0; c < t->column_count; c++) l.width[c] = text_width(t->columns[c].title);
  for (size_t i = 0; i < t->cell_count; i++) {
    int c = (int)(i % (size_t)t->column_count), w = text_width(t->cells[i]);
    if (w > l.width[c]) l.width[c] = w;
  }
  if (width > 0 && total_width(t, &l) > width) l.gap = 1;
  while (width > 0 && total_width(t, &l) > width) {
    int widest = -1;
    for (int c = 0; c < t->column_count; c++)
      if (t->columns[c].align == TABLE_LEFT && l.width[c] > TEXT_WIDTH_LEAST &&
          (widest < 0 || l.width[c] > l.width[widest]))
        widest = c;
    if (widest < 0) break; /* numbers are never cut */
    l.width[widest]--;
  }
  return l;
}

static void put_spaces(struct strbuf *out, int count) {
  while (count-- > 0) strbuf_putc(out, ' ');
}

static void put_cell(struct strbuf *out, const char *text, int width, enum table_align align,
                     bool last) {
  int own = text_width(text);
  if (own > width) {
    strbuf_append(out, text, text_prefix(text, width - 2));
    strbuf_puts(out, "..");
    return;
  }
  if (align == TABLE_RIGHT) put_spaces(out, width - own);
  strbuf_puts(out, text);
  if (align == TABLE_LEFT && !last) put_spaces(out, width - own);
}

static void put_row(struct strbuf *out, const struct table *t, const struct layout *l,
                    const char *const *cells) {
  for (int c = 0; c < t->column_count; c++) {
    if (c) put_spaces(out, l->gap);
    put_cell(out, cells[c], l->width[c], t->columns[c].align, c == t->column_count - 1);
  }
}

void table_render(const struct table *t, int width, bool styled, struct strbuf *out) {
  INVARIANT(t->column_count > 0 && t->cell_count % (size_t)t->column_count == 0);
  struct layout l = lay_out(t, width);
  const char *titles[TABLE_COLUMNS_MAX];
  bool header = false;
  for (int c = 0; c < t->column_count; c++) {
    titles[c] = t->columns[c].title;
    header = header || *titles[c];
  }
  if (header) {
    if (styled) strbuf_puts(out, "\033[1m");
    put_row(out, t, &l, titles);
    if (styled) strbuf_puts(out, "\033[0m");
    strbuf_putc(out, '\n');
    for (int i = total_width(t, &l); i > 0; i--) strbuf_putc(out, '-');
    strbuf_putc(out, '\n');
  }
  for (size_t i = 0; i < t->cell_count; i += (size_t)t->column_count) {
    put_row(out, t, &l, (const char *const *)t->cells + i);
    strbuf_putc(out, '\n');
  }
}

void format_integer(char out[32], long long value) {
  char digits[24];
  unsigned long long size =
      value < 0 ? 0ull - (unsigned long long)value : (unsigned long long)value;
  snprintf(digits, sizeof digits, "%llu", size);
  size_t n = strlen(digits), used = 0;
  if (value < 0) out[used++] = '-';
  for (size_t i = 0; i < n; i++) {
    if (i && (n - i) % 3 == 0) out[used++] = ',';
    out[used++] = digits[i];
  }
  out[used] = 0;
}

void format_bytes(char out[32], double bytes) {
  static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  for (; fabs(bytes) >= 1024 && u < 4; u++) bytes /= 1024;
  snprintf(out, 32, "%.*f %s", u == 0 || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2, bytes, unit[u]);
}

void format_duration(char out[32], double seconds) {
  if (!(seconds >= 0 && seconds < 1e9)) {
    snprintf(out, 32, "?");
    return;
  }
  long long s = llround(seconds);
  if (s >= 3600)
    snprintf(out, 32, "%lld h %02lld min", s / 3600, s / 60 % 60);
  else if (s >= 60)
    snprintf(out, 32, "%lld min %02lld s", s / 60, s % 60);
  else
    snprintf(out, 32, "%.*f s", seconds < 9.95 ? 1 : 0, seconds);
}
