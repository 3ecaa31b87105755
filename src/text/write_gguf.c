/* A tokenizer as GGUF keys, in the way that llama.cpp reads them.
 *
 * The surprising part is tokenizer.ggml.pre: a GGUF names its pre-tokenizer where tokenizer.json
 * spells it out. The name is found by trying: the first of llama.cpp's pre-tokenizers that cuts a
 * probing text into the same ids is the one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/gguf.h"
#include "text/parts.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

static const char probe_text[] =
    "Hello, World's we'LL \n\n\n 3.14 1234567 12 \t\tx  =  y+1;\r\n'tis \xc5\xbf's don't DON'T "
    "\xc3\xa9t\xc3\xa9 na\xc3\xafve \xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97 \xe3\x81\x8b\xe3\x81\xaa "
    "\xed\x95\x9c\xea\xb5\xad \xd1\x80\xd1\x83\xd1\x81 \xf0\x9f\x98\x80\xf0\x9f\x98\x80 "
    "!!?? ...((a_b)) <b>$5.00 \xd9\xa3\xd9\xa4\xd9\xa5 #tag @me iPhoneX HTTPServer "
    "a/b\n/c   \n  end.\n\n3 ";

/* --- the name of a pre-tokenizer --- */

static bool same_ids(const struct token_ids *a, const struct token_ids *b) {
  return a->count == b->count && !memcmp(a->items, b->items, a->count * sizeof *a->items);
}

enum status tokenizer_agree(const struct tokenizer *a, const struct tokenizer *b, bool *agree,
                            struct error *err) {
  struct token_ids x = {0}, y = {0};
  enum status status = tokenizer_encode(a, probe_text, sizeof probe_text - 1, 0, &x, err);
  if (status == STATUS_OK)
    status = tokenizer_encode(b, probe_text, sizeof probe_text - 1, 0, &y, err);
  *agree = status == STATUS_OK && same_ids(&x, &y);
  token_ids_free(&x);
  token_ids_free(&y);
  return status;
}

/* Encodes the probe as `t` does but with the named pre-tokenizer. */
static enum status encode_as(const struct tokenizer *t, const char *name, struct token_ids *out,
                             struct error *err) {
  struct tokenizer probe = *t;
  probe.pretokenizer = (struct pretokenizer){0};
  enum status status = pretokenizer_add_named(&probe, name, err);
  if (status == STATUS_OK)
    status = tokenizer_encode(&probe, probe_text, sizeof probe_text - 1, TOKENIZE_NO_BOS, out, err);
  pretokenizer_release(&probe.pretokenizer);
  return status;
}

static enum status find_pre(const struct tokenizer *t, const char **name, struct error *err) {
  static const char *const names[] = {"llama-bpe",   "qwen2",  "smollm", "gpt-2",
                                      "tekken",      "dbrx",   "falcon", "deepseek-coder",
                                      "deepseek-v3", "default"};
  struct token_ids wanted = {0}, got = {0};
  *name = t->pre;
  if (*name) return STATUS_OK;
  enum status status =
      tokenizer_encode(t, probe_text, sizeof probe_text - 1, TOKENIZE_NO_BOS, &wanted, err);
  for (size_t i = 0; status == STATUS_OK && !*name && i < sizeof names / sizeof *names; i++) {
    got.count = 0;
    status = encode_as(t, names[i], &got, err);
    if (status == STATUS_OK && same_ids(&wanted, &got)) *name = names[i];
  }
  token_ids_free(&wanted);
  token_ids_free(&got);
  if (status == STATUS_OK && !*name)
    return error_set(err, STATUS_REFUSED,
                     "%s cuts text as no pre-tokenizer known by name does, so that a GGUF cannot "
                     "say how",
                     t->path);
  return status;
}

/* --- tokens --- */

