/* Writing a tokenizer for an exported model: see tokenizer.h.
 *
 * A Hugging Face source is copied file by file. From a GGUF the files are made anew: the parts of
 * struct tokenizer are those of tokenizer.json, so that each has its name there. The class is the
 * generic one, because the families' own classes rebuild parts of the tokenizer by themselves. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "text/parts.h"
#include "text/utf8.h"

/* ---- copying ---- */

static enum status copy_file(const char *from, const char *directory, const char *name,
                             struct error *err) {
  struct file_map map;
  enum status status = file_map_open(&map, from, err);
  if (status != STATUS_OK) return status;
  char *to = path_join(directory, name);
  status = file_write_all(to, map.data, map.size_bytes, err);
  free(to);
  file_map_close(&map);
  return status;
}

static enum status copy_directory(const struct tokenizer *t, const char *directory,
                                  struct error *err) {
  static const char *const names[] = {"tokenizer.json",
                                      "tokenizer.model",
                                      "tokenizer_config.json",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "vocab.json",
                                      "merges.txt",
                                      "chat_template.jinja",
                                      "generation_config.json"};
  enum status status = STATUS_OK;
  for (size_t i = 0; status == STATUS_OK && i < sizeof names / sizeof *names; i++) {
    char *from = path_join(t->directory, names[i]);
    if (file_exists(from)) status = copy_file(from, directory, names[i], err);
    free(from);
  }
  return status;
}

/* ---- merges ---- */

struct merge {
  uint32_t rank;
  int32_t left, right;
  uint32_t left_length, right_length; /* characters */
};

struct merges {
  struct merge *items;
  size_t count, capacity;
};

static uint32_t characters(const char *text, size_t bytes) {
  uint32_t count = 0;
  for (size_t at = 0; at < bytes; at += utf8_length(text[at])) count++;
  return count;
}

static enum status add_merge(const struct tokenizer *t, struct merges *merges, uint32_t rank,
                             int32_t left, int32_t right, struct error *err) {
  enum status status = mem_grow((void **)&merges->items, &merges->capacity, merges->count + 1,
                                sizeof *merges->items, err);
  if (status != STATUS_OK) return status;
  size_t left_bytes, right_bytes;
  const char *a = vocab_text(&t->vocab, left, &left_bytes);
  const char *b = vocab_text(&t->vocab, right, &right_bytes);
  merges->items[merges->count++] =
      (struct merge){rank, left, right, characters(a, left_bytes), characters(b, right_bytes)};
  return STATUS_OK;
}

/* By rank; among equals, which only SentencePiece has, longer parts first, as transformers'
 * converter does: in runs of one character that is what merging from the left leads to. */
static int compare_merges(const void *a, const void *b) {
  const struct merge *x = a, *y = b;
  if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
  if (x->left_length != y->left_length) return x->left_length > y->left_length ? -1 : 1;
  if (x->right_length != y->right_length) return x->right_length > y->right_length ? -1 : 1;
  return x->left != y->left ? (x->left < y->left ? -1 : 1)
                            : (x->right > y->right) - (x->right < y->right);
}

static enum status collect_pairs(const struct tokenizer *t, struct merges *out, struct error *err) {
  enum status status = STATUS_OK;
  for (size_t slot = 0; status == STATUS_OK && slot <= t->bpe.pair_mask; slot++) {
    const struct bpe_pair *pair = &t->bpe.pairs[slot];
    if (pair->key != UINT64_MAX)
      status = add_merge(t, out, pair->rank, (int32_t)(pair->key >> 32), (int32_t)pair->key, err);
  }
  return status;
}

/* SentencePiece has no list of merges: every way to cut a token into two tokens is one. Added
 * tokens take no part, they are found before. */
static enum status collect_splits(const struct tokenizer *t, struct merges *out,
                                  struct error *err) {
  enum status status = STATUS_OK;
  for (size_t id = 0; id < t->vocab.count; id++) {
    size_t bytes;
    const char *text = vocab_text(&t->vocab, (int32_t)id, &bytes);
    if (!bytes || t->vocab.entries[id].flags & (TOKEN_ADDED | TOKEN_BYTE)) continue;
    for (size_t at = utf8_length(*text); at < bytes; at += utf8_length(text[at])) {
      int32_t left = vocab_find(&t->vocab, text, at);
      int32_t right = vocab_find(&t->vocab, text + at, bytes - at);
      if (left < 0 || right < 0 || vocab_is(&t->vocab, left, TOKEN_ADDED) ||
          vocab_is(&t->vocab, right, TOKEN_ADDED))
        continue;
      status = add_merge(t, out, t->bpe.rank[id], left, right, err);
      if (status != STATUS_OK) return status;
    }
  }
  return status;
}

static json_t *token_json(const struct tokenizer *t, int32_t id) {
  size_t bytes;
  const char *text = vocab_text(&t->vocab, id, &bytes);
  return json_stringn(text, bytes);
}

