/* MMLU: 57 subjects in four groups, one task each, and a file for all of them. */
#ifndef TSR_EVAL_MMLU_H
#define TSR_EVAL_MMLU_H

#include "eval/items.h"
#include "eval/tasks.h"

enum mmlu_group { MMLU_STEM, MMLU_OTHER, MMLU_SOCIAL_SCIENCES, MMLU_HUMANITIES, MMLU_GROUPS };
extern const char *const mmlu_group_name[MMLU_GROUPS]; /* "mmlu_stem", ... */
extern const char *const mmlu_group_alias[MMLU_GROUPS];
extern const struct task_definition mmlu_definition; /* of any subject; has no make */

struct mmlu_subject {
  const char *name; /* as in the files; the task is "mmlu_" and this */
  enum mmlu_group group;
};
enum { MMLU_SUBJECTS = 57 };
extern const struct mmlu_subject mmlu_subjects[MMLU_SUBJECTS];
/* The subject of this name, or NULL. */
const struct mmlu_subject *mmlu_find(const char *name);
/* The subject of an item. NULL and a sentence when it is none of them. */
const struct mmlu_subject *mmlu_subject_of(const json_t *doc, struct error *err);

/* What stands before every question of a subject: one sentence, then the first `shots` questions of
 * `dev` (mmlu_dev.jsonl; may be NULL with 0) that belong to it, with their answers. */
enum status mmlu_preamble(struct strbuf *out, const struct mmlu_subject *subject,
                          const struct item_file *dev, int shots, struct error *err);
/* Fills a zeroed item. STATUS_REFUSED with a sentence without file and line. */
enum status mmlu_make(struct task_item *item, const char *preamble, const json_t *doc,
                      struct error *err);

#endif
