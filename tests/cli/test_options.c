/* cli/options: defaults, values, ranges, --config, records, and what is refused. */
#include "cli/options.h"

#include <math.h>
#include <string.h>

#include "io/file.h"
#include "support/support.h"

struct sample {
  int64_t tokens, unset;
  double rate, share;
  const char *out;
  int mode;
  struct text_list skip;
  struct common_options common;
};

static const struct option sample_options[] = {
    {"tokens", OPTION_INT, offsetof(struct sample, tokens), "20", 1, 1e6, NULL, "N", "tokens"},
    {"unset", OPTION_INT, offsetof(struct sample, unset), NULL, 0, 0, NULL, "N", "no default"},
    {"rate", OPTION_REAL, offsetof(struct sample, rate), NULL, 0, 0, NULL, "R", "rate"},
    {"share", OPTION_FRACTION, offsetof(struct sample, share), "0.5", 0, 0.5, NULL, "S", "share"},
    {"out", OPTION_TEXT, offsetof(struct sample, out), NULL, 0, 0, NULL, "FILE", "output"},
    {"mode", OPTION_CHOICE, offsetof(struct sample, mode), "tile", 0, 0, "joint|tile|maskllm",
     "MODE", "mode"},
    {"skip", OPTION_LIST, offsetof(struct sample, skip), NULL, 0, 0, NULL, "PATTERN", "skip"},
    COMMON_OPTIONS(struct sample, common)};

static const struct command sample_command = {
    "sample", "MODEL [FILE]", 1, 2, "s", NULL, NULL, sample_options, sizeof(struct sample), NULL};

static struct sample settings;
static struct text_list words;
static struct error err;

/* Parses a command line given as one string; words are parted by blanks. */
static enum status parse(const char *line) {
  static char copy[512];
  char *argv[32], *save = NULL;
  int argc = 0;
  bool help;
  assert_true(strlen(line) < sizeof copy);
  strcpy(copy, line);
  for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
    argv[argc++] = word;
  return options_parse(&sample_command, argc, argv, &settings, &words, &help, &err);
}

static void defaults_hold(void **state) {
  (void)state;
  must(parse("model"), err);
  assert_int_equal(settings.tokens, 20);
  assert_true(settings.unset == INT64_MIN);
  assert_true(isnan(settings.rate));
  assert_true(settings.share == 0.5);
  assert_null(settings.out);
  assert_int_equal(settings.mode, 1);
  assert_int_equal(words.count, 1);
}

static void values_are_read(void **state) {
  (void)state;
  must(
      parse("--tokens=30 model --rate 1e-3 --share 45% --mode joint --skip a --skip b -v -- --odd"),
      err);
  assert_int_equal(settings.tokens, 30);
  assert_true(settings.rate == 1e-3);
  assert_true(fabs(settings.share - 0.45) < 1e-15);
  assert_int_equal(settings.mode, 0);
  assert_int_equal(settings.skip.count, 2);
  assert_true(settings.common.verbose);
  assert_string_equal(words.items[1], "--odd");
}

static void nonsense_is_refused(void **state) {
  (void)state;
  static const char *const lines[] = {
      "model --tokens x",    "model --tokens 0",  "model --tokens",
      "model --share 51%",   "model --share nan", "model --mode fast",
      "model --unknown 1",   "model --force=1",   "",
      "model file one-more", "model -z",          "model --tokens 3x"};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    err.text[0] = 0;
    assert_int_equal(parse(lines[i]), STATUS_USAGE);
    assert_true(strlen(err.text) > 10);
  }
}

static void config_gives_way_to_the_command_line(void **state) {
  (void)state;
  const char *path = scratch_path("options.json");
  const char *text =
      "{\"tokens\": 40, \"mode\": \"joint\", \"skip\": [\"a\", \"b\"], \"force\": true}";
  must(file_write_all(path, text, strlen(text), &err), err);
  char line[300];
  snprintf(line, sizeof line, "--tokens 50 --config %s model --skip c", path);
  must(parse(line), err);
  assert_int_equal(settings.tokens, 50);
  assert_int_equal(settings.mode, 0);
  assert_true(settings.common.force);
  assert_int_equal(settings.skip.count, 1);
  assert_string_equal(settings.skip.items[0], "c");
}

static void unknown_config_key_is_refused(void **state) {
  (void)state;
  const char *path = scratch_path("bad.json");
  must(file_write_all(path, "{\"tokenz\": 1}", 13, &err), err);
  char line[300];
  snprintf(line, sizeof line, "model --config %s", path);
  assert_int_equal(parse(line), STATUS_USAGE);
  assert_non_null(strstr(err.text, "tokenz"));
}

static void record_reads_back_as_config(void **state) {
  (void)state;
  must(parse("model --tokens 77 --rate 0.125 --mode maskllm --skip q"), err);
  json_t *record = options_record(&sample_command, &settings);
  const char *path = scratch_path("record.json");
  must(json_write_file(path, record, &err), err);
  json_decref(record);
  struct sample first = settings;
  char line[300];
  snprintf(line, sizeof line, "model --config %s", path);
  must(parse(line), err);
  assert_int_equal(settings.tokens, first.tokens);
  assert_true(settings.rate == first.rate);
  assert_int_equal(settings.mode, first.mode);
  assert_int_equal(settings.skip.count, 1);
  assert_true(settings.unset == INT64_MIN);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults_hold),
      cmocka_unit_test(values_are_read),
      cmocka_unit_test(nonsense_is_refused),
      cmocka_unit_test(config_gives_way_to_the_command_line),
      cmocka_unit_test(unknown_config_key_is_refused),
      cmocka_unit_test(record_reads_back_as_config),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
