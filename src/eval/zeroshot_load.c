/* From names to items: see zeroshot_load.h. Documents stay in the files that the result owns. */
#include "eval/zeroshot_load.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { NAME_BYTES = sizeof((struct zeroshot_task *)0)->name, TASKS_MAX = 256 };

/* --- tasks and files --- */

static enum status add_task(struct zeroshot_result *r, const char *name,
                            const struct task_definition *definition,
                            const struct mmlu_subject *subject, struct error *err) {
  for (int i = 0; i < r->task_count; i++)
    if (!strcmp(r->tasks[i].name, name))
      return error_set(err, STATUS_USAGE, "the task %s is named twice", name);
  if (r->task_count == TASKS_MAX)
    return error_set(err, STATUS_USAGE, "at most %d tasks at a time", TASKS_MAX);
  enum status status = mem_grow((void **)&r->tasks, &r->task_capacity, (size_t)r->task_count + 1,
                                sizeof *r->tasks, err);
  if (status) return status;
  struct zeroshot_task *task = &r->tasks[r->task_count++];
  *task = (struct zeroshot_task){.definition = definition, .subject = subject};
  snprintf(task->name, sizeof task->name, "%s", name);
  return STATUS_OK;
}

static enum status add_mmlu(struct zeroshot_result *r, struct error *err) {
  enum status status = STATUS_OK;
  r->has_mmlu = true;
  for (int i = 0; i < MMLU_SUBJECTS && !status; i++) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "mmlu_%s", mmlu_subjects[i].name);
    status = add_task(r, name, &mmlu_definition, &mmlu_subjects[i], err);
  }
  return status;
}

static enum status add_named(struct zeroshot_result *r, const char *name, struct error *err) {
  const struct task_definition *definition = task_find(name);
  const struct mmlu_subject *subject = strncmp(name, "mmlu_", 5) ? NULL : mmlu_find(name + 5);
  if (definition) return add_task(r, name, definition, NULL, err);
  if (subject) return add_task(r, name, &mmlu_definition, subject, err);
  if (!strcmp(name, "mmlu")) return add_mmlu(r, err);
  return error_set(err, STATUS_USAGE, "there is no task \"%s\"; there are %s", name, task_names());
}

/* "piqa,arc_easy": names between commas. */
static enum status add_all(struct zeroshot_result *r, const char *names, struct error *err) {
  enum status status = STATUS_OK;
  for (const char *at = names; !status; at++) {
    char name[NAME_BYTES];
    size_t length = strcspn(at, ",");
    snprintf(name, sizeof name, "%.*s", (int)(length < NAME_BYTES ? length : NAME_BYTES - 1), at);
    status = add_named(r, name, err);
    at += length;
    if (!*at) break;
  }
  return status;
}

/* The file of this name, read if it is not among the result's; its index. */
static enum status need_file(struct zeroshot_result *r, const char *directory, const char *name,
                             int *index, struct error *err) {
  struct item_file file;
  enum status status = mem_grow((void **)&r->files, &r->file_capacity, (size_t)r->file_count + 1,
                                sizeof *r->files, err);
  if (!status) status = item_file_read(&file, directory, name, err);
  if (status) return status;
  *index = r->file_count;
  r->files[r->file_count++] = file;
  return STATUS_OK;
}

/* --- items --- */

/* Takes document `index` of `file` unless the task has its fill. */
static enum status add_item(struct zeroshot_task *task, const struct item_file *file, int64_t index,
                            int64_t limit, const char *preamble, struct error *err) {
  int64_t doc_id = task->original++;
  if (limit > 0 && task->count >= limit) return STATUS_OK;
  enum status status = mem_grow((void **)&task->items, &task->capacity, (size_t)task->count + 1,
                                sizeof *task->items, err);
  if (status) return status;
  struct zeroshot_item *item = &task->items[task->count++];
  *item = (struct zeroshot_item){
      .doc = file->docs[index], .doc_id = doc_id, .line = file->lines[index]};
  status = task->subject ? mmlu_make(&item->item, preamble, item->doc, err)
                         : task->definition->make(&item->item, item->doc, err);
  return status ? item_file_blame(file, index, err) : STATUS_OK;
}

