/* Scores to accuracies: see zeroshot.h. */
#include "eval/zeroshot.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "eval/zeroshot_load.h"

/* The first of the highest of score / divisor. */
static int best_choice(const struct zeroshot_item *item, bool per_character) {
  int best = 0;
  double highest = -INFINITY;
  for (int i = 0; i < item->item.choice_count; i++) {
    double score = item->texts[i].log_probability;
    if (per_character) score /= (double)item->item.characters[i];
    if (score > highest) {
      best = i;
      highest = score;
    }
  }
  return best;
}

static enum status judge_task(struct zeroshot_task *task, struct error *err) {
  double *right = mem_alloc((size_t)task->count, sizeof *right, err);
  double *right_norm = mem_alloc((size_t)task->count, sizeof *right_norm, err);
  if (right && right_norm) {
    for (int64_t i = 0; i < task->count; i++) {
      struct zeroshot_item *item = &task->items[i];
      item->answer = best_choice(item, false);
      item->answer_norm = best_choice(item, true);
      right[i] = item->answer == item->item.target;
      right_norm[i] = item->answer_norm == item->item.target;
    }
    task->acc = eval_figure_of(right, task->count);
    task->acc_norm = eval_figure_of(right_norm, task->count);
  }
  bool failed = !right || !right_norm;
  mem_free(right);
  mem_free(right_norm);
  return failed ? STATUS_FAILED : STATUS_OK;
}

/* The pooled variance of the harness: sum of (n - 1) * variance over sum n - k, per item. */
struct eval_figure zeroshot_pool(const struct zeroshot_result *r, enum mmlu_group group,
                                 int64_t *items) {
  struct eval_figure pooled = {0, NAN};
  double variance = 0;
  int64_t subjects = 0;
  *items = 0;
  for (int i = 0; i < r->task_count; i++) {
    const struct zeroshot_task *t = &r->tasks[i];
    if (!t->subject || (group != MMLU_GROUPS && t->subject->group != group)) continue;
    double n = (double)t->count;
    pooled.mean += t->acc.mean * n;
    if (t->count > 1) variance += (n - 1) * n * t->acc.standard_error * t->acc.standard_error;
    *items += t->count;
    subjects++;
  }
  if (*items) pooled.mean /= (double)*items;
  if (*items > subjects)
    pooled.standard_error = sqrt(variance / (double)(*items - subjects) / (double)*items);
  return pooled;
}

static struct eval_figure mean_of_tasks(const struct zeroshot_result *r) {
  struct eval_figure mean = {0};
  double variance = 0;
  int count = 0;
  int64_t items;
  for (int i = 0; i < r->task_count; i++) {
    const struct zeroshot_task *t = &r->tasks[i];
    if (r->has_mmlu && t->subject) continue;
    mean.mean += t->acc.mean;
    variance += t->acc.standard_error * t->acc.standard_error;
    count++;
  }
  if (r->has_mmlu) {
    struct eval_figure mmlu = zeroshot_pool(r, MMLU_GROUPS, &items);
    mean.mean += mmlu.mean;
    variance += mmlu.standard_error * mmlu.standard_error;
    count++;
  }
  mean.mean /= count;
  mean.standard_error = sqrt(variance) / count;
  return mean;
}

static enum status score(struct zeroshot_result *r, const struct zeroshot_request *request,
                         struct error *err) {
  struct text_group *groups = mem_alloc((size_t)r->items, sizeof *groups, err);
  int64_t count = 0;
  if (!groups) return STATUS_FAILED;
  for (int t = 0; t < r->task_count; t++)
    for (int64_t i = 0; i < r->tasks[t].count; i++) {
      struct zeroshot_item *item = &r->tasks[t].items[i];
      groups[count++] = (struct text_group){item->texts, item->item.choice_count};
    }
  enum status status = loglikelihood_run(request->model, request->precision, groups, count,
                                         request->pass_tokens, err);
  mem_free(groups);
  return status;
}

enum status zeroshot_run(struct zeroshot_result *r, const struct zeroshot_request *request,
                         struct error *err) {
  double start_s = clock_seconds();
  *r = (struct zeroshot_result){0};
  enum status status = zeroshot_load(r, request, err);
  if (!status && r->truncated)
    log_warn("%lld texts are longer than the model's context and lose their beginning",
             (long long)r->truncated);
  if (!status) status = score(r, request, err);
  for (int i = 0; i < r->task_count && !status; i++) status = judge_task(&r->tasks[i], err);
  if (status) {
    zeroshot_result_free(r);
    return status;
  }
  r->mean = mean_of_tasks(r);
  r->seconds = clock_seconds() - start_s;
  return STATUS_OK;
}

static void item_release(struct zeroshot_item *item) {
  for (int i = 0; item->texts && i < item->item.choice_count; i++)
    scored_text_free(&item->texts[i]);
  mem_free(item->texts);
  task_item_release(&item->item);
}

void zeroshot_result_free(struct zeroshot_result *r) {
  for (int t = 0; t < r->task_count; t++) {
    for (int64_t i = 0; i < r->tasks[t].count; i++) item_release(&r->tasks[t].items[i]);
    free(r->tasks[t].items);
  }
  for (int i = 0; i < r->file_count; i++) item_file_free(&r->files[i]);
  free(r->tasks);
  free(r->files);
  *r = (struct zeroshot_result){0};
}
