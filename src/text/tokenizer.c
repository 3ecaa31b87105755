/* The tokenizer: opening, and the way of a text through its parts. See tokenizer.h.
 *
 * text -> added tokens cut out -> normalized -> added tokens of normalized text cut out ->
 * pre-tokenized -> each piece through the model. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/gguf.h"
#include "text/byte_level.h"
#include "text/parts.h"
#include "text/utf8.h"

enum { CACHE_WORTH_BYTES = 8192 };

/* ---- opening ---- */

static enum status read_model_file(struct tokenizer *t, const char *path, struct error *err) {
  struct file_map map;
  enum status status = file_map_open(&map, path, err);
  if (status != STATUS_OK) return status;
  /* Protobuf's first byte is a field tag below 0x20 ('\n'); tiktoken lines are base64. */
  if (map.size_bytes && map.data[0] >= 0x20) {
    t->source = SOURCE_TIKTOKEN;
    status = tokenizer_read_tiktoken(t, (const char *)map.data, map.size_bytes, err);
  } else {
    t->source = SOURCE_SENTENCEPIECE;
    status = tokenizer_read_sentencepiece(t, map.data, map.size_bytes, err);
  }
  file_map_close(&map);
  return status;
}

static enum status read_json_file(struct tokenizer *t, const char *path, struct error *err) {
  char *data = NULL;
  size_t bytes;
  enum status status = file_read(path, TOKENIZER_FILE_BYTES_MAX, &data, &bytes, err);
  t->source = SOURCE_JSON;
  if (status == STATUS_OK) status = tokenizer_read_json(t, data, bytes, err);
  free(data);
  return status;
}

static bool ends_with(const char *text, const char *end) {
  size_t a = strlen(text), b = strlen(end);
  return a >= b && strcmp(text + a - b, end) == 0;
}

static enum status read_file(struct tokenizer *t, const char *path, struct error *err) {
  t->path = mem_strdup(path, err);
  if (!t->path) return STATUS_FAILED;
  enum status status;
  if (gguf_recognise(path)) {
    t->source = SOURCE_GGUF;
    status = tokenizer_read_gguf(t, path, err);
  } else if (ends_with(path, ".json")) {
    status = read_json_file(t, path, err);
  } else {
    status = read_model_file(t, path, err);
  }
  return status == STATUS_OK ? status : error_prefix(err, "%s", path);
}

static enum status read_directory(struct tokenizer *t, const char *directory, struct error *err) {
  static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char *path = path_join(directory, names[i]);
    bool there = file_exists(path);
    enum status status = there ? read_file(t, path, err) : STATUS_OK;
    free(path);
    if (!there) continue;
    if (status != STATUS_OK) return status;
    t->directory = mem_strdup(directory, err);
    return t->directory ? tokenizer_read_settings(t, directory, err) : STATUS_FAILED;
  }
  return error_set(err, STATUS_REFUSED,
                   "%s holds neither tokenizer.json nor tokenizer.model; copy the tokenizer of the "
                   "model there",
                   directory);
}

/* Names of tokens that end a turn in the supported families, whatever eos is. */
static void find_ends(struct tokenizer *t) {
  static const char *const names[] = {"<|eot_id|>",    "<|eom_id|>",         "<|im_end|>",
                                      "<end_of_turn>", "<|endoftext|>",      "<|end_of_text|>",
                                      "<|end|>",       "<|end_of_sentence|>"};
  tokenizer_add_end(t, t->eos);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    int32_t id = vocab_find(&t->vocab, names[i], strlen(names[i]));
    if (id >= 0 && t->vocab.entries[id].flags & (TOKEN_SPECIAL | TOKEN_ADDED))
      tokenizer_add_end(t, id);
  }
}

enum status tokenizer_open(struct tokenizer **out, const char *path, struct error *err) {
  struct tokenizer *t = mem_alloc(1, sizeof *t, err);
  if (!t) return STATUS_FAILED;
  t->bos = t->eos = t->unknown = t->padding = -1;
  bpe_init(&t->bpe, &t->vocab);
  enum status status =
      file_is_directory(path) ? read_directory(t, path, err) : read_file(t, path, err);
  if (status != STATUS_OK) {
    tokenizer_close(t);
    return status;
  }
  find_ends(t);
  *out = t;
  return STATUS_OK;
}

