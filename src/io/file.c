/* Reading files, locks and paths: see file.h. The writers are in writer.c. */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static int open_regular(const char *path, struct stat *st, struct error *err) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    error_set(err, STATUS_FAILED, "cannot open %s: %s", path, strerror(errno));
    return -1;
  }
  if (fstat(fd, st) == 0 && S_ISREG(st->st_mode)) return fd;
  if (S_ISDIR(st->st_mode))
    error_set(err, STATUS_REFUSED, "%s is a directory; name a file", path);
  else
    error_set(err, STATUS_REFUSED, "%s is not a regular file", path);
  close(fd);
  return -1;
}

enum status file_map_open(struct file_map *map, const char *path, struct error *err) {
  *map = (struct file_map){0};
  struct stat st = {0};
  int fd = open_regular(path, &st, err);
  if (fd < 0) return err ? err->status : STATUS_FAILED;
  static const uint8_t nothing[1]; /* so that adding 0 to the pointer is no crime */
  const void *data = nothing;
  if (st.st_size > 0) data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (data == MAP_FAILED)
    return error_set(err, STATUS_FAILED, "cannot map %s: %s", path, strerror(errno));
  map->data = data;
  map->size_bytes = (size_t)st.st_size;
  return STATUS_OK;
}

void file_map_close(struct file_map *map) {
  if (map->size_bytes) munmap((void *)map->data, map->size_bytes);
  *map = (struct file_map){0};
}

void file_map_forget(const void *data, size_t bytes) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t first = ((uintptr_t)data + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)data + bytes) / page * page;
  if (first < end) madvise((void *)first, end - first, MADV_DONTNEED);
}

/* Reads to the end, so that pipes work too; one byte over the limit is enough to refuse. */
static enum status read_fd(int fd, const char *path, size_t limit_bytes, char **data,
                           size_t *size_bytes, struct error *err) {
  size_t used = 0, capacity = 0;
  void *buffer = NULL;
  for (;;) {
    if (mem_grow(&buffer, &capacity, used + 4096, 1, err) != STATUS_OK) goto failed;
    ssize_t got = read(fd, (char *)buffer + used, capacity - used - 1);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      error_set(err, STATUS_FAILED, "cannot read %s: %s", path, strerror(errno));
      goto failed;
    }
    if (got == 0) break;
    used += (size_t)got;
    if (used > limit_bytes) {
      error_set(err, STATUS_REFUSED, "%s is larger than the %zu bytes that such a file may have",
                path, limit_bytes);
      goto failed;
    }
  }
  ((char *)buffer)[used] = 0;
  *data = buffer;
  if (size_bytes) *size_bytes = used;
  return STATUS_OK;
failed:
  free(buffer);
  return err ? err->status : STATUS_FAILED;
}

enum status file_read(const char *path, size_t limit_bytes, char **data, size_t *size_bytes,
                      struct error *err) {
  *data = NULL;
  struct error local = {0};
  if (!err) err = &local;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return error_set(err, STATUS_FAILED, "cannot open %s: %s", path, strerror(errno));
  enum status status = read_fd(fd, path, limit_bytes, data, size_bytes, err);
  close(fd);
  return status;
}

bool file_exists(const char *path) {
  struct stat st;
  return stat(path, &st) == 0;
}

bool file_is_directory(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *path_join(const char *directory, const char *name) {
  size_t length = strlen(directory);
  const char *slash = length && directory[length - 1] != '/' ? "/" : "";
  size_t capacity = length + strlen(name) + 2;
  char *joined = malloc(capacity);
  INVARIANT(joined != NULL);
  snprintf(joined, capacity, "%s%s%s", directory, slash, name);
  return joined;
}

enum status file_lock_take(struct file_lock *lock, const char *path, struct error *err) {
  lock->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock->fd < 0)
    return error_set(err, STATUS_FAILED, "cannot open the lock %s: %s", path, strerror(errno));
  if (flock(lock->fd, LOCK_EX | LOCK_NB) == 0) return STATUS_OK;
  int reason = errno;
  file_lock_release(lock);
  if (reason == EWOULDBLOCK)
    return error_set(err, STATUS_REFUSED,
                     "another process is at work here (it holds %s); wait for it or stop it", path);
  return error_set(err, STATUS_FAILED, "cannot lock %s: %s", path, strerror(reason));
}

void file_lock_release(struct file_lock *lock) {
  if (lock->fd >= 0) close(lock->fd);
  lock->fd = -1;
}
