/* Writing .npz: see npz.h.
 *
 * libzip lays out the archive; two callbacks stand at its ends. One hands it an array at a time,
 * made when libzip asks for it, so that a mask of gigabytes is never whole in memory. The other
 * takes the archive's bytes into the temporary file of a file_writer, so that an .npz appears
 * whole or not at all like every other output. libzip goes back to complete the entries' headers,
 * hence that callback writes to the descriptor by position, past the writer's buffer. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>
#include <zip.h>

#include "base/mem.h"
#include "io/npy.h"

/* ---- one array, as libzip reads it ---- */

struct array_stream {
  const struct npz_source *source;
  struct strbuf header;
  size_t data_bytes;
  uint8_t *data; /* between open and close */
  size_t position;
  zip_error_t error;
  struct error *err;
};

/* UTF-32 of a text; the caller frees it. NULL when it is no UTF-8. */
static uint32_t *decode_text(const char *text, size_t *count) {
  size_t left = strlen(text);
  uint32_t *codes = calloc(left + 1, sizeof *codes);
  INVARIANT(codes != NULL);
  *count = 0;
  while (left > 0) {
    utf8proc_int32_t code;
    utf8proc_ssize_t used =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)left, &code);
    if (used <= 0) {
      free(codes);
      return NULL;
    }
    codes[(*count)++] = (uint32_t)code;
    text += used;
    left -= (size_t)used;
  }
  return codes;
}

static enum status prepare_text(struct array_stream *stream, struct error *err) {
  size_t count;
  uint32_t *codes = decode_text(stream->source->text, &count);
  if (!codes)
    return error_set(err, STATUS_USAGE, "the text of \"%s\" is not UTF-8", stream->source->name);
  free(codes);
  char descr[24];
  size_t length = count ? count : 1; /* NumPy has no texts of length 0 */
  snprintf(descr, sizeof descr, "<U%zu", length);
  npy_format_header(&stream->header, descr, 0, NULL);
  stream->data_bytes = length * 4;
  return STATUS_OK;
}

static enum status prepare(struct array_stream *stream, struct error *err) {
  const struct npz_source *s = stream->source;
  if (s->text) return prepare_text(stream, err);
  const char *descr = npy_descr(s->dtype);
  struct tensor_source shape = {.name = s->name, .dtype = s->dtype, .rank = s->rank};
  memcpy(shape.shape, s->shape, sizeof shape.shape);
  if (!descr)
    return error_set(err, STATUS_USAGE, "NumPy has no %s: \"%s\" cannot be written",
                     dtype_traits(s->dtype)->name, s->name);
  npy_format_header(&stream->header, descr, s->rank, s->shape);
  return tensor_source_bytes(&shape, &stream->data_bytes, err);
}

static enum status make_data(struct array_stream *stream) {
  const struct npz_source *s = stream->source;
  stream->data = mem_alloc(stream->data_bytes, 1, stream->err);
  if (!stream->data) return STATUS_FAILED;
  if (s->text) {
    size_t count;
    uint32_t *codes = decode_text(s->text, &count);
    if (count) memcpy(stream->data, codes, count * 4);
    free(codes);
  } else if (s->data) {
    memcpy(stream->data, s->data, stream->data_bytes);
  } else {
    return s->fill(s->ctx, stream->data, stream->err);
  }
  return STATUS_OK;
}

static zip_int64_t read_stream(struct array_stream *stream, uint8_t *out, size_t bytes) {
  size_t done = 0, header = stream->header.length, total = header + stream->data_bytes;
  while (done < bytes && stream->position < total) {
    bool in_header = stream->position < header;
    const uint8_t *from = in_header ? (const uint8_t *)stream->header.data + stream->position
                                    : stream->data + (stream->position - header);
    size_t piece = (in_header ? header : total) - stream->position;
    if (piece > bytes - done) piece = bytes - done;
    memcpy(out + done, from, piece);
    done += piece;
    stream->position += piece;
  }
  return (zip_int64_t)done;
}

