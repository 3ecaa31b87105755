/* What the tasks do to their texts before they use them: Python's string methods, and HellaSwag's
 * cleaning. All texts are valid UTF-8 without NUL; results are appended. */
#ifndef TSR_EVAL_CLEAN_H
#define TSR_EVAL_CLEAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"

/* What str.isspace takes for white space. */
bool clean_is_space(uint32_t codepoint);
/* Bytes of the text without the white space at its end. */
size_t clean_rstripped_bytes(const char *text);
/* Code points, as len() counts. */
int64_t clean_characters(const char *text);
void clean_strip(const char *text, struct strbuf *out);
/* The first letter in title case, all others in lower case (by single code points). */
void clean_capitalize(const char *text, struct strbuf *out);
/* Strip; " [title]" -> ". "; "[...]" dropped; two spaces -> one, once. */
void clean_hellaswag(const char *text, struct strbuf *out);

#endif
