/* TensorBoard event files: scalars over steps. Each record is a length, its checksum, a small
 * protobuf message and the message's checksum. */
#ifndef TSR_IO_TFEVENTS_H
#define TSR_IO_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct tfevents {
  int fd; /* -1 when closed */
  char *path;
};

/* Makes a new event file in `directory` (made if missing). TensorBoard reads all files of a
 * directory together, so a resumed run opens another one: `first_step` tells it to forget what an
 * earlier process wrote for that step and later ones. */
enum status tfevents_open(struct tfevents *t, const char *directory, int64_t first_step,
                          struct error *err);
/* One point, on the disk's way when this returns. `tag` may hold slashes, which group curves. */
enum status tfevents_scalar(struct tfevents *t, const char *tag, int64_t step, double value,
                            struct error *err);
void tfevents_close(struct tfevents *t); /* safe twice */

/* CRC-32C (Castagnoli) of the bytes. */
uint32_t crc32c(const void *data, size_t bytes);

#endif
