/* Bytes of a corpus file, unpacked by the file's name: .gz, .zst, or as they are. */
#ifndef TSR_DATA_READER_H
#define TSR_DATA_READER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct reader;
enum status reader_open(struct reader **out, const char *path, struct error *err);
void reader_close(struct reader *reader);

/* Up to `bytes` bytes; *got < bytes only at the end. A packed file that breaks off is refused. */
enum status reader_read(struct reader *reader, void *data, size_t bytes, size_t *got,
                        struct error *err);

/* True when the name, without .gz or .zst, ends in .jsonl. */
bool reader_is_jsonl(const char *path);

#endif
