/* report: what records become: the page is well formed, links to nothing outside, holds only finite
 * numbers, and survives torn, hostile and odd records. */
#include "report/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/rng.h"
#include "io/file.h"
#include "report/axis.h"
#include "report/chart.h"
#include "report/heatmap.h"
#include "report/summary.h"
#include "report/svg.h"
#include "support/support.h"

/* --- a small HTML checker --- */

static bool is_void(const char *name) {
  static const char *const names[] = {"meta", "br", "!DOCTYPE"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(name, names[i])) return true;
  return false;
}

enum { DEPTH_MAX = 64 };

/* Every element is closed in order, every "<" begins a tag, every "&" an entity. */
static void check_nesting(const char *page) {
  char open[DEPTH_MAX][16];
  int depth = 0;
  for (const char *at = page; *at; at++) {
    if (*at == '&' && strncmp(at, "&amp;", 5) && strncmp(at, "&lt;", 4) && strncmp(at, "&gt;", 4) &&
        strncmp(at, "&quot;", 6))
      fail_msg("a bare & before: %.40s", at);
    if (*at != '<') continue;
    const char *end = strchr(at, '>');
    char name[16] = "";
    bool closing = at[1] == '/';
    assert_non_null(end);
    sscanf(at + 1 + closing, "%15[A-Za-z0-9!]", name);
    if (!*name) fail_msg("no tag: %.40s", at);
    if (closing) {
      if (depth == 0 || strcmp(open[depth - 1], name) != 0)
        fail_msg("</%s> closes <%s>", name, depth ? open[depth - 1] : "nothing");
      depth--;
    } else if (end[-1] != '/' && !is_void(name)) {
      assert_true(depth < DEPTH_MAX);
      strcpy(open[depth++], name);
    }
    at = end;
  }
  assert_int_equal(depth, 0);
}

static void check_lacks(const char *what, const char *const *words, size_t count,
                        const char *text) {
  for (size_t i = 0; i < count; i++)
    if (strstr(text, words[i])) fail_msg("%s holds %s", what, words[i]);
}

/* No tag reaches outside, and no attribute is NaN or infinite. What a text says is its own affair.
 */
static void check_tags(const char *page) {
  static const char *const never[] = {"http",    "src=",  "href=",  "<script", "<link",
                                      "<iframe", "\"nan", "\"-nan", "\"inf",   "\"-inf",
                                      " nan",    " inf",  "Lnan",   "Mnan",    "hnan"};
  char tag[1 << 16];
  for (const char *at = page; (at = strchr(at, '<')); at++) {
    size_t length = strcspn(at, ">");
    assert_true(length < sizeof tag);
    memcpy(tag, at, length);
    tag[length] = 0;
    check_lacks("a tag", never, sizeof never / sizeof *never, tag);
  }
}

static void check_page(const char *page) {
  static const char *const never[] = {"url(", "@import"};
  check_nesting(page);
  check_tags(page);
  check_lacks("the page", never, 2, page);
  /* coordinates of paths are plain numbers */
  for (const char *path = page; (path = strstr(path, " d=\"")); path++)
    assert_int_equal(path[4 + strspn(path + 4, "MLhvz0123456789.- ")], '"');
}

/* --- records --- */

static char *write_file(const char *name, const char *text) {
  struct error err = {0};
  const char *path = scratch_path(name);
  must(file_write_all(path, text, strlen(text), &err), err);
  return (char *)path;
}

