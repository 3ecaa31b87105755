/* Results in the shape of lm-evaluation-harness's files, so that what reads those reads these:
 * results_TIME.json and samples_TASK_TIME.jsonl. */
#ifndef TSR_EVAL_HARNESS_JSON_H
#define TSR_EVAL_HARNESS_JSON_H

#include "eval/zeroshot.h"

struct harness_facts {
  const char *model_name;
  const char *version; /* of this program */
  int64_t limit;       /* 0 = none */
  int64_t date_s;      /* Unix time at the start */
};

/* New reference. */
json_t *harness_results(const struct zeroshot_result *result, const struct harness_facts *facts);
/* One line an item, of all tasks. */
enum status harness_write_samples(const char *path, const struct zeroshot_result *result,
                                  struct error *err);
/* directory/MODEL_NAME/results_TIME.json and one file of samples a task; folders are made. */
enum status harness_write_folder(const char *directory, const struct zeroshot_result *result,
                                 const struct harness_facts *facts, struct error *err);

#endif
