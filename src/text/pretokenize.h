/* Pre-tokenizers: cut a normalized text into the pieces that the model encodes one by one. They
 * run in sequence, each on the pieces of the one before, which it sees as texts of their own. */
#ifndef TSR_TEXT_PRETOKENIZE_H
#define TSR_TEXT_PRETOKENIZE_H

#include "base/strbuf.h"
#include "text/regex.h"

enum { PRETOKENIZER_STEPS_MAX = 16 };

enum pretokenizer_kind {
  PRETOKENIZE_SPLIT,
  PRETOKENIZE_PREFIX, /* a space before a piece that does not begin with one (ByteLevel) */
  PRETOKENIZE_METASPACE
};
enum split_behavior {
  SPLIT_ISOLATED,
  SPLIT_REMOVED,
  SPLIT_MERGED_WITH_PREVIOUS,
  SPLIT_MERGED_WITH_NEXT,
  SPLIT_CONTIGUOUS
};
enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct pretokenizer_step {
  enum pretokenizer_kind kind;
  struct regex *pattern;        /* SPLIT */
  enum split_behavior behavior; /* SPLIT */
  bool invert;                  /* SPLIT: what does not match counts as the match */
  enum prepend_scheme prepend;  /* METASPACE */
  char replacement[5];          /* METASPACE: the character that stands for a space */
};

struct pretokenizer {
  struct pretokenizer_step steps[PRETOKENIZER_STEPS_MAX];
  int count;
};

struct pretokenizer_step *pretokenizer_add(struct pretokenizer *p, enum pretokenizer_kind kind,
                                           struct error *err);
/* A SPLIT step by a pattern. */
enum status pretokenizer_add_split(struct pretokenizer *p, const char *pattern, size_t length,
                                   bool literal, enum split_behavior behavior, bool invert,
                                   struct error *err);
void pretokenizer_release(struct pretokenizer *p);

/* Where the pieces go, and the working memory of one encoder. */
struct pretokenizer_run {
  const struct pretokenizer *pretokenizer;
  struct regex_scratch *scratch;
  enum status (*put)(void *ctx, const char *piece, size_t bytes, struct error *err);
  void *ctx;
  bool at_text_start; /* the next piece begins the whole input: Metaspace's "first" */
  struct strbuf buffers[PRETOKENIZER_STEPS_MAX];
};
enum status pretokenize(struct pretokenizer_run *run, const char *text, size_t bytes,
                        struct error *err);
void pretokenizer_run_release(struct pretokenizer_run *run);

#endif
