/* Byte-pair encoding of one piece of text: neighbours are merged, the most urgent pair of the
 * whole piece first, the leftmost among equals, until nothing merges.
 *
 * Two rules say what merges. With a pair table (tokenizer.json, GGUF's gpt2) a pair of token ids
 * has a rank and makes a token. Without one (SentencePiece, tiktoken) any two neighbours merge
 * whose joined text is a token, and the token's own rank says how urgent that is. Both work on
 * characters: byte-level vocabularies are stored in, and fed, GPT-2's byte alphabet.
 *
 * Surprising: a piece may be a whole text of megabytes (SentencePiece does not pre-tokenize). It
 * is cut where no token of the vocabulary holds the two characters on either side as neighbours:
 * no merge can cross there, so the cut changes nothing, and the words between can be cached. */
#ifndef TSR_TEXT_BPE_H
#define TSR_TEXT_BPE_H

#include "text/tokenizer.h"
#include "text/vocab.h"

enum { BPE_MERGES_MAX = 1 << 23, BPE_PIECE_BYTES_MAX = 1 << 30 };
#define BPE_NO_RANK UINT32_MAX

struct bpe_pair {
  uint64_t key; /* left id << 32 | right id; UINT64_MAX = empty */
  uint32_t rank;
  int32_t id;
};

struct bpe {
  const struct vocab *vocab;
  struct bpe_pair *pairs; /* (pair_mask + 1) or NULL; open addressing */
  size_t pair_mask, pair_count;
  uint32_t *rank;          /* (vocab->count) when there is no pair table: lower first */
  uint64_t *joints;        /* bits: characters that stand side by side in a token; NULL = no cuts */
  int32_t byte_token[256]; /* what a byte of an unknown character becomes, or -1 */
  bool byte_fallback;      /* some byte_token is set */
  int32_t unknown;         /* token of other unknown characters; -1: they are dropped */
  bool fuse_unknown;       /* a run of unknown characters is one unknown token */
  bool ignore_merges;      /* a piece that is a token is not taken apart */
};

/* Sets byte_token and unknown to -1. */
void bpe_init(struct bpe *bpe, const struct vocab *vocab);
void bpe_release(struct bpe *bpe);

/* Room for `merges` pairs; then each pair in the order of its rank. Of a pair given twice the last
 * (`last_wins`, as Hugging Face reads) or the first counts. STATUS_REFUSED when a text is not a
 * token. */
enum status bpe_reserve_pairs(struct bpe *bpe, size_t merges, struct error *err);
enum status bpe_add_pair(struct bpe *bpe, const char *left, size_t left_length, const char *right,
                         size_t right_length, uint32_t rank, bool last_wins, struct error *err);
/* Ranks from SentencePiece's scores[vocab->count]: higher scores are more urgent, equal ones
 * equally. Tokens for which mergeable[id] is false are never made by merging. */
enum status bpe_rank_by_score(struct bpe *bpe, const float *scores, const bool *mergeable,
                              struct error *err);
/* Looks up "<0x00>" .. "<0xFF>" and marks them in `vocab`, which is the model's own. */
void bpe_find_byte_tokens(struct bpe *bpe, struct vocab *vocab);
/* Prepares cutting at safe places, for vocabularies that meet long pieces. */
enum status bpe_prepare_cuts(struct bpe *bpe, struct error *err);

struct bpe_symbol {
  uint32_t start, length; /* into the piece; length 0 = merged away */
  int32_t id;             /* -1 = no token */
  int32_t previous, next; /* -1 = none */
};
struct bpe_candidate {
  uint32_t rank, left; /* left: index of a symbol */
  uint32_t size;       /* bytes of both together, to see later whether they still are the same */
  int32_t id;
};
struct bpe_cached;

/* Working memory for one encoder; zero it to begin, release it at the end. */
struct bpe_scratch {
  struct bpe_symbol *symbols;
  size_t symbol_count, symbol_capacity;
  struct bpe_candidate *heap;
  size_t heap_count, heap_capacity;
  struct bpe_cached *cache;
  bool last_unknown; /* the piece's last id stands for unknown characters */
};
/* Words seen before are looked up instead of merged again: worth it for longer texts. */
enum status bpe_scratch_use_cache(struct bpe_scratch *scratch, struct error *err);
void bpe_scratch_release(struct bpe_scratch *scratch);

/* Appends the ids of one piece (valid UTF-8). O(n log n) in the piece. */
enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *piece,
                       size_t bytes, struct token_ids *out, struct error *err);

#endif
