/* SVG elements: see svg.h. */
#include "report/svg.h"

#include <math.h>

void html_text(struct strbuf *out, const char *text) {
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '&')
      strbuf_puts(out, "&amp;");
    else if (c == '<')
      strbuf_puts(out, "&lt;");
    else if (c == '>')
      strbuf_puts(out, "&gt;");
    else if (c == '"')
      strbuf_puts(out, "&quot;");
    else
      strbuf_putc(out, (c < 32 && c != '\n' && c != '\t') || c == 127 ? ' ' : (char)c);
  }
}

/* ` name="1.25"`, without needless digits. */
static void put_number(struct strbuf *out, const char *before, double value, const char *after) {
  INVARIANT(isfinite(value) && fabs(value) < 1e7);
  double tenths = round(value * 10) / 10;
  strbuf_printf(out, tenths == rint(tenths) ? "%s%.0f%s" : "%s%.1f%s", before, tenths + 0.0, after);
}

void svg_begin(struct strbuf *out, double width, double height, const char *label) {
  put_number(out, "<svg viewBox=\"0 0 ", width, " ");
  put_number(out, "", height, "\" ");
  put_number(out, "style=\"max-width:", width, "px\" role=\"img\" aria-label=\"");
  html_text(out, label);
  strbuf_puts(out, "\">\n");
}

void svg_end(struct strbuf *out) { strbuf_puts(out, "</svg>\n"); }

void svg_line(struct strbuf *out, const char *class, double x1, double y1, double x2, double y2) {
  strbuf_printf(out, "<line class=\"%s\"", class);
  put_number(out, " x1=\"", x1, "\"");
  put_number(out, " y1=\"", y1, "\"");
  put_number(out, " x2=\"", x2, "\"");
  put_number(out, " y2=\"", y2, "\"/>\n");
}

static void rect(struct strbuf *out, const char *class, double x, double y, double width,
                 double height) {
  strbuf_printf(out, "<rect class=\"%s\"", class);
  put_number(out, " x=\"", x, "\"");
  put_number(out, " y=\"", y, "\"");
  put_number(out, " width=\"", width, "\"");
  put_number(out, " height=\"", height, "\"");
}

void svg_rect(struct strbuf *out, const char *class, double x, double y, double width,
              double height) {
  rect(out, class, x, y, width, height);
  strbuf_puts(out, "/>\n");
}

void svg_shade(struct strbuf *out, const char *class, double x, double y, double width,
               double height, double share) {
  INVARIANT(share >= 0 && share <= 1);
  rect(out, class, x, y, width, height);
  strbuf_printf(out, " fill-opacity=\"%.2f\"/>\n", share);
}

void svg_circle(struct strbuf *out, const char *class, double x, double y, double radius) {
  strbuf_printf(out, "<circle class=\"%s\"", class);
  put_number(out, " cx=\"", x, "\"");
  put_number(out, " cy=\"", y, "\"");
  put_number(out, " r=\"", radius, "\"/>\n");
}

static void text_open(struct strbuf *out, const char *class, enum svg_anchor anchor) {
  static const char *const name[] = {"start", "middle", "end"};
  strbuf_printf(out, "<text class=\"%s\" text-anchor=\"%s\"", class, name[anchor]);
}

void svg_text(struct strbuf *out, const char *class, double x, double y, enum svg_anchor anchor,
              const char *text) {
  text_open(out, class, anchor);
  put_number(out, " x=\"", x, "\"");
  put_number(out, " y=\"", y, "\">");
  html_text(out, text);
  strbuf_puts(out, "</text>\n");
}

void svg_text_upwards(struct strbuf *out, const char *class, double x, double y, const char *text) {
  text_open(out, class, SVG_MIDDLE);
  put_number(out, " transform=\"translate(", x, " ");
  put_number(out, "", y, ") rotate(-90)\">");
  html_text(out, text);
  strbuf_puts(out, "</text>\n");
}

void svg_path_begin(struct strbuf *out, const char *class) {
  strbuf_printf(out, "<path class=\"%s\" d=\"", class);
}

void svg_path_to(struct strbuf *out, bool pen_down, double x, double y) {
  put_number(out, pen_down ? "L" : "M", x, " ");
  put_number(out, "", y, "");
}

void svg_path_box(struct strbuf *out, double x, double y, double width, double height) {
  svg_path_to(out, false, x, y);
  put_number(out, "h", width, "");
  put_number(out, "v", height, "");
  put_number(out, "h", -width, "z");
}

void svg_path_end(struct strbuf *out) { strbuf_puts(out, "\"/>\n"); }

double svg_text_width(const char *text) {
  double width = 0;
  for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80 ? 6.3 : 0;
  return width;
}
