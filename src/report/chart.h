/* Line charts and labelled scatters as SVG, with axes, ticks and direct labels. Values that are
 * NAN are gaps; a log axis leaves out what is not positive. */
#ifndef TSR_REPORT_CHART_H
#define TSR_REPORT_CHART_H

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

enum { CHART_SERIES_MAX = 256, CHART_MARKS_MAX = 4, CHART_COLORS = 8 };
enum chart_style { CHART_LINE, CHART_DASHED, CHART_FAINT, CHART_DOTS };

struct chart_series {
  const char *label; /* written at the end of the line; NULL for none */
  const double *x, *y;
  size_t count;
  int color; /* a series takes the colour color % CHART_COLORS */
  enum chart_style style;
};

/* A horizontal line with a name, such as a target. */
struct chart_mark {
  double y;
  const char *label;
};

struct chart {
  const char *title, *x_label, *y_label;
  double width, height;
  bool y_log;
  struct chart_series series[CHART_SERIES_MAX];
  int series_count;
  struct chart_mark marks[CHART_MARKS_MAX];
  int mark_count;
};
/* False, and nothing appended, when no value can be shown. */
bool chart_render(struct strbuf *out, const struct chart *chart);

struct scatter_point {
  double x, y;
  const char *label;
  int color;
  bool hollow;
};
/* A scatter whose labels avoid each other and the points. `axes` gives the frame; its series are
 * not looked at. */
bool scatter_render(struct strbuf *out, const struct chart *axes,
                    const struct scatter_point *points, size_t count);

/* Moves the positions y (count), sorted ascending, apart to at least `gap` within [low, high] as
 * far as that has room, moving each as little as a simple sweep can. */
void chart_spread(double *y, size_t count, double gap, double low, double high);

#endif
