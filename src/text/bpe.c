/* Byte-pair merging: see bpe.h. */
#include "text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

enum {
  JOINT_BITS = 1 << 22, /* a set with false members only: those cost a cut, never exactness */
  CACHE_SLOTS = 1 << 15,
  CACHED_BYTES_MAX = 27,
  CACHED_IDS_MAX = 8
};

struct bpe_cached {
  uint8_t length, count; /* length 0 = empty */
  char text[CACHED_BYTES_MAX];
  int32_t ids[CACHED_IDS_MAX];
};

void bpe_init(struct bpe *bpe, const struct vocab *vocab) {
  *bpe = (struct bpe){.vocab = vocab, .unknown = -1};
  for (int i = 0; i < 256; i++) bpe->byte_token[i] = -1;
}

void bpe_release(struct bpe *bpe) {
  mem_free(bpe->pairs);
  mem_free(bpe->rank);
  mem_free(bpe->joints);
  bpe_init(bpe, NULL);
}

/* The model's own token of this text, or -1. */
static int32_t find_token(const struct bpe *bpe, const char *text, size_t length) {
  int32_t id = vocab_find(bpe->vocab, text, length);
  return id >= 0 && bpe->vocab->entries[id].flags & TOKEN_OUTSIDE ? -1 : id;
}

/* ---- what merges ---- */

static uint64_t pair_hash(uint64_t key) {
  key = (key ^ key >> 32) * 0xff51afd7ed558ccdu;
  return key ^ key >> 29;
}

enum status bpe_reserve_pairs(struct bpe *bpe, size_t merges, struct error *err) {
  if (merges > BPE_MERGES_MAX)
    return error_set(err, STATUS_REFUSED, "%zu merges are more than the limit of %d", merges,
                     BPE_MERGES_MAX);
  size_t slots = 64;
  while (slots < 2 * merges) slots *= 2;
  bpe->pairs = mem_alloc(slots, sizeof *bpe->pairs, err);
  if (!bpe->pairs) return STATUS_FAILED;
  for (size_t i = 0; i < slots; i++) bpe->pairs[i].key = UINT64_MAX;
  bpe->pair_mask = slots - 1;
  return STATUS_OK;
}

/* The slot of the key, or the empty one where it belongs. */
static struct bpe_pair *pair_slot(const struct bpe *bpe, int32_t left, int32_t right) {
  uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  size_t slot = pair_hash(key) & bpe->pair_mask;
  while (bpe->pairs[slot].key != key && bpe->pairs[slot].key != UINT64_MAX)
    slot = (slot + 1) & bpe->pair_mask;
  return &bpe->pairs[slot];
}

static enum status find_part(const struct bpe *bpe, const char *text, size_t length, uint32_t rank,
                             int32_t *id, struct error *err) {
  *id = find_token(bpe, text, length);
  if (*id >= 0) return STATUS_OK;
  return error_set(err, STATUS_REFUSED, "merge %u needs the token \"%.*s\", which is missing", rank,
                   (int)length, text);
}

