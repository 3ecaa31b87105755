/* Charts: see chart.h. A chart is a frame with grid lines and ticks, then marks, series, labels. */
#include "report/chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "report/axis.h"
#include "report/svg.h"

enum { POINTS_MAX = 600, LABEL_GAP = 14 };

struct frame {
  struct axis x, y;
  double left, right, top, bottom; /* pixels of the plotting area */
};

void chart_spread(double *y, size_t count, double gap, double low, double high) {
  if (count == 0) return;
  if (y[0] < low) y[0] = low;
  for (size_t i = 1; i < count; i++)
    if (y[i] < y[i - 1] + gap) y[i] = y[i - 1] + gap;
  /* what ran over the end is pushed back from there */
  if (y[count - 1] > high) y[count - 1] = high;
  for (size_t i = count - 1; i-- > 0;)
    if (y[i] > y[i + 1] - gap) y[i] = y[i + 1] - gap;
}

/* --- the frame --- */

struct range {
  double low, high;
};

static void range_add(struct range *r, double value) {
  if (value < r->low) r->low = value;
  if (value > r->high) r->high = value;
}

static void draw_frame(struct strbuf *out, const struct chart *c, const struct frame *f) {
  char text[32];
  if (c->title) svg_text(out, "ct", f->left, 16, SVG_START, c->title);
  for (int i = 0; i < f->y.tick_count; i++) {
    double at = axis_at(&f->y, f->y.ticks[i]);
    svg_line(out, "grid", f->left, at, f->right, at);
    axis_format(&f->y, f->y.ticks[i], text);
    svg_text(out, "tick", f->left - 6, at + 4, SVG_END, text);
  }
  for (int i = 0; i < f->x.tick_count; i++) {
    double at = axis_at(&f->x, f->x.ticks[i]);
    svg_line(out, "axis", at, f->bottom, at, f->bottom + 4);
    axis_format(&f->x, f->x.ticks[i], text);
    svg_text(out, "tick", at, f->bottom + 17, SVG_MIDDLE, text);
  }
  svg_line(out, "axis", f->left, f->bottom, f->right, f->bottom);
  svg_text(out, "label", (f->left + f->right) / 2, f->bottom + 35, SVG_MIDDLE, c->x_label);
  svg_text_upwards(out, "label", 13, (f->top + f->bottom) / 2, c->y_label);
}

static struct frame make_frame(const struct chart *c, struct range x, struct range y,
                               double label_width) {
  struct frame f = {.left = 66, .top = c->title ? 30 : 12};
  f.right = c->width - 12 - label_width;
  f.bottom = c->height - 44;
  f.x = axis_make(x.low, x.high, AXIS_TIGHT, (int)(c->width / 90));
  f.y = axis_make(y.low, y.high, c->y_log ? AXIS_LOG : AXIS_TICKS, (int)(c->height / 50));
  axis_place(&f.x, f.left, f.right - f.left);
  axis_place(&f.y, f.bottom, f.top - f.bottom);
  return f;
}

static void draw_marks(struct strbuf *out, const struct chart *c, const struct frame *f) {
  for (int i = 0; i < c->mark_count; i++)
    if (axis_can_show(c->y_log, c->marks[i].y)) {
      double at = axis_at(&f->y, c->marks[i].y);
      svg_line(out, "mark", f->left, at, f->right, at);
    }
}

/* --- line charts --- */

static bool visible(const struct chart *c, const struct chart_series *s, size_t i) {
  return axis_can_show(false, s->x[i]) && axis_can_show(c->y_log, s->y[i]);
}

static bool find_ranges(const struct chart *c, struct range *x, struct range *y) {
  *x = *y = (struct range){INFINITY, -INFINITY};
  for (int k = 0; k < c->series_count; k++)
    for (size_t i = 0; i < c->series[k].count; i++) {
      if (!visible(c, &c->series[k], i)) continue;
      range_add(x, c->series[k].x[i]);
      range_add(y, c->series[k].y[i]);
    }
  if (x->low > x->high) return false;
  for (int i = 0; i < c->mark_count; i++)
    if (axis_can_show(c->y_log, c->marks[i].y)) range_add(y, c->marks[i].y);
  return true;
}

static void class_of(char out[32], const struct chart_series *s) {
  static const char *const style[] = {"line", "line dash", "line faint", "dot"};
  snprintf(out, 32, "%s c%d", style[s->style], s->color % CHART_COLORS);
}

