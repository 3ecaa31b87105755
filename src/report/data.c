/* Reading records: see data.h. A record may have been written by several lives of one process: a
 * resumed run repeats the steps since its checkpoint, and the later line counts. */
#include "report/data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/record.h"

static const char *const field_key[REPORT_FIELDS] = {
    "step", "tokens", "loss", "density_soft", "density_hard", "flips_tile", "flips_24", "lr"};

void report_data_init(struct report_data *data) {
  *data = (struct report_data){
      .about = json_object(), .rows = json_array(), .texts = json_array(), .speeds = json_array()};
  INVARIANT(data->about && data->rows && data->texts && data->speeds);
}

static void curve_free(struct report_curve *curve) {
  for (int f = 0; f < REPORT_FIELDS; f++) free(curve->values[f]);
  *curve = (struct report_curve){0};
}

static void run_free(struct report_run *run) {
  free(run->name);
  free(run->path);
  json_decref(run->settings);
  json_decref(run->final);
  curve_free(&run->steps);
  curve_free(&run->heldout);
  mask_set_free(&run->mask);
  *run = (struct report_run){0};
}

void report_data_free(struct report_data *data) {
  json_decref(data->about);
  json_decref(data->rows);
  json_decref(data->texts);
  json_decref(data->speeds);
  for (int i = 0; i < data->run_count; i++) run_free(&data->runs[i]);
  *data = (struct report_data){0};
}

double report_number(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return json_is_number(value) ? json_number_value(value) : NAN;
}

/* --- learning runs --- */

static enum status curve_add(struct report_curve *curve, const json_t *line, struct error *err) {
  double step = report_number(line, "step");
  if (isnan(step)) return STATUS_OK;
  while (curve->count > 0 && curve->values[FIELD_STEP][curve->count - 1] >= step) curve->count--;
  if (curve->count == curve->capacity) {
    size_t capacity = 0;
    for (int f = 0; f < REPORT_FIELDS; f++) {
      capacity = curve->capacity;
      enum status status =
          mem_grow((void **)&curve->values[f], &capacity, curve->count + 1, sizeof(double), err);
      if (status) return status;
    }
    curve->capacity = capacity;
  }
  for (int f = 0; f < REPORT_FIELDS; f++)
    curve->values[f][curve->count] = report_number(line, field_key[f]);
  curve->count++;
  return STATUS_OK;
}

/* The run's settings lie under a key of their own; what stands beside them (model, data, threads)
 * belongs with them. */
static void add_settings(struct report_run *run, const json_t *line) {
  static const char *const elsewhere[] = {"type", "time", "step", "settings"};
  json_object_update(run->settings, (json_t *)line);
  for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
    json_object_del(run->settings, elsewhere[i]);
  json_t *inner = json_object_get(line, "settings");
  if (json_is_object(inner)) json_object_update(run->settings, inner);
}

/* Held-out loss at step 0: that of the mask which learning starts from. */
static enum status add_prior(struct report_run *run, const json_t *line, struct error *err) {
  run->dense_loss = report_number(line, "dense_loss");
  json_t *first =
      json_pack("{s:i, s:i, s:O?}", "step", 0, "tokens", 0, "loss", json_object_get(line, "loss"));
  INVARIANT(first != NULL);
  enum status status = curve_add(&run->heldout, first, err);
  json_decref(first);
  return status;
}

static enum status run_add_line(struct report_run *run, json_t *line, struct error *err) {
  const char *type = json_get_string(line, "type");
  if (!type) return STATUS_OK;
  if (!strcmp(type, "step")) return curve_add(&run->steps, line, err);
  if (!strcmp(type, "heldout")) return curve_add(&run->heldout, line, err);
  if (!strcmp(type, "prior")) return add_prior(run, line, err);
  if (!strcmp(type, "settings")) {
    add_settings(run, line);
  } else if (!strcmp(type, "final")) {
    json_decref(run->final);
    run->final = json_incref(line);
  }
  return STATUS_OK;
}

/* Last component of a path, without trailing slashes. */
static char *base_name(const char *path) {
  size_t end = strlen(path);
  while (end > 1 && path[end - 1] == '/') end--;
  size_t start = end;
  while (start > 0 && path[start - 1] != '/') start--;
  return mem_strndup(path + start, end - start, NULL);
}

