/* The few SVG elements that the pictures use, appended to a string. Coordinates are in pixels of
 * the viewBox, y downwards, and always finite: a number that is not is a bug of the caller. Colours
 * come from classes that the page's style sheet defines for light, dark and print. */
#ifndef TSR_REPORT_SVG_H
#define TSR_REPORT_SVG_H

#include <stdbool.h>

#include "base/strbuf.h"

enum svg_anchor { SVG_START, SVG_MIDDLE, SVG_END };

/* `label` is what a screen reader says. */
void svg_begin(struct strbuf *out, double width, double height, const char *label);
void svg_end(struct strbuf *out);
void svg_line(struct strbuf *out, const char *class, double x1, double y1, double x2, double y2);
void svg_rect(struct strbuf *out, const char *class, double x, double y, double width,
              double height);
/* A rectangle filled to `share` (0 to 1) of its class's colour. */
void svg_shade(struct strbuf *out, const char *class, double x, double y, double width,
               double height, double share);
void svg_circle(struct strbuf *out, const char *class, double x, double y, double radius);
void svg_text(struct strbuf *out, const char *class, double x, double y, enum svg_anchor anchor,
              const char *text);
/* Turned to read upwards, centred on (x, y). */
void svg_text_upwards(struct strbuf *out, const char *class, double x, double y, const char *text);

/* A path: begin, then points, then end. */
void svg_path_begin(struct strbuf *out, const char *class);
void svg_path_to(struct strbuf *out, bool pen_down, double x, double y);
/* Adds a closed rectangle to a path. */
void svg_path_box(struct strbuf *out, double x, double y, double width, double height);
void svg_path_end(struct strbuf *out);

/* Width of a text of the pictures' 11 px labels, estimated generously. */
double svg_text_width(const char *text);

/* `text` with the characters that mark-up gives a meaning escaped; control characters become
 * spaces (line feeds and tabs stay). */
void html_text(struct strbuf *out, const char *text);

#endif