static zip_int64_t stat_stream(const struct array_stream *stream, zip_stat_t *st) {
  zip_stat_init(st);
  st->size = stream->header.length + stream->data_bytes;
  st->valid = ZIP_STAT_SIZE;
  return sizeof *st;
}

static zip_int64_t serve_array(void *ctx, void *data, zip_uint64_t bytes,
                               zip_source_cmd_t command) {
  struct array_stream *stream = ctx;
  switch (command) {
    case ZIP_SOURCE_OPEN:
      stream->position = 0;
      if (make_data(stream) == STATUS_OK) return 0;
      zip_error_set(&stream->error, ZIP_ER_INTERNAL, 0);
      return -1;
    case ZIP_SOURCE_READ:
      return read_stream(stream, data, (size_t)bytes);
    case ZIP_SOURCE_CLOSE:
      mem_free(stream->data);
      stream->data = NULL;
      return 0;
    case ZIP_SOURCE_STAT:
      return stat_stream(stream, data);
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&stream->error, data, bytes);
    case ZIP_SOURCE_FREE:
      return 0;
    case ZIP_SOURCE_SUPPORTS:
      return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE,
                                            ZIP_SOURCE_STAT, ZIP_SOURCE_ERROR, ZIP_SOURCE_FREE, -1);
    default:
      zip_error_set(&stream->error, ZIP_ER_OPNOTSUPP, 0);
      return -1;
  }
}

/* ---- the archive, as libzip writes it ---- */

struct archive_stream {
  struct file_writer *writer;
  off_t position, end;
  zip_error_t error;
};

static zip_int64_t write_archive(struct archive_stream *a, const uint8_t *data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = pwrite(a->writer->fd, data + done, bytes - done, a->position);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      zip_error_set(&a->error, ZIP_ER_WRITE, errno);
      return -1;
    }
    done += (size_t)n;
    a->position += n;
  }
  if (a->position > a->end) a->end = a->position;
  return (zip_int64_t)bytes;
}

static zip_int64_t seek_archive(struct archive_stream *a, void *data, zip_uint64_t bytes) {
  zip_int64_t to = zip_source_seek_compute_offset((zip_uint64_t)a->position, (zip_uint64_t)a->end,
                                                  data, bytes, &a->error);
  if (to < 0) return -1;
  a->position = (off_t)to;
  return 0;
}

static zip_int64_t serve_archive(void *ctx, void *data, zip_uint64_t bytes,
                                 zip_source_cmd_t command) {
  struct archive_stream *a = ctx;
  switch (command) {
    case ZIP_SOURCE_STAT: { /* an empty file, to be replaced */
      zip_stat_t *st = data;
      zip_stat_init(st);
      st->valid = ZIP_STAT_SIZE;
      return sizeof *st;
    }
    case ZIP_SOURCE_WRITE:
      return write_archive(a, data, (size_t)bytes);
    case ZIP_SOURCE_SEEK_WRITE:
      return seek_archive(a, data, bytes);
    case ZIP_SOURCE_TELL_WRITE:
      return a->position;
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&a->error, data, bytes);
    case ZIP_SOURCE_OPEN: /* to read what is there: nothing */
    case ZIP_SOURCE_READ:
    case ZIP_SOURCE_CLOSE:
    case ZIP_SOURCE_BEGIN_WRITE:
    case ZIP_SOURCE_COMMIT_WRITE:
    case ZIP_SOURCE_ROLLBACK_WRITE:
    case ZIP_SOURCE_REMOVE:
    case ZIP_SOURCE_FREE:
      return 0;
    case ZIP_SOURCE_SUPPORTS:
      return ZIP_SOURCE_SUPPORTS_WRITABLE;
    default:
      zip_error_set(&a->error, ZIP_ER_OPNOTSUPP, 0);
      return -1;
  }
}

/* ---- putting them together ---- */

/* 1 January 1980, the first day that zip knows, in its own form. */
enum { ZIP_FIRST_DAY = 1 << 5 | 1 };

