/* Fuzz target: tokenizer.json, tokenizer.model and the vocabulary inside a GGUF file. What opens
 * must encode and decode. */
#include "text/tokenizer.h"

static enum status walk_tokenizer(void *ctx, const char *path, struct error *err) {
  static const char text[] = "Hello  w\xc3\xb6rld 123\n\n<s> \xf0\x9f\x98\x80!";
  struct tokenizer *t;
  enum status status = tokenizer_open(&t, path, err);
  if (status != STATUS_OK) return status;
  struct token_ids ids = {0};
  struct strbuf decoded = {0};
  if (tokenizer_encode(t, text, sizeof text - 1, 0, &ids, NULL) == STATUS_OK)
    tokenizer_decode(t, ids.items, ids.count, false, &decoded, NULL);
  strbuf_free(&decoded);
  token_ids_free(&ids);
  tokenizer_close(t);
  return STATUS_OK;
}

#define FUZZ_WALK walk_tokenizer
#include "fuzz_file.h"
