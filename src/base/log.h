/* Messages and progress for people, on standard error, filtered by one level.
 *
 * A terminal gets one progress line that is redrawn; anything else gets plain lines, at most one
 * every ten seconds. NO_COLOR is honoured. */
#ifndef TSR_BASE_LOG_H
#define TSR_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Messages above `level` are dropped. The library starts at LOG_WARN; the program sets LOG_INFO,
 * -q LOG_ERROR, -v LOG_DEBUG. */
void log_set_level(enum log_level level);
enum log_level log_level(void);
void log_message(enum log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#define log_error(...) log_message(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_message(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_message(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_message(LOG_DEBUG, __VA_ARGS__)

/* True when standard error is a terminal that may be coloured. */
bool log_color(void);

/* Progress of one piece of work with a known size. Shown once it has run for two seconds. One at a
 * time; an inner progress_begin while another runs is ignored, and so are its updates. */
struct progress {
  char title[64];
  char unit[24];
  char note[80]; /* free text shown behind, e.g. the current loss */
  double total, done, started_s, shown_s;
  double resumed; /* what was done before this process began: not counted in the rate */
  bool active, visible;
};
void progress_begin(struct progress *p, const char *title, const char *unit, double total);
void progress_set(struct progress *p, double done);
void progress_add(struct progress *p, double more);
void progress_note(struct progress *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void progress_end(struct progress *p); /* clears the line; safe to call twice */

#endif
