/* The harness's files: see harness_json.h. */
#include "eval/harness_json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "io/file.h"

/* --- results --- */

/* The harness writes "N/A" where an error cannot be had. */
static json_t *stderr_json(double value) {
  return isfinite(value) ? json_real(value) : json_string("N/A");
}

static void put_figure(json_t *into, const char *metric, struct eval_figure figure) {
  char key[64];
  snprintf(key, sizeof key, "%s,none", metric);
  json_object_set_new(into, key, json_real(figure.mean));
  snprintf(key, sizeof key, "%s_stderr,none", metric);
  json_object_set_new(into, key, stderr_json(figure.standard_error));
}

static json_t *task_figures(const struct zeroshot_task *task, bool under_group) {
  json_t *out = json_object();
  const char *alias = task->subject ? task->subject->name : task->name;
  json_object_set_new(out, "alias",
                      under_group ? json_sprintf("  - %s", alias) : json_string(alias));
  put_figure(out, "acc", task->acc);
  if (task->definition->normalized) put_figure(out, "acc_norm", task->acc_norm);
  return out;
}

static json_t *metric_json(const char *name) {
  return json_pack("{s:s, s:s, s:b}", "metric", name, "aggregation", "mean", "higher_is_better", 1);
}

static json_t *task_config(const struct zeroshot_task *task) {
  json_t *metrics = json_array();
  json_array_append_new(metrics, metric_json("acc"));
  if (task->definition->normalized) json_array_append_new(metrics, metric_json("acc_norm"));
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:o, s:{s:f}}", "task", task->name,
                   "dataset_path", task->path, "output_type", "multiple_choice", "doc_to_text",
                   task->definition->doc_to_text, "target_delimiter", " ", "fewshot_delimiter",
                   "\n\n", "num_fewshot", task->shots, "metric_list", metrics, "metadata",
                   "version", task->definition->version);
}

static void put_task(json_t *out, const struct zeroshot_task *task, bool under_group) {
  json_t *better = json_pack("{s:b}", "acc", 1);
  if (task->definition->normalized) json_object_set_new(better, "acc_norm", json_true());
  json_object_set_new(json_object_get(out, "results"), task->name, task_figures(task, under_group));
  json_object_set_new(json_object_get(out, "configs"), task->name, task_config(task));
  json_object_set_new(json_object_get(out, "versions"), task->name,
                      json_real(task->definition->version));
  json_object_set_new(json_object_get(out, "n-shot"), task->name, json_integer(task->shots));
  json_object_set_new(json_object_get(out, "higher_is_better"), task->name, better);
  json_object_set_new(json_object_get(out, "n-samples"), task->name,
                      json_pack("{s:I, s:I}", "original", (json_int_t)task->original, "effective",
                                (json_int_t)task->count));
}

/* mmlu and its four groups, as results and as groups. */
static void put_groups(json_t *out, const struct zeroshot_result *r) {
  json_t *groups = json_object(), *subtasks = json_object(), *all = json_array();
  json_object_set_new(out, "groups", groups);
  json_object_set_new(out, "group_subtasks", subtasks);
  json_object_set_new(subtasks, "mmlu", all);
  for (int g = MMLU_GROUPS; g >= 0; g--) {
    int64_t items;
    const char *name = g == MMLU_GROUPS ? "mmlu" : mmlu_group_name[g];
    json_t *figures = json_object();
    json_object_set_new(
        figures, "alias",
        g == MMLU_GROUPS ? json_string("mmlu") : json_sprintf(" - %s", mmlu_group_alias[g]));
    put_figure(figures, "acc", zeroshot_pool(r, (enum mmlu_group)g, &items));
    json_object_set(json_object_get(out, "results"), name, figures);
    json_object_set_new(groups, name, figures);
    json_object_set_new(json_object_get(out, "versions"), name, json_real(2));
    if (g == MMLU_GROUPS) continue;
    json_array_append_new(all, json_string(name));
    json_t *subjects = json_array();
    for (int i = 0; i < r->task_count; i++)
      if (r->tasks[i].subject && (int)r->tasks[i].subject->group == g)
        json_array_append_new(subjects, json_string(r->tasks[i].name));
    json_object_set_new(subtasks, name, subjects);
  }
}

json_t *harness_results(const struct zeroshot_result *r, const struct harness_facts *facts) {
  static const char *const parts[] = {"results", "configs",          "versions",
                                      "n-shot",  "higher_is_better", "n-samples"};
  json_t *out = json_object();
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    json_object_set_new(out, parts[i], json_object());
  for (int i = 0; i < r->task_count; i++)
    put_task(out, &r->tasks[i], r->has_mmlu && r->tasks[i].subject);
  if (r->has_mmlu) put_groups(out, r);
  json_object_set_new(
      out, "config",
      json_pack("{s:s, s:s, s:o}", "model", "tessera", "model_args", facts->model_name, "limit",
                facts->limit ? json_integer((json_int_t)facts->limit) : json_null()));
  json_object_set_new(out, "git_hash", json_string(facts->version));
  json_object_set_new(out, "date", json_real((double)facts->date_s));
  json_object_set_new(out, "model_name", json_string(facts->model_name));
  json_object_set_new(out, "total_evaluation_time_seconds", json_sprintf("%.3f", r->seconds));
  return out;
}

