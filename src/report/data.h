/* What a report is made of, read from files: results.jsonl of a comparison, and the directories
 * of learning runs (record.jsonl, mask.safetensors). docs/RECORD.md describes the lines. */
#ifndef TSR_REPORT_DATA_H
#define TSR_REPORT_DATA_H

#include "io/json.h"
#include "sparse/mask.h"

enum { REPORT_RUNS_MAX = 64, REPORT_ROWS_MAX = 4096 };

/* One column of a record: NAN where a line lacks it. */
enum report_field {
  FIELD_STEP,
  FIELD_TOKENS,
  FIELD_LOSS,
  FIELD_DENSITY_SOFT,
  FIELD_DENSITY_HARD,
  FIELD_FLIPS_TILE,
  FIELD_FLIPS_24,
  FIELD_LR,
  REPORT_FIELDS
};

struct report_curve {
  double *values[REPORT_FIELDS]; /* (count) each */
  size_t count, capacity;
};

struct report_run {
  char *name;
  char *path;       /* real path of the directory or mask file: what is named twice is read once */
  json_t *settings; /* object: the run's settings, merged; never NULL */
  json_t *final;    /* object: the last "final" line; or NULL */
  struct report_curve steps;   /* "step" lines, in order of their steps */
  struct report_curve heldout; /* "heldout" lines: step, tokens, loss */
  double dense_loss;           /* of the dense model on the held-out windows; NAN when unknown */
  struct mask_set mask;
  bool has_mask;
};

struct report_data {
  json_t *about;  /* object: "about" lines, merged */
  json_t *rows;   /* array of objects: "row" lines, merged by their name */
  json_t *texts;  /* array: "text" lines, the last one for each (name, prompt) */
  json_t *speeds; /* array: "speed" lines */
  struct report_run runs[REPORT_RUNS_MAX];
  int run_count;
  size_t damaged_lines;
};

/* Adds what `path` holds: a directory with results.jsonl or record.jsonl, or such a file itself.
 * A row that names a "run" or a
 * "mask" brings it along, under the row's name. STATUS_REFUSED when there is nothing. */
enum status report_data_add(struct report_data *data, const char *path, struct error *err);
void report_data_init(struct report_data *data);
void report_data_free(struct report_data *data);

/* Number `key` of an object; NAN when it is absent or no number. */
double report_number(const json_t *object, const char *key);

#endif