void tokenizer_close(struct tokenizer *t) {
  if (!t) return;
  bpe_release(&t->bpe);
  vocab_release(&t->vocab);
  added_release(&t->added);
  added_release(&t->added_normalized);
  normalizer_release(&t->normalizer);
  pretokenizer_release(&t->pretokenizer);
  for (int i = 0; i < t->decoder.replace_count; i++) {
    strbuf_free(&t->decoder.replaces[i].from);
    strbuf_free(&t->decoder.replaces[i].to);
  }
  strbuf_free(&t->decoder.unknown);
  free(t->path);
  free(t->directory);
  free(t->chat_template);
  free(t->pre);
  mem_free(t);
}

/* ---- what the readers share ---- */

enum status tokenizer_add_token(struct tokenizer *t, struct added_tokens *added, int64_t id,
                                const char *text, size_t length, uint32_t added_flags,
                                struct error *err) {
  uint32_t flags = TOKEN_ADDED | (added_flags & ADDED_SPECIAL ? TOKEN_SPECIAL : 0);
  int32_t known = vocab_find(&t->vocab, text, length);
  if (known < 0) {
    enum status status = vocab_put(&t->vocab, id, text, length, flags | TOKEN_OUTSIDE, err);
    if (status != STATUS_OK) return status;
    known = (int32_t)id;
  }
  t->vocab.entries[known].flags |= flags;
  return added_put(added, text, length, known, added_flags, err);
}

static void remove_id(int32_t *ids, int *count, int32_t id) {
  int kept = 0;
  for (int i = 0; i < *count; i++)
    if (ids[i] != id) ids[kept++] = ids[i];
  *count = kept;
}

static bool has_id(const int32_t *ids, int count, int32_t id) {
  for (int i = 0; i < count; i++)
    if (ids[i] == id) return true;
  return false;
}

void tokenizer_want_bos(struct tokenizer *t, bool wanted) {
  if (t->bos < 0 || has_id(t->head, t->head_count, t->bos) == wanted) return;
  if (!wanted) {
    remove_id(t->head, &t->head_count, t->bos);
  } else if (t->head_count < TEMPLATE_IDS_MAX) {
    memmove(t->head + 1, t->head, (size_t)t->head_count * sizeof *t->head);
    t->head[0] = t->bos;
    t->head_count++;
  }
}

void tokenizer_want_eos(struct tokenizer *t, bool wanted) {
  if (t->eos < 0 || has_id(t->tail, t->tail_count, t->eos) == wanted) return;
  if (!wanted)
    remove_id(t->tail, &t->tail_count, t->eos);
  else if (t->tail_count < TEMPLATE_IDS_MAX)
    t->tail[t->tail_count++] = t->eos;
}

void tokenizer_add_end(struct tokenizer *t, int64_t id) {
  if (!vocab_has(&t->vocab, id) || has_id(t->ends, t->end_count, (int32_t)id)) return;
  if (t->end_count < END_IDS_MAX) t->ends[t->end_count++] = (int32_t)id;
}

int64_t tokenizer_vocab_size(const struct tokenizer *t) { return (int64_t)t->vocab.count; }
int32_t tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const struct tokenizer *t) { return t->eos; }

bool tokenizer_is_end(const struct tokenizer *t, int32_t id) {
  return has_id(t->ends, t->end_count, id);
}

void token_ids_free(struct token_ids *ids) {
  free(ids->items);
  *ids = (struct token_ids){0};
}

enum status token_ids_push(struct token_ids *ids, int32_t id, struct error *err) {
  if (ids->count == ids->capacity) {
    enum status status =
        mem_grow((void **)&ids->items, &ids->capacity, ids->count + 1, sizeof *ids->items, err);
    if (status != STATUS_OK) return status;
  }
  ids->items[ids->count++] = id;
  return STATUS_OK;
}