/* Long records are drawn by the means of equal stretches. */
static void draw_line(struct strbuf *out, const struct chart *c, const struct frame *f,
                      const struct chart_series *s) {
  char class[32];
  size_t stretch = (s->count + POINTS_MAX - 1) / POINTS_MAX;
  bool down = false;
  class_of(class, s);
  svg_path_begin(out, class);
  for (size_t i = 0; i < s->count; i += stretch) {
    double x = 0, y = 0, n = 0;
    for (size_t j = i; j < i + stretch && j < s->count; j++) {
      if (!visible(c, s, j)) continue;
      x += s->x[j];
      y += s->y[j];
      n++;
    }
    if (n > 0) svg_path_to(out, down, axis_at(&f->x, x / n), axis_at(&f->y, y / n));
    down = n > 0;
  }
  svg_path_end(out);
}

static void draw_dots(struct strbuf *out, const struct chart *c, const struct frame *f,
                      const struct chart_series *s) {
  char class[32];
  class_of(class, s);
  for (size_t i = 0; i < s->count; i++)
    if (visible(c, s, i))
      svg_circle(out, class, axis_at(&f->x, s->x[i]), axis_at(&f->y, s->y[i]), 3);
}

struct end_label {
  double y;
  const char *text;
  int color; /* -1: a mark */
};

static int by_height(const void *a, const void *b) {
  const struct end_label *x = a, *y = b;
  return (x->y > y->y) - (x->y < y->y);
}

/* Where each line that has a name ends, and each mark. */
static size_t find_ends(const struct chart *c, const struct frame *f, struct end_label *labels) {
  size_t count = 0;
  for (int k = 0; k < c->series_count; k++) {
    const struct chart_series *s = &c->series[k];
    size_t last = s->count;
    while (last > 0 && !visible(c, s, last - 1)) last--;
    if (s->label && last > 0)
      labels[count++] =
          (struct end_label){axis_at(&f->y, s->y[last - 1]), s->label, s->color % CHART_COLORS};
  }
  for (int i = 0; i < c->mark_count; i++)
    if (axis_can_show(c->y_log, c->marks[i].y))
      labels[count++] = (struct end_label){axis_at(&f->y, c->marks[i].y), c->marks[i].label, -1};
  return count;
}

/* Names at the right end of the lines, moved apart. */
static void draw_end_labels(struct strbuf *out, const struct chart *c, const struct frame *f) {
  struct end_label labels[CHART_SERIES_MAX + CHART_MARKS_MAX];
  double y[CHART_SERIES_MAX + CHART_MARKS_MAX];
  size_t count = find_ends(c, f, labels);
  qsort(labels, count, sizeof *labels, by_height);
  for (size_t i = 0; i < count; i++) y[i] = labels[i].y;
  chart_spread(y, count, LABEL_GAP, f->top + 4, f->bottom - 2);
  for (size_t i = 0; i < count; i++) {
    char class[32] = "marklabel";
    if (labels[i].color >= 0) snprintf(class, sizeof class, "name c%d", labels[i].color);
    svg_text(out, class, f->right + 8, y[i] + 4, SVG_START, labels[i].text);
  }
}

static double label_room(const struct chart *c) {
  double width = 0;
  for (int k = 0; k < c->series_count; k++)
    if (c->series[k].label) width = fmax(width, svg_text_width(c->series[k].label) + 10);
  for (int i = 0; i < c->mark_count; i++)
    width = fmax(width, svg_text_width(c->marks[i].label) + 10);
  return fmin(width, c->width * 0.4);
}

bool chart_render(struct strbuf *out, const struct chart *chart) {
  struct range x, y;
  if (!find_ranges(chart, &x, &y)) return false;
  struct frame f = make_frame(chart, x, y, label_room(chart));
  svg_begin(out, chart->width, chart->height, chart->title ? chart->title : chart->y_label);
  draw_frame(out, chart, &f);
  draw_marks(out, chart, &f);
  for (int k = 0; k < chart->series_count; k++) {
    const struct chart_series *s = &chart->series[k];
    if (s->style == CHART_DOTS)
      draw_dots(out, chart, &f, s);
    else
      draw_line(out, chart, &f, s);
  }
  draw_end_labels(out, chart, &f);
  svg_end(out);
  return true;
}

/* --- scatters --- */

struct box {
  double left, right, top, bottom;
};

/* What the labels must not cover: the points, and the labels placed before. */
struct board {
  struct box *taken;
  size_t count;
  struct box within;
};

static bool overlap(const struct box *a, const struct box *b) {
  return a->left < b->right && b->left < a->right && a->top < b->bottom && b->top < a->bottom;
}

static bool is_free(const struct board *board, const struct box *box) {
  const struct box *in = &board->within;
  if (box->left < in->left || box->right > in->right || box->top < in->top ||
      box->bottom > in->bottom)
    return false;
  for (size_t i = 0; i < board->count; i++)
    if (overlap(box, &board->taken[i])) return false;
  return true;
}

