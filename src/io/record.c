/* JSON lines: see record.h. */
#include "io/record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "io/file.h"

static bool ends_torn(int fd) {
  char last = '\n';
  off_t size = lseek(fd, 0, SEEK_END);
  return size > 0 && pread(fd, &last, 1, size - 1) == 1 && last != '\n';
}

static bool write_whole(int fd, const char *data, size_t bytes) {
  while (bytes > 0) {
    ssize_t n = write(fd, data, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data += n;
    bytes -= (size_t)n;
  }
  return true;
}

enum status record_append(const char *path, const json_t *line, struct error *err) {
  struct strbuf out = {0};
  int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  bool good = fd >= 0;
  if (good) {
    if (ends_torn(fd)) strbuf_putc(&out, '\n');
    json_format(&out, line, 0);
    strbuf_putc(&out, '\n');
    good = write_whole(fd, out.data, out.length) && (fdatasync(fd) == 0 || errno == EINVAL);
  }
  int reason = errno;
  if (fd >= 0) good = close(fd) == 0 && good;
  strbuf_free(&out);
  if (good) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "the record %s could not be written: %s", path,
                   strerror(reason));
}

json_t *record_read(const char *path, size_t *damaged, struct error *err) {
  char *data;
  size_t size, bad = 0;
  if (file_read(path, RECORD_FILE_BYTES_MAX, &data, &size, err)) return NULL;
  json_t *lines = json_array();
  INVARIANT(lines != NULL);
  for (size_t at = 0; at < size;) {
    const char *end = memchr(data + at, '\n', size - at);
    size_t length = (end ? (size_t)(end - data) : size) - at;
    json_t *line = length <= RECORD_LINE_BYTES_MAX
                       ? json_loadb(data + at, length, JSON_REJECT_DUPLICATES, NULL)
                       : NULL;
    if (json_is_object(line))
      json_array_append_new(lines, line);
    else {
      json_decref(line);
      bad += length > 0;
    }
    at += length + 1;
  }
  free(data);
  if (damaged) *damaged = bad;
  return lines;
}