static const char results[] =
    "{\"type\":\"about\",\"title\":\"A <b>test</b> & more\",\"model\":\"m\",\"machine\":\"two\"}\n"
    "{\"type\":\"row\",\"name\":\"dense\",\"density\":1,\"perplexity\":35.2,\"predictions\":100,"
    "\"window\":64}\n"
    "{\"type\":\"row\",\"name\":\"greedy\",\"density\":0.55,\"perplexity\":203.0,\"kl\":1.5}\n"
    "{\"type\":\"row\",\"name\":\"learned tile\",\"density\":0.5501,\"perplexity\":900,"
    "\"run\":\"run\"}\n"
    "{\"type\":\"text\",\"name\":\"dense\",\"prompt\":\"<a href='http\",\"text\":\" x & y <z>\"}\n"
    "{\"type\":\"speed\",\"model\":\"a/b\",\"form\":\"dense\",\"dtype\":\"bf16\",\"phase\":"
    "\"decode\",\"batch\":1,\"tokens_per_s\":40.5}\n"
    "{\"type\":\"row\",\"name\":\"learned tile\",\"perplexity\":100.0}\n"
    "{\"type\":\"row\",\"name\":\"tor";

static void write_mask(const char *path, double dense_share) {
  static const char *const roles[] = {"self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"};
  struct error err = {0};
  struct mask_set set = {0};
  struct rng rng = rng_make(3, 0);
  for (int i = 0; i < 12; i++) {
    char name[96];
    struct mask_matrix m;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", i / 3, roles[i % 3]);
    must(mask_matrix_init_hybrid(&m, name, 300, 900, 128, 128, &err), err);
    for (int64_t t = 0; t < mask_tile_count(&m); t++) m.tiles[t] = rng_uniform(&rng) < dense_share;
    must(mask_set_add(&set, &m, &err), err);
  }
  must(mask_save(&set, path, &err), err);
  mask_set_free(&set);
}

/* scratch()/results.jsonl and scratch()/run. The run was killed at step 6 and resumed at 5. */
static void write_records(void) {
  struct strbuf text = {0};
  mkdir(scratch_path("run"), 0777);
  strbuf_puts(&text,
              "{\"type\":\"settings\",\"time\":\"t\",\"settings\":{\"mode\":\"tile\",\"sparsity\":"
              "0.45},\"model\":\"m\"}\n"
              "{\"type\":\"prior\",\"loss\":4.9,\"dense_loss\":3.5}\n");
  for (int step = 1; step <= 12; step++) {
    if (step == 7)
      strbuf_puts(&text, "{\"type\":\"step\",\"ste\n{\"type\":\"resume\",\"step\":4}\n");
    int counted = step < 7 ? step : step - 2;
    strbuf_printf(
        &text,
        "{\"type\":\"step\",\"step\":%d,\"tokens\":%d,\"loss\":%.3f,\"density_soft\":0.55,"
        "\"density_hard\":0.56,\"flips_tile\":%d,\"flips_24\":0}\n",
        counted, counted * 64, 5.0 - 0.1 * step, 20 - step);
  }
  strbuf_puts(&text,
              "{\"type\":\"heldout\",\"step\":10,\"tokens\":640,\"loss\":4.1}\n"
              "{\"type\":\"final\",\"density\":0.55,\"best_loss\":4.1,\"prior_loss\":4.9,"
              "\"dense_loss\":3.5,\"seconds\":12.5}\n");
  write_file("run/record.jsonl", strbuf_text(&text));
  write_mask(scratch_path("run/mask.safetensors"), 0.2);
  write_file("results.jsonl", results);
  strbuf_free(&text);
}

static void load(struct report_data *data, const char *path) {
  struct error err = {0};
  report_data_init(data);
  must(report_data_add(data, path, &err), err);
}

