/* Outputs that appear whole or not at all: see file.h.
 *
 * A temporary is ".NAME.tessera-tmp.PID.N" beside NAME. Its writer holds a flock on it, which the
 * system drops when the process dies in whatever way, so a temporary whose lock can be had is
 * stale; process ids, which are reused, are not trusted. What a living process has not committed
 * by the time it exits is removed by an exit handler, from the list kept here. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "io/file.h"

enum { BUFFER_BYTES = 1 << 20, NAME_KEPT = 180, OPEN_ATTEMPTS = 100 };
#define TEMPORARY_MARK ".tessera-tmp."

/* ---- removing ---- */

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *where) {
  remove(path);
  return 0;
}

/* A file or a directory with all below it; symbolic links are removed, not followed. */
static void remove_tree(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

/* ---- temporaries of this process ---- */

struct temporary {
  struct temporary *next;
  pid_t owner; /* a forked child that exits must not remove its parent's files */
  char path[];
};

static struct temporary *temporaries;
static pthread_mutex_t temporaries_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t exit_handler_once = PTHREAD_ONCE_INIT;

static void remove_temporaries(void) {
  for (struct temporary *t = temporaries; t; t = t->next)
    if (t->owner == getpid()) remove_tree(t->path);
}

static void install_exit_handler(void) { atexit(remove_temporaries); }

static void temporary_remember(const char *path) {
  pthread_once(&exit_handler_once, install_exit_handler);
  /* Absolute, because the working directory may change before the exit. */
  char *here = *path == '/' ? NULL : getcwd(NULL, 0);
  char *full = here ? path_join(here, path) : path_join("", path);
  size_t bytes = strlen(full) + 1;
  struct temporary *t = malloc(sizeof *t + bytes);
  INVARIANT(t != NULL);
  memcpy(t->path, full, bytes);
  t->owner = getpid();
  free(full);
  free(here);
  pthread_mutex_lock(&temporaries_lock);
  t->next = temporaries;
  temporaries = t;
  pthread_mutex_unlock(&temporaries_lock);
}

static bool ends_with(const char *text, const char *end) {
  size_t a = strlen(text), b = strlen(end);
  return a >= b && strcmp(text + a - b, end) == 0;
}

static void temporary_forget(const char *path) {
  pthread_mutex_lock(&temporaries_lock);
  for (struct temporary **link = &temporaries; *link; link = &(*link)->next)
    if (ends_with((*link)->path, path)) {
      struct temporary *gone = *link;
      *link = gone->next;
      free(gone);
      break;
    }
  pthread_mutex_unlock(&temporaries_lock);
}

/* ---- names ---- */

/* Where `path` really leads: the target of a symbolic link, or the path itself without trailing
 * slashes. free() it. */
static char *resolve(const char *path) {
  char *real = realpath(path, NULL);
  if (real) return real;
  char *copy = path_join("", path);
  for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--) copy[n - 1] = 0;
  return copy;
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static char *folder_of(const char *path) {
  const char *slash = strrchr(path, '/');
  char *folder = path_join("", slash ? path : ".");
  if (slash) folder[slash == path ? 1 : slash - path] = 0;
  return folder;
}

static void temporary_prefix(struct strbuf *out, const char *path) {
  strbuf_printf(out, ".%.*s%s", NAME_KEPT, base_name(path), TEMPORARY_MARK);
}

static char *temporary_name(const char *path) {
  static atomic_uint serial;
  struct strbuf name = {0};
  temporary_prefix(&name, path);
  strbuf_printf(&name, "%ld.%u", (long)getpid(), atomic_fetch_add(&serial, 1));
  char *folder = folder_of(path);
  char *full = path_join(folder, name.data);
  free(folder);
  strbuf_free(&name);
  return full;
}

/* Removes the temporaries of `path` that nobody holds a lock on. */
static void remove_stale(const char *path) {
  struct strbuf prefix = {0};
  temporary_prefix(&prefix, path);
  char *folder = folder_of(path);
  DIR *dir = opendir(folder);
  for (struct dirent *entry; dir && (entry = readdir(dir));) {
    if (strncmp(entry->d_name, prefix.data, prefix.length) != 0) continue;
    char *full = path_join(folder, entry->d_name);
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) remove_tree(full);
    if (fd >= 0) close(fd);
    free(full);
  }
  if (dir) closedir(dir);
  free(folder);
  strbuf_free(&prefix);
}

/* ---- sentences ---- */

