/* The tokenizer inside a GGUF file: tokenizer.ggml.model says "gpt2" (byte-level BPE with merges)
 * or "llama" (SentencePiece BPE by scores). The meaning of what a file leaves out is llama.cpp's,
 * whose ids count as right for this format. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "io/gguf.h"
#include "text/parts.h"
#include "text/utf8.h"

enum gguf_token_type { /* the numbers of the format */
                       GGUF_TOKEN_UNDEFINED,
                       GGUF_TOKEN_NORMAL,
                       GGUF_TOKEN_UNKNOWN,
                       GGUF_TOKEN_CONTROL,
                       GGUF_TOKEN_USER_DEFINED,
                       GGUF_TOKEN_UNUSED,
                       GGUF_TOKEN_BYTE
};

static bool is_text_array(const struct gguf_value *v) {
  return v && v->type == GGUF_ARRAY && v->element_type == GGUF_STRING;
}

static bool is_number_array(const struct gguf_value *v) {
  return v && v->type == GGUF_ARRAY && v->element_type != GGUF_STRING &&
         v->element_type != GGUF_BOOL;
}

static enum status read_tokens(struct tokenizer *t, const struct gguf *file, struct error *err) {
  const struct gguf_value *tokens = gguf_find(file, "tokenizer.ggml.tokens");
  if (!is_text_array(tokens) || !tokens->count || tokens->count > VOCAB_TOKENS_MAX)
    return error_set(err, STATUS_REFUSED, "tokenizer.ggml.tokens is missing, empty or too long");
  for (uint64_t id = 0; id < tokens->count; id++) {
    struct gguf_string text = gguf_array_string(tokens, id);
    enum status status = vocab_put(&t->vocab, (int64_t)id, text.data, text.length, 0, err);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static bool is_among(const char *text, size_t length, const char *const *names) {
  for (; *names; names++)
    if (length == strlen(*names) && !memcmp(text, *names, length)) return true;
  return false;
}

/* Marks of turns and of code gaps are special even where the file forgot to say so. */
static bool looks_special(const char *text, size_t length) {
  static const char *const names[] = {"<|eot_id|>",
                                      "<|eom_id|>",
                                      "<|im_end|>",
                                      "<|end|>",
                                      "<end_of_turn>",
                                      "<|endoftext|>",
                                      "<|end_of_text|>",
                                      "</s>",
                                      "<eos>",
                                      "[EOS]",
                                      "[EOT]",
                                      "<EOT>",
                                      "<end_of_utterance>",
                                      "<|fim_prefix|>",
                                      "<|fim_suffix|>",
                                      "<|fim_middle|>",
                                      "<|fim_pad|>",
                                      "<|fim_repo|>",
                                      "<|repo_name|>",
                                      "<reponame>",
                                      "<|file_sep|>",
                                      NULL};
  return is_among(text, length, names);
}

/* phi-3's special tokens take the white space behind them along. Nothing in the file says so but
 * the model's name. */
static bool strips_right(const struct gguf *file) {
  struct gguf_string name;
  if (!gguf_get_string(file, "general.name", &name)) return false;
  for (size_t at = 0; at < name.length; at++)
    for (int dash = 0; dash < 2; dash++) {
      const char *wanted = dash ? "phi-3" : "phi3";
      if (name.length - at >= strlen(wanted) &&
          !strncasecmp(name.data + at, wanted, strlen(wanted)))
        return true;
    }
  return false;
}

static uint32_t right_strip_flag(const char *text, size_t length) {
  static const char *const plain[] = {"<unk>", "<s>", "<|endoftext|>", NULL};
  return is_among(text, length, plain) ? 0 : ADDED_RIGHT_STRIP | ADDED_ASCII_SPACE;
}

static enum status read_token_types(struct tokenizer *t, const struct gguf *file,
                                    struct error *err) {
  const struct gguf_value *types = gguf_find(file, "tokenizer.ggml.token_type");
  bool typed = is_number_array(types);
  if (types && (!typed || types->count != t->vocab.count))
    return error_set(err, STATUS_REFUSED, "tokenizer.ggml.token_type does not fit the tokens");
  bool right_strip = strips_right(file);
  for (size_t id = 0; id < t->vocab.count; id++) {
    size_t length;
    const char *text = vocab_text(&t->vocab, (int32_t)id, &length);
    int64_t type = typed ? gguf_array_int(types, id) : GGUF_TOKEN_NORMAL;
    if (looks_special(text, length)) type = GGUF_TOKEN_CONTROL;
    uint32_t flags = type == GGUF_TOKEN_USER_DEFINED ? 0 : ADDED_SPECIAL;
    if (type != GGUF_TOKEN_UNKNOWN && type != GGUF_TOKEN_CONTROL && type != GGUF_TOKEN_USER_DEFINED)
      continue;
    if (right_strip) flags |= right_strip_flag(text, length);
    /* A copy: the vocabulary's own text may move while the token is added. */
    char *copy = mem_strndup(text, length, err);
    if (!copy) return STATUS_FAILED;
    enum status status = tokenizer_add_token(t, &t->added, (int64_t)id, copy, length, flags, err);
    free(copy);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static int32_t read_id(const struct tokenizer *t, const struct gguf *file, const char *key) {
  int64_t id;
  return gguf_get_int(file, key, &id) && vocab_has(&t->vocab, id) ? (int32_t)id : -1;
}

static void read_ids(struct tokenizer *t, const struct gguf *file) {
  t->bos = read_id(t, file, "tokenizer.ggml.bos_token_id");
  t->eos = read_id(t, file, "tokenizer.ggml.eos_token_id");
  t->unknown = read_id(t, file, "tokenizer.ggml.unknown_token_id");
  t->padding = read_id(t, file, "tokenizer.ggml.padding_token_id");
  tokenizer_add_end(t, read_id(t, file, "tokenizer.ggml.eot_token_id"));
  tokenizer_add_end(t, read_id(t, file, "tokenizer.ggml.eom_token_id"));
}

/* ---- byte-level BPE ---- */

static enum status read_merges(struct tokenizer *t, const struct gguf *file, struct error *err) {
  const struct gguf_value *merges = gguf_find(file, "tokenizer.ggml.merges");
  if (!is_text_array(merges) || merges->count > BPE_MERGES_MAX)
    return error_set(err, STATUS_REFUSED, "tokenizer.ggml.merges is missing or too long");
  enum status status = bpe_reserve_pairs(&t->bpe, merges->count, err);
  for (uint64_t rank = 0; status == STATUS_OK && rank < merges->count; rank++) {
    struct gguf_string text = gguf_array_string(merges, rank);
    /* The first byte belongs to the left token even where it is a space. */
    const char *space = text.length > 1 ? memchr(text.data + 1, ' ', text.length - 1) : NULL;
    if (!space)
      return error_set(err, STATUS_REFUSED, "merge %llu is not two tokens with a space between",
                       (unsigned long long)rank);
    size_t left = (size_t)(space - text.data);
    status = bpe_add_pair(&t->bpe, text.data, left, space + 1, text.length - left - 1,
                          (uint32_t)rank, false, err);
  }
  return status;
}

static enum status read_byte_level(struct tokenizer *t, const struct gguf *file, bool *add_bos,
                                   struct error *err) {
  struct gguf_string pre;
  bool ignore_merges;
  if (!gguf_get_string(file, "tokenizer.ggml.pre", &pre))
    pre = (struct gguf_string){"default", strlen("default")};
  t->pre = mem_strndup(pre.data, pre.length, err);
  if (!t->pre) return STATUS_FAILED;
  enum status status = pretokenizer_add_named(t, t->pre, err);
  if (status != STATUS_OK) return status;
  pretokenizer_patterns(t->pre, &ignore_merges, add_bos);
  t->decoder.byte_level = true;
  t->decoder.added_as_is = true;
  return read_merges(t, file, err);
}

/* ---- SentencePiece ---- */

static enum status read_scores(struct tokenizer *t, const struct gguf *file, struct error *err) {
  const struct gguf_value *values = gguf_find(file, "tokenizer.ggml.scores");
  if (!is_number_array(values) || values->count != t->vocab.count)
    return error_set(err, STATUS_REFUSED, "tokenizer.ggml.scores does not fit the tokens");
  float *scores = mem_alloc(t->vocab.count, sizeof *scores, err);
  bool *mergeable = mem_alloc(t->vocab.count, sizeof *mergeable, err);
  enum status status = scores && mergeable ? STATUS_OK : STATUS_FAILED;
  for (size_t id = 0; status == STATUS_OK && id < t->vocab.count; id++) {
    scores[id] = (float)gguf_array_real(values, id);
    mergeable[id] = true; /* control tokens, too: llama.cpp makes no difference */
  }
  if (status == STATUS_OK) status = bpe_rank_by_score(&t->bpe, scores, mergeable, err);
  mem_free(scores);
  mem_free(mergeable);
  return status;
}

static enum status read_sentencepiece(struct tokenizer *t, const struct gguf *file,
                                      struct error *err) {
  bool prefix = true, remove_extra = false;
  gguf_get_bool(file, "tokenizer.ggml.add_space_prefix", &prefix);
  gguf_get_bool(file, "tokenizer.ggml.remove_extra_whitespaces", &remove_extra);
  struct normalizer_step *step = normalizer_add(&t->normalizer, NORMALIZE_SENTENCEPIECE, err);
  if (!step) return STATUS_REFUSED;
  step->rules.add_dummy_prefix = prefix;
  step->rules.escape_whitespaces = true;
  enum status status = read_scores(t, file, err);
  if (status == STATUS_OK) bpe_find_byte_tokens(&t->bpe, &t->vocab);
  if (status == STATUS_OK) status = bpe_prepare_cuts(&t->bpe, err);
  t->bpe.unknown = t->unknown;
  t->bpe.fuse_unknown = true;
  t->decoder.byte_fallback = true;
  t->decoder.invalid = INVALID_BY_BYTE;
  t->decoder.strip_leading_space = prefix;
  t->decoder.replace_count = 1;
  strbuf_puts(&t->decoder.replaces[0].from, "\xe2\x96\x81");
  strbuf_puts(&t->decoder.replaces[0].to, " ");
  return status;
}

/* ---- the file ---- */

static enum status read_file(struct tokenizer *t, const struct gguf *file, struct error *err) {
  struct gguf_string model, chat;
  if (!gguf_get_string(file, "tokenizer.ggml.model", &model))
    return error_set(err, STATUS_REFUSED, "there is no tokenizer in this GGUF file");
  bool byte_level = model.length == 4 && !memcmp(model.data, "gpt2", 4);
  if (!byte_level && (model.length != 5 || memcmp(model.data, "llama", 5) != 0))
    return error_set(err, STATUS_REFUSED, "tokenizer model \"%.*s\" is not supported",
                     (int)model.length, model.data);
  enum status status = read_tokens(t, file, err);
  if (status == STATUS_OK) status = read_token_types(t, file, err);
  if (status != STATUS_OK) return status;
  read_ids(t, file);
  bool add_bos = !byte_level, add_eos = false;
  status = byte_level ? read_byte_level(t, file, &add_bos, err) : read_sentencepiece(t, file, err);
  if (status != STATUS_OK) return status;
  gguf_get_bool(file, "tokenizer.ggml.add_bos_token", &add_bos);
  gguf_get_bool(file, "tokenizer.ggml.add_eos_token", &add_eos);
  tokenizer_want_bos(t, add_bos);
  tokenizer_want_eos(t, add_eos);
  if (gguf_get_string(file, "tokenizer.chat_template", &chat) && chat.length &&
      chat.length <= CHAT_TEMPLATE_BYTES_MAX) {
    if (utf8_check(chat.data, chat.length) < chat.length)
      return error_set(err, STATUS_REFUSED, "tokenizer.chat_template is not UTF-8");
    t->chat_template = mem_strndup(chat.data, chat.length, err);
    if (!t->chat_template) return STATUS_FAILED;
  }
  return STATUS_OK;
}

enum status tokenizer_read_gguf(struct tokenizer *t, const char *path, struct error *err) {
  struct gguf *file = NULL;
  enum status status = gguf_open(&file, path, err);
  if (status == STATUS_OK) status = read_file(t, file, err);
  gguf_close(file);
  return status;
}