static void records_are_read(void **state) {
  (void)state;
  struct error err = {0};
  struct report_data data;
  write_records();
  load(&data, scratch());
  assert_int_equal(json_array_size(data.rows), 3); /* the torn row is left out */
  assert_int_equal(data.damaged_lines, 2);
  const json_t *learned = json_array_get(data.rows, 2);
  assert_true(report_number(learned, "perplexity") == 100); /* the later line counts */
  assert_true(report_number(learned, "density") == 0.5501); /* what it does not say stays */
  assert_true(report_number(learned, "learning_tokens") == 640);
  assert_true(report_number(learned, "seconds_to_make") == 12.5);
  assert_int_equal(data.run_count, 1);
  must(report_data_add(&data, scratch_path("run"), &err), err); /* named twice, read once */
  assert_int_equal(data.run_count, 1);
  const struct report_run *run = &data.runs[0];
  assert_string_equal(run->name, "learned tile");
  assert_string_equal(json_get_string(run->settings, "mode"), "tile");
  assert_int_equal(run->steps.count, 10); /* steps 5 and 6 once, as the resumed run had them */
  for (int i = 0; i < 10; i++) assert_true(run->steps.values[FIELD_STEP][i] == i + 1);
  assert_true(fabs(run->steps.values[FIELD_LOSS][4] - 4.3) < 1e-9);
  assert_int_equal(run->heldout.count, 2); /* the prior, and step 10 */
  assert_true(run->heldout.values[FIELD_LOSS][0] == 4.9 && run->dense_loss == 3.5);
  assert_true(run->has_mask);
  report_data_free(&data);
}

static void the_page_is_well_formed(void **state) {
  (void)state;
  struct report_data data;
  struct strbuf page = {0};
  write_records();
  load(&data, scratch());
  report_html(&page, &data);
  check_page(strbuf_text(&page));
  const char *const expected[] = {"A &lt;b&gt;test&lt;/b&gt; &amp; more",
                                  "Learning took away",
                                  "Quality against density",
                                  "Where the dense tiles are",
                                  "x &amp; y &lt;z&gt;",
                                  "2 damaged lines"};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    if (!strstr(page.data, expected[i])) fail_msg("the page lacks: %s", expected[i]);
  strbuf_free(&page);
  report_data_free(&data);
}

static void odd_values_are_survived(void **state) {
  (void)state;
  static const char *const lines[] = {
      "{\"type\":\"row\",\"name\":\"a\",\"density\":1,\"perplexity\":0}",
      "{\"type\":\"row\",\"name\":\"b\",\"density\":0.5,\"perplexity\":-3}",
      "{\"type\":\"row\",\"name\":\"c\",\"density\":0.5,\"perplexity\":1e308}",
      "{\"type\":\"row\",\"name\":\"d\",\"density\":-7,\"perplexity\":1e-300}",
      "{\"type\":\"row\",\"name\":\"e\",\"density\":1e300,\"perplexity\":5}",
      "{\"type\":\"row\",\"name\":\"e\",\"disk_bytes\":1e300,\"learning_tokens\":1e300}",
      "{\"type\":\"row\",\"name\":\"f\",\"density\":\"much\",\"perplexity\":null}",
      "{\"type\":\"row\",\"name\":7}",
      "{\"type\":\"row\"}",
      "{\"type\":7}",
      "{\"type\":\"step\",\"step\":1,\"loss\":1e308,\"tokens\":1e308}",
      "{\"type\":\"text\",\"name\":{},\"text\":\"\\u0007\\u202e\"}",
      "{\"type\":\"speed\",\"batch\":-1e300}",
      "[1,2]",
      "\"text\"",
      "{\"type\":\"about\",\"title\":[],\"machine\":{\"x\":{\"y\":[1,{}]}}}"};
  struct strbuf text = {0};
  for (size_t upto = 1; upto <= sizeof lines / sizeof *lines; upto++) {
    struct report_data data;
    struct strbuf page = {0};
    strbuf_printf(&text, "%s\n", lines[upto - 1]);
    load(&data, write_file("odd.jsonl", strbuf_text(&text)));
    report_html(&page, &data);
    check_page(strbuf_text(&page));
    strbuf_free(&page);
    report_data_free(&data);
  }
  strbuf_free(&text);
}

