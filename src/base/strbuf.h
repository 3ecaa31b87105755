/* A growable string, always NUL-terminated, that may hold NUL bytes. Initialise with {0}. */
#ifndef TSR_BASE_STRBUF_H
#define TSR_BASE_STRBUF_H

#include <stddef.h>

#include "base/error.h"

struct strbuf {
  char *data; /* NULL until something is appended */
  size_t length;
  size_t capacity;
};

/* Appending aborts when memory runs out: these are short texts, and every caller would have to
 * unwind for a case that cannot be acted on. */
void strbuf_append(struct strbuf *buf, const char *data, size_t length);
void strbuf_puts(struct strbuf *buf, const char *text);
void strbuf_putc(struct strbuf *buf, char c);
void strbuf_printf(struct strbuf *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void strbuf_clear(struct strbuf *buf); /* length 0, memory kept */
void strbuf_free(struct strbuf *buf);
const char *strbuf_text(const struct strbuf *buf); /* never NULL */

#endif
