/* Growable strings: see strbuf.h. */
#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void reserve(struct strbuf *buf, size_t extra) {
  size_t need = buf->length + extra + 1;
  INVARIANT(need > buf->length);
  if (need <= buf->capacity) return;
  size_t wanted = buf->capacity * 2 + 64;
  if (wanted < need) wanted = need;
  char *grown = realloc(buf->data, wanted);
  INVARIANT(grown != NULL);
  buf->data = grown;
  buf->capacity = wanted;
}

void strbuf_append(struct strbuf *buf, const char *data, size_t length) {
  reserve(buf, length);
  if (length) memcpy(buf->data + buf->length, data, length);
  buf->length += length;
  buf->data[buf->length] = 0;
}

void strbuf_puts(struct strbuf *buf, const char *text) { strbuf_append(buf, text, strlen(text)); }
void strbuf_putc(struct strbuf *buf, char c) { strbuf_append(buf, &c, 1); }

void strbuf_printf(struct strbuf *buf, const char *format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, format, args);
  va_end(args);
  INVARIANT(n >= 0);
  reserve(buf, (size_t)n);
  vsnprintf(buf->data + buf->length, (size_t)n + 1, format, again);
  va_end(again);
  buf->length += (size_t)n;
}

void strbuf_clear(struct strbuf *buf) {
  buf->length = 0;
  if (buf->data) buf->data[0] = 0;
}

void strbuf_free(struct strbuf *buf) {
  free(buf->data);
  *buf = (struct strbuf){0};
}

const char *strbuf_text(const struct strbuf *buf) { return buf->data ? buf->data : ""; }
