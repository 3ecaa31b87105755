/* Zero-shot tasks from the command line: see eval_tasks.h. */
#include "cli/eval_tasks.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

#include "cli/commands.h"
#include "cli/output.h"
#include "eval/harness_json.h"

enum status eval_tasks_check(const struct task_settings *s, const struct common_options *common,
                             struct error *err) {
  if (s->tasks && !s->directory)
    return error_set(err, STATUS_USAGE,
                     "--tasks needs --tasks-dir DIR, the folder of their JSONL files "
                     "(docs/TASKS.md)");
  if (s->tasks) return s->samples ? common_check_output(common, s->samples, err) : STATUS_OK;
  const char *idle = s->directory     ? "--tasks-dir"
                     : s->samples     ? "--samples"
                     : s->output_path ? "--output-path"
                     : s->limit       ? "--limit"
                     : s->shots       ? "--shots"
                                      : NULL;
  if (!idle) return STATUS_OK;
  return error_set(err, STATUS_USAGE, "%s belongs to --tasks NAMES, which is missing", idle);
}

/* --- the table --- */

static void put_share(struct table *t, struct eval_figure figure) {
  if (isfinite(figure.standard_error))
    table_cell(t, "%.2f \xc2\xb1 %.2f", 100 * figure.mean, 100 * figure.standard_error);
  else
    table_cell(t, "%.2f", 100 * figure.mean);
}

static void put_task(struct table *t, const struct zeroshot_task *task) {
  table_cell(t, "%s", task->name);
  table_cell(t, "%lld", (long long)task->count);
  put_share(t, task->acc);
  if (task->definition->normalized)
    put_share(t, task->acc_norm);
  else
    table_cell(t, "%s", "");
}

static void put_group(struct table *t, const struct zeroshot_result *r, enum mmlu_group group) {
  int64_t items;
  struct eval_figure acc = zeroshot_pool(r, group, &items);
  table_cell(t, "%s", group == MMLU_GROUPS ? "mmlu" : mmlu_group_name[group]);
  table_cell(t, "%lld", (long long)items);
  put_share(t, acc);
  table_cell(t, "%s", "");
}

static void print_table(const struct zeroshot_result *r) {
  struct table t = {0};
  table_column(&t, "task", TABLE_LEFT);
  table_column(&t, "items", TABLE_RIGHT);
  table_column(&t, "acc %", TABLE_RIGHT);
  table_column(&t, "acc_norm %", TABLE_RIGHT);
  for (int i = 0; i < r->task_count; i++)
    if (!r->has_mmlu || !r->tasks[i].subject) put_task(&t, &r->tasks[i]);
  if (r->has_mmlu)
    for (int g = MMLU_GROUPS; g >= 0; g--) put_group(&t, r, (enum mmlu_group)g);
  table_cell(&t, "mean of acc");
  table_cell(&t, "%lld", (long long)r->items);
  put_share(&t, r->mean);
  table_cell(&t, "%s", "");
  output_table(&t);
  table_free(&t);
}

/* --- running --- */

static enum status write_outputs(const struct task_settings *s, const struct zeroshot_result *r,
                                 const struct harness_facts *facts, struct error *err) {
  enum status status = STATUS_OK;
  if (s->samples) status = harness_write_samples(s->samples, r, err);
  if (!status && s->output_path) status = harness_write_folder(s->output_path, r, facts, err);
  return status;
}

enum status eval_tasks_run(const struct task_settings *s, const struct common_options *common,
                           const struct model *model, const struct tokenizer *tokenizer,
                           enum precision precision, json_t *json, struct error *err) {
  struct zeroshot_result result;
  struct zeroshot_request request = {.model = model,
                                     .tokenizer = tokenizer,
                                     .tasks = s->tasks,
                                     .directory = s->directory,
                                     .limit = s->limit,
                                     .shots = (int)s->shots,
                                     .precision = precision};
  struct harness_facts facts = {.model_name = model_path(model),
                                .version = version_commit(),
                                .limit = s->limit,
                                .date_s = (int64_t)time(NULL)};
  enum status status = zeroshot_run(&result, &request, err);
  if (status) return status;
  if (output_to_people(common)) print_table(&result);
  status = write_outputs(s, &result, &facts, err);
  json_t *found = harness_results(&result, &facts);
  json_object_update(json, found);
  json_decref(found);
  json_object_set_new(json, "mean_acc", output_real(result.mean.mean));
  json_object_set_new(json, "mean_acc_stderr", output_real(result.mean.standard_error));
  json_object_set_new(json, "truncated_texts", json_integer(result.truncated));
  json_object_set_new(json, "task_seconds", output_real(result.seconds));
  zeroshot_result_free(&result);
  return status;
}
