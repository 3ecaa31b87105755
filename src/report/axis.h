/* One axis of a chart: its range, its ticks, and where a value lies on the page. */
#ifndef TSR_REPORT_AXIS_H
#define TSR_REPORT_AXIS_H

#include <stdbool.h>

enum { AXIS_TICKS_MAX = 16 };

struct axis {
  bool log;
  double low, high;   /* values at the two ends */
  double start, span; /* pixels: position of `low`, and signed length */
  double ticks[AXIS_TICKS_MAX];
  int tick_count;
  int decimals; /* for tick labels of a linear axis */
};

/* What becomes of the ends of the range. */
enum axis_ends {
  AXIS_TIGHT, /* as they are */
  AXIS_TICKS, /* widened to the next ticks */
  AXIS_LOG    /* logarithmic, and widened by a little */
};
/* An axis that shows [low, high] (each by axis_can_show) with about `wanted` ticks at
 * round values. */
struct axis axis_make(double low, double high, enum axis_ends ends, int wanted);
void axis_place(struct axis *axis, double start, double span);
double axis_at(const struct axis *axis, double value);
/* True when the value can be shown: of a size that pictures deal with, and positive on a
 * logarithmic axis. */
bool axis_can_show(bool log, double value);
void axis_format(const struct axis *axis, double value, char out[32]);

#endif
