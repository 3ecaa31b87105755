/* TensorBoard event files: see tfevents.h.
 *
 * The messages (tensorflow/core/util/event.proto) have so few fields that they are put together
 * here, byte by byte, in ascending order of the fields. */
#include "io/tfevents.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "io/file.h"

/* Field numbers. */
enum {
  EVENT_WALL_TIME = 1,
  EVENT_STEP = 2,
  EVENT_FILE_VERSION = 3,
  EVENT_SUMMARY = 5,
  EVENT_SESSION_LOG = 7,
  SUMMARY_VALUE = 1,
  VALUE_TAG = 1,
  VALUE_SIMPLE = 2,
  SESSION_STATUS = 1,
  SESSION_START = 1
};
enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

/* ---- protobuf ---- */

static void put_varint(struct strbuf *out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) strbuf_putc(out, (char)(value | 0x80));
  strbuf_putc(out, (char)value);
}

static void put_key(struct strbuf *out, int field, enum wire wire) {
  put_varint(out, (uint64_t)field << 3 | wire);
}

static void put_bytes(struct strbuf *out, int field, const char *data, size_t length) {
  put_key(out, field, WIRE_BYTES);
  put_varint(out, length);
  strbuf_append(out, data, length);
}

/* Appends a message as a field of another, and frees it. */
static void put_message(struct strbuf *out, int field, struct strbuf *message) {
  put_bytes(out, field, message->data, message->length);
  strbuf_free(message);
}

static void put_head(struct strbuf *event, int64_t step) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  double seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
  put_key(event, EVENT_WALL_TIME, WIRE_64);
  strbuf_append(event, (const char *)&seconds, sizeof seconds);
  put_key(event, EVENT_STEP, WIRE_VARINT);
  put_varint(event, (uint64_t)step);
}

/* ---- records ---- */

uint32_t crc32c(const void *data, size_t bytes) {
  const uint8_t *p = data;
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; i++) {
    crc ^= p[i];
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

/* Checksums of data that hold checksums are rotated and shifted, so that they do not cancel. */
static void put_checksum(struct strbuf *out, const void *data, size_t bytes) {
  uint32_t crc = crc32c(data, bytes);
  uint32_t masked = (crc >> 15 | crc << 17) + 0xa282ead8u;
  strbuf_append(out, (const char *)&masked, sizeof masked);
}

/* Writes the event in one piece and frees it. */
static enum status put_event(struct tfevents *t, struct strbuf *event, struct error *err) {
  struct strbuf record = {0};
  uint64_t length = event->length;
  strbuf_append(&record, (const char *)&length, sizeof length);
  put_checksum(&record, &length, sizeof length);
  strbuf_append(&record, event->data, event->length);
  put_checksum(&record, event->data, event->length);
  ssize_t written = write(t->fd, record.data, record.length);
  int reason = written < 0 ? errno : ENOSPC;
  bool whole = written == (ssize_t)record.length;
  strbuf_free(event);
  strbuf_free(&record);
  if (whole) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "cannot write %s: %s", t->path, strerror(reason));
}

/* TensorBoard looks for "tfevents" in the name and reads files in the order of their names. */
static char *event_path(const char *directory) {
  static atomic_uint serial;
  char host[64] = "localhost", name[160];
  gethostname(host, sizeof host - 1);
  for (char *c = host; *c; c++)
    if (*c == '/') *c = '-';
  snprintf(name, sizeof name, "events.out.tfevents.%010lld.%s.%ld.%u", (long long)time(NULL), host,
           (long)getpid(), atomic_fetch_add(&serial, 1));
  return path_join(directory, name);
}

enum status tfevents_open(struct tfevents *t, const char *directory, int64_t first_step,
                          struct error *err) {
  *t = (struct tfevents){.fd = -1};
  if (mkdir(directory, 0777) && errno != EEXIST)
    return error_set(err, STATUS_FAILED, "cannot make the folder %s: %s", directory,
                     strerror(errno));
  t->path = event_path(directory);
  t->fd = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (t->fd < 0) {
    error_set(err, STATUS_FAILED, "cannot create %s: %s", t->path, strerror(errno));
    tfevents_close(t);
    return STATUS_FAILED;
  }
  struct strbuf version = {0}, start = {0}, session = {0};
  put_head(&version, 0);
  put_bytes(&version, EVENT_FILE_VERSION, "brain.Event:2", 13);
  enum status status = put_event(t, &version, err);
  if (status == STATUS_OK) {
    put_key(&session, SESSION_STATUS, WIRE_VARINT);
    put_varint(&session, SESSION_START);
    put_head(&start, first_step);
    put_message(&start, EVENT_SESSION_LOG, &session);
    status = put_event(t, &start, err);
  }
  if (status != STATUS_OK) tfevents_close(t);
  return status;
}

enum status tfevents_scalar(struct tfevents *t, const char *tag, int64_t step, double value,
                            struct error *err) {
  struct strbuf point = {0}, summary = {0}, event = {0};
  float single = (float)value;
  put_bytes(&point, VALUE_TAG, tag, strlen(tag));
  put_key(&point, VALUE_SIMPLE, WIRE_32);
  strbuf_append(&point, (const char *)&single, sizeof single);
  put_message(&summary, SUMMARY_VALUE, &point);
  put_head(&event, step);
  put_message(&event, EVENT_SUMMARY, &summary);
  return put_event(t, &event, err);
}

void tfevents_close(struct tfevents *t) {
  if (t->path && t->fd >= 0) close(t->fd);
  free(t->path);
  *t = (struct tfevents){.fd = -1};
}
