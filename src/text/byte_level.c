/* GPT-2's byte alphabet: see byte_level.h. */
#include "text/byte_level.h"

#include "text/utf8.h"

static bool stands_for_itself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

enum { ALPHABET_END = 0x100 + 68 };

struct alphabet {
  char text[256][2]; /* UTF-8 of the byte's character; [1] = 0 when it is ASCII */
  int16_t byte[ALPHABET_END];
};

static void alphabet_fill(struct alphabet *a) {
  uint32_t next = 0x100;
  for (int c = 0; c < ALPHABET_END; c++) a->byte[c] = -1;
  for (int byte = 0; byte < 256; byte++) {
    uint32_t c = stands_for_itself(byte) ? (uint32_t)byte : next++;
    a->byte[c] = (int16_t)byte;
    a->text[byte][0] = c < 0x80 ? (char)c : (char)(0xc0 | c >> 6);
    a->text[byte][1] = c < 0x80 ? 0 : (char)(0x80 | (c & 0x3f));
  }
}

static struct alphabet alphabet;

/* The only state of the room, constant once the program has started. */
__attribute__((constructor)) static void alphabet_start(void) { alphabet_fill(&alphabet); }

void byte_level_encode(const char *bytes, size_t count, struct strbuf *out) {
  for (size_t i = 0; i < count; i++) {
    const char *text = alphabet.text[(uint8_t)bytes[i]];
    strbuf_append(out, text, text[1] ? 2 : 1);
  }
}

bool byte_level_decode(const char *text, size_t length, struct strbuf *out) {
  size_t before = out->length;
  for (size_t at = 0; at < length; at += utf8_length(text[at])) {
    uint32_t c = utf8_decode(text + at);
    if (c >= ALPHABET_END || alphabet.byte[c] < 0) {
      out->length = before;
      if (out->data) out->data[before] = 0;
      return false;
    }
    strbuf_putc(out, (char)alphabet.byte[c]);
  }
  return true;
}
