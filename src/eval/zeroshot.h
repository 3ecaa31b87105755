/* A zero-shot evaluation: tasks by name, their items from files, scores, accuracies.
 *
 * A choice's score is the log-likelihood of its continuation; the first of the highest is the
 * model's answer. acc_norm divides by the choice's characters. Figures are means over items, their
 * standard errors the sample standard deviation over sqrt(items). */
#ifndef TSR_EVAL_ZEROSHOT_H
#define TSR_EVAL_ZEROSHOT_H

#include "eval/eval.h"
#include "eval/loglikelihood.h"
#include "eval/mmlu.h"

struct zeroshot_request {
  const struct model *model;
  const struct tokenizer *tokenizer; /* the model's own */
  const char *tasks;                 /* "piqa,arc_easy"; "mmlu" is all its subjects */
  const char *directory;             /* holds piqa.jsonl, ... */
  int64_t limit;                     /* first items of each task; 0 = all */
  int64_t pass_tokens;               /* as in loglikelihood_run */
  int shots;                         /* examples before each question of MMLU */
  enum precision precision;          /* of the products */
};

struct zeroshot_item {
  const json_t *doc;
  int64_t doc_id, line; /* place in the task, from 0; line of the file */
  struct task_item item;
  struct scored_text *texts; /* (item.choice_count) */
  int answer, answer_norm;   /* by score, and by score per character */
};

struct zeroshot_task {
  char name[48];
  const struct task_definition *definition;
  const struct mmlu_subject *subject; /* or NULL */
  const char *path;
  struct zeroshot_item *items; /* (count) */
  int64_t count, original;     /* scored; in the file */
  size_t capacity;
  int shots;
  struct eval_figure acc, acc_norm;
};

struct zeroshot_result {
  struct zeroshot_task *tasks; /* in the order asked for, MMLU's subjects in that of their table */
  int task_count;
  size_t task_capacity;
  struct item_file *files;
  int file_count;
  size_t file_capacity;
  bool has_mmlu;            /* all of it was asked for: there are group figures */
  struct eval_figure mean;  /* of acc, MMLU counted once */
  int64_t items, truncated; /* texts that lost tokens at their beginning */
  double seconds;
};

/* STATUS_REFUSED for names, files and items that are no good; the rest as loglikelihood_run. */
enum status zeroshot_run(struct zeroshot_result *result, const struct zeroshot_request *request,
                         struct error *err);
void zeroshot_result_free(struct zeroshot_result *result);

/* acc over MMLU's subjects, each weighted by its size; `group` MMLU_GROUPS means all. *items gets
 * their number, 0 when no subject is in it. */
struct eval_figure zeroshot_pool(const struct zeroshot_result *result, enum mmlu_group group,
                                 int64_t *items);

#endif