/* "left right", which every version reads; pairs where a text holds a space itself. */
static json_t *merge_json(const struct tokenizer *t, const struct merge *m, bool pairs) {
  if (pairs) return json_pack("[o, o]", token_json(t, m->left), token_json(t, m->right));
  struct strbuf text = {0};
  size_t bytes;
  const char *part = vocab_text(&t->vocab, m->left, &bytes);
  strbuf_append(&text, part, bytes);
  strbuf_putc(&text, ' ');
  part = vocab_text(&t->vocab, m->right, &bytes);
  strbuf_append(&text, part, bytes);
  json_t *value = json_stringn(text.data, text.length);
  strbuf_free(&text);
  return value;
}

static bool has_space(const struct tokenizer *t, int32_t id) {
  size_t bytes;
  const char *text = vocab_text(&t->vocab, id, &bytes);
  return memchr(text, ' ', bytes) != NULL;
}

static enum status make_merges(const struct tokenizer *t, json_t **out, struct error *err) {
  struct merges merges = {0};
  enum status status =
      t->bpe.pairs ? collect_pairs(t, &merges, err) : collect_splits(t, &merges, err);
  bool pairs = false;
  if (status == STATUS_OK) {
    if (merges.count) qsort(merges.items, merges.count, sizeof *merges.items, compare_merges);
    for (size_t i = 0; !pairs && i < merges.count; i++)
      pairs = has_space(t, merges.items[i].left) || has_space(t, merges.items[i].right);
    *out = json_array();
    for (size_t i = 0; i < merges.count; i++)
      json_array_append_new(*out, merge_json(t, &merges.items[i], pairs));
  }
  free(merges.items);
  return status;
}

/* ---- the parts of tokenizer.json ---- */

static json_t *make_vocab(const struct tokenizer *t) {
  json_t *vocab = json_object();
  for (size_t id = 0; id < t->vocab.count; id++) {
    size_t bytes;
    const char *text = vocab_text(&t->vocab, (int32_t)id, &bytes);
    if (bytes && !(t->vocab.entries[id].flags & TOKEN_OUTSIDE))
      json_object_setn_new_nocheck(vocab, text, bytes, json_integer((json_int_t)id));
  }
  return vocab;
}

static json_t *make_added(const struct tokenizer *t) {
  json_t *list = json_array();
  for (size_t i = 0; i < t->added.count; i++) {
    const struct added_token *token = &t->added.tokens[i];
    json_array_append_new(list, json_pack("{s:i, s:o, s:b, s:b, s:b, s:b, s:b}", "id", token->id,
                                          "content", token_json(t, token->id), "single_word",
                                          (token->flags & ADDED_SINGLE_WORD) != 0, "lstrip",
                                          (token->flags & ADDED_LEFT_STRIP) != 0, "rstrip",
                                          (token->flags & ADDED_RIGHT_STRIP) != 0, "normalized", 0,
                                          "special", (token->flags & ADDED_SPECIAL) != 0));
  }
  return list;
}

static json_t *replace_json(const char *from, const char *to) {
  return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                   to);
}

#define SPACE_SYMBOL "\xe2\x96\x81"

static json_t *make_normalizer(const struct tokenizer *t) {
  if (!t->normalizer.count) return json_null();
  json_t *steps = json_array();
  if (t->normalizer.steps[0].rules.add_dummy_prefix)
    json_array_append_new(steps,
                          json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPACE_SYMBOL));
  json_array_append_new(steps, replace_json(" ", SPACE_SYMBOL));
  return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

static json_t *make_pretokenizer(const struct tokenizer *t) {
  bool ignore_merges, add_bos;
  if (!t->byte_level) return json_null();
  const char *const *pattern = pretokenizer_patterns(t->pre, &ignore_merges, &add_bos);
  json_t *steps = json_array();
  for (; *pattern; pattern++)
    json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern",
                                           "Regex", *pattern, "behavior", "Isolated", "invert", 0));
  json_array_append_new(steps, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel",
                                         "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0));
  return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps);
}

static json_t *make_decoder(const struct tokenizer *t) {
  if (t->byte_level)
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", 0);
  json_t *steps = json_pack("[o, {s:s}, {s:s}]", replace_json(SPACE_SYMBOL, " "), "type",
                            "ByteFallback", "type", "Fuse");
  if (t->decoder.strip_leading_space)
    json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ",
                                           "start", 1, "stop", 0));
  return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

static void add_template_token(const struct tokenizer *t, int32_t id, json_t *single,
                               json_t *specials) {
  json_t *name = token_json(t, id);
  json_array_append_new(single,
                        json_pack("{s:{s:O, s:i}}", "SpecialToken", "id", name, "type_id", 0));
  json_object_set_new(specials, json_string_value(name),
                      json_pack("{s:O, s:[i], s:[O]}", "id", name, "ids", id, "tokens", name));
  json_decref(name);
}