static void damaged_records_are_survived(void **state) {
  (void)state;
  struct rng rng = rng_make(12, 0);
  write_records();
  for (int round = 0; round < 300; round++) {
    char bytes[sizeof results];
    struct report_data data;
    struct strbuf page = {0};
    struct error err = {0};
    memcpy(bytes, results, sizeof results);
    for (int i = 0; i < 6; i++)
      bytes[rng_below(&rng, sizeof results - 1)] = (char)(32 + rng_below(&rng, 95));
    FILE *file = fopen(scratch_path("damaged.jsonl"), "w");
    assert_non_null(file);
    fwrite(bytes, 1, sizeof results - 1, file);
    fclose(file);
    report_data_init(&data);
    enum status status = report_data_add(&data, scratch_path("damaged.jsonl"), &err);
    if (status == STATUS_OK) {
      report_html(&page, &data);
      check_nesting(strbuf_text(&page));
    } else {
      assert_true(strlen(err.text) > 10);
    }
    strbuf_free(&page);
    report_data_free(&data);
  }
}

/* --- pictures --- */

static void ticks_are_round_and_inside(void **state) {
  (void)state;
  const double ranges[][2] = {{0, 1},       {0.4999, 0.55}, {35, 2609},  {1e-9, 3e-9},
                              {99.9, 100},  {0, 61440},     {5, 5},      {-3, 4},
                              {1e5, 1.1e9}, {0.5, 0.5},     {1e-5, 1e12}};
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
    for (int ends = AXIS_TIGHT; ends <= AXIS_LOG; ends++) {
      if (ends == AXIS_LOG && !(ranges[i][0] > 0)) continue;
      struct axis a = axis_make(ranges[i][0], ranges[i][1], (enum axis_ends)ends, 7);
      axis_place(&a, 10, 100);
      assert_in_range(a.tick_count, 1, AXIS_TICKS_MAX);
      assert_true(a.low <= ranges[i][0] && a.high >= ranges[i][1] && a.low < a.high);
      for (int t = 0; t < a.tick_count; t++) {
        double at = axis_at(&a, a.ticks[t]);
        if (!(at > 9.9 && at < 110.1)) fail_msg("tick %g lies at %g", a.ticks[t], at);
        if (t && !(a.ticks[t] > a.ticks[t - 1])) fail_msg("ticks do not ascend");
      }
    }
}

static void labels_are_moved_apart(void **state) {
  (void)state;
  double y[] = {10, 11, 12, 95, 99};
  chart_spread(y, 5, 10, 0, 100);
  for (int i = 1; i < 5; i++) assert_true(y[i] - y[i - 1] >= 10 - 1e-9);
  assert_true(y[4] <= 100);
}

/* Boxes of all labels in a scatter, read back from the SVG. */
static void scatter_labels_do_not_overlap(void **state) {
  (void)state;
  enum { POINTS = 14 };
  struct scatter_point points[POINTS];
  static char names[POINTS][24];
  struct strbuf out = {0};
  struct rng rng = rng_make(8, 0);
  for (int i = 0; i < POINTS; i++) {
    snprintf(names[i], sizeof names[i], "method number %d", i);
    points[i] = (struct scatter_point){.x = i < 7    ? 50
                                            : i < 12 ? 55
                                                     : 100,
                                       .y = exp(4 + rng_uniform(&rng) * 2),
                                       .label = names[i]};
  }
  struct chart axes = {.x_label = "x", .y_label = "y", .width = 900, .height = 420, .y_log = true};
  assert_true(scatter_render(&out, &axes, points, POINTS));
  double x[POINTS], y[POINTS];
  int found = 0;
  for (const char *at = out.data; (at = strstr(at, "<text class=\"name")); at++) {
    char anchor[16];
    assert_int_equal(
        sscanf(at, "<text class=\"name c%*d\" text-anchor=\"%15[a-z]\" x=\"%lf\" y=\"%lf\"", anchor,
               &x[found], &y[found]),
        3);
    if (!strcmp(anchor, "end")) x[found] -= svg_text_width(names[10]);
    found++;
  }
  assert_int_equal(found, POINTS);
  for (int i = 0; i < POINTS; i++)
    for (int j = 0; j < i; j++)
      if (fabs(y[i] - y[j]) < 11 && fabs(x[i] - x[j]) < svg_text_width(names[10]) - 8)
        fail_msg("labels %d and %d overlap", i, j);
  strbuf_free(&out);
}

