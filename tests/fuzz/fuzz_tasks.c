/* Fuzz target: items of zero-shot tasks. Each line of the input is offered to every task. */
#include <stdint.h>
#include <string.h>

#include "eval/mmlu.h"
#include "eval/tasks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"piqa",       "arc_easy", "openbookqa", "hellaswag",
                                    "winogrande", "boolq",    "race"};

/* An item is either complete or refused with a sentence. */
static void check_item(const struct task_item *item, enum status status, const struct error *err) {
  if (status) {
    INVARIANT(status == STATUS_REFUSED && strlen(err->text) >= 10);
    return;
  }
  INVARIANT(item->choice_count >= 1 && item->choice_count <= TASK_CHOICES_MAX);
  INVARIANT(item->context_count == 1 || item->context_count == item->choice_count);
  INVARIANT(item->target >= 0 && item->target < item->choice_count);
}

static void offer(const json_t *doc) {
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    struct task_item item = {0};
    struct error err = {0};
    check_item(&item, task_find(names[i])->make(&item, doc, &err), &err);
    task_item_release(&item);
  }
  struct task_item item = {0};
  struct error err = {0};
  if (mmlu_subject_of(doc, &err)) check_item(&item, mmlu_make(&item, "", doc, &err), &err);
  task_item_release(&item);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const char *at = (const char *)data;
  while (size > 0) {
    const char *end = memchr(at, '\n', size);
    size_t bytes = end ? (size_t)(end - at) : size;
    json_t *doc = json_parse(at, bytes, "line", NULL);
    if (json_is_object(doc)) offer(doc);
    json_decref(doc);
    at += bytes + (end != NULL);
    size -= bytes + (end != NULL);
  }
  return 0;
}