static int32_t token_type(const struct tokenizer *t, int64_t id) {
  if (!vocab_has(&t->vocab, id)) return TYPE_UNUSED;
  if (vocab_is(&t->vocab, id, TOKEN_BYTE)) return TYPE_BYTE;
  if (id == t->unknown && !t->byte_level) return TYPE_UNKNOWN;
  if (vocab_is(&t->vocab, id, TOKEN_SPECIAL)) return TYPE_CONTROL;
  return vocab_is(&t->vocab, id, TOKEN_ADDED) ? TYPE_USER_DEFINED : TYPE_NORMAL;
}

/* Ids without a token, up to the rows of the embedding, are called [PAD...] by convention. */
static void set_tokens(const struct tokenizer *t, int64_t count, struct gguf_string *texts,
                       int32_t *types, struct strbuf *fillers, struct gguf_builder *b) {
  enum { FILLER_BYTES = 32 };
  for (int64_t id = 0; id < count; id++)
    if (!vocab_has(&t->vocab, id)) {
      char filler[FILLER_BYTES] = {0};
      snprintf(filler, sizeof filler, "[PAD%lld]", (long long)id);
      strbuf_append(fillers, filler, sizeof filler);
    }
  const char *filler = strbuf_text(fillers);
  for (int64_t id = 0; id < count; id++) {
    types[id] = token_type(t, id);
    if (vocab_has(&t->vocab, id)) {
      texts[id].data = vocab_text(&t->vocab, (int32_t)id, &texts[id].length);
      continue;
    }
    texts[id] = (struct gguf_string){filler, strlen(filler)};
    filler += FILLER_BYTES;
  }
  gguf_set_strings(b, "tokenizer.ggml.tokens", texts, (size_t)count);
  gguf_set_i32s(b, "tokenizer.ggml.token_type", types, (size_t)count);
}

/* --- merges, or scores --- */

static int by_rank(const void *a, const void *b) {
  const uint32_t x = ((const struct bpe_pair *)a)->rank, y = ((const struct bpe_pair *)b)->rank;
  return x < y ? -1 : x > y;
}

/* The pairs in the order of their ranks: (pair_count). */
static struct bpe_pair *sorted_pairs(const struct bpe *bpe, struct error *err) {
  struct bpe_pair *pairs = mem_alloc(bpe->pair_count, sizeof *pairs, err);
  size_t count = 0;
  for (size_t i = 0; pairs && bpe->pairs && i <= bpe->pair_mask; i++)
    if (bpe->pairs[i].key != UINT64_MAX) pairs[count++] = bpe->pairs[i];
  if (pairs) qsort(pairs, count, sizeof *pairs, by_rank);
  return pairs;
}

static enum status set_merges(const struct tokenizer *t, struct gguf_builder *b,
                              struct error *err) {
  const size_t count = t->bpe.pair_count;
  struct bpe_pair *pairs = sorted_pairs(&t->bpe, err);
  struct gguf_string *items = mem_alloc(count, sizeof *items, err);
  struct strbuf text = {0};
  const bool had_memory = pairs && items;
  for (size_t i = 0; had_memory && i < count; i++) {
    size_t left_length, right_length;
    const char *left = vocab_text(&t->vocab, (int32_t)(pairs[i].key >> 32), &left_length);
    const char *right = vocab_text(&t->vocab, (int32_t)(uint32_t)pairs[i].key, &right_length);
    items[i].length = left_length + 1 + right_length;
    strbuf_append(&text, left, left_length);
    strbuf_putc(&text, ' ');
    strbuf_append(&text, right, right_length);
  }
  size_t at = 0;
  for (size_t i = 0; had_memory && i < count; at += items[i++].length)
    items[i].data = strbuf_text(&text) + at;
  if (had_memory) gguf_set_strings(b, "tokenizer.ggml.merges", items, count);
  strbuf_free(&text);
  mem_free(items);
  mem_free(pairs);
  return had_memory ? STATUS_OK : STATUS_FAILED;
}

/* Any scores that order tokens as merging does will do: minus the rank. What never comes from
 * merging gets one below all others. */
