/* Chat templates: each family's rendering against transformers' (tools/golden/chat.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "io/file.h"
#include "io/json.h"
#include "support/support.h"
#include "text/tokenizer.h"

enum { MESSAGES_MAX = 8 };

static const char small_tokenizer[] =
    "{\"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true},"
    "{\"id\": 2, \"content\": \"</s>\", \"special\": true}],"
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}}";

/* A directory with a tokenizer of next to nothing and this template. */
static struct tokenizer *open_with_template(const char *template) {
  struct error err = {0};
  struct tokenizer *t;
  must(file_write_all(scratch_path("tokenizer.json"), small_tokenizer, strlen(small_tokenizer),
                      &err),
       err);
  json_t *config = json_pack("{s:s, s:{s:s}}", "bos_token", "<s>", "eos_token", "content", "</s>");
  if (template) json_object_set_new(config, "chat_template", json_string(template));
  must(json_write_file(scratch_path("tokenizer_config.json"), config, &err), err);
  json_decref(config);
  must(tokenizer_open(&t, scratch(), &err), err);
  return t;
}

static size_t read_messages(const json_t *list, struct chat_message *messages) {
  size_t count = json_array_size(list);
  assert_in_range(count, 1, MESSAGES_MAX);
  for (size_t i = 0; i < count; i++)
    messages[i] = (struct chat_message){json_get_string(json_array_get(list, i), "role"),
                                        json_get_string(json_array_get(list, i), "content")};
  return count;
}

/* Puts today's date where the expected text says %DATE%. */
static void fill_date(const char *text, struct strbuf *out) {
  char today[32];
  time_t now = time(NULL);
  strftime(today, sizeof today, "%d %b %Y", localtime(&now));
  const char *mark = strstr(text, "%DATE%");
  strbuf_append(out, text, mark ? (size_t)(mark - text) : strlen(text));
  if (mark) strbuf_printf(out, "%s%s", today, mark + strlen("%DATE%"));
}

static void check_case(const json_t *one, const json_t *conversations) {
  struct tokenizer *t = open_with_template(json_get_string(one, "template"));
  const json_t *expected = json_object_get(one, "expected");
  assert_true(tokenizer_has_chat(t));
  assert_int_equal(json_array_size(expected), json_array_size(conversations));
  for (size_t i = 0; i < json_array_size(expected); i++) {
    struct chat_message messages[MESSAGES_MAX];
    struct strbuf out = {0}, text = {0};
    struct error err = {0};
    size_t count = read_messages(json_array_get(conversations, i), messages);
    enum status status = tokenizer_chat(t, messages, count, &out, &err);
    const json_t *want = json_array_get(expected, i);
    if (json_is_null(want)) {
      assert_int_equal(status, STATUS_REFUSED);
    } else {
      if (status != STATUS_OK) fail_msg("%s: %s", json_get_string(one, "name"), err.text);
      fill_date(json_string_value(want), &text);
      if (strcmp(strbuf_text(&out), strbuf_text(&text)))
        fail_msg("%s, conversation %zu:\n%s\n-- expected --\n%s", json_get_string(one, "name"), i,
                 strbuf_text(&out), strbuf_text(&text));
    }
    strbuf_free(&out);
    strbuf_free(&text);
  }
  tokenizer_close(t);
}

static void test_families(void **state) {
  struct error err = {0};
  json_t *root = json_read_file(golden("chat.json"), 1 << 20, &err);
  if (!root) fail_msg("%s", err.text);
  size_t index;
  json_t *one;
  json_array_foreach(json_object_get(root, "cases"), index, one)
      check_case(one, json_object_get(root, "conversations"));
  assert_true(index >= 17);
  json_decref(root);
}

static void check_refused(const char *template, const char *reason) {
  struct tokenizer *t = open_with_template(template);
  struct chat_message message = {"user", "Hi"};
  struct strbuf out = {0};
  struct error err = {0};
  assert_false(tokenizer_has_chat(t));
  assert_int_equal(tokenizer_chat(t, &message, 1, &out, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, reason));
  assert_int_equal(out.length, 0);
  tokenizer_close(t);
}

static void test_unknown_templates_are_refused(void **state) {
  check_refused(NULL, "no chat template");
  check_refused("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}", "no family");
  check_refused("{{ '<|im_start|>' }}{{ '<|im_end|>' }}{{ '<|im_start|>assistant\\n<think>\\n' }}",
                "no family");
}

static void test_bad_messages(void **state) {
  struct tokenizer *t =
      open_with_template("{{ '<|im_start|>' }}{{ '<|im_end|>' }}{{ '<|im_start|>assistant\\n' }}");
  struct chat_message message = {"user", "caf\xe9"};
  struct strbuf out = {0};
  struct error err = {0};
  assert_int_equal(tokenizer_chat(t, &message, 1, &out, &err), STATUS_REFUSED);
  assert_int_equal(tokenizer_chat(t, &message, 0, &out, &err), STATUS_USAGE);
  tokenizer_close(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_families),
                                     cmocka_unit_test(test_unknown_templates_are_refused),
                                     cmocka_unit_test(test_bad_messages)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