/* The run at `path`, added under `name` unless it is there already: then *fresh is false. */
static enum status new_run(struct report_data *data, const char *name, const char *path,
                           struct report_run **out, bool *fresh, struct error *err) {
  char *real = realpath(path, NULL);
  *fresh = false;
  for (int i = 0; i < data->run_count; i++) {
    if (!real || strcmp(data->runs[i].path, real) != 0) continue;
    free(real);
    return STATUS_OK;
  }
  if (data->run_count == REPORT_RUNS_MAX) {
    free(real);
    return error_set(err, STATUS_REFUSED, "a report holds at most %d runs; leave some out",
                     REPORT_RUNS_MAX);
  }
  struct report_run *run = &data->runs[data->run_count++];
  *run = (struct report_run){.name = mem_strdup(name, NULL),
                             .path = real ? real : mem_strdup(path, NULL),
                             .settings = json_object(),
                             .dense_loss = NAN};
  INVARIANT(run->name && run->path && run->settings);
  *fresh = true;
  *out = run;
  return STATUS_OK;
}

static enum status load_mask(struct report_run *run, const char *path, struct error *err) {
  enum status status = mask_load(&run->mask, path, err);
  run->has_mask = status == STATUS_OK;
  return status;
}

/* `place`: the run's directory, or its record file when that lies alone. */
static enum status add_run_lines(struct report_data *data, json_t *lines, const char *name,
                                 const char *place, struct error *err) {
  struct report_run *run;
  bool fresh;
  enum status status = new_run(data, name, place, &run, &fresh, err);
  if (!fresh) return status;
  for (size_t i = 0; i < json_array_size(lines) && !status; i++)
    status = run_add_line(run, json_array_get(lines, i), err);
  if (status || !file_is_directory(place)) return status;
  char *mask = path_join(place, "mask.safetensors");
  if (file_exists(mask)) status = load_mask(run, mask, err);
  free(mask);
  return status;
}

static char *directory_of(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? mem_strndup(path, (size_t)(slash - path), NULL) : mem_strdup(".", NULL);
}

static json_t *read_lines(struct report_data *data, const char *path, struct error *err) {
  size_t damaged;
  json_t *lines = record_read(path, &damaged, err);
  if (lines) data->damaged_lines += damaged;
  return lines;
}

/* A run directory under a name of its own. */
static enum status add_run_directory(struct report_data *data, const char *directory,
                                     const char *name, struct error *err) {
  char *path = path_join(directory, "record.jsonl");
  json_t *lines = read_lines(data, path, err);
  enum status status = lines ? add_run_lines(data, lines, name, directory, err)
                             : (err ? err->status : STATUS_REFUSED);
  json_decref(lines);
  free(path);
  return status;
}

/* --- comparisons --- */

static json_t *find_named(json_t *array, const char *name) {
  for (size_t i = 0; i < json_array_size(array); i++) {
    json_t *item = json_array_get(array, i);
    const char *own = json_get_string(item, "name");
    if (own && !strcmp(own, name)) return item;
  }
  return NULL;
}

static bool same_text(const json_t *a, const json_t *b, const char *key) {
  return json_equal(json_object_get(a, key), json_object_get(b, key));
}

/* A later text for the same name and prompt takes the place of the earlier one. */
static void add_text(json_t *texts, json_t *line) {
  for (size_t i = 0; i < json_array_size(texts); i++) {
    json_t *old = json_array_get(texts, i);
    if (!same_text(old, line, "name") || !same_text(old, line, "prompt")) continue;
    json_array_set(texts, i, line);
    return;
  }
  json_array_append(texts, line);
}

static enum status add_row(json_t *rows, json_t *line, struct error *err) {
  const char *name = json_get_string(line, "name");
  if (!name) return STATUS_OK;
  json_t *row = find_named(rows, name);
  if (row) {
    json_object_update(row, line);
    return STATUS_OK;
  }
  if (json_array_size(rows) == REPORT_ROWS_MAX)
    return error_set(err, STATUS_REFUSED, "a report holds at most %d rows", REPORT_ROWS_MAX);
  json_array_append(rows, line);
  return STATUS_OK;
}

static enum status add_results_line(struct report_data *data, json_t *line, struct error *err) {
  const char *type = json_get_string(line, "type");
  if (!type) return STATUS_OK;
  if (!strcmp(type, "row")) return add_row(data->rows, line, err);
  if (!strcmp(type, "about")) json_object_update(data->about, line);
  if (!strcmp(type, "text")) add_text(data->texts, line);
  if (!strcmp(type, "speed")) json_array_append(data->speeds, line);
  return STATUS_OK;
}

