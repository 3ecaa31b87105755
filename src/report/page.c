/* Page frame: see page.h. The style sheet names every colour once for light and once for dark
 * pages; print takes the light ones. Series colours are Okabe and Ito's, which people with the
 * common colour deficiencies can tell apart, darkened until they can be read as text on white. */
#include "report/page.h"

#include "report/svg.h"

static const char style[] =
    ":root{--bg:#fff;--fg:#1c2127;--muted:#5b6570;--rule:#d9dee3;--soft:#f4f6f8;--heat:#0b5a9d;"
    "--onheat:#fff;--c0:#0072b2;--c1:#b84d00;--c2:#00795a;--c3:#a33e7f;--c4:#8a6200;--c5:#2a7fa8;"
    "--c6:#6b4fb3;--c7:#555}\n"
    "@media (prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e6e9ec;--muted:#9aa5b0;"
    "--rule:#343b43;--soft:#1d2329;--heat:#6db8f2;--onheat:#08131c;--c0:#62b6f0;--c1:#ff9a57;"
    "--c2:#3fd0a4;--c3:#ec9bcb;--c4:#efc04f;--c5:#8fd3f5;--c6:#b9a3f5;--c7:#b5bcc4}}\n"
    "*{box-sizing:border-box;print-color-adjust:exact;-webkit-print-color-adjust:exact}\n"
    "body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"
    "'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}\n"
    "main{max-width:1060px;margin:0 auto;padding:40px 28px 64px}\n"
    "h1{font-size:1.65em;line-height:1.2;margin:0 0 .2em;letter-spacing:-.01em}\n"
    "h2{font-size:1.2em;margin:2.4em 0 .5em;padding-top:.9em;border-top:1px solid var(--rule)}\n"
    "h3{font-size:1em;margin:1.6em 0 .4em}\n"
    "p{margin:.5em 0 1em;max-width:76ch}\n"
    ".sub{color:var(--muted);margin:0}\n"
    ".lead{font-size:1.13em;line-height:1.5;margin:1.3em 0 0;padding:14px 18px;"
    "background:var(--soft);border-left:4px solid var(--heat);max-width:none}\n"
    "figure{margin:1.2em 0 1.8em}\n"
    "figcaption{color:var(--muted);font-size:.88em;margin-top:.5em;max-width:88ch}\n"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:0 24px}\n"
    ".scroll{overflow-x:auto}\n"
    "table{border-collapse:collapse;font-size:.86em;font-variant-numeric:tabular-nums;margin:1em 0}"
    "\n"
    "th,td{padding:5px 12px 5px 0;text-align:left;border-bottom:1px solid var(--rule);"
    "vertical-align:baseline}\n"
    "th{font-weight:600;border-bottom:2px solid var(--muted);white-space:nowrap}\n"
    "th.r,td.r{text-align:right;padding:5px 6px 5px 10px;white-space:nowrap}\n"
    "td:first-child,th:first-child{padding-left:6px}\n"
    "tr.best td{background:var(--soft);font-weight:650}\n"
    "td .note{display:block;min-width:17em;color:var(--muted);font-size:.9em;font-weight:400}\n"
    ".sample{margin:0 0 1.1em;padding:10px 16px;background:var(--soft);border-radius:6px}\n"
    ".sample b{display:block;font-size:.88em;margin-bottom:.25em}\n"
    ".sample p{margin:0;max-width:none;white-space:pre-wrap;overflow-wrap:anywhere;"
    "font-family:Georgia,'Times New Roman',serif}\n"
    ".sample .prompt{color:var(--muted)}\n"
    ".keys{columns:3 250px;column-gap:28px;font-size:.86em;margin:.6em 0}"
    ".keys div{display:flex;gap:10px;justify-content:space-between;break-inside:avoid;"
    "border-bottom:1px solid var(--rule);padding:2px 0}.keys dt{color:var(--muted)}"
    ".keys dd{margin:0;text-align:right;overflow-wrap:anywhere}\n"
    "footer{margin-top:3em;padding-top:1em;border-top:1px solid var(--rule);color:var(--muted);"
    "font-size:.85em}\n"
    "svg{display:block;width:100%;height:auto;font:11px system-ui,-apple-system,'Segoe UI',Roboto,"
    "Arial,sans-serif}\n"
    "svg text{fill:var(--fg)}svg .tick,svg .marklabel{fill:var(--muted)}\n"
    "svg .label{fill:var(--muted);font-size:11.5px}svg .ct{font-size:12.5px;font-weight:600}\n"
    ".grid{stroke:var(--rule)}.axis{stroke:var(--muted)}\n"
    ".mark{stroke:var(--muted);stroke-dasharray:2 4}.lead-line{stroke:var(--muted);opacity:.55}\n"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}.dash{stroke-dasharray:6 4}\n"
    ".faint{stroke-width:1;opacity:.35}.ring{fill:var(--bg);stroke-width:2}\n"
    "svg .name{font-weight:600}\n"
    ".cell{fill:var(--soft);stroke:var(--rule);stroke-width:.5}.heat{fill:var(--heat)}\n"
    "svg .celltext{font-size:10.5px}svg .cellhigh{fill:var(--onheat);font-size:10.5px}\n"
    ".tile{fill:var(--heat)}.t1{opacity:.25}.t2{opacity:.5}.t3{opacity:.75}\n"
    "@media print{:root{--bg:#fff;--fg:#000;--muted:#444;--rule:#bbb;--soft:#f4f4f4;"
    "--heat:#0b5a9d;--onheat:#fff;--c0:#0072b2;--c1:#b84d00;--c2:#00795a;--c3:#a33e7f;"
    "--c4:#8a6200;--c5:#2a7fa8;--c6:#6b4fb3;--c7:#555}"
    "body{font-size:9.5pt}main{max-width:none;padding:0}figure,tr,.sample{break-inside:avoid}"
    "h2,h3{break-after:avoid}.scroll{overflow:visible}table{font-size:.78em}"
    "td .note{min-width:0}.pair{grid-template-columns:1fr 1fr}svg{max-height:225mm}"
    "@page{margin:14mm}}\n";
