/* Sharded weights: see safetensors_set.h. */
#include "io/safetensors_set.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/name_index.h"

enum { SHARDS_MAX = 4096, INDEX_LIMIT_BYTES = 256 << 20 };
static const char SINGLE_NAME[] = "model.safetensors";
static const char INDEX_NAME[] = "model.safetensors.index.json";

struct safetensors_set {
  struct safetensors **shards;
  char **shard_names;
  size_t shard_count;
  const struct stored_tensor **tensors;
  size_t tensor_count, tensor_capacity;
  struct name_index names;
};

static enum status add_shard(struct safetensors_set *set, const char *path, struct error *err) {
  struct safetensors *file;
  enum status status = safetensors_open(&file, path, err);
  if (status != STATUS_OK) return status;
  set->shards[set->shard_count++] = file;
  for (size_t i = 0; i < safetensors_size(file) && status == STATUS_OK; i++) {
    const struct stored_tensor *t = safetensors_at(file, i);
    void *tensors = set->tensors;
    status = mem_grow(&tensors, &set->tensor_capacity, set->tensor_count + 1,
                      sizeof(const struct stored_tensor *), err);
    set->tensors = tensors;
    if (status != STATUS_OK) break;
    status = name_index_add(&set->names, t->name, strlen(t->name), set->tensor_count, err);
    set->tensors[set->tensor_count++] = t;
  }
  return status;
}

/* ---- the index ---- */

