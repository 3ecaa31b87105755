/* tessera eval --tasks as a user meets it: the table, the files it writes, how it ends; and the
 * converter's files going through it. */
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

static struct error err;
static const char *model, *tasks;

static void write_file(const char *path, const char *text) {
  must(file_write_all(path, text, strlen(text), &err), err);
}

/* A folder of three small tasks. */
static void need_data(void) {
  model = shared_data("models/stories260K");
  if (!model) skip();
  if (tasks) return;
  tasks = scratch();
  write_file(
      scratch_path("piqa.jsonl"),
      "{\"goal\": \"Find the cat\", \"sol1\": \"Look in the box.\", \"sol2\": \"Go away.\", "
      "\"label\": 0}\n\n"
      "{\"goal\": \"Be happy\", \"sol1\": \"Play.\", \"sol2\": \"Cry.\", \"label\": 0}\n"
      "{\"goal\": \"Eat\", \"sol1\": \"Sit.\", \"sol2\": \"Open the door.\", \"label\": 1}\n");
  write_file(scratch_path("winogrande.jsonl"),
             "{\"sentence\": \"Tim saw Mia and _ was glad.\", \"option1\": \"Tim\", \"option2\": "
             "\"Mia\", \"answer\": \"2\"}\n");
  write_file(scratch_path("mmlu.jsonl"),
             "{\"subject\": \"anatomy\", \"question\": \"Q?\", \"choices\": [\"a\", \"b\", \"c\", "
             "\"d\"], \"answer\": 0}\n"
             "{\"subject\": \"virology\", \"question\": \"Q?\", \"choices\": [\"a\", \"b\", \"c\", "
             "\"d\"], \"answer\": 1}\n");
  write_file(scratch_path("mmlu_dev.jsonl"),
             "{\"subject\": \"anatomy\", \"question\": \"P?\", \"choices\": [\"a\", \"b\", \"c\", "
             "\"d\"], \"answer\": 0}\n");
}

static json_t *run_json(const char *arguments) {
  char output[1 << 16];
  const char *path = scratch_path("tasks.json");
  int status =
      run_command(output, sizeof output, "'%s' eval '%s' --tasks-dir '%s' --json '%s' --force %s",
                  program(), model, tasks, path, arguments);
  if (status) fail_msg("%s: status %d, saying: %s", arguments, status, output);
  json_t *json = json_read_file(path, 1 << 24, &err);
  assert_non_null(json);
  return json;
}

static double figure(const json_t *json, const char *task, const char *key) {
  const json_t *results = json_object_get(json_object_get(json, "results"), task);
  const json_t *value = json_object_get(results, key);
  if (!json_is_real(value)) fail_msg("%s has no number \"%s\"", task, key);
  return json_real_value(value);
}

static void gives_the_harness_s_json(void **state) {
  need_data();
  json_t *json = run_json("--tasks piqa,winogrande");
  double acc = figure(json, "piqa", "acc,none"), other = figure(json, "winogrande", "acc,none");
  double share = 3 * acc;
  assert_true(fabs(share - round(share)) < 1e-12 && acc >= 0 && acc <= 1);
  /* the sample standard deviation of three zeros and ones, over sqrt(3) */
  assert_true(fabs(figure(json, "piqa", "acc_stderr,none") - sqrt(acc * (1 - acc) / 2)) < 1e-12);
  assert_true(figure(json, "piqa", "acc_norm,none") >= 0);
  const json_t *results = json_object_get(json, "results");
  assert_null(json_object_get(json_object_get(results, "winogrande"), "acc_norm,none"));
  assert_true(fabs(json_real_value(json_object_get(json, "mean_acc")) - (acc + other) / 2) < 1e-12);
  const json_t *samples = json_object_get(json_object_get(json, "n-samples"), "piqa");
  assert_int_equal(json_integer_value(json_object_get(samples, "original")), 3);
  assert_int_equal(json_integer_value(json_object_get(samples, "effective")), 3);
  static const char *const parts[] = {
      "configs",  "versions", "n-shot",     "higher_is_better", "config",
      "git_hash", "date",     "model_name", "density",          "total_evaluation_time_seconds"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if (!json_object_get(json, parts[i])) fail_msg("no \"%s\"", parts[i]);
  json_decref(json);
}

static void goes_with_perplexity_and_a_limit(void **state) {
  need_data();
  char arguments[1024];
  const char *text = shared_data("calib/tiny.utf8");
  if (!text) skip();
  snprintf(arguments, sizeof arguments,
           "--tasks piqa --limit 2 --ppl '%s' --window 64 --tokens 200", text);
  json_t *json = run_json(arguments);
  assert_true(json_real_value(json_object_get(json, "perplexity")) > 1);
  const json_t *samples = json_object_get(json_object_get(json, "n-samples"), "piqa");
  assert_int_equal(json_integer_value(json_object_get(samples, "original")), 3);
  assert_int_equal(json_integer_value(json_object_get(samples, "effective")), 2);
  json_decref(json);
}

static void takes_one_subject_of_mmlu(void **state) {
  need_data();
  json_t *json = run_json("--tasks mmlu_anatomy --shots 1");
  assert_true(figure(json, "mmlu_anatomy", "acc,none") >= 0);
  const json_t *shots = json_object_get(json_object_get(json, "n-shot"), "mmlu_anatomy");
  assert_int_equal(json_integer_value(shots), 1);
  json_decref(json);
}

/* The samples: scores, arguments, and whether they make the accuracy that is printed. */
static void logs_each_item(void **state) {
  need_data();
  char arguments[1024], *text;
  size_t bytes;
  const char *path = scratch_path("samples.jsonl");
  snprintf(arguments, sizeof arguments, "--tasks piqa --samples '%s'", path);
  json_t *json = run_json(arguments);
  double right = 0;
  int lines = 0;
  must(file_read(path, 1 << 24, &text, &bytes, &err), err);
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), lines++) {
    json_t *sample = json_parse(line, strlen(line), "sample", &err);
    assert_non_null(sample);
    const json_t *scores = json_object_get(sample, "log_probabilities");
    double first = json_real_value(json_array_get(scores, 0));
    double second = json_real_value(json_array_get(scores, 1));
    assert_true(first < 0 && second < 0);
    int target = atoi(json_get_string(sample, "target")), answer = second > first;
    assert_int_equal(json_integer_value(json_object_get(sample, "line")), lines + 1 + (lines > 0));
    assert_true(json_real_value(json_object_get(sample, "acc")) == (answer == target));
    right += answer == target;
    json_decref(sample);
  }
  assert_int_equal(lines, 3);
  assert_true(fabs(figure(json, "piqa", "acc,none") - right / 3) < 1e-12);
  free(text);
  json_decref(json);
}