static enum status zip_failed(zip_t *zip, const char *path, struct error *err) {
  const zip_error_t *wrong = zip_get_error(zip);
  int reason = zip_error_code_system(wrong);
  if (zip_error_code_zip(wrong) == ZIP_ER_WRITE && (reason == ENOSPC || reason == EDQUOT))
    return error_set(err, STATUS_FAILED,
                     "cannot write %s: the disk is full; free some space and run again", path);
  return error_set(err, STATUS_FAILED, "cannot write %s: %s", path, zip_strerror(zip));
}

static enum status add_array(zip_t *zip, struct array_stream *stream, const char *path,
                             struct error *err) {
  struct strbuf name = {0};
  strbuf_printf(&name, "%s.npy", stream->source->name);
  zip_source_t *source = zip_source_function(zip, serve_array, stream);
  zip_int64_t at = source ? zip_file_add(zip, name.data, source, ZIP_FL_ENC_UTF_8) : -1;
  strbuf_free(&name);
  if (at < 0) {
    if (source) zip_source_free(source);
    return zip_failed(zip, path, err);
  }
  zip_uint64_t index = (zip_uint64_t)at;
  if (zip_set_file_compression(zip, index, ZIP_CM_STORE, 0) ||
      zip_file_set_dostime(zip, index, 0, ZIP_FIRST_DAY, 0) ||
      zip_file_set_external_attributes(zip, index, 0, ZIP_OPSYS_UNIX, 0100644u << 16))
    return zip_failed(zip, path, err);
  return STATUS_OK;
}

static zip_t *open_archive(struct archive_stream *a, const char *path, struct error *err) {
  zip_error_t wrong;
  zip_error_init(&wrong);
  zip_source_t *target = zip_source_function_create(serve_archive, a, &wrong);
  zip_t *zip = target ? zip_open_from_source(target, ZIP_CREATE | ZIP_TRUNCATE, &wrong) : NULL;
  if (!zip) {
    error_set(err, STATUS_FAILED, "cannot write %s: %s", path, zip_error_strerror(&wrong));
    if (target) zip_source_free(target);
  }
  zip_error_fini(&wrong);
  return zip;
}

/* The error of a `fill` says more than libzip's, which only knows that a source failed. */
static enum status write_zip(struct file_writer *w, struct array_stream *streams, size_t count,
                             const char *path, struct error *err) {
  struct archive_stream archive = {.writer = w};
  zip_error_init(&archive.error);
  zip_t *zip = open_archive(&archive, path, err);
  enum status status = zip ? STATUS_OK : STATUS_FAILED;
  for (size_t i = 0; i < count && status == STATUS_OK; i++)
    status = add_array(zip, &streams[i], path, err);
  if (status == STATUS_OK) {
    err->status = STATUS_OK;
    if (zip_close(zip) == 0) return STATUS_OK;
    status = err->status != STATUS_OK ? err->status : zip_failed(zip, path, err);
  }
  if (zip) zip_discard(zip);
  return status;
}

enum status npz_write(const char *path, const struct npz_source *arrays, size_t count,
                      struct error *err) {
  struct error local = {0};
  if (!err) err = &local;
  struct file_writer w = {.fd = -1};
  struct array_stream *streams = calloc(count + 1, sizeof *streams);
  if (!streams || count == 0) {
    free(streams);
    return error_set(err, STATUS_FAILED, "%s: nothing to write, or no memory for it", path);
  }
  enum status status = STATUS_OK;
  for (size_t i = 0; i < count && status == STATUS_OK; i++) {
    streams[i] = (struct array_stream){.source = &arrays[i], .err = err};
    zip_error_init(&streams[i].error);
    status = prepare(&streams[i], err);
  }
  if (status == STATUS_OK) status = file_writer_open(&w, path, err);
  if (status == STATUS_OK) status = write_zip(&w, streams, count, path, err);
  if (status == STATUS_OK) status = file_writer_commit(&w, err);
  file_writer_abort(&w);
  for (size_t i = 0; i < count; i++) {
    strbuf_free(&streams[i].header);
    mem_free(streams[i].data);
  }
  free(streams);
  return status;
}
