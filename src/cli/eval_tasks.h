/* The zero-shot half of tessera eval. */
#ifndef TSR_CLI_EVAL_TASKS_H
#define TSR_CLI_EVAL_TASKS_H

#include "cli/options.h"
#include "eval/zeroshot.h"

struct task_settings {
  const char *tasks, *directory, *samples, *output_path;
  int64_t limit, shots;
};
#define TASK_OPTIONS(type, member)                                                                  \
  {"tasks",                                                                                         \
   OPTION_TEXT,                                                                                     \
   offsetof(type, member.tasks),                                                                    \
   NULL,                                                                                            \
   0,                                                                                               \
   0,                                                                                               \
   NULL,                                                                                            \
   "NAMES",                                                                                         \
   "zero-shot tasks, by commas: piqa, arc_easy, arc_challenge, openbookqa, hellaswag, "             \
   "winogrande, "                                                                                   \
   "boolq, race, mmlu"},                                                                            \
      {"tasks-dir", OPTION_TEXT, offsetof(type, member.directory),                                  \
       NULL,        0,           0,                                                                 \
       NULL,        "DIR",       "holds their items, NAME.jsonl (docs/TASKS.md)"},                  \
      {"limit", OPTION_INT, offsetof(type, member.limit),                                           \
       "0",     0,          1e9,                                                                    \
       NULL,    "N",        "only the first N items of each task; 0 means all"},                    \
      {"shots", OPTION_INT, offsetof(type, member.shots),                                           \
       "0",     0,          100,                                                                    \
       NULL,    "N",        "answered examples before each question of mmlu, from mmlu_dev.jsonl"}, \
      {"samples", OPTION_TEXT, offsetof(type, member.samples),                                      \
       NULL,      0,           0,                                                                   \
       NULL,      "FILE",      "write each item with its choices' scores, one JSON object a line"}, \
  {                                                                                                 \
    "output-path", OPTION_TEXT, offsetof(type, member.output_path), NULL, 0, 0, NULL, "DIR",        \
        "also write results and samples as lm-evaluation-harness files them"                        \
  }

/* STATUS_USAGE where options do not fit together; `common` says whether outputs may be replaced. */
enum status eval_tasks_check(const struct task_settings *s, const struct common_options *common,
                             struct error *err);
/* Runs the tasks, prints their table unless standard output belongs to JSON, writes what was asked
 * for, and adds the results to `json`. */
enum status eval_tasks_run(const struct task_settings *s, const struct common_options *common,
                           const struct model *model, const struct tokenizer *tokenizer,
                           enum precision precision, json_t *json, struct error *err);

#endif