static enum status cannot_create(const char *path, int reason, struct error *err) {
  char *folder = folder_of(path);
  if (reason == ENOENT)
    error_set(err, STATUS_FAILED, "cannot create %s: the folder %s does not exist; make it first",
              path, folder);
  else if (reason == EACCES || reason == EPERM || reason == EROFS)
    error_set(err, STATUS_FAILED,
              "cannot create %s: the folder %s cannot be written to (%s); choose another output",
              path, folder, strerror(reason));
  else if (reason == ENOSPC || reason == EDQUOT)
    error_set(err, STATUS_FAILED, "cannot create %s: the disk is full; free some space", path);
  else
    error_set(err, STATUS_FAILED, "cannot create %s: %s", path, strerror(reason));
  free(folder);
  return STATUS_FAILED;
}

static enum status cannot_write(const struct file_writer *w, int reason, struct error *err) {
  if (reason == ENOSPC || reason == EDQUOT)
    return error_set(err, STATUS_FAILED,
                     "cannot write %s: the disk is full after %.1f MB; nothing was replaced, free "
                     "some space and run again",
                     w->path, (double)w->written_bytes / 1e6);
  return error_set(err, STATUS_FAILED, "cannot write %s: %s; nothing was replaced", w->path,
                   strerror(reason));
}

/* ---- making and locking a temporary ---- */

