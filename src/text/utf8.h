/* UTF-8 by hand: the tokenizers look at characters, and everything past tokenizer_encode's door is
 * known to be valid (no surrogates, nothing overlong, nothing above U+10FFFF). */
#ifndef TSR_TEXT_UTF8_H
#define TSR_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

/* Offset of the first byte that does not belong to a valid character; `bytes` when all do. */
size_t utf8_check(const char *text, size_t bytes);

/* Bytes of the valid character at `text` (1 to 4) when all are there; 0 when `bytes` ends inside a
 * character that could still become valid; minus the length of the maximal invalid part (Unicode
 * 3.9, what Rust's from_utf8_lossy replaces by one U+FFFD) otherwise. `bytes` >= 1. */
int utf8_probe(const char *text, size_t bytes);

/* Appends U+FFFD. */
void utf8_put_replacement(struct strbuf *out);
void utf8_put(struct strbuf *out, uint32_t codepoint);

/* Length of a valid character by its first byte. */
static inline size_t utf8_length(char first) {
  uint8_t c = (uint8_t)first;
  return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* The character at `text`, which is valid. */
static inline uint32_t utf8_decode(const char *text) {
  const uint8_t *p = (const uint8_t *)text;
  if (p[0] < 0x80) return p[0];
  if (p[0] < 0xe0) return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
  if (p[0] < 0xf0)
    return (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
  return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 |
         (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

#endif
