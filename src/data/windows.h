/* Corpora to token windows.
 *
 * A corpus is a file: plain UTF-8, .jsonl (the "text" member of each line is a document), or
 * either of them as .gz or .zst. It is tokenized once, into memory. */
#ifndef TSR_DATA_WINDOWS_H
#define TSR_DATA_WINDOWS_H

#include "text/tokenizer.h"

struct corpus {
  struct token_ids ids;   /* all documents, one after the other */
  size_t *document_start; /* (documents + 1) offsets into ids */
  size_t documents;
  uint64_t text_bytes;
};
/* `token_limit` > 0 stops reading after that many tokens. One BOS, where the tokenizer's settings
 * ask for it, stands at the head of each document (a plain text file is one document). */
enum status corpus_load(struct corpus *corpus, const char *path, const struct tokenizer *tokenizer,
                        int64_t token_limit, struct error *err);
void corpus_free(struct corpus *corpus);

/* Non-overlapping windows of `length` tokens; the remainder is dropped. Packed: windows run across
 * documents; per document: each document's own windows. STATUS_REFUSED, with the numbers, when
 * there is not one window. */
struct windows {
  const struct corpus *corpus;
  int64_t length, count;
  int64_t *start; /* (count) offsets into corpus->ids */
};
enum status windows_cut(struct windows *windows, const struct corpus *corpus, int64_t length,
                        bool per_document, struct error *err);
void windows_free(struct windows *windows);
static inline const int32_t *windows_at(const struct windows *w, int64_t index) {
  return w->corpus->ids.items + w->start[index];
}

/* The window that draw number `draw` (0, 1, ...) of a seeded sampler gives: a fresh permutation of
 * [0, count) each epoch, a pure function of its arguments, so that any resume reproduces it. */
int64_t windows_draw(int64_t count, uint64_t seed, uint64_t draw);

#endif