static enum status load_plain(struct zeroshot_result *r, struct zeroshot_task *task,
                              const struct zeroshot_request *request, struct error *err) {
  int at = 0;
  enum status status = need_file(r, request->directory, task->definition->name, &at, err);
  if (status) return status;
  const struct item_file *file = &r->files[at];
  task->path = file->path;
  for (int64_t i = 0; i < file->count && !status; i++)
    status = add_item(task, file, i, request->limit, NULL, err);
  return status;
}

static struct zeroshot_task *task_of(struct zeroshot_result *r,
                                     const struct mmlu_subject *subject) {
  for (int i = 0; i < r->task_count; i++)
    if (r->tasks[i].subject == subject) return &r->tasks[i];
  return NULL;
}

static enum status check_mmlu(const struct zeroshot_result *r, const char *path,
                              struct error *err) {
  for (int i = 0; i < r->task_count; i++)
    if (r->tasks[i].subject && !r->tasks[i].count)
      return error_set(err, STATUS_REFUSED, "%s has no question about %s", path,
                       r->tasks[i].subject->name);
  return STATUS_OK;
}

/* All subjects that were asked for, from one file. */
static enum status load_mmlu(struct zeroshot_result *r, const struct zeroshot_request *request,
                             struct error *err) {
  struct strbuf preambles[MMLU_SUBJECTS] = {{0}};
  int at = 0, dev = -1;
  enum status status = need_file(r, request->directory, "mmlu", &at, err);
  if (!status && request->shots > 0)
    status = need_file(r, request->directory, "mmlu_dev", &dev, err);
  for (int i = 0; i < r->task_count && !status; i++) {
    struct zeroshot_task *task = &r->tasks[i];
    if (!task->subject) continue;
    task->path = r->files[at].path;
    task->shots = request->shots;
    status = mmlu_preamble(&preambles[task->subject - mmlu_subjects], task->subject,
                           dev < 0 ? NULL : &r->files[dev], request->shots, err);
  }
  for (int64_t i = 0; !status && i < r->files[at].count; i++) {
    const struct item_file *file = &r->files[at];
    const struct mmlu_subject *subject = mmlu_subject_of(file->docs[i], err);
    if (!subject) {
      status = item_file_blame(file, i, err);
      break;
    }
    struct zeroshot_task *task = task_of(r, subject);
    if (task)
      status = add_item(task, file, i, request->limit,
                        strbuf_text(&preambles[subject - mmlu_subjects]), err);
  }
  if (!status) status = check_mmlu(r, r->files[at].path, err);
  for (int i = 0; i < MMLU_SUBJECTS; i++) strbuf_free(&preambles[i]);
  return status;
}

/* --- texts --- */

static enum status encode_item(struct zeroshot_item *item, const struct zeroshot_request *request,
                               struct error *err) {
  const struct task_item *t = &item->item;
  item->texts = mem_alloc((size_t)t->choice_count, sizeof *item->texts, err);
  if (!item->texts) return STATUS_FAILED;
  for (int i = 0; i < t->choice_count; i++) {
    enum status status = scored_text_encode(
        &item->texts[i], request->tokenizer, task_item_context(t, i),
        strbuf_text(&t->continuations[i]), model_config(request->model)->context_length, err);
    if (status) return error_prefix(err, "choice %d", i + 1);
  }
  return STATUS_OK;
}

static enum status encode_task(struct zeroshot_result *r, struct zeroshot_task *task,
                               const struct zeroshot_request *request, struct error *err) {
  for (int64_t i = 0; i < task->count; i++) {
    struct zeroshot_item *item = &task->items[i];
    if (encode_item(item, request, err))
      return error_prefix(err, "%s, line %lld", task->path, (long long)item->line);
    for (int c = 0; c < item->item.choice_count; c++) r->truncated += item->texts[c].dropped > 0;
    r->items++;
  }
  return STATUS_OK;
}

enum status zeroshot_load(struct zeroshot_result *r, const struct zeroshot_request *request,
                          struct error *err) {
  bool mmlu = false;
  enum status status = add_all(r, request->tasks, err);
  for (int i = 0; i < r->task_count && !status; i++) {
    mmlu |= r->tasks[i].subject != NULL;
    if (!r->tasks[i].subject) status = load_plain(r, &r->tasks[i], request, err);
  }
  if (!status && request->shots > 0 && !mmlu)
    status = error_set(err, STATUS_USAGE, "only mmlu takes examples before its questions");
  if (!status && mmlu) status = load_mmlu(r, request, err);
  for (int i = 0; i < r->task_count && !status; i++)
    status = encode_task(r, &r->tasks[i], request, err);
  return status;
}