static void grids_come_from_names(void **state) {
  (void)state;
  struct error err = {0};
  struct mask_set set = {0};
  static const char *const names[] = {"model.layers.2.mlp.down_proj.weight",
                                      "model.layers.0.self_attn.q_proj.weight", "lm_head.weight",
                                      "model.layers.99999.self_attn.q_proj.weight", "odd"};
  for (int i = 0; i < 5; i++) {
    struct mask_matrix m;
    must(mask_matrix_init_hybrid(&m, names[i], 64, 64, 32, 32, &err), err);
    must(mask_set_add(&set, &m, &err), err);
  }
  struct mask_grid grid;
  assert_true(mask_grid_init(&grid, &set));
  assert_int_equal(grid.blocks, 3);
  assert_int_equal(grid.roles, 2);
  assert_string_equal(grid.role[0], "q");
  assert_string_equal(grid.role[1], "down");
  assert_ptr_equal(grid.at[0], &set.items[1]);
  assert_ptr_equal(grid.at[2 * 2 + 1], &set.items[0]);
  assert_null(grid.at[1]);
  mask_grid_release(&grid);
  mask_set_free(&set);
}

static void summary_names_the_best(void **state) {
  (void)state;
  struct report_data data;
  struct strbuf text = {0};
  write_records();
  load(&data, scratch());
  struct summary s = summary_of(data.rows);
  assert_string_equal(json_get_string(s.dense, "name"), "dense");
  assert_string_equal(json_get_string(s.learned, "name"), "learned tile");
  assert_string_equal(json_get_string(s.one_shot, "name"), "greedy");
  assert_true(fabs(summary_distance(s.learned, s.dense) - log(100 / 35.2)) < 1e-12);
  summary_sentences(&text, &s);
  assert_non_null(strstr(strbuf_text(&text), "took away 40 %")); /* 1 - 1.044 / 1.752 */
  strbuf_free(&text);
  report_data_free(&data);
}

/* --- the command --- */

static void command_ends_as_documented(void **state) {
  (void)state;
  char output[8192];
  write_records();
  const char *page = scratch_path("page.html");
  assert_int_equal(run_command(output, sizeof output, "'%s' report", program()), 2);
  assert_int_equal(run_command(output, sizeof output, "'%s' report '%s'", program(), scratch()), 2);
  assert_non_null(strstr(output, "--out"));
  int status =
      run_command(output, sizeof output, "'%s' report '%s' --out '%s'", program(), scratch(), page);
  if (status) fail_msg("%s", output);
  assert_non_null(strstr(output, "learned tile"));
  assert_int_equal(
      run_command(output, sizeof output, "'%s' report '%s' --out '%s'", program(), scratch(), page),
      3); /* exists */
  assert_int_equal(run_command(output, sizeof output, "'%s' report '%s' --out '%s' --force",
                               program(), scratch(), page),
                   0);
  mkdir(scratch_path("empty"), 0777);
  assert_int_equal(run_command(output, sizeof output, "'%s' report '%s' --out '%s' --force",
                               program(), scratch_path("empty"), page),
                   3);
  assert_non_null(strstr(output, "record.jsonl"));
  assert_true(file_exists(page)); /* a refused run takes nothing away */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(records_are_read),
      cmocka_unit_test(the_page_is_well_formed),
      cmocka_unit_test(odd_values_are_survived),
      cmocka_unit_test(damaged_records_are_survived),
      cmocka_unit_test(ticks_are_round_and_inside),
      cmocka_unit_test(labels_are_moved_apart),
      cmocka_unit_test(scatter_labels_do_not_overlap),
      cmocka_unit_test(grids_come_from_names),
      cmocka_unit_test(summary_names_the_best),
      cmocka_unit_test(command_ends_as_documented),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
