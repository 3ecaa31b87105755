/* Context and continuation to token ids, as lm-evaluation-harness does it: see loglikelihood.h. */
#include <stdlib.h>
#include <string.h>

#include "eval/clean.h"
#include "eval/loglikelihood.h"
#include "text/utf8.h"

static enum status check_utf8(const char *text, const char *what, struct error *err) {
  size_t bytes = strlen(text), valid = utf8_check(text, bytes);
  if (valid == bytes) return STATUS_OK;
  return error_set(err, STATUS_REFUSED, "the %s is not UTF-8 at byte %zu", what, valid);
}

/* What makes the tokenizer leave out its own BOS: a text that begins with one. */
static enum status encode_flags(const struct tokenizer *t, const char *text, unsigned *flags,
                                struct error *err) {
  int32_t bos = tokenizer_bos(t);
  struct strbuf name = {0};
  enum status status = STATUS_OK;
  *flags = 0;
  if (bos >= 0) {
    status = tokenizer_decode(t, &bos, 1, false, &name, err);
    if (!status && name.length && !strncmp(text, name.data, name.length)) *flags = TOKENIZE_NO_BOS;
  }
  strbuf_free(&name);
  return status;
}

static int32_t prefix_token(const struct tokenizer *t) {
  return tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : tokenizer_eos(t);
}

/* Nothing to condition on: the prefix token stands for the context. */
static enum status encode_empty(const struct tokenizer *t, const char *continuation,
                                struct token_ids *ids, struct error *err) {
  int32_t prefix = prefix_token(t);
  if (prefix < 0)
    return error_set(err, STATUS_REFUSED,
                     "the context is empty and the tokenizer has neither BOS nor EOS to stand for "
                     "it");
  enum status status =
      tokenizer_encode(t, continuation, strlen(continuation), TOKENIZE_NO_BOS, ids, err);
  if (status || (ids->count && ids->items[0] == prefix)) return status;
  status = token_ids_push(ids, prefix, err);
  if (status) return status;
  memmove(ids->items + 1, ids->items, (ids->count - 1) * sizeof *ids->items);
  ids->items[0] = prefix;
  return STATUS_OK;
}

/* Both together into `ids`; *context_tokens = how many of them the context has alone. */
static enum status encode_both(const struct tokenizer *t, const char *context, size_t context_bytes,
                               const char *continuation, struct token_ids *ids,
                               size_t *context_tokens, struct error *err) {
  struct strbuf whole = {0};
  struct token_ids alone = {0};
  unsigned flags;
  strbuf_puts(&whole, context);
  strbuf_puts(&whole, continuation);
  enum status status = encode_flags(t, strbuf_text(&whole), &flags, err);
  if (!status) status = tokenizer_encode(t, strbuf_text(&whole), whole.length, flags, ids, err);
  if (!status) status = tokenizer_encode(t, strbuf_text(&whole), context_bytes, flags, &alone, err);
  *context_tokens = alone.count;
  token_ids_free(&alone);
  strbuf_free(&whole);
  return status;
}

/* Keeps the last context_length + 1 tokens. */
static enum status cut(struct scored_text *text, int64_t context_length, struct error *err) {
  if (text->scored < 1)
    return error_set(err, STATUS_REFUSED, "the continuation has no token of its own");
  if (text->scored > context_length)
    return error_set(err, STATUS_REFUSED,
                     "a continuation of %lld tokens is longer than the model's context of %lld",
                     (long long)text->scored, (long long)context_length);
  text->dropped = text->count > context_length + 1 ? text->count - context_length - 1 : 0;
  text->count -= text->dropped;
  memmove(text->ids, text->ids + text->dropped, (size_t)text->count * sizeof *text->ids);
  return STATUS_OK;
}

enum status scored_text_encode(struct scored_text *text, const struct tokenizer *tokenizer,
                               const char *context, const char *continuation,
                               int64_t context_length, struct error *err) {
  struct token_ids ids = {0};
  size_t context_tokens = 1;
  *text = (struct scored_text){0};
  enum status status = check_utf8(context, "context", err);
  if (!status) status = check_utf8(continuation, "continuation", err);
  if (!status)
    status = *context ? encode_both(tokenizer, context, clean_rstripped_bytes(context),
                                    continuation, &ids, &context_tokens, err)
                      : encode_empty(tokenizer, continuation, &ids, err);
  if (!status && context_tokens == 0)
    status = error_set(err, STATUS_REFUSED, "the context holds nothing but white space");
  if (!status) {
    text->ids = ids.items;
    text->count = (int64_t)ids.count;
    text->scored = text->count - (int64_t)context_tokens;
    status = cut(text, context_length, err);
  } else {
    token_ids_free(&ids);
  }
  if (status) scored_text_free(text);
  return status;
}

void scored_text_free(struct scored_text *text) {
  free(text->ids);
  text->ids = NULL;
}