static int by_text(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A shard lies beside its index: any other place would be a way out of the directory. */
static bool shard_name_allowed(const char *name) {
  return name && *name && *name != '.' && !strchr(name, '/');
}

/* The distinct file names of the map, sorted. */
static enum status list_shards(struct safetensors_set *set, const json_t *map, const char *path,
                               struct error *err) {
  size_t mentions = json_object_size(map), count = 0;
  set->shard_names = calloc(mentions + 1, sizeof *set->shard_names);
  const char **names = calloc(mentions + 1, sizeof *names);
  if (!set->shard_names || !names) {
    free(names);
    return error_set(err, STATUS_FAILED, "out of memory: %zu names", mentions);
  }
  enum status status = STATUS_OK;
  const char *tensor;
  json_t *value;
  json_object_foreach((json_t *)map, tensor, value) {
    names[count] = json_string_value(value);
    if (!shard_name_allowed(names[count++])) {
      status = error_set(err, STATUS_REFUSED, "%s: \"%.200s\" has no file name beside the index",
                         path, tensor);
      break;
    }
  }
  if (status == STATUS_OK) qsort(names, count, sizeof *names, by_text);
  size_t distinct = 0;
  for (size_t i = 0; i < count && status == STATUS_OK; i++) {
    if (i && !strcmp(names[i], names[i - 1])) continue;
    set->shard_names[distinct] = mem_strdup(names[i], err);
    if (!set->shard_names[distinct++]) status = STATUS_FAILED;
  }
  free(names);
  if (status == STATUS_OK && (distinct == 0 || distinct > SHARDS_MAX))
    status = error_set(err, STATUS_REFUSED, "%s names %zu shards; 1 to %d are allowed", path,
                       distinct, SHARDS_MAX);
  return status;
}

/* Opens the shards; all that are missing are counted, so that one run tells how much to fetch. */
static enum status open_shards(struct safetensors_set *set, const char *directory,
                               struct error *err) {
  size_t missing = 0, count = 0;
  const char *first = NULL;
  INVARIANT(set->shard_names != NULL);
  for (; set->shard_names[count]; count++) {
    char *path = path_join(directory, set->shard_names[count]);
    if (!file_exists(path) && missing++ == 0) first = set->shard_names[count];
    free(path);
  }
  if (missing)
    return error_set(err, STATUS_REFUSED,
                     "%s: %zu of %zu shards are missing, the first is %.200s; fetch them again",
                     directory, missing, count, first);
  set->shards = calloc(count + 1, sizeof(struct safetensors *));
  if (!set->shards) return error_set(err, STATUS_FAILED, "out of memory: %zu shards", count);
  enum status status = STATUS_OK;
  for (size_t i = 0; i < count && status == STATUS_OK; i++) {
    char *path = path_join(directory, set->shard_names[i]);
    status = add_shard(set, path, err);
    free(path);
  }
  return status;
}

static enum status check_against_index(const struct safetensors_set *set, const json_t *map,
                                       const char *path, struct error *err) {
  const char *tensor;
  json_t *value;
  json_object_foreach((json_t *)map, tensor, value) {
    const char *name = json_string_value(value);
    char *const *slot = bsearch(&name, set->shard_names, set->shard_count, sizeof name, by_text);
    INVARIANT(slot != NULL);
    if (!safetensors_find(set->shards[slot - set->shard_names], tensor))
      return error_set(err, STATUS_REFUSED, "%s says that %.200s holds \"%.200s\", but it does not",
                       path, name, tensor);
  }
  return STATUS_OK;
}

static enum status open_index(struct safetensors_set *set, const char *directory, const char *path,
                              struct error *err) {
  json_t *index = json_read_file(path, INDEX_LIMIT_BYTES, err);
  if (!index) return err->status;
  const json_t *map = json_object_get(index, "weight_map");
  enum status status = STATUS_OK;
  if (!json_is_object(map))
    status = error_set(err, STATUS_REFUSED, "%s has no \"weight_map\"", path);
  if (status == STATUS_OK) status = list_shards(set, map, path, err);
  if (status == STATUS_OK) status = open_shards(set, directory, err);
  if (status == STATUS_OK) status = check_against_index(set, map, path, err);
  json_decref(index);
  return status;
}

static enum status open_single(struct safetensors_set *set, const char *path, struct error *err) {
  set->shards = calloc(1, sizeof(struct safetensors *));
  if (!set->shards) return error_set(err, STATUS_FAILED, "out of memory");
  return add_shard(set, path, err);
}

/* ---- open and close ---- */

static enum status open_directory(struct safetensors_set *set, const char *directory,
                                  struct error *err) {
  char *single = path_join(directory, SINGLE_NAME), *index = path_join(directory, INDEX_NAME);
  char *pickled = path_join(directory, "pytorch_model.bin");
  enum status status;
  if (file_exists(index))
    status = open_index(set, directory, index, err);
  else if (file_exists(single))
    status = open_single(set, single, err);
  else if (file_exists(pickled))
    status = error_set(err, STATUS_REFUSED,
                       "%s holds its weights as pytorch_model.bin, which is not read; save them as "
                       "safetensors",
                       directory);
  else
    status = error_set(err, STATUS_REFUSED, "%s holds neither %s nor %s", directory, SINGLE_NAME,
                       INDEX_NAME);
  free(single);
  free(index);
  free(pickled);
  return status;
}

enum status safetensors_set_open(struct safetensors_set **out, const char *path,
                                 struct error *err) {
  struct error local;
  if (!err) err = &local;
  *out = NULL;
  struct safetensors_set *set = calloc(1, sizeof *set);
  if (!set) return error_set(err, STATUS_FAILED, "out of memory");
  enum status status =
      file_is_directory(path) ? open_directory(set, path, err) : open_single(set, path, err);
  if (status == STATUS_OK) status = name_index_finish(&set->names, path, err);
  if (status == STATUS_OK)
    *out = set;
  else
    safetensors_set_close(set);
  return status;
}

void safetensors_set_close(struct safetensors_set *set) {
  if (!set) return;
  name_index_free(&set->names);
  free(set->tensors);
  for (size_t i = 0; i < set->shard_count; i++) safetensors_close(set->shards[i]);
  for (size_t i = 0; set->shard_names && set->shard_names[i]; i++) free(set->shard_names[i]);
  free(set->shards);
  free(set->shard_names);
  free(set);
}

size_t safetensors_set_size(const struct safetensors_set *set) { return set->tensor_count; }

const struct stored_tensor *safetensors_set_at(const struct safetensors_set *set, size_t index) {
  INVARIANT(index < set->tensor_count);
  return set->tensors[index];
}

const struct stored_tensor *safetensors_set_find(const struct safetensors_set *set,
                                                 const char *name) {
  size_t index = name_index_find(&set->names, name, SIZE_MAX);
  return index == SIZE_MAX ? NULL : set->tensors[index];
}

size_t safetensors_set_shards(const struct safetensors_set *set) { return set->shard_count; }

const struct safetensors *safetensors_set_shard(const struct safetensors_set *set, size_t index) {
  INVARIANT(index < set->shard_count);
  return set->shards[index];
}
