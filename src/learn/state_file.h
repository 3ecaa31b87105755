/* The state of long work in a file, so that going on from it gives the same bits as never having
 * stopped: a list of tensors and a list of numbers, saved and loaded by the same lists.
 *
 * DIR/checkpoint.safetensors is written beside itself and renamed, and the one before it stays as
 * DIR/checkpoint.previous.safetensors. Every tensor has a CRC-32; numbers are metadata, hexadecimal
 * where they are real, which keeps every bit. */
#ifndef TSR_LEARN_STATE_FILE_H
#define TSR_LEARN_STATE_FILE_H

#include "io/safetensors.h"
#include "kernel/backend.h"

struct far_tensor; /* in a backend's memory */
struct state_tensors {
  struct tensor_source *items; /* `data` points at the state; or `ctx` is far */
  size_t count, capacity;
  uint32_t *crc;          /* (count), while a file is written or read */
  struct far_tensor *far; /* room for all that may be */
  size_t far_count;
  uint8_t *room; /* through which far ones come, piece by piece */
};

struct state_number {
  const char *key;
  double *real;                  /* or */
  int64_t *integer, least, most; /* what a file may say; both 0: anything */
};

struct state {
  const char *format;           /* a word in the metadata: which kind of state */
  const char *settings;         /* JSON text: a state of other settings is refused */
  struct state_number *numbers; /* one is called "step" */
  int number_count;
  struct state_tensors tensors;
};

/* For up to `most` tensors in the memory of `ops`; nothing where that is the host's. */
enum status state_expect_far(struct state_tensors *t, const struct backend *ops, size_t most,
                             struct error *err);
/* A tensor called prefix + name of shape (a), (a, b) or (a, b, c): zeros end it. */
enum status state_add(struct state_tensors *t, struct error *err, const char *prefix,
                      const char *name, enum dtype dtype, int64_t a, int64_t b, int64_t c,
                      const void *data);
/* The same of what lies in the memory of `ops`, where that is not the host's. */
enum status state_add_far(struct state_tensors *t, struct error *err, const struct backend *ops,
                          const char *prefix, const char *name, enum dtype dtype, int64_t a,
                          int64_t b, int64_t c, const void *data);
void state_tensors_free(struct state_tensors *t);

/* Memory of the host for a copy of a state, which is then written while work goes on. */
struct state_copy {
  const struct backend *ops; /* who has the state and took the memory; NULL: none was taken */
  uint8_t *room;             /* pinned */
  size_t bytes;
};
/* Copies all tensors into *copy, whose memory is taken the first time, and makes the list that of
 * the copies. What lies in the memory of `ops`, which must not be the host's, is copied aside
 * (kernel/backend.h): it is there after await_aside and a download. */
enum status state_detach(struct state_tensors *t, const struct backend *ops,
                         struct state_copy *copy, struct error *err);
void state_copy_free(struct state_copy *copy);

enum status state_save(struct state *state, const char *dir, struct error *err);
/* Into where the lists point, all or nothing. *found is false, and STATUS_OK, when DIR has no
 * state. A damaged one is reported and the one before it is taken, which is as good: the steps
 * between are only done again. STATUS_REFUSED when none is usable. */
enum status state_load(struct state *state, const char *dir, bool *found, struct error *err);
bool state_exists(const char *dir);
/* Removes both files and, when nothing else is in it, DIR. */
void state_remove(const char *dir);

#endif
