/* Finding by name: see name_index.h. */
#include "io/name_index.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static int compare(const void *left, const void *right) {
  const struct name_entry *a = left, *b = right;
  size_t shorter = a->length < b->length ? a->length : b->length;
  int order = memcmp(a->name, b->name, shorter);
  return order ? order : (a->length > b->length) - (a->length < b->length);
}

enum status name_index_add(struct name_index *names, const char *name, size_t length, size_t index,
                           struct error *err) {
  void *entries = names->entries;
  enum status status =
      mem_grow(&entries, &names->capacity, names->count + 1, sizeof *names->entries, err);
  names->entries = entries;
  if (status == STATUS_OK)
    names->entries[names->count++] = (struct name_entry){name, length, index};
  return status;
}

enum status name_index_finish(struct name_index *names, const char *what, struct error *err) {
  if (names->count < 2) return STATUS_OK;
  qsort(names->entries, names->count, sizeof *names->entries, compare);
  for (size_t i = 1; i < names->count; i++) {
    const struct name_entry *e = &names->entries[i];
    if (compare(e - 1, e) == 0)
      return error_set(err, STATUS_REFUSED, "%s \"%.*s\" is there twice", what,
                       (int)(e->length < 200 ? e->length : 200), e->name);
  }
  return STATUS_OK;
}

size_t name_index_find(const struct name_index *names, const char *name, size_t absent) {
  if (!names->count) return absent;
  struct name_entry key = {name, strlen(name), 0};
  const struct name_entry *found = bsearch(&key, names->entries, names->count, sizeof key, compare);
  return found ? found->index : absent;
}

void name_index_free(struct name_index *names) {
  free(names->entries);
  *names = (struct name_index){0};
}