static void put_series_colors(struct strbuf *out) {
  for (int c = 0; c < 8; c++)
    strbuf_printf(out,
                  ".line.c%d,.ring.c%d{stroke:var(--c%d)}.dot.c%d{fill:var(--c%d)}"
                  "svg .name.c%d{fill:var(--c%d)}\n",
                  c, c, c, c, c, c, c);
}

void page_begin(struct strbuf *out, const char *title, const char *subtitle) {
  strbuf_puts(out,
              "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
              "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
              "<meta name=\"color-scheme\" content=\"light dark\">\n<title>");
  html_text(out, title);
  strbuf_puts(out, "</title>\n<style>\n");
  strbuf_puts(out, style);
  put_series_colors(out);
  strbuf_puts(out, "</style>\n</head>\n<body>\n<main>\n<h1>");
  html_text(out, title);
  strbuf_puts(out, "</h1>\n");
  if (*subtitle) {
    strbuf_puts(out, "<p class=\"sub\">");
    html_text(out, subtitle);
    strbuf_puts(out, "</p>\n");
  }
}

void page_end(struct strbuf *out, const char *footer) {
  strbuf_puts(out, "<footer>");
  html_text(out, footer);
  strbuf_puts(out, "</footer>\n</main>\n</body>\n</html>\n");
}

static void element(struct strbuf *out, const char *open, const char *text, const char *close) {
  strbuf_puts(out, open);
  html_text(out, text);
  strbuf_puts(out, close);
}

void page_heading(struct strbuf *out, const char *text) { element(out, "<h2>", text, "</h2>\n"); }

void page_paragraph(struct strbuf *out, const char *text) { element(out, "<p>", text, "</p>\n"); }

void page_figure_begin(struct strbuf *out) { strbuf_puts(out, "<figure>\n"); }

void page_figure_end(struct strbuf *out, const char *caption) {
  if (*caption) element(out, "<figcaption>", caption, "</figcaption>\n");
  strbuf_puts(out, "</figure>\n");
}

/* A cell; what follows a line feed is shown small below. */
static void put_cell(struct strbuf *out, const char *tag, enum table_align align,
                     const char *text) {
  const char *note = text;
  while (*note && *note != '\n') note++;
  struct strbuf first = {0};
  strbuf_append(&first, text, (size_t)(note - text));
  strbuf_printf(out, "<%s%s>", tag, align == TABLE_RIGHT ? " class=\"r\"" : "");
  html_text(out, strbuf_text(&first));
  if (*note) element(out, "<span class=\"note\">", note + 1, "</span>");
  strbuf_printf(out, "</%s>", tag);
  strbuf_free(&first);
}

void page_table(struct strbuf *out, const struct table *table, int marked) {
  strbuf_puts(out, "<div class=\"scroll\"><table>\n<thead><tr>");
  for (int c = 0; c < table->column_count; c++)
    put_cell(out, "th", table->columns[c].align, table->columns[c].title);
  strbuf_puts(out, "</tr></thead>\n<tbody>\n");
  size_t columns = (size_t)table->column_count;
  for (size_t row = 0; row * columns < table->cell_count; row++) {
    strbuf_puts(out, (int)row == marked ? "<tr class=\"best\">" : "<tr>");
    for (size_t c = 0; c < columns; c++)
      put_cell(out, "td", table->columns[c].align, table->cells[row * columns + c]);
    strbuf_puts(out, "</tr>\n");
  }
  strbuf_puts(out, "</tbody></table></div>\n");
}
