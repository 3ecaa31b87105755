/* The templates: see tasks.h. One function a task, one table. */
#include "eval/tasks.h"

#include <string.h>

#include "eval/clean.h"
#include "eval/items.h"

enum { ARC_CHOICES_LEAST = 2, HELLASWAG_CHOICES = 4, RACE_CHOICES = 4, MMLU_CHOICES = 4 };

void task_item_release(struct task_item *item) {
  for (int i = 0; i < TASK_CHOICES_MAX; i++) {
    strbuf_free(&item->contexts[i]);
    strbuf_free(&item->continuations[i]);
  }
  *item = (struct task_item){0};
}

static struct strbuf *new_context(struct task_item *item) {
  return &item->contexts[item->context_count++];
}

void task_item_add_choice(struct task_item *item, const char *choice) {
  struct strbuf *out = &item->continuations[item->choice_count];
  strbuf_printf(out, " %s", choice);
  item->characters[item->choice_count++] = clean_characters(choice);
}

static void add_choices(struct task_item *item, const json_t *texts) {
  size_t i;
  const json_t *text;
  json_array_foreach(texts, i, text) { task_item_add_choice(item, json_string_value(text)); }
}

/* --- piqa --- */

static enum status make_piqa(struct task_item *item, const json_t *doc, struct error *err) {
  const char *goal = item_text(doc, "goal", err);
  const char *first = goal ? item_text(doc, "sol1", err) : NULL;
  const char *second = first ? item_text(doc, "sol2", err) : NULL;
  if (!second || !item_index(doc, "label", 0, 2, &item->target, err)) return STATUS_REFUSED;
  strbuf_printf(new_context(item), "Question: %s\nAnswer:", goal);
  task_item_add_choice(item, first);
  task_item_add_choice(item, second);
  return STATUS_OK;
}

/* --- ARC and OpenBookQA: {"choices": {"text": [..], "label": [..]}, "answerKey": ".."} --- */

static enum status take_labelled(struct task_item *item, const json_t *doc, struct error *err) {
  const json_t *choices = json_object_get(doc, "choices"), *label;
  const char *key = item_text(doc, "answerKey", err);
  const json_t *texts =
      key ? item_texts(choices, "text", ARC_CHOICES_LEAST, TASK_CHOICES_MAX, err) : NULL;
  size_t i, count = json_array_size(texts);
  const json_t *labels = texts ? item_texts(choices, "label", count, count, err) : NULL;
  if (!labels) return STATUS_REFUSED;
  key += strspn(key, " ");
  item->target = -1;
  json_array_foreach(labels, i, label) {
    if (item->target < 0 && !strcmp(json_string_value(label), key)) item->target = (int)i;
  }
  if (item->target < 0)
    return error_set(err, STATUS_REFUSED, "\"answerKey\" is \"%.20s\", which is no label", key);
  add_choices(item, texts);
  return STATUS_OK;
}

static enum status make_arc(struct task_item *item, const json_t *doc, struct error *err) {
  const char *question = item_text(doc, "question", err);
  if (!question) return STATUS_REFUSED;
  strbuf_printf(new_context(item), "Question: %s\nAnswer:", question);
  return take_labelled(item, doc, err);
}

static enum status make_openbookqa(struct task_item *item, const json_t *doc, struct error *err) {
  const char *stem = item_text(doc, "question_stem", err);
  if (!stem) return STATUS_REFUSED;
  strbuf_puts(new_context(item), stem);
  return take_labelled(item, doc, err);
}

/* --- hellaswag --- */

static enum status make_hellaswag(struct task_item *item, const json_t *doc, struct error *err) {
  struct strbuf raw = {0};
  size_t i;
  const json_t *ending;
  const char *activity = item_text(doc, "activity_label", err);
  const char *first = activity ? item_text(doc, "ctx_a", err) : NULL;
  const char *second = first ? item_text(doc, "ctx_b", err) : NULL;
  const json_t *endings =
      second ? item_texts(doc, "endings", HELLASWAG_CHOICES, HELLASWAG_CHOICES, err) : NULL;
  if (!endings || !item_index(doc, "label", 0, HELLASWAG_CHOICES, &item->target, err))
    return STATUS_REFUSED;
  strbuf_printf(&raw, "%s: %s ", activity, first);
  clean_capitalize(second, &raw);
  clean_hellaswag(strbuf_text(&raw), new_context(item));
  json_array_foreach(endings, i, ending) {
    struct strbuf text = {0};
    clean_hellaswag(json_string_value(ending), &text);
    task_item_add_choice(item, strbuf_text(&text));
    strbuf_free(&text);
  }
  strbuf_free(&raw);
  return STATUS_OK;
}

/* --- winogrande: two contexts, one continuation --- */

static enum status make_winogrande(struct task_item *item, const json_t *doc, struct error *err) {
  const char *sentence = item_text(doc, "sentence", err);
  const char *options[2] = {sentence ? item_text(doc, "option1", err) : NULL, NULL};
  if (options[0]) options[1] = item_text(doc, "option2", err);
  if (!options[1] || !item_index(doc, "answer", 1, 2, &item->target, err)) return STATUS_REFUSED;
  const char *gap = strchr(sentence, '_');
  if (!gap) return error_set(err, STATUS_REFUSED, "\"sentence\" has no _ for the option");
  struct strbuf rest = {0};
  clean_strip(gap + 1, &rest);
  for (int i = 0; i < 2; i++) {
    strbuf_printf(new_context(item), "%.*s%s", (int)(gap - sentence), sentence, options[i]);
    task_item_add_choice(item, strbuf_text(&rest));
  }
  strbuf_free(&rest);
  return STATUS_OK;
}

