/* The tokens of a vocabulary: id to text, text to id. Owns one copy of every text. */
#ifndef TSR_TEXT_VOCAB_H
#define TSR_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

enum {
  VOCAB_TOKENS_MAX = 1 << 22, /* the largest published vocabularies hold 2^18 */
  TOKEN_BYTES_MAX = 1 << 16,  /* of one token's text */
  VOCAB_BYTES_MAX = 1 << 30   /* of all texts together */
};

enum token_flags {
  TOKEN_PRESENT = 1, /* ids may have gaps: a gap has no flags and no text */
  TOKEN_SPECIAL = 2, /* control tokens: BOS, turn marks; left out of decoded text on request */
  TOKEN_ADDED = 4,   /* matched in the text before the model sees it */
  TOKEN_BYTE = 8,    /* "<0xNN>" of byte fallback */
  TOKEN_OUTSIDE = 16 /* an added token that the model itself does not know */
};

struct vocab_entry {
  uint32_t start, length; /* into texts */
  uint32_t flags;
};

struct vocab {
  struct vocab_entry *entries; /* (count) */
  size_t count, capacity;
  struct strbuf texts;
  uint32_t *slots; /* (slot_mask + 1) id + 1, 0 = empty; open addressing */
  size_t slot_mask, used_slots;
};

/* Sets the text of `id`, which must be free; the text must be new, too. STATUS_REFUSED otherwise.
 * An empty text is stored, but not found. */
enum status vocab_put(struct vocab *v, int64_t id, const char *text, size_t length, uint32_t flags,
                      struct error *err);
/* Id of the token whose text is exactly this, or -1. */
int32_t vocab_find(const struct vocab *v, const char *text, size_t length);
void vocab_release(struct vocab *v);

static inline bool vocab_has(const struct vocab *v, int64_t id) {
  return id >= 0 && (uint64_t)id < v->count && v->entries[id].flags & TOKEN_PRESENT;
}
static inline const char *vocab_text(const struct vocab *v, int32_t id, size_t *length) {
  *length = v->entries[id].length;
  return strbuf_text(&v->texts) + v->entries[id].start;
}
static inline bool vocab_is(const struct vocab *v, int64_t id, enum token_flags flag) {
  return vocab_has(v, id) && v->entries[id].flags & flag;
}

/* A 64-bit hash of a short text, for the tables of this room. */
uint64_t text_hash(const char *text, size_t length);

#endif
