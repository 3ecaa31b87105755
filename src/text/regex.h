/* Regular expressions of tokenizers, run by PCRE2 with its JIT.
 *
 * The patterns are written for Oniguruma or Rust. Where PCRE2 differs they are rewritten (\s is
 * Unicode's White_Space, which lacks PCRE2's U+180E), or refused by name (\w, \b, \h and the like,
 * whose meaning differs and which no supported family uses). */
#ifndef TSR_TEXT_REGEX_H
#define TSR_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum { REGEX_PATTERN_BYTES_MAX = 1 << 16 };

struct regex;
/* A literal matches its own text. STATUS_REFUSED when the pattern does not compile. */
enum status regex_new(struct regex **out, const char *pattern, size_t length, bool literal,
                      struct error *err);
void regex_free(struct regex *regex);

/* Match memory for one encoder. */
struct regex_scratch;
struct regex_scratch *regex_scratch_new(struct error *err);
void regex_scratch_free(struct regex_scratch *scratch);

/* The next non-empty match at or after `from` in the valid UTF-8 text: *found says whether there
 * is one, [*start, *end) where. STATUS_REFUSED when the pattern needs more steps than PCRE2's
 * limit. */
enum status regex_next(const struct regex *regex, struct regex_scratch *scratch, const char *text,
                       size_t bytes, size_t from, bool *found, size_t *start, size_t *end,
                       struct error *err);

#endif
