/* Templates: what lm-evaluation-harness makes of an item, written out; and what is refused. */
#include "eval/tasks.h"

#include <string.h>

#include "eval/clean.h"
#include "eval/mmlu.h"
#include "support/support.h"

static struct error err;

static json_t *parse(const char *text) {
  json_t *doc = json_parse(text, strlen(text), "test", &err);
  if (!doc) fail_msg("%s", err.text);
  return doc;
}

static struct task_item make(const char *task, const char *text) {
  struct task_item item = {0};
  json_t *doc = parse(text);
  must(task_find(task)->make(&item, doc, &err), err);
  json_decref(doc);
  return item;
}

/* choices: "text|text|..." as continuations. */
static void check(struct task_item *item, const char *context, const char *choices, int target) {
  struct strbuf all = {0};
  assert_string_equal(task_item_context(item, 0), context);
  for (int i = 0; i < item->choice_count; i++) {
    if (i) strbuf_putc(&all, '|');
    strbuf_puts(&all, strbuf_text(&item->continuations[i]));
  }
  assert_string_equal(strbuf_text(&all), choices);
  assert_int_equal(item->target, target);
  strbuf_free(&all);
}

static void piqa(void **state) {
  struct task_item item =
      make("piqa",
           "{\"goal\": \"Dry a boot\", \"sol1\": \"Use p\\u00e4per.\", \"sol2\": \"Use water.\", "
           "\"label\": 0}");
  check(&item, "Question: Dry a boot\nAnswer:", " Use p\xc3\xa4per.| Use water.", 0);
  assert_int_equal(item.characters[0], 10); /* code points, without the joining space */
  assert_int_equal(item.characters[1], 10);
  task_item_release(&item);
}

static void arc_and_openbookqa(void **state) {
  static const char choices[] =
      "\"choices\": {\"text\": [\"air\", \"ice\", \"tin\"], \"label\": [\"1\", \"2\", \"3\"]}";
  char text[512];
  snprintf(text, sizeof text, "{\"question\": \"What melts?\", %s, \"answerKey\": \"2\"}", choices);
  struct task_item item = make("arc_challenge", text);
  check(&item, "Question: What melts?\nAnswer:", " air| ice| tin", 1);
  task_item_release(&item);
  snprintf(text, sizeof text, "{\"question_stem\": \"You breathe\", %s, \"answerKey\": \" 1\"}",
           choices);
  item = make("openbookqa", text);
  check(&item, "You breathe", " air| ice| tin", 0);
  task_item_release(&item);
}

static void hellaswag(void **state) {
  struct task_item item = make(
      "hellaswag",
      "{\"activity_label\": \"Gardens\", \"ctx_a\": \"How to dig [title] Take a spade.\", "
      "\"ctx_b\": \"the Man\", \"endings\": [\" [substeps] digs  on.\", \"digs [a] [b.\", \"a\", "
      "\"b    c\"], \"label\": \"3\"}");
  check(&item, "Gardens: How to dig. Take a spade. The man", "  digs on.| digs [b.| a| b  c", 3);
  task_item_release(&item);
  /* an empty second part leaves no space at the end */
  item = make("hellaswag",
              "{\"activity_label\": \"A\", \"ctx_a\": \"B.\", \"ctx_b\": \"\", "
              "\"endings\": [\"a\", \"b\", \"c\", \"d\"], \"label\": 0}");
  assert_string_equal(task_item_context(&item, 0), "A: B.");
  task_item_release(&item);
}

static void winogrande(void **state) {
  struct task_item item =
      make("winogrande",
           "{\"sentence\": \"The cup fell off the tray as _ was round. \", "
           "\"option1\": \"the cup\", \"option2\": \"the tray\", \"answer\": \"1\"}");
  check(&item, "The cup fell off the tray as the cup", " was round.| was round.", 0);
  assert_string_equal(task_item_context(&item, 1), "The cup fell off the tray as the tray");
  task_item_release(&item);
}

static void boolq(void **state) {
  struct task_item item =
      make("boolq", "{\"passage\": \"Tin melts.\", \"question\": \"does tin melt\", \"label\": 1}");
  check(&item, "Tin melts.\nQuestion: does tin melt?\nAnswer:", " no| yes", 1);
  task_item_release(&item);
}

static void race(void **state) {
  struct task_item item =
      make("race",
           "{\"article\": \"Tin melts.\", \"problems\": ["
           "{\"question\": \"What melts?\", \"options\": [\"a\", \"b\", \"tin\", \"d\"], "
           "\"answer\": \"C\"},"
           "{\"question\": \"It is  _  .\", \"options\": [\"hot.\", \"b\", \"c\", \"d\"], "
           "\"answer\": \"A\"},"
           "{\"question\": \"Why  _  .\", \"options\": [\"e\", \"f\", \"g\", \"h\"], "
           "\"answer\": \"D\"}]}");
  check(&item, "Article: Tin melts.\n\nQuestion: What melts?\nAnswer: tin\nIt is hot.\nWhy  _  .",
        " e| f| g| h", 3);
  task_item_release(&item);
}

