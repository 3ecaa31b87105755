/* Messages and progress: see log.h. State: the level, and which progress owns the terminal line. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static enum log_level current_level = LOG_WARN;
static struct progress *shown; /* the one whose line is on the terminal */

void log_set_level(enum log_level level) { current_level = level; }
enum log_level log_level(void) { return current_level; }

static bool is_terminal(void) {
  static int known = -1;
  if (known < 0) {
    const char *term = getenv("TERM");
    known = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
  }
  return known != 0;
}

bool log_color(void) {
  const char *no_color = getenv("NO_COLOR");
  return is_terminal() && !(no_color && *no_color);
}

static void clear_line(void) {
  if (shown && shown->visible && is_terminal()) fputs("\r\033[K", stderr);
}

void log_message(enum log_level level, const char *format, ...) {
  static const char *const prefix[] = {"tessera: error: ", "tessera: warning: ", "", ""};
  static const char *const color[] = {"\033[1;31m", "\033[33m", "", "\033[2m"};
  if (level > current_level) return;
  clear_line();
  bool colored = log_color() && *color[level];
  if (colored) fputs(color[level], stderr);
  fputs(prefix[level], stderr);
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  if (colored) fputs("\033[0m", stderr);
  fputc('\n', stderr);
}

static void format_duration(char out[16], double seconds) {
  if (!(seconds >= 0) || seconds > 359999) {
    snprintf(out, 16, "--:--");
    return;
  }
  int s = (int)(seconds + 0.5);
  if (s >= 3600)
    snprintf(out, 16, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
  else
    snprintf(out, 16, "%d:%02d", s / 60, s % 60);
}

static void format_count(char out[16], double value) {
  if (value >= 1e9)
    snprintf(out, 16, "%.2fG", value / 1e9);
  else if (value >= 1e6)
    snprintf(out, 16, "%.2fM", value / 1e6);
  else if (value >= 1e4)
    snprintf(out, 16, "%.1fk", value / 1e3);
  else
    snprintf(out, 16, "%.*f", value < 10 && value != (int)value ? 2 : 0, value);
}

static void draw(struct progress *p) {
  double now = clock_seconds(), elapsed = now - p->started_s;
  double interval = is_terminal() ? 0.1 : 10.0;
  if (elapsed < 2.0 || now - p->shown_s < interval || current_level < LOG_INFO) return;
  p->shown_s = now;
  p->visible = true;
  double rate = elapsed > 0 ? (p->done - p->resumed) / elapsed : 0;
  char left[16], done[16], total[16], speed[16];
  format_duration(left, rate > 0 ? (p->total - p->done) / rate : -1);
  format_count(done, p->done);
  format_count(total, p->total);
  format_count(speed, rate);
  double share = p->total > 0 ? 100.0 * p->done / p->total : 0;
  fprintf(stderr, "%s%s  %3.0f%%  %s/%s %s  %s/s  %s left%s%s%s", is_terminal() ? "\r\033[K" : "",
          p->title, share, done, total, p->unit, speed, left, *p->note ? "  " : "", p->note,
          is_terminal() ? "" : "\n");
  fflush(stderr);
}

void progress_begin(struct progress *p, const char *title, const char *unit, double total) {
  *p = (struct progress){.total = total, .started_s = clock_seconds()};
  snprintf(p->title, sizeof p->title, "%s", title);
  snprintf(p->unit, sizeof p->unit, "%s", unit);
  p->active = shown == NULL;
  if (p->active) shown = p;
}

void progress_set(struct progress *p, double done) {
  p->done = done;
  if (p->active) draw(p);
}

void progress_add(struct progress *p, double more) { progress_set(p, p->done + more); }

void progress_note(struct progress *p, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(p->note, sizeof p->note, format, args);
  va_end(args);
}

void progress_end(struct progress *p) {
  if (!p->active) return;
  clear_line();
  p->active = false;
  if (shown == p) shown = NULL;
}