/* `path` as it stands when absolute, else below `directory`. */
static char *resolve(const char *directory, const char *path) {
  return path_join(*path == '/' ? "" : directory, *path == '/' ? path + 1 : path);
}

/* What a run knows about itself need not be repeated in its row. */
static void complete_row(const struct report_data *data, json_t *row, const char *path) {
  char *real = realpath(path, NULL);
  for (int i = 0; i < data->run_count && real; i++) {
    const struct report_run *run = &data->runs[i];
    if (strcmp(run->path, real) != 0) continue;
    size_t steps = run->steps.count;
    double tokens = steps ? run->steps.values[FIELD_TOKENS][steps - 1] : NAN;
    double seconds = report_number(run->final, "seconds");
    if (isnan(report_number(row, "learning_tokens")) && isfinite(tokens))
      json_object_set_new(row, "learning_tokens", json_real(tokens));
    if (isnan(report_number(row, "seconds_to_make")) && isfinite(seconds))
      json_object_set_new(row, "seconds_to_make", json_real(seconds));
  }
  free(real);
}

/* What a row points at: the directory of a learning run, or a mask file alone. */
static enum status follow_row(struct report_data *data, json_t *row, const char *directory,
                              struct error *err) {
  const char *name = json_get_string(row, "name");
  const char *run_path = json_get_string(row, "run"), *mask_path = json_get_string(row, "mask");
  enum status status = STATUS_OK;
  char *path = NULL;
  if (run_path) {
    path = resolve(directory, run_path);
    status = add_run_directory(data, path, name, err);
    if (!status) complete_row(data, row, path);
  } else if (mask_path) {
    struct report_run *run;
    bool fresh;
    path = resolve(directory, mask_path);
    status = new_run(data, name, path, &run, &fresh, err);
    if (fresh) status = load_mask(run, path, err);
  }
  free(path);
  return status;
}

static enum status add_results(struct report_data *data, json_t *lines, const char *directory,
                               struct error *err) {
  enum status status = STATUS_OK;
  size_t first = json_array_size(data->rows);
  for (size_t i = 0; i < json_array_size(lines) && !status; i++)
    status = add_results_line(data, json_array_get(lines, i), err);
  for (size_t i = first; i < json_array_size(data->rows) && !status; i++)
    status = follow_row(data, json_array_get(data->rows, i), directory, err);
  return status;
}

/* --- what a path is --- */

static bool is_results(const json_t *lines) {
  for (size_t i = 0; i < json_array_size(lines); i++) {
    const char *type = json_get_string(json_array_get(lines, i), "type");
    if (type && (!strcmp(type, "row") || !strcmp(type, "about"))) return true;
  }
  return false;
}

/* Reads the record at `path`. `place` is what the user named: the record or its directory. */
static enum status add_file(struct report_data *data, const char *path, const char *place,
                            struct error *err) {
  json_t *lines = read_lines(data, path, err);
  if (!lines) return err ? err->status : STATUS_REFUSED;
  char *name = base_name(place), *directory = directory_of(path);
  INVARIANT(name && directory);
  enum status status;
  if (json_array_size(lines) == 0)
    status = error_set(err, STATUS_REFUSED,
                       "%s holds no whole line of a record: nothing has been measured yet, or it "
                       "is another kind of file",
                       path);
  else if (is_results(lines))
    status = add_results(data, lines, directory, err);
  else
    status = add_run_lines(data, lines, name, place, err);
  free(name);
  free(directory);
  json_decref(lines);
  return status;
}

enum status report_data_add(struct report_data *data, const char *path, struct error *err) {
  if (!file_is_directory(path)) return add_file(data, path, path, err);
  enum status status;
  char *results = path_join(path, "results.jsonl"), *record = path_join(path, "record.jsonl");
  if (file_exists(results))
    status = add_file(data, results, path, err);
  else if (file_exists(record))
    status = add_file(data, record, path, err);
  else
    status = error_set(err, STATUS_REFUSED,
                       "%s holds neither results.jsonl nor record.jsonl: give the directory of a "
                       "learning run or of a comparison",
                       path);
  free(results);
  free(record);
  return status;
}