static void mmlu(void **state) {
  json_t *dev = parse(
      "{\"subject\": \"high_school_physics\", \"question\": \"1?\", "
      "\"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": 2}");
  json_t *doc = parse(
      "{\"subject\": \"high_school_physics\", \"question\": \" 2? \", "
      "\"choices\": [\"e\", \"f\", \"g\", \"h\"], \"answer\": 3}");
  int64_t line = 1;
  struct item_file file = {.path = "dev", .docs = &dev, .lines = &line, .count = 1};
  struct strbuf preamble = {0};
  struct task_item item = {0};
  const struct mmlu_subject *subject = mmlu_subject_of(doc, &err);
  must(mmlu_preamble(&preamble, subject, &file, 1, &err), err);
  must(mmlu_make(&item, strbuf_text(&preamble), doc, &err), err);
  check(&item,
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "1?\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\n"
        "2?\nA. e\nB. f\nC. g\nD. h\nAnswer:",
        " A| B| C| D", 3);
  assert_int_equal(mmlu_preamble(&preamble, subject, &file, 2, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "high_school_physics"));
  task_item_release(&item);
  strbuf_free(&preamble);
  json_decref(dev);
  json_decref(doc);
}

static void python_strings(void **state) {
  struct strbuf out = {0};
  clean_strip(" \xc2\xa0\xe3\x80\x80 a\tb \x1f\n", &out); /* no-break and ideographic spaces */
  assert_string_equal(strbuf_text(&out), "a\tb");
  strbuf_clear(&out);
  clean_capitalize("\xc3\xa9t\xc3\x89 McX", &out);
  assert_string_equal(strbuf_text(&out), "\xc3\x89t\xc3\xa9 mcx");
  assert_int_equal(clean_characters("a\xf0\x9f\x98\x80\xe2\x82\xac"), 3);
  strbuf_free(&out);
}

static void refuses(void **state) {
  static const struct {
    const char *task, *doc, *word;
  } cases[] = {
      {"piqa", "{\"goal\": \"a\", \"sol1\": \"b\", \"label\": 0}", "sol2"},
      {"piqa", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": 3, \"label\": 0}", "sol2"},
      {"piqa", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 2}", "label"},
      {"piqa", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": -1}", "label"},
      {"piqa", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\"}", "label"},
      {"arc_easy", "{\"question\": \"a\", \"answerKey\": \"A\"}", "text"},
      {"arc_easy",
       "{\"question\": \"a\", \"choices\": {\"text\": [\"b\", \"c\"], \"label\": [\"A\"]}, "
       "\"answerKey\": \"A\"}",
       "label"},
      {"arc_easy",
       "{\"question\": \"a\", \"choices\": {\"text\": [\"b\", \"c\"], \"label\": [\"A\", \"B\"]}, "
       "\"answerKey\": \"C\"}",
       "\"C\""},
      {"arc_easy",
       "{\"question\": \"a\", \"choices\": {\"text\": [\"b\", 1], \"label\": [\"A\", \"B\"]}, "
       "\"answerKey\": \"B\"}",
       "element 1"},
      {"hellaswag",
       "{\"activity_label\": \"a\", \"ctx_a\": \"b\", \"ctx_b\": \"c\", \"endings\": [\"d\"], "
       "\"label\": 0}",
       "endings"},
      {"winogrande",
       "{\"sentence\": \"none\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"1\"}", "_"},
      {"winogrande",
       "{\"sentence\": \"a _\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"0\"}",
       "answer"},
      {"boolq", "{\"passage\": \"a\", \"question\": \"b\", \"label\": \"yes\"}", "label"},
      {"race", "{\"article\": \"a\", \"problems\": []}", "problems"},
      {"race", "{\"article\": \"a\", \"problems\": [{\"question\": \"b\"}]}", "problem 1"},
      {"race",
       "{\"article\": \"a\", \"problems\": [{\"question\": \"b\", \"options\": [\"a\", \"b\", "
       "\"c\", \"d\"], \"answer\": \"E\"}]}",
       "answer"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct task_item item = {0};
    json_t *doc = parse(cases[i].doc);
    err.text[0] = 0;
    enum status status = task_find(cases[i].task)->make(&item, doc, &err);
    if (status != STATUS_REFUSED || !strstr(err.text, cases[i].word))
      fail_msg("%s %s: status %d, saying: %s", cases[i].task, cases[i].doc, status, err.text);
    task_item_release(&item);
    json_decref(doc);
  }
  assert_null(task_find("pika"));
  json_t *doc = parse("{\"subject\": \"alchemy\"}");
  assert_null(mmlu_subject_of(doc, &err));
  assert_non_null(strstr(err.text, "alchemy"));
  json_decref(doc);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(piqa),      cmocka_unit_test(arc_and_openbookqa),
      cmocka_unit_test(hellaswag), cmocka_unit_test(winogrande),
      cmocka_unit_test(boolq),     cmocka_unit_test(race),
      cmocka_unit_test(mmlu),      cmocka_unit_test(python_strings),
      cmocka_unit_test(refuses),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