/* ---- encoding ---- */

struct encoder {
  const struct tokenizer *tokenizer;
  bool plain_specials;
  struct token_ids *out;
  struct regex_scratch *regex;
  struct bpe_scratch bpe;
  struct pretokenizer_run pretokenizer;
  struct strbuf normalized, spare, mapped;
};

static enum status put_token(void *ctx, int32_t id, struct error *err) {
  struct encoder *e = ctx;
  e->pretokenizer.at_text_start = false;
  return token_ids_push(e->out, id, err);
}

static enum status put_piece(void *ctx, const char *piece, size_t bytes, struct error *err) {
  struct encoder *e = ctx;
  if (e->tokenizer->byte_level) {
    strbuf_clear(&e->mapped);
    byte_level_encode(piece, bytes, &e->mapped);
    piece = e->mapped.data;
    bytes = e->mapped.length;
  }
  return bpe_encode(&e->tokenizer->bpe, &e->bpe, piece, bytes, e->out, err);
}

static enum status put_normalized(void *ctx, const char *text, size_t bytes, struct error *err) {
  struct encoder *e = ctx;
  return pretokenize(&e->pretokenizer, text, bytes, err);
}

static enum status put_text(void *ctx, const char *text, size_t bytes, struct error *err) {
  struct encoder *e = ctx;
  if (e->tokenizer->normalizer.count) {
    enum status status = normalizer_run(&e->tokenizer->normalizer, e->regex, text, bytes,
                                        &e->normalized, &e->spare, err);
    if (status != STATUS_OK) return status;
    text = strbuf_text(&e->normalized);
    bytes = e->normalized.length;
  }
  struct added_sink sink = {put_token, put_normalized, e};
  return added_split(&e->tokenizer->added_normalized, text, bytes, e->plain_specials, &sink, err);
}

static enum status encoder_start(struct encoder *e, size_t bytes, struct error *err) {
  e->regex = regex_scratch_new(err);
  if (!e->regex) return STATUS_FAILED;
  e->pretokenizer = (struct pretokenizer_run){.pretokenizer = &e->tokenizer->pretokenizer,
                                              .scratch = e->regex,
                                              .put = put_piece,
                                              .ctx = e,
                                              .at_text_start = true};
  return bytes >= CACHE_WORTH_BYTES ? bpe_scratch_use_cache(&e->bpe, err) : STATUS_OK;
}

static void encoder_release(struct encoder *e) {
  regex_scratch_free(e->regex);
  bpe_scratch_release(&e->bpe);
  pretokenizer_run_release(&e->pretokenizer);
  strbuf_free(&e->normalized);
  strbuf_free(&e->spare);
  strbuf_free(&e->mapped);
}

static enum status put_ids(const int32_t *ids, int count, struct token_ids *out,
                           struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; status == STATUS_OK && i < count; i++) status = token_ids_push(out, ids[i], err);
  return status;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                             unsigned flags, struct token_ids *out, struct error *err) {
  size_t valid = utf8_check(text, bytes);
  if (valid < bytes)
    return error_set(err, STATUS_REFUSED,
                     "the text is not UTF-8 at byte %zu (0x%02x); convert it first", valid,
                     (uint8_t)text[valid]);
  bool framed = !(flags & TOKENIZE_NO_BOS);
  size_t before = out->count;
  struct encoder e = {.tokenizer = t, .plain_specials = flags & TOKENIZE_NO_SPECIAL, .out = out};
  enum status status = encoder_start(&e, bytes, err);
  if (status == STATUS_OK && framed) status = put_ids(t->head, t->head_count, out, err);
  struct added_sink sink = {put_token, put_text, &e};
  if (status == STATUS_OK)
    status = added_split(&t->added, text, bytes, e.plain_specials, &sink, err);
  if (status == STATUS_OK && framed) status = put_ids(t->tail, t->tail_count, out, err);
  encoder_release(&e);
  if (status != STATUS_OK) out->count = before;
  return status;
}