static json_t *make_template(const struct tokenizer *t) {
  if (!t->head_count && !t->tail_count) return json_null();
  json_t *single = json_array(), *specials = json_object();
  for (int i = 0; i < t->head_count; i++) add_template_token(t, t->head[i], single, specials);
  json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
  for (int i = 0; i < t->tail_count; i++) add_template_token(t, t->tail[i], single, specials);
  json_t *pair = json_deep_copy(single);
  json_array_append_new(pair, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "B", "type_id", 1));
  return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair",
                   pair, "special_tokens", specials);
}

static enum status make_model(const struct tokenizer *t, json_t **out, struct error *err) {
  json_t *merges;
  enum status status = make_merges(t, &merges, err);
  if (status != STATUS_OK) return status;
  bool unknown = !t->byte_level && t->unknown >= 0;
  *out = json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                   "unk_token", unknown ? token_json(t, t->unknown) : json_null(),
                   "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                   (int)t->bpe.fuse_unknown, "byte_fallback", (int)t->bpe.byte_fallback,
                   "ignore_merges", (int)t->bpe.ignore_merges, "vocab", make_vocab(t), "merges",
                   merges);
  return STATUS_OK;
}

/* Writes and releases the value. */
static enum status write_json(const char *directory, const char *name, json_t *value,
                              struct error *err) {
  INVARIANT(value != NULL);
  char *path = path_join(directory, name);
  enum status status = json_write_file(path, value, err);
  free(path);
  json_decref(value);
  return status;
}

static enum status write_tokenizer(const struct tokenizer *t, const char *directory,
                                   struct error *err) {
  json_t *model;
  enum status status = make_model(t, &model, err);
  if (status != STATUS_OK) return status;
  return write_json(
      directory, "tokenizer.json",
      json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation",
                "padding", "added_tokens", make_added(t), "normalizer", make_normalizer(t),
                "pre_tokenizer", make_pretokenizer(t), "post_processor", make_template(t),
                "decoder", make_decoder(t), "model", model),
      err);
}

/* ---- the files beside it ---- */

static json_t *token_names(const struct tokenizer *t) {
  const struct {
    const char *key;
    int32_t id;
  } named[] = {{"bos_token", t->bos},
               {"eos_token", t->eos},
               {"unk_token", t->unknown},
               {"pad_token", t->padding}};
  json_t *names = json_object();
  for (size_t i = 0; i < sizeof named / sizeof *named; i++)
    if (named[i].id >= 0) json_object_set_new(names, named[i].key, token_json(t, named[i].id));
  return names;
}

static enum status write_config(const struct tokenizer *t, const char *class_name,
                                const char *directory, struct error *err) {
  json_t *config = token_names(t);
  json_object_set_new(config, "tokenizer_class", json_string(class_name));
  json_object_set_new(config, "clean_up_tokenization_spaces", json_false());
  json_object_set_new(config, "add_bos_token", json_boolean(t->head_count > 0));
  json_object_set_new(config, "add_eos_token", json_boolean(t->tail_count > 0));
  if (t->chat_template) json_object_set_new(config, "chat_template", json_string(t->chat_template));
  return write_json(directory, "tokenizer_config.json", config, err);
}

static enum status write_generation(const struct tokenizer *t, const char *directory,
                                    struct error *err) {
  json_t *config = json_object(), *ends = json_array();
  for (int i = 0; i < t->end_count; i++) json_array_append_new(ends, json_integer(t->ends[i]));
  if (t->bos >= 0) json_object_set_new(config, "bos_token_id", json_integer(t->bos));
  if (t->padding >= 0) json_object_set_new(config, "pad_token_id", json_integer(t->padding));
  json_object_set_new(config, "eos_token_id", ends);
  return write_json(directory, "generation_config.json", config, err);
}

/* A bare tokenizer.model: without a word on its class, transformers reads it as another kind. */
static enum status explain_sentencepiece(const struct tokenizer *t, const char *directory,
                                         struct error *err) {
  char *path = path_join(directory, "tokenizer_config.json");
  bool explained = file_exists(path);
  free(path);
  return explained ? STATUS_OK : write_config(t, "LlamaTokenizer", directory, err);
}

static enum status export_directory(const struct tokenizer *t, const char *directory,
                                    struct error *err) {
  enum status status = copy_directory(t, directory, err);
  if (status != STATUS_OK || t->source != SOURCE_SENTENCEPIECE) return status;
  return explain_sentencepiece(t, directory, err);
}

enum status tokenizer_export(const struct tokenizer *t, const char *directory, struct error *err) {
  if (t->directory) return export_directory(t, directory, err);
  if (t->source != SOURCE_GGUF)
    return copy_file(t->path, directory,
                     t->source == SOURCE_JSON ? "tokenizer.json" : "tokenizer.model", err);
  enum status status = write_tokenizer(t, directory, err);
  if (status == STATUS_OK) status = write_config(t, "PreTrainedTokenizerFast", directory, err);
  if (status == STATUS_OK)
    status = write_json(directory, "special_tokens_map.json", token_names(t), err);
  if (status == STATUS_OK) status = write_generation(t, directory, err);
  return status;
}