static enum status set_scores(const struct tokenizer *t, int64_t count, struct gguf_builder *b,
                              struct error *err) {
  float *scores = mem_alloc((size_t)count, sizeof *scores, err);
  if (!scores) return STATUS_FAILED;
  for (int64_t id = 0; id < count; id++) {
    const bool ranked = t->bpe.rank && vocab_has(&t->vocab, id) && t->bpe.rank[id] != BPE_NO_RANK;
    scores[id] = ranked ? -(float)t->bpe.rank[id] : -1e9f;
  }
  for (size_t i = 0; t->bpe.pairs && i <= t->bpe.pair_mask; i++) {
    const struct bpe_pair *pair = &t->bpe.pairs[i];
    if (pair->key != UINT64_MAX && -(float)pair->rank > scores[pair->id])
      scores[pair->id] = -(float)pair->rank;
  }
  gguf_set_f32s(b, "tokenizer.ggml.scores", scores, (size_t)count);
  mem_free(scores);
  return STATUS_OK;
}

/* --- the rest --- */

static void set_id(struct gguf_builder *b, const char *key, int32_t id) {
  if (id >= 0) gguf_set_u32(b, key, (uint32_t)id);
}

static bool holds(const int32_t *ids, int count, int32_t id) {
  for (int i = 0; id >= 0 && i < count; i++)
    if (ids[i] == id) return true;
  return false;
}

static void set_specials(const struct tokenizer *t, struct gguf_builder *b) {
  set_id(b, "tokenizer.ggml.bos_token_id", t->bos);
  set_id(b, "tokenizer.ggml.eos_token_id", t->eos);
  set_id(b, "tokenizer.ggml.unknown_token_id", t->unknown);
  set_id(b, "tokenizer.ggml.padding_token_id", t->padding);
  gguf_set_bool(b, "tokenizer.ggml.add_bos_token", holds(t->head, t->head_count, t->bos));
  gguf_set_bool(b, "tokenizer.ggml.add_eos_token", holds(t->tail, t->tail_count, t->eos));
  if (!t->byte_level)
    gguf_set_bool(b, "tokenizer.ggml.add_space_prefix", t->decoder.strip_leading_space);
  if (t->chat_template)
    gguf_set_string(b, "tokenizer.chat_template", t->chat_template, strlen(t->chat_template));
}

static enum status set_model(const struct tokenizer *t, int64_t count, struct gguf_builder *b,
                             struct error *err) {
  const char *model = t->byte_level ? "gpt2" : "llama", *pre = "default";
  gguf_set_string(b, "tokenizer.ggml.model", model, strlen(model));
  enum status status = t->byte_level ? find_pre(t, &pre, err) : STATUS_OK;
  if (status != STATUS_OK) return status;
  gguf_set_string(b, "tokenizer.ggml.pre", pre, strlen(pre));
  return t->byte_level ? set_merges(t, b, err) : set_scores(t, count, b, err);
}

enum status tokenizer_to_gguf(const struct tokenizer *t, int64_t vocab_size, struct gguf_builder *b,
                              struct error *err) {
  if (t->byte_level && !t->bpe.pairs)
    return error_set(err, STATUS_REFUSED,
                     "%s has no merges, which a GGUF needs; put the model's tokenizer.json beside "
                     "it",
                     t->path);
  if (vocab_size < (int64_t)t->vocab.count)
    return error_set(err, STATUS_REFUSED, "%s has %zu tokens, but the model has only %lld", t->path,
                     t->vocab.count, (long long)vocab_size);
  struct strbuf fillers = {0};
  struct gguf_string *texts = mem_alloc((size_t)vocab_size, sizeof *texts, err);
  int32_t *types = mem_alloc((size_t)vocab_size, sizeof *types, err);
  enum status status = texts && types ? set_model(t, vocab_size, b, err) : STATUS_FAILED;
  if (status == STATUS_OK) {
    set_tokens(t, vocab_size, texts, types, &fillers, b);
    set_specials(t, b);
  }
  strbuf_free(&fillers);
  mem_free(types);
  mem_free(texts);
  return status;
}