enum status bpe_add_pair(struct bpe *bpe, const char *left, size_t left_length, const char *right,
                         size_t right_length, uint32_t rank, bool last_wins, struct error *err) {
  int32_t left_id, right_id, id;
  enum status status = find_part(bpe, left, left_length, rank, &left_id, err);
  if (status == STATUS_OK) status = find_part(bpe, right, right_length, rank, &right_id, err);
  if (status != STATUS_OK) return status;
  struct strbuf joined = {0};
  strbuf_append(&joined, left, left_length);
  strbuf_append(&joined, right, right_length);
  status = find_part(bpe, joined.data, joined.length, rank, &id, err);
  strbuf_free(&joined);
  if (status != STATUS_OK) return status;
  INVARIANT(2 * bpe->pair_count <= bpe->pair_mask + 1);
  struct bpe_pair *pair = pair_slot(bpe, left_id, right_id);
  bool is_new = pair->key == UINT64_MAX;
  if (!is_new && !last_wins) return STATUS_OK;
  *pair = (struct bpe_pair){
      .key = (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id, .rank = rank, .id = id};
  bpe->pair_count += is_new;
  return STATUS_OK;
}

struct scored {
  float score;
  uint32_t id;
};

static int compare_scores(const void *a, const void *b) {
  float x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
  return x > y ? -1 : x < y;
}

enum status bpe_rank_by_score(struct bpe *bpe, const float *scores, const bool *mergeable,
                              struct error *err) {
  size_t count = bpe->vocab->count;
  struct scored *order = mem_alloc(count, sizeof *order, err);
  bpe->rank = mem_alloc(count, sizeof *bpe->rank, err);
  enum status status = order && bpe->rank ? STATUS_OK : STATUS_FAILED;
  for (size_t i = 0; status == STATUS_OK && i < count; i++) {
    if (scores[i] != scores[i])
      status = error_set(err, STATUS_REFUSED, "the score of token %zu is not a number", i);
    order[i] = (struct scored){scores[i], (uint32_t)i};
  }
  if (status == STATUS_OK) {
    qsort(order, count, sizeof *order, compare_scores);
    uint32_t rank = 0;
    for (size_t i = 0; i < count; i++) {
      if (i && order[i].score != order[i - 1].score) rank++;
      bpe->rank[order[i].id] = mergeable[order[i].id] ? rank : BPE_NO_RANK;
    }
  }
  mem_free(order);
  return status;
}

void bpe_find_byte_tokens(struct bpe *bpe, struct vocab *vocab) {
  for (int byte = 0; byte < 256; byte++) {
    char name[8];
    int length = snprintf(name, sizeof name, "<0x%02X>", byte);
    bpe->byte_token[byte] = vocab_find(vocab, name, (size_t)length);
    if (bpe->byte_token[byte] >= 0) {
      vocab->entries[bpe->byte_token[byte]].flags |= TOKEN_BYTE;
      bpe->byte_fallback = true;
    }
  }
}

/* ---- safe cuts ---- */

static size_t joint_bit(uint32_t left, uint32_t right) {
  return pair_hash((uint64_t)left << 32 | right) % JOINT_BITS;
}

enum status bpe_prepare_cuts(struct bpe *bpe, struct error *err) {
  bpe->joints = mem_alloc(JOINT_BITS / 64, sizeof *bpe->joints, err);
  if (!bpe->joints) return STATUS_FAILED;
  for (size_t id = 0; id < bpe->vocab->count; id++) {
    size_t length;
    const char *text = vocab_text(bpe->vocab, (int32_t)id, &length);
    if (!length || bpe->vocab->entries[id].flags & TOKEN_BYTE) continue;
    if (bpe->rank && bpe->rank[id] == BPE_NO_RANK) continue;
    uint32_t left = utf8_decode(text);
    for (size_t at = utf8_length(*text); at < length; at += utf8_length(text[at])) {
      uint32_t right = utf8_decode(text + at);
      size_t bit = joint_bit(left, right);
      bpe->joints[bit / 64] |= (uint64_t)1 << bit % 64;
      left = right;
    }
  }
  return STATUS_OK;
}

/* Length of the first word of text[0, bytes): up to the first safe cut. */
static size_t word_length(const struct bpe *bpe, const char *text, size_t bytes) {
  uint32_t left = utf8_decode(text);
  for (size_t at = utf8_length(*text); at < bytes; at += utf8_length(text[at])) {
    uint32_t right = utf8_decode(text + at);
    size_t bit = joint_bit(left, right);
    if (!(bpe->joints[bit / 64] >> bit % 64 & 1)) return at;
    left = right;
  }
  return bytes;
}

/* ---- merging one word ---- */

static bool more_urgent(const struct bpe_candidate *a, const struct bpe_candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static enum status heap_push(struct bpe_scratch *s, struct bpe_candidate c, struct error *err) {
  enum status status =
      mem_grow((void **)&s->heap, &s->heap_capacity, s->heap_count + 1, sizeof *s->heap, err);
  if (status != STATUS_OK) return status;
  size_t at = s->heap_count++;
  while (at && more_urgent(&c, &s->heap[(at - 1) / 2])) {
    s->heap[at] = s->heap[(at - 1) / 2];
    at = (at - 1) / 2;
  }
  s->heap[at] = c;
  return STATUS_OK;
}

static struct bpe_candidate heap_pop(struct bpe_scratch *s) {
  struct bpe_candidate top = s->heap[0], last = s->heap[--s->heap_count];
  size_t at = 0, child;
  while ((child = 2 * at + 1) < s->heap_count) {
    if (child + 1 < s->heap_count && more_urgent(&s->heap[child + 1], &s->heap[child])) child++;
    if (!more_urgent(&s->heap[child], &last)) break;
    s->heap[at] = s->heap[child];
    at = child;
  }
  s->heap[at] = last;
  return top;
}

/* Queues the merge of two neighbours where there is one. */
static enum status try_pair(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                            int32_t left, int32_t right, struct error *err) {
  if (left < 0 || right < 0) return STATUS_OK;
  const struct bpe_symbol *l = &s->symbols[left], *r = &s->symbols[right];
  struct bpe_candidate c = {.left = (uint32_t)left, .size = l->length + r->length};
  if (bpe->pairs) {
    if (l->id < 0 || r->id < 0) return STATUS_OK;
    const struct bpe_pair *pair = pair_slot(bpe, l->id, r->id);
    if (pair->key == UINT64_MAX) return STATUS_OK;
    c.rank = pair->rank;
    c.id = pair->id;
  } else {
    c.id = find_token(bpe, text + l->start, c.size);
    if (c.id < 0 || bpe->rank[c.id] == BPE_NO_RANK) return STATUS_OK;
    c.rank = bpe->rank[c.id];
  }
  return heap_push(s, c, err);
}

/* One symbol per character. */
static enum status split_characters(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                                    size_t bytes, struct error *err) {
  bool drop = bpe->pairs && !bpe->byte_fallback && bpe->unknown < 0;
  s->symbol_count = 0;
  for (size_t at = 0, length; at < bytes; at += length) {
    length = utf8_length(text[at]);
    int32_t id = find_token(bpe, text + at, length);
    if (id < 0 && drop) continue; /* as Hugging Face does: its neighbours become neighbours */
    enum status status = mem_grow((void **)&s->symbols, &s->symbol_capacity, s->symbol_count + 1,
                                  sizeof *s->symbols, err);
    if (status != STATUS_OK) return status;
    int32_t index = (int32_t)s->symbol_count++;
    s->symbols[index] = (struct bpe_symbol){.start = (uint32_t)at,
                                            .length = (uint32_t)length,
                                            .id = id,
                                            .previous = index - 1,
                                            .next = index + 1};
  }
  if (s->symbol_count) s->symbols[s->symbol_count - 1].next = -1;
  return STATUS_OK;
}

/* Merges the right neighbour into symbol `left`. */
static enum status merge(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                         const struct bpe_candidate *c, struct error *err) {
  struct bpe_symbol *l = &s->symbols[c->left], *r = &s->symbols[l->next];
  l->length += r->length;
  l->id = c->id;
  l->next = r->next;
  r->length = 0;
  if (l->next >= 0) s->symbols[l->next].previous = (int32_t)c->left;
  enum status status = try_pair(bpe, s, text, l->previous, (int32_t)c->left, err);
  if (status == STATUS_OK) status = try_pair(bpe, s, text, (int32_t)c->left, l->next, err);
  return status;
}

static enum status merge_all(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                             struct error *err) {
  enum status status = STATUS_OK;
  s->heap_count = 0;
  for (size_t i = 0; status == STATUS_OK && i + 1 < s->symbol_count; i++)
    status = try_pair(bpe, s, text, (int32_t)i, (int32_t)i + 1, err);
  while (status == STATUS_OK && s->heap_count) {
    struct bpe_candidate c = heap_pop(s);
    const struct bpe_symbol *l = &s->symbols[c.left];
    /* Stale when either has merged since. Symbols only grow to the right, so that the same left
     * end and the same size mean the same two. */
    if (!l->length || l->next < 0 || l->length + s->symbols[l->next].length != c.size) continue;
    status = merge(bpe, s, text, &c, err);
  }
  return status;
}

/* ---- ids out ---- */

/* An unknown character: its bytes when all of them are tokens, else the unknown token. */
static enum status put_unknown(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                               size_t length, struct token_ids *out, struct error *err) {
  bool bytes = bpe->byte_fallback;
  for (size_t i = 0; bytes && i < length; i++) bytes = bpe->byte_token[(uint8_t)text[i]] >= 0;
  if (bytes) {
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < length; i++)
      status = token_ids_push(out, bpe->byte_token[(uint8_t)text[i]], err);
    s->last_unknown = false;
    return status;
  }
  if (bpe->unknown < 0 || (bpe->fuse_unknown && s->last_unknown)) return STATUS_OK;
  s->last_unknown = true;
  return token_ids_push(out, bpe->unknown, err);
}

static enum status encode_word(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                               size_t bytes, struct token_ids *out, struct error *err) {
  enum status status = split_characters(bpe, s, text, bytes, err);
  if (status == STATUS_OK) status = merge_all(bpe, s, text, err);
  for (int32_t i = s->symbol_count ? 0 : -1; status == STATUS_OK && i >= 0;
       i = s->symbols[i].next) {
    const struct bpe_symbol *symbol = &s->symbols[i];
    if (symbol->id < 0) {
      status = put_unknown(bpe, s, text + symbol->start, symbol->length, out, err);
    } else {
      status = token_ids_push(out, symbol->id, err);
      s->last_unknown = false;
    }
  }
  return status;
}

/* ---- the cache of words ---- */

enum status bpe_scratch_use_cache(struct bpe_scratch *scratch, struct error *err) {
  scratch->cache = mem_alloc(CACHE_SLOTS, sizeof *scratch->cache, err);
  return scratch->cache ? STATUS_OK : STATUS_FAILED;
}

void bpe_scratch_release(struct bpe_scratch *s) {
  free(s->symbols);
  free(s->heap);
  mem_free(s->cache);
  *s = (struct bpe_scratch){0};
}

static enum status encode_cached(const struct bpe *bpe, struct bpe_scratch *s, const char *text,
                                 size_t bytes, struct token_ids *out, struct error *err) {
  if (!s->cache || bytes > CACHED_BYTES_MAX) return encode_word(bpe, s, text, bytes, out, err);
  struct bpe_cached *slot = &s->cache[text_hash(text, bytes) % CACHE_SLOTS];
  enum status status = STATUS_OK;
  if (slot->length == bytes && memcmp(slot->text, text, bytes) == 0) {
    s->last_unknown = false;
    for (int i = 0; status == STATUS_OK && i < slot->count; i++)
      status = token_ids_push(out, slot->ids[i], err);
    return status;
  }
  size_t before = out->count;
  status = encode_word(bpe, s, text, bytes, out, err);
  size_t count = out->count - before;
  if (status != STATUS_OK || count == 0 || count > CACHED_IDS_MAX) return status;
  /* What an unknown character becomes depends on what stands before it. */
  for (size_t i = before; i < out->count; i++)
    if (out->items[i] == bpe->unknown) return STATUS_OK;
  slot->length = (uint8_t)bytes;
  slot->count = (uint8_t)count;
  memcpy(slot->text, text, bytes);
  memcpy(slot->ids, out->items + before, count * sizeof *slot->ids);
  return STATUS_OK;
}

enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *piece,
                       size_t bytes, struct token_ids *out, struct error *err) {
  if (bytes > BPE_PIECE_BYTES_MAX)
    return error_set(err, STATUS_REFUSED, "a single word of %zu bytes is too long (limit %d)",
                     bytes, BPE_PIECE_BYTES_MAX);
  scratch->last_unknown = false;
  if (bpe->ignore_merges) {
    int32_t id = find_token(bpe, piece, bytes);
    if (id >= 0) return token_ids_push(out, id, err);
  }
  if (!bpe->joints) return encode_cached(bpe, scratch, piece, bytes, out, err);
  enum status status = STATUS_OK;
  for (size_t at = 0, length; status == STATUS_OK && at < bytes; at += length) {
    length = word_length(bpe, piece + at, bytes - at);
    status = encode_cached(bpe, scratch, piece + at, length, out, err);
  }
  return status;
}
