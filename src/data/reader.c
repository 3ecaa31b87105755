/* Reading packed and plain files: see reader.h. Only the name decides how a file is read. */
#include "data/reader.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/mem.h"
#include "io/file.h"

enum { INPUT_BYTES = 1 << 17, ZSTD_WINDOW_LOG_MAX = 27 };

struct reader {
  char *path;
  gzFile gz;       /* .gz, else NULL */
  FILE *file;      /* .zst and plain */
  ZSTD_DCtx *zstd; /* .zst, else NULL */
  ZSTD_inBuffer input;
  bool frame_open; /* a zstd frame has begun and not ended */
  char *buffer;    /* (INPUT_BYTES) */
};

static bool ends_with(const char *text, size_t length, const char *end) {
  size_t n = strlen(end);
  return length >= n && memcmp(text + length - n, end, n) == 0;
}

static size_t unpacked_length(const char *path) {
  size_t length = strlen(path);
  if (ends_with(path, length, ".gz")) return length - 3;
  if (ends_with(path, length, ".zst")) return length - 4;
  return length;
}

bool reader_is_jsonl(const char *path) { return ends_with(path, unpacked_length(path), ".jsonl"); }

static enum status open_failed(const char *path, struct error *err) {
  return error_set(err, STATUS_REFUSED, "%s: %s", path, strerror(errno));
}

static enum status open_zstd(struct reader *r, const char *path, struct error *err) {
  r->zstd = ZSTD_createDCtx();
  r->buffer = mem_alloc(INPUT_BYTES, 1, err);
  if (!r->buffer) return STATUS_FAILED;
  if (!r->zstd ||
      ZSTD_isError(ZSTD_DCtx_setParameter(r->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX)))
    return error_set(err, STATUS_FAILED, "out of memory for unpacking %s", path);
  r->input = (ZSTD_inBuffer){r->buffer, 0, 0};
  return STATUS_OK;
}

static enum status open_gz(struct reader *r, const char *path, struct error *err) {
  errno = 0;
  r->gz = gzopen(path, "rb");
  if (!r->gz) return open_failed(path, err);
  gzbuffer(r->gz, INPUT_BYTES);
  if (gzdirect(r->gz)) return error_set(err, STATUS_REFUSED, "%s is not a gzip file", path);
  return STATUS_OK;
}

static enum status open_by_name(struct reader *r, const char *path, struct error *err) {
  if (file_is_directory(path))
    return error_set(err, STATUS_REFUSED, "%s is a directory; name a file of text", path);
  if (ends_with(path, strlen(path), ".gz")) return open_gz(r, path, err);
  r->file = fopen(path, "rb");
  if (!r->file) return open_failed(path, err);
  return ends_with(path, strlen(path), ".zst") ? open_zstd(r, path, err) : STATUS_OK;
}

enum status reader_open(struct reader **out, const char *path, struct error *err) {
  struct reader *r = mem_alloc(1, sizeof *r, err);
  if (!r) return STATUS_FAILED;
  enum status status = STATUS_OK;
  r->path = mem_strdup(path, err);
  if (!r->path) status = STATUS_FAILED;
  if (status == STATUS_OK) status = open_by_name(r, path, err);
  if (status == STATUS_OK)
    *out = r;
  else
    reader_close(r);
  return status;
}

void reader_close(struct reader *r) {
  if (!r) return;
  if (r->gz) gzclose_r(r->gz);
  if (r->file) fclose(r->file);
  ZSTD_freeDCtx(r->zstd);
  mem_free(r->buffer);
  free(r->path);
  mem_free(r);
}

static enum status refuse(const struct reader *r, const char *why, struct error *err) {
  return error_set(err, STATUS_REFUSED, "%s cannot be unpacked: %s", r->path, why);
}

static enum status read_gz(struct reader *r, char *data, size_t bytes, size_t *got,
                           struct error *err) {
  while (*got < bytes) {
    size_t want = bytes - *got < (1u << 30) ? bytes - *got : 1u << 30;
    int n = gzread(r->gz, data + *got, (unsigned)want);
    int code;
    const char *why = gzerror(r->gz, &code);
    if (n < 0 || (code != Z_OK && code != Z_STREAM_END))
      return code == Z_ERRNO ? error_set(err, STATUS_FAILED, "%s: %s", r->path, strerror(errno))
             : code == Z_BUF_ERROR ? refuse(r, "it breaks off", err)
                                   : refuse(r, why, err);
    if (n == 0) break;
    *got += (size_t)n;
  }
  return STATUS_OK;
}

static enum status read_plain(struct reader *r, char *data, size_t bytes, size_t *got,
                              struct error *err) {
  *got = fread(data, 1, bytes, r->file);
  if (ferror(r->file)) return error_set(err, STATUS_FAILED, "%s: %s", r->path, strerror(errno));
  return STATUS_OK;
}

static enum status read_zstd(struct reader *r, char *data, size_t bytes, size_t *got,
                             struct error *err) {
  ZSTD_outBuffer output = {data, bytes, 0};
  while (output.pos < output.size) {
    if (r->input.pos == r->input.size) {
      r->input.size = fread(r->buffer, 1, INPUT_BYTES, r->file);
      r->input.pos = 0;
      if (ferror(r->file)) return error_set(err, STATUS_FAILED, "%s: %s", r->path, strerror(errno));
    }
    bool at_end = r->input.size == 0;
    if (at_end && !r->frame_open) break;
    size_t before = output.pos;
    size_t left = ZSTD_decompressStream(r->zstd, &output, &r->input);
    if (ZSTD_isError(left)) return refuse(r, ZSTD_getErrorName(left), err);
    r->frame_open = left != 0;
    if (at_end && r->frame_open && output.pos == before) return refuse(r, "it breaks off", err);
  }
  *got = output.pos;
  return STATUS_OK;
}

enum status reader_read(struct reader *r, void *data, size_t bytes, size_t *got,
                        struct error *err) {
  *got = 0;
  if (r->gz) return read_gz(r, data, bytes, got, err);
  return r->zstd ? read_zstd(r, data, bytes, got, err) : read_plain(r, data, bytes, got, err);
}