enum { POINT_RADIUS = 5, LABEL_AWAY = 9, LABEL_LEAD = 22, LABEL_TRIES = 25 };

/* The box of a label at its `attempt`: beside the point, on its right and then its left, then down
 * and up in growing steps with room for a line that leads to it. */
static struct box label_box(double x, double y, double width, int attempt) {
  int step = (attempt + 2) / 4, side = attempt / 2 % 2 ? 1 : -1;
  bool left = attempt % 2;
  double away = step == 0 ? LABEL_AWAY : LABEL_LEAD, middle = y + side * step * LABEL_GAP;
  double start = left ? x - away - width : x + away;
  return (struct box){start, start + width, middle - LABEL_GAP / 2.0, middle + LABEL_GAP / 2.0};
}

static void draw_labelled_point(struct strbuf *out, struct board *board,
                                const struct scatter_point *p, double x, double y) {
  double width = svg_text_width(p->label) * 1.06;
  struct box box = label_box(x, y, width, 0);
  for (int attempt = 0; attempt < LABEL_TRIES; attempt++) {
    struct box tried = label_box(x, y, width, attempt);
    if (!is_free(board, &tried)) continue;
    box = tried;
    break;
  }
  board->taken[board->count++] = box;
  char class[32];
  bool left = box.left < x;
  double middle = (box.top + box.bottom) / 2, near = left ? box.right : box.left;
  if (middle != y)
    svg_line(out, "lead-line", x + (left ? -POINT_RADIUS : POINT_RADIUS), y, near + (left ? 2 : -2),
             middle);
  snprintf(class, sizeof class, "%s c%d", p->hollow ? "ring" : "dot", p->color % CHART_COLORS);
  svg_circle(out, class, x, y, POINT_RADIUS - 0.5);
  snprintf(class, sizeof class, "name c%d", p->color % CHART_COLORS);
  svg_text(out, class, near, middle + 4, left ? SVG_END : SVG_START, p->label);
}

static bool drawable(const struct chart *axes, const struct scatter_point *p) {
  return axis_can_show(false, p->x) && axis_can_show(axes->y_log, p->y);
}

/* A point at its place on the page; sorted from the top down, so that labels which have to move
 * keep the order of their points. */
struct placed {
  const struct scatter_point *point;
  double x, y;
};

static int by_place(const void *a, const void *b) {
  const struct placed *p = a, *q = b;
  return (p->y > q->y) - (p->y < q->y);
}

static size_t place_points(struct placed *out, const struct chart *axes, const struct frame *f,
                           const struct scatter_point *points, size_t count) {
  size_t placed = 0;
  for (size_t i = 0; i < count; i++)
    if (drawable(axes, &points[i]))
      out[placed++] =
          (struct placed){&points[i], axis_at(&f->x, points[i].x), axis_at(&f->y, points[i].y)};
  qsort(out, placed, sizeof *out, by_place);
  return placed;
}

static void draw_points(struct strbuf *out, const struct chart *axes, const struct frame *f,
                        const struct scatter_point *points, size_t count) {
  struct board board = {.within = {f->left + 2, axes->width - 2, f->top - 8, f->bottom - 1}};
  struct placed *placed = mem_alloc(count, sizeof *placed, NULL);
  board.taken = mem_alloc(2 * count, sizeof *board.taken, NULL);
  INVARIANT(placed && board.taken);
  count = place_points(placed, axes, f, points, count);
  for (size_t i = 0; i < count; i++)
    board.taken[board.count++] =
        (struct box){placed[i].x - POINT_RADIUS, placed[i].x + POINT_RADIUS,
                     placed[i].y - POINT_RADIUS, placed[i].y + POINT_RADIUS};
  for (size_t i = 0; i < count; i++)
    draw_labelled_point(out, &board, placed[i].point, placed[i].x, placed[i].y);
  mem_free(board.taken);
  mem_free(placed);
}

bool scatter_render(struct strbuf *out, const struct chart *axes,
                    const struct scatter_point *points, size_t count) {
  enum { INSET = 16 };
  struct range x = {INFINITY, -INFINITY}, y = x;
  for (size_t i = 0; i < count; i++) {
    if (!drawable(axes, &points[i])) continue;
    range_add(&x, points[i].x);
    range_add(&y, points[i].y);
  }
  if (x.low > x.high) return false;
  struct frame f = make_frame(axes, x, y, 0);
  axis_place(&f.x, f.left + INSET, f.right - f.left - 2 * INSET);
  svg_begin(out, axes->width, axes->height, axes->y_label);
  draw_frame(out, axes, &f);
  draw_points(out, axes, &f, points, count);
  svg_end(out);
  return true;
}