/* --- samples --- */

static json_t *sample_json(const struct zeroshot_task *task, const struct zeroshot_item *item) {
  json_t *out = json_object(), *arguments = json_object(), *responses = json_array();
  json_t *filtered = json_array(), *scores = json_array(), *tokens = json_array();
  for (int i = 0; i < item->item.choice_count; i++) {
    const struct scored_text *text = &item->texts[i];
    char key[24], score[40];
    snprintf(key, sizeof key, "gen_args_%d", i);
    snprintf(score, sizeof score, "%.17g", text->log_probability);
    json_t *response = json_pack("[s, s]", score, text->greedy ? "True" : "False");
    json_object_set_new(arguments, key,
                        json_pack("{s:s, s:s}", "arg_0", task_item_context(&item->item, i), "arg_1",
                                  strbuf_text(&item->item.continuations[i])));
    json_array_append_new(responses, json_pack("[O]", response));
    json_array_append_new(filtered, response);
    json_array_append_new(scores, json_real(text->log_probability));
    json_array_append_new(tokens, json_pack("[I, I]", (json_int_t)(text->count - text->scored),
                                            (json_int_t)text->scored));
  }
  json_object_set_new(out, "task", json_string(task->name));
  json_object_set_new(out, "doc_id", json_integer(item->doc_id));
  json_object_set_new(out, "line", json_integer(item->line));
  json_object_set(out, "doc", (json_t *)item->doc);
  json_object_set_new(out, "target", json_sprintf("%d", item->item.target));
  json_object_set_new(out, "arguments", arguments);
  json_object_set_new(out, "resps", responses);
  json_object_set_new(out, "filtered_resps", filtered);
  json_object_set_new(out, "log_probabilities", scores);
  json_object_set_new(out, "tokens", tokens);
  json_object_set_new(out, "acc", json_real(item->answer == item->item.target));
  if (task->definition->normalized)
    json_object_set_new(out, "acc_norm", json_real(item->answer_norm == item->item.target));
  return out;
}

static enum status put_samples(struct file_writer *file, const struct zeroshot_task *task,
                               struct error *err) {
  struct strbuf line = {0};
  enum status status = STATUS_OK;
  for (int64_t i = 0; i < task->count && !status; i++) {
    json_t *sample = sample_json(task, &task->items[i]);
    strbuf_clear(&line);
    json_format(&line, sample, 0);
    strbuf_putc(&line, '\n');
    json_decref(sample);
    status = file_writer_put(file, line.data, line.length, err);
  }
  strbuf_free(&line);
  return status;
}

/* The samples of `count` tasks. */
static enum status write_samples(const char *path, const struct zeroshot_task *tasks, int count,
                                 struct error *err) {
  struct file_writer file;
  enum status status = file_writer_open(&file, path, err);
  if (status) return status;
  for (int i = 0; i < count && !status; i++) status = put_samples(&file, &tasks[i], err);
  if (!status) status = file_writer_commit(&file, err);
  file_writer_abort(&file);
  return status;
}

enum status harness_write_samples(const char *path, const struct zeroshot_result *result,
                                  struct error *err) {
  return write_samples(path, result->tasks, result->task_count, err);
}

/* --- the folder --- */

/* The model's name as the harness makes a folder of it: runs of awkward characters become "__". */
static void put_sanitized(struct strbuf *out, const char *name) {
  while (*name) {
    size_t run = strspn(name, "\"<>:/|\\?*[]");
    if (run)
      strbuf_puts(out, "__");
    else
      strbuf_putc(out, *name);
    name += run ? run : 1;
  }
}

static enum status make_folder(const char *path, struct error *err) {
  if (mkdir(path, 0777) == 0 || (errno == EEXIST && file_is_directory(path))) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "%s cannot be made: %s", path, strerror(errno));
}

/* Runs of ':' in ISO times become '-'. */
static void format_time(char out[24], int64_t date_s) {
  time_t date = (time_t)date_s;
  struct tm utc;
  gmtime_r(&date, &utc);
  strftime(out, 24, "%Y-%m-%dT%H-%M-%S", &utc);
}

enum status harness_write_folder(const char *directory, const struct zeroshot_result *result,
                                 const struct harness_facts *facts, struct error *err) {
  struct strbuf name = {0};
  char time_text[24], file[128];
  put_sanitized(&name, facts->model_name);
  format_time(time_text, facts->date_s);
  char *folder = path_join(directory, strbuf_text(&name));
  enum status status = make_folder(directory, err);
  if (!status) status = make_folder(folder, err);
  for (int i = 0; i < result->task_count && !status; i++) {
    snprintf(file, sizeof file, "samples_%s_%s.jsonl", result->tasks[i].name, time_text);
    char *path = path_join(folder, file);
    status = write_samples(path, &result->tasks[i], 1, err);
    free(path);
  }
  if (!status) {
    snprintf(file, sizeof file, "results_%s.json", time_text);
    char *path = path_join(folder, file);
    json_t *json = harness_results(result, facts);
    status = json_write_file(path, json, err);
    json_decref(json);
    free(path);
  }
  free(folder);
  strbuf_free(&name);
  return status;
}