static int create_file(const char *path) {
  return open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

static int create_directory(const char *path) {
  return mkdir(path, 0777) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Between creation and lock another writer may take the newcomer for stale and remove it: then it
 * has no name any more, and the next one is tried. A file system without locks serves too, only
 * without the removal of stale files. */
static enum status make_temporary(const char *path, int (*create)(const char *), char **temporary,
                                  int *fd, struct error *err) {
  for (int attempt = 0; attempt < OPEN_ATTEMPTS; attempt++) {
    *temporary = temporary_name(path);
    *fd = create(*temporary);
    if (*fd < 0 && errno != EEXIST) break;
    struct stat st, named;
    if (*fd >= 0) {
      flock(*fd, LOCK_EX | LOCK_NB);
      if (fstat(*fd, &st) == 0 && lstat(*temporary, &named) == 0 && st.st_ino == named.st_ino) {
        temporary_remember(*temporary);
        return STATUS_OK;
      }
      close(*fd);
    }
    free(*temporary);
    *temporary = NULL;
  }
  int reason = errno;
  free(*temporary);
  *temporary = NULL;
  *fd = -1;
  return cannot_create(path, reason, err);
}

static int sync_fd(int fd) {
  if (fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP || errno == EROFS) return 0;
  return -1;
}

/* So that the rename itself is on the disk; failure to do so is no loss of data. */
static void sync_folder_of(const char *path) {
  char *folder = folder_of(path);
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    sync_fd(fd);
    close(fd);
  }
  free(folder);
}

/* ---- one file ---- */

enum status file_writer_open(struct file_writer *w, const char *path, struct error *err) {
  *w = (struct file_writer){.fd = -1};
  struct stat st;
  if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
    return error_set(err, STATUS_FAILED, "cannot write %s: it is a %s; name a file", path,
                     S_ISDIR(st.st_mode) ? "directory" : "device or pipe");
  w->path = resolve(path);
  remove_stale(w->path);
  enum status status = make_temporary(w->path, create_file, &w->temporary, &w->fd, err);
  if (status == STATUS_OK && !(w->buffer = malloc(BUFFER_BYTES)))
    status = error_set(err, STATUS_FAILED, "out of memory: a buffer to write %s", path);
  if (status != STATUS_OK) file_writer_abort(w);
  return status;
}

static enum status write_bytes(struct file_writer *w, const uint8_t *data, size_t bytes,
                               struct error *err) {
  while (bytes > 0) {
    ssize_t done = write(w->fd, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return cannot_write(w, errno, err);
    data += done;
    bytes -= (size_t)done;
  }
  return STATUS_OK;
}

static enum status flush(struct file_writer *w, struct error *err) {
  /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the buffer stays the writer's */
  enum status status = write_bytes(w, w->buffer, w->used_bytes, err);
  w->used_bytes = 0;
  return status;
}

enum status file_writer_put(struct file_writer *w, const void *data, size_t bytes,
                            struct error *err) {
  INVARIANT(w->fd >= 0 && w->buffer != NULL);
  enum status status = STATUS_OK;
  if (w->used_bytes + bytes > BUFFER_BYTES) status = flush(w, err);
  if (status != STATUS_OK) return status;
  w->written_bytes += bytes;
  if (bytes >= BUFFER_BYTES) return write_bytes(w, data, bytes, err);
  if (bytes) memcpy(w->buffer + w->used_bytes, data, bytes);
  w->used_bytes += bytes;
  return STATUS_OK;
}

enum status file_writer_commit(struct file_writer *w, struct error *err) {
  INVARIANT(w->fd >= 0 && w->buffer != NULL);
  enum status status = flush(w, err);
  if (status == STATUS_OK && sync_fd(w->fd)) status = cannot_write(w, errno, err);
  if (status == STATUS_OK && rename(w->temporary, w->path))
    status = error_set(err, STATUS_FAILED, "cannot put %s in place: %s", w->path, strerror(errno));
  if (status == STATUS_OK) {
    sync_folder_of(w->path);
    temporary_forget(w->temporary);
    free(w->temporary);
    w->temporary = NULL;
  }
  file_writer_abort(w);
  return status;
}

void file_writer_abort(struct file_writer *w) {
  if (w->temporary) {
    unlink(w->temporary);
    temporary_forget(w->temporary);
  }
  if (w->path && w->fd >= 0) close(w->fd);
  free(w->temporary);
  free(w->path);
  free(w->buffer);
  *w = (struct file_writer){.fd = -1};
}

enum status file_write_all(const char *path, const void *data, size_t bytes, struct error *err) {
  struct file_writer w;
  enum status status = file_writer_open(&w, path, err);
  if (status == STATUS_OK) status = file_writer_put(&w, data, bytes, err);
  if (status == STATUS_OK) status = file_writer_commit(&w, err);
  file_writer_abort(&w);
  return status;
}

/* ---- a directory ---- */

static bool holds_directories(const char *path) {
  bool found = false;
  DIR *dir = opendir(path);
  for (struct dirent *entry; dir && !found && (entry = readdir(dir));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    struct stat st;
    found =
        fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
  }
  if (dir) closedir(dir);
  return found;
}

static enum status check_replaceable(const char *path, bool replace, struct error *err) {
  if (!file_exists(path)) return STATUS_OK;
  if (!replace)
    return error_set(err, STATUS_REFUSED,
                     "%s exists already; choose another output or say --force to replace it", path);
  if (!file_is_directory(path))
    return error_set(err, STATUS_REFUSED, "%s is not a directory; choose another output", path);
  if (holds_directories(path))
    return error_set(err, STATUS_REFUSED,
                     "%s holds further directories, so it is not replaced; remove it yourself if "
                     "you mean it",
                     path);
  return STATUS_OK;
}

enum status dir_writer_open(struct dir_writer *w, const char *path, bool replace,
                            struct error *err) {
  *w = (struct dir_writer){.fd = -1, .replace = replace};
  enum status status = check_replaceable(path, replace, err);
  if (status != STATUS_OK) return status;
  w->path = resolve(path);
  remove_stale(w->path);
  status = make_temporary(w->path, create_directory, &w->temporary, &w->fd, err);
  if (status != STATUS_OK) dir_writer_abort(w);
  return status;
}

/* The old directory swaps names with the new one in one step; where the file system cannot do
 * that it is moved aside first, and moved back when the second step fails. */
static int put_in_place(struct dir_writer *w) {
  if (!file_exists(w->path)) return rename(w->temporary, w->path);
  if (renameat2(AT_FDCWD, w->temporary, AT_FDCWD, w->path, RENAME_EXCHANGE) == 0) {
    remove_tree(w->temporary);
    return 0;
  }
  if (errno != EINVAL && errno != ENOSYS) return -1;
  char *aside = temporary_name(w->path);
  int failed = rename(w->path, aside);
  if (!failed) {
    failed = rename(w->temporary, w->path);
    if (failed)
      rename(aside, w->path);
    else
      remove_tree(aside);
  }
  free(aside);
  return failed;
}

enum status dir_writer_commit(struct dir_writer *w, struct error *err) {
  INVARIANT(w->path != NULL && w->temporary != NULL);
  enum status status = check_replaceable(w->path, w->replace, err);
  if (status == STATUS_OK && (sync_fd(w->fd) || put_in_place(w)))
    status = error_set(err, STATUS_FAILED, "cannot put %s in place: %s", w->path, strerror(errno));
  if (status == STATUS_OK) {
    sync_folder_of(w->path);
    temporary_forget(w->temporary);
    free(w->temporary);
    w->temporary = NULL;
  }
  dir_writer_abort(w);
  return status;
}

void dir_writer_abort(struct dir_writer *w) {
  if (w->temporary) {
    remove_tree(w->temporary);
    temporary_forget(w->temporary);
  }
  if (w->path && w->fd >= 0) close(w->fd);
  free(w->temporary);
  free(w->path);
  *w = (struct dir_writer){.fd = -1};
}