/* --- boolq --- */

static enum status make_boolq(struct task_item *item, const json_t *doc, struct error *err) {
  const char *passage = item_text(doc, "passage", err);
  const char *question = passage ? item_text(doc, "question", err) : NULL;
  if (!question || !item_index(doc, "label", 0, 2, &item->target, err)) return STATUS_REFUSED;
  strbuf_printf(new_context(item), "%s\nQuestion: %s?\nAnswer:", passage, question);
  task_item_add_choice(item, "no");
  task_item_add_choice(item, "yes");
  return STATUS_OK;
}

/* --- race: an article's problems, all but the last with their answers --- */

struct problem {
  const char *question;
  const json_t *options;
  int answer;
};

static bool read_problem(struct problem *p, const json_t *value, struct error *err) {
  p->question = item_text(value, "question", err);
  p->options = p->question ? item_texts(value, "options", RACE_CHOICES, RACE_CHOICES, err) : NULL;
  const char *letter = p->options ? item_text(value, "answer", err) : NULL;
  if (!letter) return false;
  p->answer =
      letter[0] >= 'A' && letter[0] < 'A' + RACE_CHOICES && !letter[1] ? letter[0] - 'A' : -1;
  if (p->answer < 0) error_set(err, STATUS_REFUSED, "\"answer\" must be A, B, C or D");
  return p->answer >= 0;
}

static void put_solved(struct strbuf *out, const struct problem *p) {
  static const char gap[] = "  _  ."; /* at the end of a sentence to be completed */
  const char *answer = json_string_value(json_array_get(p->options, (size_t)p->answer));
  size_t length = strlen(p->question), gap_length = sizeof gap - 1;
  if (length >= gap_length && !strcmp(p->question + length - gap_length, gap))
    strbuf_printf(out, "%.*s%s\n", (int)(length - gap_length + 1), p->question, answer);
  else
    strbuf_printf(out, "Question: %s\nAnswer: %s\n", p->question, answer);
}

static enum status make_race(struct task_item *item, const json_t *doc, struct error *err) {
  const char *article = item_text(doc, "article", err);
  const json_t *problems = json_object_get(doc, "problems"), *value;
  size_t i, count = json_array_size(problems);
  struct problem problem = {0};
  if (!article) return STATUS_REFUSED;
  if (!count)
    return error_set(err, STATUS_REFUSED, "there is no member \"problems\" that is a list");
  struct strbuf *context = new_context(item);
  strbuf_printf(context, "Article: %s\n\n", article);
  json_array_foreach(problems, i, value) {
    if (!read_problem(&problem, value, err)) return error_prefix(err, "problem %zu", i + 1);
    if (i + 1 < count) put_solved(context, &problem);
  }
  strbuf_puts(context, problem.question);
  add_choices(item, problem.options);
  item->target = problem.answer;
  return STATUS_OK;
}

/* --- mmlu --- */

enum status task_mmlu_question(struct strbuf *out, const json_t *doc, int *target,
                               struct error *err) {
  const char *question = item_text(doc, "question", err);
  const json_t *choices =
      question ? item_texts(doc, "choices", MMLU_CHOICES, MMLU_CHOICES, err) : NULL;
  if (!choices || !item_index(doc, "answer", 0, MMLU_CHOICES, target, err)) return STATUS_REFUSED;
  clean_strip(question, out);
  for (int i = 0; i < MMLU_CHOICES; i++)
    strbuf_printf(out, "\n%c. %s", 'A' + i, json_string_value(json_array_get(choices, (size_t)i)));
  strbuf_puts(out, "\nAnswer:");
  return STATUS_OK;
}

/* --- the table --- */

static const struct task_definition definitions[] = {
    {"piqa", 1, true, "Question: {{goal}}\\nAnswer:", make_piqa},
    {"arc_easy", 1, true, "Question: {{question}}\\nAnswer:", make_arc},
    {"arc_challenge", 1, true, "Question: {{question}}\\nAnswer:", make_arc},
    {"openbookqa", 1, true, "{{question_stem}}", make_openbookqa},
    {"hellaswag", 1, true, "{{activity_label}}: {{ctx_a}} {{ctx_b.capitalize()}}, cleaned",
     make_hellaswag},
    {"winogrande", 1, false, "{{sentence up to _}}{{option}}", make_winogrande},
    {"boolq", 2, false, "{{passage}}\\nQuestion: {{question}}?\\nAnswer:", make_boolq},
    {"race", 3, false, "Article: {{article}}\\n\\n{{solved problems}}{{last question}}", make_race},
};
enum { DEFINITIONS = sizeof definitions / sizeof *definitions };

const struct task_definition *task_find(const char *name) {
  for (int i = 0; i < DEFINITIONS; i++)
    if (!strcmp(definitions[i].name, name)) return &definitions[i];
  return NULL;
}

const char *task_names(void) {
  return "piqa, arc_easy, arc_challenge, openbookqa, hellaswag, winogrande, boolq, race, mmlu (or "
         "mmlu_SUBJECT)";
}
