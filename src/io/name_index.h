/* Finds things by name: a sorted array of names over a list whose order stays as it is. */
#ifndef TSR_IO_NAME_INDEX_H
#define TSR_IO_NAME_INDEX_H

#include <stddef.h>

#include "base/error.h"

/* One name; neither owned nor NUL-terminated. */
struct name_entry {
  const char *name;
  size_t length, index;
};

struct name_index {
  struct name_entry *entries; /* sorted by name */
  size_t count, capacity;
};

enum status name_index_add(struct name_index *names, const char *name, size_t length, size_t index,
                           struct error *err);
/* Sorts; a name that is there twice is refused, `what` says where ("FILE: tensor"). */
enum status name_index_finish(struct name_index *names, const char *what, struct error *err);
/* The index given with the name, or `absent`. */
size_t name_index_find(const struct name_index *names, const char *name, size_t absent);
void name_index_free(struct name_index *names);

#endif
