/* Python's string methods on UTF-8: see clean.h. */
#include "eval/clean.h"

#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

bool clean_is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

size_t clean_rstripped_bytes(const char *text) {
  size_t kept = 0;
  for (size_t at = 0; text[at];) {
    size_t next = at + utf8_length(text[at]);
    if (!clean_is_space(utf8_decode(text + at))) kept = next;
    at = next;
  }
  return kept;
}

int64_t clean_characters(const char *text) {
  int64_t count = 0;
  for (; *text; text += utf8_length(*text)) count++;
  return count;
}

void clean_strip(const char *text, struct strbuf *out) {
  while (*text && clean_is_space(utf8_decode(text))) text += utf8_length(*text);
  strbuf_append(out, text, clean_rstripped_bytes(text));
}

void clean_capitalize(const char *text, struct strbuf *out) {
  for (bool first = true; *text; text += utf8_length(*text), first = false) {
    utf8proc_int32_t c = (utf8proc_int32_t)utf8_decode(text);
    utf8_put(out, (uint32_t)(first ? utf8proc_totitle(c) : utf8proc_tolower(c)));
  }
}

/* All occurrences of `from`, left to right, none inside a replacement. */
static void replace(const char *text, const char *from, const char *to, struct strbuf *out) {
  for (const char *found; (found = strstr(text, from)); text = found + strlen(from)) {
    strbuf_append(out, text, (size_t)(found - text));
    strbuf_puts(out, to);
  }
  strbuf_puts(out, text);
}

/* Drops each "[" with all up to the next "]" of the same line; one that is not closed stays. */
static void drop_brackets(const char *text, struct strbuf *out) {
  while (*text) {
    size_t inside = *text == '[' ? strcspn(text, "]\n") : 0;
    if (*text == '[' && text[inside] == ']')
      text += inside + 1;
    else
      strbuf_putc(out, *text++);
  }
}

void clean_hellaswag(const char *text, struct strbuf *out) {
  struct strbuf stripped = {0}, titled = {0}, bare = {0};
  clean_strip(text, &stripped);
  replace(strbuf_text(&stripped), " [title]", ". ", &titled);
  drop_brackets(strbuf_text(&titled), &bare);
  replace(strbuf_text(&bare), "  ", " ", out);
  strbuf_free(&stripped);
  strbuf_free(&titled);
  strbuf_free(&bare);
}
