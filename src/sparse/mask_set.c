/* A set of masks, one per pruned linear, with the string pairs that say how it was made. Owns its
 * items. Names are few hundred at most per model, so they are searched from front to back. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "sparse/mask.h"

void mask_set_free(struct mask_set *set) {
  for (size_t i = 0; i < set->count; i++) mask_matrix_free(&set->items[i]);
  for (size_t i = 0; i < set->meta_count; i++) {
    free(set->meta[i].key);
    free(set->meta[i].value);
  }
  free(set->items);
  free(set->meta);
  *set = (struct mask_set){0};
}

struct mask_matrix *mask_set_find(const struct mask_set *set, const char *name) {
  for (size_t i = 0; i < set->count; i++)
    if (!strcmp(set->items[i].name, name)) return &set->items[i];
  return NULL;
}

enum status mask_set_add(struct mask_set *set, struct mask_matrix *m, struct error *err) {
  if (mask_set_find(set, m->name))
    return error_set(err, STATUS_REFUSED, "two masks are named %s", m->name);
  if (set->count >= MASK_MATRICES_MAX)
    return error_set(err, STATUS_REFUSED, "a mask holds at most %d matrices", MASK_MATRICES_MAX);
  enum status status =
      mem_grow((void **)&set->items, &set->capacity, set->count + 1, sizeof *set->items, err);
  if (status) return status;
  set->items[set->count++] = *m;
  *m = (struct mask_matrix){0};
  return STATUS_OK;
}

bool mask_key_reserved(const char *key) {
  return !strcmp(key, "format") || !strcmp(key, "version") || !strncmp(key, "matrix:", 7);
}

static struct mask_meta *meta_find(const struct mask_set *set, const char *key) {
  for (size_t i = 0; i < set->meta_count; i++)
    if (!strcmp(set->meta[i].key, key)) return &set->meta[i];
  return NULL;
}

enum status mask_set_meta(struct mask_set *set, const char *key, const char *value,
                          struct error *err) {
  if (mask_key_reserved(key))
    return error_set(err, STATUS_USAGE, "metadata key \"%s\" belongs to the file format", key);
  char *copy = mem_strdup(value, err);
  if (!copy) return STATUS_FAILED;
  struct mask_meta *pair = meta_find(set, key);
  if (pair) {
    free(pair->value);
    pair->value = copy;
    return STATUS_OK;
  }
  enum status status = STATUS_FAILED;
  char *key_copy = mem_strdup(key, err);
  if (!key_copy) goto out;
  if (set->meta_count >= MASK_META_MAX) {
    status =
        error_set(err, STATUS_REFUSED, "a mask holds at most %d pairs of metadata", MASK_META_MAX);
    goto out;
  }
  status = mem_grow((void **)&set->meta, &set->meta_capacity, set->meta_count + 1,
                    sizeof *set->meta, err);
  if (status) goto out;
  set->meta[set->meta_count++] = (struct mask_meta){key_copy, copy};
  return STATUS_OK;
out:
  free(key_copy);
  free(copy);
  return status;
}

const char *mask_set_meta_get(const struct mask_set *set, const char *key) {
  const struct mask_meta *pair = meta_find(set, key);
  return pair ? pair->value : NULL;
}

void mask_set_count(const struct mask_set *set, int64_t *kept, int64_t *total) {
  *kept = *total = 0;
  for (size_t i = 0; i < set->count; i++) {
    *kept += mask_kept(&set->items[i]);
    *total += set->items[i].rows * set->items[i].cols;
  }
}

double mask_set_density(const struct mask_set *set, int64_t total) {
  int64_t kept, covered;
  mask_set_count(set, &kept, &covered);
  return (double)(kept + total - covered) / (double)total;
}