static void writes_the_harness_s_files(void **state) {
  need_data();
  char arguments[1024], pattern[1024];
  const char *out = scratch_path("harness");
  static const char *const names[] = {"results_*.json", "samples_piqa_*.jsonl",
                                      "samples_winogrande_*.jsonl"};
  snprintf(arguments, sizeof arguments, "--tasks piqa,winogrande --output-path '%s'", out);
  json_decref(run_json(arguments));
  for (int i = 0; i < 3; i++) {
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*/%s", out, names[i]);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    globfree(&found);
  }
}

/* Exit status of "tessera eval MODEL ...", which must also say `word`. */
static void check_ends(int expected, const char *word, const char *arguments) {
  char output[8192];
  int status = run_command(output, sizeof output, "'%s' eval '%s' %s", program(), model, arguments);
  if (status != expected || !strstr(output, word))
    fail_msg("eval %s: status %d instead of %d, saying: %s", arguments, status, expected, output);
}

static void check_file(const char *task, const char *text, const char *word) {
  char arguments[1024];
  snprintf(arguments, sizeof arguments, "bad/%s.jsonl", task);
  const char *path = scratch_path(arguments);
  write_file(path, text);
  snprintf(arguments, sizeof arguments, "--tasks %s --tasks-dir '%s'", task, scratch_path("bad"));
  check_ends(3, word, arguments);
}

static void ends_as_documented(void **state) {
  char arguments[1024];
  need_data();
  check_ends(2, "--tasks-dir", "--tasks piqa");
  check_ends(2, "--tasks", "--tasks-dir x --ppl y");
  check_ends(2, "--samples", "--samples x --ppl y");
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks pika", tasks);
  check_ends(2, "\"pika\"", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks piqa,", tasks);
  check_ends(2, "no task", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks piqa,piqa", tasks);
  check_ends(2, "twice", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks piqa --shots 2", tasks);
  check_ends(2, "mmlu", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks race", tasks);
  check_ends(3, "race.jsonl", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks mmlu", tasks);
  check_ends(3, "no question about", arguments);
  snprintf(arguments, sizeof arguments, "--tasks-dir '%s' --tasks mmlu_virology --shots 1", tasks);
  check_ends(3, "virology", arguments);
  char output[256];
  run_command(output, sizeof output, "mkdir '%s'", scratch_path("bad"));
  check_file("piqa", "", "no items");
  check_file("piqa", "{\"goal\": 1}\n", "line 1");
  check_file("piqa", "\n\n[1]\n", "line 3");
  check_file("boolq", "{\"passage\": \"a\", \"question\": \"b\", \"label\": 0}\n{\"pass\n",
             "line 2");
  check_file("boolq", "{\"passage\": \"a\", \"question\": \"b\", \"label\": 9}\n", "boolq.jsonl");
}

/* A set's own file through tools/tasks_convert.py, then scored. */
static void reads_what_the_converter_writes(void **state) {
  need_data();
  char output[4096];
  if (run_command(output, sizeof output, "python3 -c 'import json'")) {
    print_message("skip: no python3, so the converter is not tried\n");
    skip();
  }
  const char *root = getenv("TSR_SOURCE") ? getenv("TSR_SOURCE") : ".";
  int status =
      run_command(output, sizeof output, "python3 '%s/tests/tools/convert_tasks.py'", root);
  if (status) fail_msg("%s", output);
  write_file(scratch_path("ARC-Easy-Test.jsonl"),
             "{\"id\": \"x\", \"question\": {\"stem\": \"What is it?\", \"choices\": [{\"text\": "
             "\"a cat\", \"label\": \"A\"}, {\"text\": \"a dog\", \"label\": \"B\"}]}, "
             "\"answerKey\": \"B\"}\n");
  status =
      run_command(output, sizeof output, "python3 '%s/tools/tasks_convert.py' arc_easy '%s' '%s'",
                  root, tasks, scratch_path("ARC-Easy-Test.jsonl"));
  if (status) fail_msg("%s", output);
  json_t *json = run_json("--tasks arc_easy");
  assert_true(figure(json, "arc_easy", "acc,none") >= 0);
  json_decref(json);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gives_the_harness_s_json),
      cmocka_unit_test(goes_with_perplexity_and_a_limit),
      cmocka_unit_test(takes_one_subject_of_mmlu),
      cmocka_unit_test(logs_each_item),
      cmocka_unit_test(writes_the_harness_s_files),
      cmocka_unit_test(ends_as_documented),
      cmocka_unit_test(reads_what_the_converter_writes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
