/* tessera eval as a user meets it: what JSON it gives, and how it ends. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

static const char *model, *text;

static void need_data(void) {
  model = shared_data("models/stories260K");
  text = shared_data("calib/tiny.utf8");
  if (!model || !text) skip();
}

/* Exit status of "tessera eval ...", which must also say `word` when it fails. */
static void check_ends(int expected, const char *word, const char *arguments) {
  char output[4096];
  int status = run_command(output, sizeof output, "'%s' eval %s", program(), arguments);
  if (status != expected || !strstr(output, word))
    fail_msg("eval %s: status %d instead of %d, saying: %s", arguments, status, expected, output);
}

static void gives_json(void **state) {
  (void)state;
  struct error err = {0};
  char output[4096];
  need_data();
  const char *path = scratch_path("eval.json");
  int status = run_command(output, sizeof output,
                           "'%s' eval '%s' --ppl '%s' --window 64 --tokens 1000 --kl-to '%s' "
                           "--json '%s'",
                           program(), model, text, model, path);
  if (status) fail_msg("%s", output);
  assert_non_null(strstr(output, "perplexity"));
  assert_non_null(strstr(output, "fp32"));
  json_t *json = json_read_file(path, 1 << 20, &err);
  assert_non_null(json);
  double nll = json_number_value(json_object_get(json, "nll"));
  double perplexity = json_number_value(json_object_get(json, "perplexity"));
  assert_true(nll > 1 && nll < 3);
  assert_true(fabs(log(perplexity) - nll) < 1e-9);
  assert_int_equal(json_integer_value(json_object_get(json, "predictions")), 15 * 63);
  assert_int_equal(json_integer_value(json_object_get(json, "window")), 64);
  assert_true(json_number_value(json_object_get(json, "density")) == 1.0);
  assert_true(json_number_value(json_object_get(json, "kl")) == 0.0);
  assert_string_equal(json_get_string(json, "precision"), "fp32");
  json_decref(json);
}

/* Decoding gives the losses of one pass, but for keys and values in f16. */
static void decoding_is_asked_for_and_named(void **state) {
  (void)state;
  struct error err = {0};
  char output[8192];
  double nll[2], kl = NAN;
  need_data();
  for (int i = 0; i < 2; i++) {
    const char *path = scratch_path("decode.json");
    int status = run_command(output, sizeof output,
                             "'%s' eval '%s' --ppl '%s' --window 96 --tokens 700 --kl-to '%s' %s "
                             "--json '%s' --force",
                             program(), model, text, model, i ? "--decode" : "", path);
    if (status) fail_msg("%s", output);
    json_t *json = json_read_file(path, 1 << 20, &err);
    assert_non_null(json);
    assert_int_equal(json_is_true(json_object_get(json, "decode")), i);
    nll[i] = json_number_value(json_object_get(json, "nll"));
    kl = json_number_value(json_object_get(json, "kl"));
    json_decref(json);
  }
  assert_true(fabs(nll[0] - nll[1]) < 1e-3 && nll[0] != nll[1]);
  assert_true(kl > -1e-6 && kl < 1e-4);
}

/* The rounded products give another number, but not one far away. */
static void precision_is_asked_for_and_named(void **state) {
  (void)state;
  struct error err = {0};
  static const char *const names[] = {"fp32", "bf16"};
  char output[8192];
  double nll[2];
  need_data();
  for (int i = 0; i < 2; i++) {
    const char *path = scratch_path("precision.json");
    int status = run_command(output, sizeof output,
                             "'%s' eval '%s' --ppl '%s' --window 64 --tokens 1000 --precision %s "
                             "--json '%s' --force",
                             program(), model, text, names[i], path);
    if (status) fail_msg("%s", output);
    assert_non_null(strstr(output, names[i]));
    json_t *json = json_read_file(path, 1 << 20, &err);
    assert_non_null(json);
    assert_string_equal(json_get_string(json, "precision"), names[i]);
    nll[i] = json_number_value(json_object_get(json, "nll"));
    json_decref(json);
  }
  assert_true(nll[0] != nll[1]);
  assert_true(fabs(nll[0] - nll[1]) < 0.02);
}

static void json_has_standard_output_to_itself(void **state) {
  (void)state;
  struct error err = {0};
  char output[8192];
  need_data();
  int status = run_command(output, sizeof output,
                           "'%s' eval '%s' --ppl '%s' --window 64 --tokens 200 --json - --quiet",
                           program(), model, text);
  assert_int_equal(status, 0);
  json_t *json = json_parse(output, strlen(output), "output", &err);
  assert_non_null(json);
  assert_null(json_object_get(json, "kl")); /* not asked for */
  json_decref(json);
}

static void ends_as_documented(void **state) {
  (void)state;
  char line[2048];
  need_data();
  check_ends(2, "usage", "");
  snprintf(line, sizeof line, "'%s'", model);
  check_ends(2, "--ppl", line);
  snprintf(line, sizeof line, "'%s' --ppl '%s' --window 1", model, text);
  check_ends(2, "--window", line);
  snprintf(line, sizeof line, "'%s' --ppl '%s' --precision fp7", model, text);
  check_ends(2, "--precision", line);
  snprintf(line, sizeof line, "'%s' --ppl '%s' --kl-cache x", model, text);
  check_ends(2, "--kl-to", line);
  /* a corpus smaller than one window */
  snprintf(line, sizeof line, "'%s' --ppl '%s' --tokens 50 --window 64", model, text);
  check_ends(3, "64", line);
  /* text that is not UTF-8 */
  struct error err = {0};
  const char *bad = scratch_path("bad.txt");
  must(file_write_all(bad, "one \xff two", 9, &err), err);
  snprintf(line, sizeof line, "'%s' --ppl '%s' --window 4", model, bad);
  check_ends(3, "UTF-8", line);
  /* a mask that is none, and a model that is none */
  snprintf(line, sizeof line, "'%s' --ppl '%s' --mask '%s'", model, text, bad);
  check_ends(3, "bad.txt", line);
  snprintf(line, sizeof line, "'%s' --ppl '%s'", bad, text);
  check_ends(3, "bad.txt", line);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gives_json),
      cmocka_unit_test(decoding_is_asked_for_and_named),
      cmocka_unit_test(precision_is_asked_for_and_named),
      cmocka_unit_test(json_has_standard_output_to_itself),
      cmocka_unit_test(ends_as_documented),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
