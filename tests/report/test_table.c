/* report/table: alignment, fitting, UTF-8 widths; the number formats. */
#include "report/table.h"

#include <string.h>

#include "support/support.h"

static void build(struct table *t) {
  table_column(t, "method", TABLE_LEFT);
  table_column(t, "perplexity", TABLE_RIGHT);
  table_column(t, "note", TABLE_LEFT);
  table_cell(t, "dense");
  table_cell(t, "%.2f", 35.25);
  table_cell(t, "a");
  table_cell(t, "größer als dense");
  table_cell(t, "%.1f", 1111.5);
  table_cell(t, "b");
}

static void columns_are_aligned(void **state) {
  (void)state;
  struct table t = {0};
  struct strbuf out = {0};
  build(&t);
  table_render(&t, 0, false, &out);
  assert_string_equal(strbuf_text(&out),
                      "method            perplexity  note\n"
                      "----------------------------------\n"
                      "dense                  35.25  a\n"
                      "größer als dense      1111.5  b\n");
  strbuf_clear(&out);
  table_render(&t, 0, true, &out);
  assert_non_null(strstr(strbuf_text(&out), "\033[1mmethod"));
  strbuf_free(&out);
  table_free(&t);
}

static void wide_tables_are_cut_in_their_text(void **state) {
  (void)state;
  struct table t = {0};
  struct strbuf out = {0};
  build(&t);
  table_render(&t, 28, false, &out);
  assert_string_equal(strbuf_text(&out),
                      "method       perplexity note\n"
                      "----------------------------\n"
                      "dense             35.25 a\n"
                      "größer als..     1111.5 b\n");
  strbuf_clear(&out);
  table_render(&t, 10, false, &out); /* cannot be met: numbers and short texts stay whole */
  assert_non_null(strstr(strbuf_text(&out), "1111.5"));
  strbuf_free(&out);
  table_free(&t);
}

static void formats(void **state) {
  (void)state;
  char text[32];
  format_integer(text, 1234567);
  assert_string_equal(text, "1,234,567");
  format_integer(text, INT64_MIN);
  assert_string_equal(text, "-9,223,372,036,854,775,808");
  format_integer(text, -999);
  assert_string_equal(text, "-999");
  format_integer(text, 0);
  assert_string_equal(text, "0");
  format_bytes(text, 1610612736);
  assert_string_equal(text, "1.50 GiB");
  format_bytes(text, 12);
  assert_string_equal(text, "12 bytes");
  format_duration(text, 93.4);
  assert_string_equal(text, "1 min 33 s");
  format_duration(text, 4.25);
  assert_string_equal(text, "4.2 s");
  format_duration(text, 7262);
  assert_string_equal(text, "2 h 01 min");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(columns_are_aligned),
      cmocka_unit_test(wide_tables_are_cut_in_their_text),
      cmocka_unit_test(formats),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
