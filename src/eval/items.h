/* Items of a task: the lines of a JSONL file (docs/TASKS.md), and how their fields are read.
 *
 * Every error names the file and the line. */
#ifndef TSR_EVAL_ITEMS_H
#define TSR_EVAL_ITEMS_H

#include "io/json.h"

struct item_file {
  char *path;
  json_t **docs;  /* (count) objects */
  int64_t *lines; /* (count), from 1 */
  int64_t count;
  size_t doc_capacity, line_capacity;
};
/* Reads directory/name.jsonl, or the same as .gz or .zst. STATUS_REFUSED when there is none, or a
 * line is no JSON object; blank lines are passed over. */
enum status item_file_read(struct item_file *file, const char *directory, const char *name,
                           struct error *err);
void item_file_free(struct item_file *file); /* safe on a zeroed struct */
/* Puts "path, line N: " before the sentence. Returns its status. */
enum status item_file_blame(const struct item_file *file, int64_t index, struct error *err);

/* Fields of an item. On failure: NULL (false) and a sentence without file and line. */
const char *item_text(const json_t *doc, const char *key, struct error *err);
/* An array of at least `least` and at most `most` strings. */
const json_t *item_texts(const json_t *doc, const char *key, size_t least, size_t most,
                         struct error *err);
/* An index below `count`: a number, or its digits as a string, counted from `base`. */
bool item_index(const json_t *doc, const char *key, int base, int count, int *out,
                struct error *err);

#endif
