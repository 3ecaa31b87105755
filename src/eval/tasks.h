/* The zero-shot tasks: how an item's fields become contexts and choices.
 *
 * Names, templates and metrics are those of EleutherAI's lm-evaluation-harness, so that figures can
 * be held against published ones. docs/TASKS.md has the fields of the files. */
#ifndef TSR_EVAL_TASKS_H
#define TSR_EVAL_TASKS_H

#include "base/strbuf.h"
#include "io/json.h"

enum { TASK_CHOICES_MAX = 16 };

/* One question. Where the choices differ in what stands before the continuation (winogrande), each
 * has a context of its own. */
struct task_item {
  struct strbuf contexts[TASK_CHOICES_MAX];      /* one, or one per choice */
  struct strbuf continuations[TASK_CHOICES_MAX]; /* the joining space included */
  int64_t characters[TASK_CHOICES_MAX];          /* of a choice without the joining space */
  int context_count, choice_count;
  int target; /* index of the right choice */
};
void task_item_release(struct task_item *item);
static inline const char *task_item_context(const struct task_item *item, int choice) {
  return strbuf_text(&item->contexts[item->context_count == 1 ? 0 : choice]);
}

struct task_definition {
  const char *name;        /* the harness's; also the file's, NAME.jsonl */
  double version;          /* the harness's */
  bool normalized;         /* acc_norm is reported too */
  const char *doc_to_text; /* the template, in words of the fields, for records */
  /* Fills a zeroed item. STATUS_REFUSED with a sentence without file and line. */
  enum status (*make)(struct task_item *item, const json_t *doc, struct error *err);
};
/* NULL when no task has this name. Subjects of MMLU are in eval/mmlu.h. */
const struct task_definition *task_find(const char *name);
/* "piqa, arc_easy, ...": for messages. */
const char *task_names(void);

/* MMLU's question up to "Answer:", and the letter that answers it; mmlu.c adds what goes before. */
enum status task_mmlu_question(struct strbuf *out, const json_t *doc, int *target,
                               struct error *err);
void task_item_add_choice(struct task_item *item, const char *choice);

#endif
