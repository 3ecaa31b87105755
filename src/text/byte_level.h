/* GPT-2's byte alphabet: every byte as a visible character, so that any byte sequence is a text
 * that a vocabulary of texts can hold. 188 bytes stand for themselves in Latin-1, the other 68 for
 * U+0100 onwards. */
#ifndef TSR_TEXT_BYTE_LEVEL_H
#define TSR_TEXT_BYTE_LEVEL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

/* Appends the bytes as characters of the alphabet. */
void byte_level_encode(const char *bytes, size_t count, struct strbuf *out);
/* Appends the bytes that a text of the alphabet (valid UTF-8) stands for; false, and nothing
 * appended, when a character is not of the alphabet. */
bool byte_level_decode(const char *text, size_t length, struct strbuf *out);

#endif
