/* Lists of numbers: see numbers.h. */
#include "cli/numbers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct numbers {
  const char *option;
  double low, high;
  bool whole;
  double *reals;
  int64_t *integers;
  int most, count;
};

static enum status refuse(const struct numbers *n, const char *text, size_t length,
                          struct error *err) {
  return error_set(err, STATUS_USAGE, "--%s takes %s from %g to %g, not \"%.*s\"", n->option,
                   n->whole ? "whole numbers" : "numbers", n->low, n->high, (int)length, text);
}

static enum status add(struct numbers *n, const char *text, size_t length, struct error *err) {
  char room[64], *end = NULL;
  if (length == 0 || length >= sizeof room) return refuse(n, text, length, err);
  memcpy(room, text, length);
  room[length] = 0;
  double value = strtod(room, &end);
  bool good = end == room + length && value >= n->low && value <= n->high &&
              (!n->whole || value == floor(value));
  if (!good) return refuse(n, text, length, err);
  if (n->count == n->most)
    return error_set(err, STATUS_USAGE, "--%s takes at most %d numbers", n->option, n->most);
  if (n->whole)
    n->integers[n->count++] = (int64_t)value;
  else
    n->reals[n->count++] = value;
  return STATUS_OK;
}

static enum status add_all(struct numbers *n, const char *text, struct error *err) {
  enum status status = STATUS_OK;
  for (;;) {
    size_t length = strcspn(text, ",");
    status = add(n, text, length, err);
    if (status || !text[length]) return status;
    text += length + 1;
  }
}

static enum status collect(struct numbers *n, const struct text_list *list, const char *usual,
                           struct error *err) {
  if (list->count == 1 && !strcmp(list->items[0], "none")) return STATUS_OK;
  if (list->count == 0) return add_all(n, usual, err);
  enum status status = STATUS_OK;
  for (int i = 0; i < list->count && !status; i++) status = add_all(n, list->items[i], err);
  return status;
}

enum status numbers_integers(const struct text_list *list, const char *usual, const char *option,
                             int64_t low, int64_t high, int64_t *out, int most, int *count,
                             struct error *err) {
  struct numbers n = {option, (double)low, (double)high, true, NULL, out, most, 0};
  enum status status = collect(&n, list, usual, err);
  *count = n.count;
  return status;
}

enum status numbers_reals(const struct text_list *list, const char *usual, const char *option,
                          double low, double high, double *out, int most, int *count,
                          struct error *err) {
  struct numbers n = {option, low, high, false, out, NULL, most, 0};
  enum status status = collect(&n, list, usual, err);
  *count = n.count;
  return status;
}

enum status numbers_time(const char *text, const char *option, double *seconds, struct error *err) {
  char *end;
  const double value = strtod(text, &end);
  const double unit = !*end || !strcmp(end, "s") ? 1
                      : !strcmp(end, "m")        ? 60
                      : !strcmp(end, "h")        ? 3600
                                                 : 0;
  if (end == text || !(value > 0 && value < 1e9) || !unit)
    return error_set(err, STATUS_USAGE, "--%s needs a time such as 90s, 10m or 1.5h, not \"%s\"",
                     option, text);
  *seconds = value * unit;
  return STATUS_OK;
}
