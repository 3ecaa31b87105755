/* Normalizers: what is done to a text before it is cut into pieces. A chain of steps. */
#ifndef TSR_TEXT_NORMALIZE_H
#define TSR_TEXT_NORMALIZE_H

#include "base/strbuf.h"
#include "text/added.h"
#include "text/charsmap.h"
#include "text/regex.h"

enum { NORMALIZER_STEPS_MAX = 32 };

enum normalizer_kind {
  NORMALIZE_NFC,
  NORMALIZE_NFD,
  NORMALIZE_NFKC,
  NORMALIZE_NFKD,
  NORMALIZE_LOWERCASE,
  NORMALIZE_PREPEND,      /* `content` before a text that is not empty */
  NORMALIZE_REPLACE,      /* every match of `pattern` becomes `content` */
  NORMALIZE_STRIP,        /* white space at either end */
  NORMALIZE_SENTENCEPIECE /* the normalizer inside a tokenizer.model */
};

/* SentencePiece's normalizer_spec. Its defaults are all true. */
struct sentencepiece_rules {
  bool add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
  struct charsmap charsmap;
  const struct added_tokens *protected_tokens; /* user-defined symbols stay as they are */
};

struct normalizer_step {
  enum normalizer_kind kind;
  struct regex *pattern;
  struct strbuf content;
  bool left, right; /* STRIP */
  struct sentencepiece_rules rules;
};

struct normalizer {
  struct normalizer_step steps[NORMALIZER_STEPS_MAX];
  int count;
};

/* Adds an empty step of this kind, or NULL and an error when there are too many. */
struct normalizer_step *normalizer_add(struct normalizer *n, enum normalizer_kind kind,
                                       struct error *err);
void normalizer_release(struct normalizer *n);

/* Puts the normalized text into *out (cleared first). `spare` is working memory. */
enum status normalizer_run(const struct normalizer *n, struct regex_scratch *scratch,
                           const char *text, size_t bytes, struct strbuf *out, struct strbuf *spare,
                           struct error *err);

/* True for Unicode's White_Space. */
bool codepoint_is_space(uint32_t c);

#endif
