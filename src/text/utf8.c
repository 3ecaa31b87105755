/* UTF-8 validation and output: see utf8.h. */
#include "text/utf8.h"

#include <string.h>

int utf8_probe(const char *text, size_t bytes) {
  const uint8_t *p = (const uint8_t *)text;
  if (p[0] < 0x80) return 1;
  /* The second byte's range is what excludes overlong forms, surrogates and what is too large. */
  uint8_t least = 0x80, most = 0xbf;
  int length = 0;
  if (p[0] >= 0xc2 && p[0] <= 0xdf) {
    length = 2;
  } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
    length = 3;
    if (p[0] == 0xe0) least = 0xa0;
    if (p[0] == 0xed) most = 0x9f;
  } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
    length = 4;
    if (p[0] == 0xf0) least = 0x90;
    if (p[0] == 0xf4) most = 0x8f;
  } else {
    return -1;
  }
  for (int i = 1; i < length; i++) {
    if ((size_t)i == bytes) return 0;
    if (p[i] < least || p[i] > most) return -i;
    least = 0x80;
    most = 0xbf;
  }
  return length;
}

size_t utf8_check(const char *text, size_t bytes) {
  size_t at = 0;
  while (at < bytes) {
    uint64_t word;
    if (bytes - at >= sizeof word) {
      memcpy(&word, text + at, sizeof word);
      if (!(word & 0x8080808080808080u)) {
        at += sizeof word;
        continue;
      }
    }
    int length = utf8_probe(text + at, bytes - at);
    if (length <= 0) return at;
    at += (size_t)length;
  }
  return bytes;
}

void utf8_put_replacement(struct strbuf *out) { strbuf_append(out, "\xef\xbf\xbd", 3); }

void utf8_put(struct strbuf *out, uint32_t c) {
  if (c < 0x80) {
    strbuf_putc(out, (char)c);
  } else if (c < 0x800) {
    strbuf_putc(out, (char)(0xc0 | c >> 6));
    strbuf_putc(out, (char)(0x80 | (c & 0x3f)));
  } else if (c < 0x10000) {
    strbuf_putc(out, (char)(0xe0 | c >> 12));
    strbuf_putc(out, (char)(0x80 | (c >> 6 & 0x3f)));
    strbuf_putc(out, (char)(0x80 | (c & 0x3f)));
  } else {
    strbuf_putc(out, (char)(0xf0 | c >> 18));
    strbuf_putc(out, (char)(0x80 | (c >> 12 & 0x3f)));
    strbuf_putc(out, (char)(0x80 | (c >> 6 & 0x3f)));
    strbuf_putc(out, (char)(0x80 | (c & 0x3f)));
  }
}
