/* tiktoken's text format: one line per token, its bytes in base64 and its rank, which is its id.
 *
 * The file holds neither the pattern that cuts texts into words nor the special tokens. LLaMA 3's
 * are filled in, which is the only family that ships this file; its 128,000 tokens are how it is
 * recognised. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "text/byte_level.h"
#include "text/parts.h"

enum { LLAMA3_TOKENS = 128000, LLAMA3_SPECIALS = 256, LINE_BYTES_MAX = 4096 };

static int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static bool decode_base64(const char *text, size_t length, struct strbuf *out) {
  uint32_t bits = 0;
  int held = 0;
  while (length && text[length - 1] == '=') length--;
  for (size_t i = 0; i < length; i++) {
    int digit = base64_digit(text[i]);
    if (digit < 0) return false;
    bits = bits << 6 | (uint32_t)digit;
    held += 6;
    if (held >= 8) {
      held -= 8;
      strbuf_putc(out, (char)(bits >> held & 0xff));
    }
  }
  return length % 4 != 1;
}

static bool parse_rank(const char *text, size_t length, int64_t *out) {
  *out = 0;
  if (!length || length > 9) return false;
  for (size_t i = 0; i < length; i++) {
    if (text[i] < '0' || text[i] > '9') return false;
    *out = *out * 10 + (text[i] - '0');
  }
  return true;
}

static enum status read_line(struct tokenizer *t, const char *line, size_t length,
                             struct error *err) {
  const char *space = memchr(line, ' ', length);
  struct strbuf bytes = {0}, text = {0};
  int64_t rank;
  size_t code = space ? (size_t)(space - line) : 0;
  enum status status;
  if (!space || !decode_base64(line, code, &bytes) || !bytes.length ||
      !parse_rank(space + 1, length - code - 1, &rank) || rank != (int64_t)t->vocab.count) {
    status = error_set(err, STATUS_REFUSED,
                       "line %zu is not base64, a space and the next rank: no tiktoken file",
                       t->vocab.count + 1);
  } else {
    byte_level_encode(bytes.data, bytes.length, &text);
    status = vocab_put(&t->vocab, rank, text.data, text.length, 0, err);
  }
  strbuf_free(&bytes);
  strbuf_free(&text);
  return status;
}

/* The names at their places; all the others are reserved, numbered without gaps. */
static enum status add_specials(struct tokenizer *t, struct error *err) {
  static const char *const names[] = {
      [0] = "<|begin_of_text|>",   [1] = "<|end_of_text|>",   [4] = "<|finetune_right_pad_id|>",
      [6] = "<|start_header_id|>", [7] = "<|end_header_id|>", [8] = "<|eom_id|>",
      [9] = "<|eot_id|>",          [10] = "<|python_tag|>"};
  int reserved = 0;
  for (int i = 0; i < LLAMA3_SPECIALS; i++) {
    char text[64];
    if (i < (int)(sizeof names / sizeof *names) && names[i])
      snprintf(text, sizeof text, "%s", names[i]);
    else
      snprintf(text, sizeof text, "<|reserved_special_token_%d|>", reserved++);
    enum status status = tokenizer_add_token(t, &t->added, LLAMA3_TOKENS + i, text, strlen(text),
                                             ADDED_SPECIAL, err);
    if (status != STATUS_OK) return status;
  }
  t->bos = LLAMA3_TOKENS;
  t->eos = LLAMA3_TOKENS + 1;
  t->padding = LLAMA3_TOKENS + 4;
  return STATUS_OK;
}

/* Any two neighbours merge whose joined bytes are a token, in the order of the ids. */
static enum status rank_by_id(struct tokenizer *t, struct error *err) {
  t->bpe.rank = mem_alloc(t->vocab.count, sizeof *t->bpe.rank, err);
  if (!t->bpe.rank) return STATUS_FAILED;
  for (size_t id = 0; id < t->vocab.count; id++)
    t->bpe.rank[id] = id < LLAMA3_TOKENS ? (uint32_t)id : BPE_NO_RANK;
  return STATUS_OK;
}

enum status tokenizer_read_tiktoken(struct tokenizer *t, const char *data, size_t bytes,
                                    struct error *err) {
  enum status status = STATUS_OK;
  for (size_t at = 0, length; status == STATUS_OK && at < bytes; at += length + 1) {
    const char *end = memchr(data + at, '\n', bytes - at);
    length = end ? (size_t)(end - (data + at)) : bytes - at;
    if (length) status = read_line(t, data + at, length, err);
  }
  if (status != STATUS_OK) return status;
  if (t->vocab.count != LLAMA3_TOKENS)
    return error_set(err, STATUS_REFUSED,
                     "a tiktoken file of %zu tokens; only LLaMA 3's (%d) is known, whose pattern "
                     "and special tokens the file does not hold",
                     t->vocab.count, LLAMA3_TOKENS);
  status = pretokenizer_add_named(t, "llama3", err);
  if (status == STATUS_OK) status = add_specials(t, err);
  if (status == STATUS_OK) status = rank_by_id(t, err);
  t->decoder.byte_level = true;
  tokenizer_want_bos(t, true);
  return status;
}
