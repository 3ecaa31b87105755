/* A run's directory: who may write it, what it holds, and its record.
 *
 *   config.json              what the run is: settings, inputs, and what identifies them
 *   prior.safetensors        the canonical prior (learn/prior.h)
 *   checkpoint*.safetensors  learn/checkpoint.h
 *   record.jsonl             one JSON object a line; docs/RECORD.md
 *   mask.safetensors         the result: its presence says that the run is finished
 *   lock                     held while a process works on the run; dies with the process */
#ifndef TSR_LEARN_RUNDIR_H
#define TSR_LEARN_RUNDIR_H

#include "io/file.h"
#include "io/json.h"

struct run_directory {
  char *path;
  char *record, *mask, *prior, *config;
  struct file_lock lock;
  bool locked;
};

enum run_entry { RUN_NEW, RUN_CONTINUED, RUN_FINISHED };

/* Makes the directory or, with `resume` or `force`, enters an existing one, and locks it. An
 * existing run without either is refused; force removes what the run had made. `identity` is what
 * must agree for a run to be continued: compared with config.json member by member; on a
 * difference STATUS_REFUSED names it. `config` (identity included under that key) is written for a
 * new run. */
enum status run_directory_enter(struct run_directory *d, const char *path, bool resume, bool force,
                                const json_t *config, enum run_entry *entry, struct error *err);
/* The tokens that the run at `path` was started with, or 0 when there is none. */
int64_t run_directory_tokens(const char *path);
/* And the table of costs (learn/cost.h), or NULL. New reference. */
json_t *run_directory_costs(const char *path);
void run_directory_leave(struct run_directory *d);

/* Appends to the record; steals `line`. */
enum status run_record(const struct run_directory *d, json_t *line, struct error *err);
/* Length of the record now, and cutting it back to what it was at a checkpoint. */
enum status run_record_length(const struct run_directory *d, int64_t *bytes, struct error *err);
enum status run_record_cut(const struct run_directory *d, int64_t bytes, struct error *err);

#endif
