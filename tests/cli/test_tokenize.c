/* The tokenize command, as a user types it. */
#include <stdio.h>
#include <string.h>

#include "io/file.h"
#include "support/support.h"

static const char *write_text(const char *name, const char *text, size_t bytes) {
  struct error err = {0};
  const char *path = scratch_path(name);
  must(file_write_all(path, text, bytes, &err), err);
  return path;
}

/* Runs `tessera tokenize MODEL arguments` with `input` on standard input. */
static int tokenize(char *output, size_t bytes, const char *model, const char *arguments,
                    const char *input) {
  const char *path = write_text("stdin", input, strlen(input));
  return run_command(output, bytes, "'%s' tokenize '%s' %s < '%s'", program(), golden(model),
                     arguments, path);
}

static void check(const char *model, const char *arguments, const char *input,
                  const char *expected) {
  char output[4096];
  int status = tokenize(output, sizeof output, model, arguments, input);
  if (status) fail_msg("exit status %d: %s", status, output);
  assert_string_equal(output, expected);
}

static void check_fails(const char *model, const char *arguments, const char *input, int status,
                        const char *reason) {
  char output[4096];
  assert_int_equal(tokenize(output, sizeof output, model, arguments, input), status);
  if (!strstr(output, reason)) fail_msg("\"%s\" does not say \"%s\"", output, reason);
}

static const char model[] = "tokenizer_fallback.model", json[] = "tokenizer_byte_level.json";

static void test_ids_on_one_line(void **state) {
  char with_bos[256], without[256], file[512];
  assert_int_equal(tokenize(with_bos, sizeof with_bos, model, "", "the\nof"), 0);
  assert_int_equal(tokenize(without, sizeof without, model, "--no-bos", "the\nof"), 0);
  assert_int_equal(strncmp(with_bos, "1 ", 2), 0);
  assert_string_equal(with_bos + 2, without);
  assert_ptr_equal(strchr(without, '\n'), without + strlen(without) - 1);
  check(model, "-", "the\nof", with_bos);
  snprintf(file, sizeof file, "'%s'", write_text("file", "the\nof", 6));
  check(model, file, "", with_bos);
  check(model, "", "", "1\n");
  check(model, "--no-bos", "", "\n");
}

static void test_lines(void **state) {
  char a[256], b[256], both[1024];
  assert_int_equal(tokenize(a, sizeof a, json, "", "the"), 0);
  assert_int_equal(tokenize(b, sizeof b, json, "", "of "), 0);
  snprintf(both, sizeof both, "%s1 2\n%s", a, b);
  check(json, "--lines", "the\n\nof ", both);
  check(json, "--lines", "the\n\nof \n", both);
  check(json, "--lines", "", "");
}

static void test_decode(void **state) {
  char ids[512];
  static const char text[] = "na\xc3\xafve  text\n\n<s> and \xf0\x9f\xa6\x99";
  assert_int_equal(tokenize(ids, sizeof ids, json, "--no-bos", text), 0);
  check(json, "--decode", ids, text);
  check(json, "--decode", "1\n 2\t1", "<s></s><s>");
  check(json, "--decode --no-special", "1 2", "");
  check(json, "--decode --lines", "1\n2\n", "<s>\n</s>\n");
  check(json, "--decode", "", "");
}

static void test_special_texts(void **state) {
  char plain[256];
  check(json, "--no-bos", "<s>", "1\n");
  assert_int_equal(tokenize(plain, sizeof plain, json, "--no-bos --no-special", "<s>"), 0);
  assert_string_not_equal(plain, "1\n");
}

static void test_json_output(void **state) {
  check(json, "--json -", "", "{\n  \"ids\": [\n    1,\n    2\n  ]\n}\n");
  check(json, "--decode --json -", "1", "{\n  \"text\": \"<s>\"\n}\n");
  check(json, "--lines --no-bos --json -", "<s>\n</s>",
        "{\n  \"ids\": [\n    [\n      1\n    ],\n    [\n      2\n    ]\n  ]\n}\n");
}

static void test_refusals(void **state) {
  check_fails(json, "", "ab\xff", 3, "byte 2");
  check_fails(json, "--lines", "ab\nc\xff", 3, "line 2");
  check_fails(json, "--decode", "1 x", 3, "byte 2");
  check_fails(json, "--decode", "1 99999", 3, "99999");
  check_fails(json, "--decode", "99999999999", 3, "byte 0");
  check_fails(json, "--decode", "-1", 3, "byte 0");
  check_fails("nothing.json", "", "", 1, "nothing.json");
  check_fails(json, "/nowhere/file", "", 1, "/nowhere/file");
  check_fails(json, "--nonsense", "", 2, "nonsense");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ids_on_one_line), cmocka_unit_test(test_lines),
      cmocka_unit_test(test_decode),          cmocka_unit_test(test_special_texts),
      cmocka_unit_test(test_json_output),     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
