/* A run's directory: see rundir.h. */
#include "learn/rundir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/record.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };
/* What --force removes: what a run makes, and nothing else that may lie there. */
static const char *const run_files[] = {"mask.safetensors",       "record.jsonl",
                                        "checkpoint.safetensors", "checkpoint.previous.safetensors",
                                        "prior.safetensors",      "config.json"};

static enum status make_directory(const char *path, struct error *err) {
  if (!mkdir(path, 0777)) return STATUS_OK;
  if (errno == EEXIST && file_is_directory(path)) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "the run directory %s cannot be made: %s", path,
                   strerror(errno));
}

static enum status remove_files(const struct run_directory *d, struct error *err) {
  for (size_t i = 0; i < sizeof run_files / sizeof *run_files; i++) {
    char *path = path_join(d->path, run_files[i]);
    int failed = unlink(path) && errno != ENOENT ? errno : 0;
    if (failed) error_set(err, STATUS_FAILED, "cannot remove %s: %s", path, strerror(failed));
    free(path);
    if (failed) return STATUS_FAILED;
  }
  return STATUS_OK;
}

static bool holds_run(const struct run_directory *d) {
  return file_exists(d->config) || file_exists(d->mask) || file_exists(d->record);
}

/* Names the first member of `was` and `now` that differs. */
static enum status compare(const char *path, const char *inside, const json_t *was,
                           const json_t *now, struct error *err) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)now, key, value) {
    const json_t *old = json_object_get(was, key);
    if (old && json_equal(old, value)) continue;
    if (json_is_object(old) && json_is_object(value)) return compare(path, key, old, value, err);
    char *before = old ? json_dumps(old, JSON_ENCODE_ANY) : NULL;
    char *after = json_dumps(value, JSON_ENCODE_ANY);
    error_set(err, STATUS_REFUSED,
              "%s was started with %s%s%s = %s, and not with %s: give the same settings and inputs "
              "to continue it, or another --out",
              path, inside, *inside ? "." : "", key, before ? before : "nothing", after);
    free(before);
    free(after);
    return STATUS_REFUSED;
  }
  return STATUS_OK;
}

/* A run that was killed before it had a config.json has nothing to continue: it starts. */
static enum status enter_existing(struct run_directory *d, const json_t *config,
                                  enum run_entry *entry, struct error *err) {
  if (!file_exists(d->config)) {
    *entry = RUN_NEW;
    return STATUS_OK;
  }
  json_t *was = json_read_file(d->config, CONFIG_BYTES_MAX, err);
  if (!was) return err->status;
  enum status status = compare(d->path, "", json_object_get(was, "identity"),
                               json_object_get(config, "identity"), err);
  json_decref(was);
  *entry = file_exists(d->mask) ? RUN_FINISHED : RUN_CONTINUED;
  return status;
}

enum status run_directory_enter(struct run_directory *d, const char *path, bool resume, bool force,
                                const json_t *config, enum run_entry *entry, struct error *err) {
  *d = (struct run_directory){.path = strdup(path),
                              .record = path_join(path, "record.jsonl"),
                              .mask = path_join(path, "mask.safetensors"),
                              .prior = path_join(path, "prior.safetensors"),
                              .config = path_join(path, "config.json")};
  INVARIANT(d->path);
  *entry = RUN_NEW;
  bool existed = file_exists(path);
  enum status status = STATUS_OK;
  if (existed && holds_run(d) && !resume && !force)
    status = error_set(err, STATUS_REFUSED,
                       "%s holds a run already: --resume continues it, --force starts it anew, or "
                       "name another --out",
                       path);
  if (status == STATUS_OK) status = make_directory(path, err);
  if (status == STATUS_OK) {
    char *lock = path_join(path, "lock");
    status = file_lock_take(&d->lock, lock, err);
    d->locked = status == STATUS_OK;
    free(lock);
  }
  if (status == STATUS_OK && resume) status = enter_existing(d, config, entry, err);
  if (status == STATUS_OK && *entry == RUN_NEW) status = remove_files(d, err);
  if (status == STATUS_OK && *entry == RUN_NEW) status = json_write_file(d->config, config, err);
  if (status != STATUS_OK) run_directory_leave(d);
  return status;
}

/* The settings that the run at `path` was started with, or NULL. New reference. */
static json_t *settings_of(const char *path) {
  struct error err;
  char *config = path_join(path, "config.json");
  json_t *was = file_exists(config) ? json_read_file(config, CONFIG_BYTES_MAX, &err) : NULL;
  json_t *settings = json_object_get(json_object_get(was, "identity"), "settings");
  json_incref(settings);
  json_decref(was);
  free(config);
  return settings;
}

int64_t run_directory_tokens(const char *path) {
  json_t *settings = settings_of(path);
  int64_t tokens = json_integer_value(json_object_get(settings, "tokens"));
  json_decref(settings);
  return tokens > 0 ? tokens : 0;
}

json_t *run_directory_costs(const char *path) {
  json_t *settings = settings_of(path), *costs = json_object_get(settings, "costs");
  json_incref(costs);
  json_decref(settings);
  return costs;
}

void run_directory_leave(struct run_directory *d) {
  if (d->locked) file_lock_release(&d->lock);
  free(d->path);
  free(d->record);
  free(d->mask);
  free(d->prior);
  free(d->config);
  *d = (struct run_directory){0};
}

enum status run_record(const struct run_directory *d, json_t *line, struct error *err) {
  enum status status = record_append(d->record, line, err);
  json_decref(line);
  return status;
}

enum status run_record_length(const struct run_directory *d, int64_t *bytes, struct error *err) {
  struct stat info;
  *bytes = 0;
  if (stat(d->record, &info))
    return error_set(err, STATUS_FAILED, "cannot look at %s: %s", d->record, strerror(errno));
  *bytes = info.st_size;
  return STATUS_OK;
}

enum status run_record_cut(const struct run_directory *d, int64_t bytes, struct error *err) {
  struct stat info;
  if (stat(d->record, &info) || info.st_size <= bytes) return STATUS_OK; /* lost: nothing to cut */
  if (!truncate(d->record, bytes)) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "cannot cut %s: %s", d->record, strerror(errno));
}
