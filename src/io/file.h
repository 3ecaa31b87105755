/* Files in and out: read-only maps, and outputs that appear whole or not at all. */
#ifndef TSR_IO_FILE_H
#define TSR_IO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* A whole file mapped read-only. Pages are read when they are touched; a file that somebody
 * shortens while it is mapped takes the process down with SIGBUS, which no reader can prevent. */
struct file_map {
  const uint8_t *data; /* never NULL, also for an empty file */
  size_t size_bytes;
};
enum status file_map_open(struct file_map *map, const char *path, struct error *err);
void file_map_close(struct file_map *map);
/* Takes the whole pages of a part of a map out of this process's memory; touching them reads them
 * from the file again. */
void file_map_forget(const void *data, size_t bytes);

/* Reads a whole file of at most `limit_bytes` into memory, NUL-terminated; free() it. */
enum status file_read(const char *path, size_t limit_bytes, char **data, size_t *size_bytes,
                      struct error *err);

bool file_exists(const char *path);
bool file_is_directory(const char *path);

/* Writes go to a temporary name beside `path`; commit syncs and renames it over `path`, abort (or
 * a failed commit, or the end of the process by exit) removes it. Temporary names that a killed
 * process left behind are removed by the next writer of the same path. A symbolic link is
 * followed: the file it leads to is replaced. Anything but a regular file is refused. */
struct file_writer {
  int fd; /* -1 when closed */
  char *path, *temporary;
  uint8_t *buffer;
  size_t used_bytes;
  uint64_t written_bytes; /* put so far, buffered bytes included */
};
enum status file_writer_open(struct file_writer *w, const char *path, struct error *err);
enum status file_writer_put(struct file_writer *w, const void *data, size_t bytes,
                            struct error *err);
enum status file_writer_commit(struct file_writer *w, struct error *err);
void file_writer_abort(struct file_writer *w); /* safe after commit and on a zeroed struct */

enum status file_write_all(const char *path, const void *data, size_t bytes, struct error *err);

/* The same for a directory of files: everything is written under `temporary`, then renamed. An
 * existing `path` is replaced only when `replace` is set, else refused before anything is made.
 * A directory that holds directories is never replaced: it is none that tessera wrote. */
struct dir_writer {
  char *path, *temporary;
  int fd; /* holds the lock that tells a living temporary from a stale one */
  bool replace;
};
enum status dir_writer_open(struct dir_writer *w, const char *path, bool replace,
                            struct error *err);
enum status dir_writer_commit(struct dir_writer *w, struct error *err);
void dir_writer_abort(struct dir_writer *w);

/* "a/b" from "a" and "b"; free() it. Aborts on no memory. */
char *path_join(const char *directory, const char *name);

/* An advisory lock on `path` (made if missing) that dies with the process. STATUS_REFUSED when
 * another process holds it. */
struct file_lock {
  int fd;
};
enum status file_lock_take(struct file_lock *lock, const char *path, struct error *err);
void file_lock_release(struct file_lock *lock); /* safe twice */

#endif
