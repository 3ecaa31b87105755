/* Text to token ids and back, exactly as the model's own tokenizer does it.
 *
 * Read from a Hugging Face directory (tokenizer.json; else tokenizer.model), from a single
 * tokenizer.json / tokenizer.model file, or from a GGUF file (a vocabulary-only one will do). */
#ifndef TSR_TEXT_TOKENIZER_H
#define TSR_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

struct tokenizer;

enum status tokenizer_open(struct tokenizer **out, const char *path, struct error *err);
void tokenizer_close(struct tokenizer *tokenizer);

int64_t tokenizer_vocab_size(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t); /* -1 = none */
int32_t tokenizer_eos(const struct tokenizer *t);
/* True for every id that ends a generated turn (eos, <|im_end|>, <end_of_turn>, ...). */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);

struct token_ids {
  int32_t *items; /* realloc'd */
  size_t count, capacity;
};
void token_ids_free(struct token_ids *ids);
enum status token_ids_push(struct token_ids *ids, int32_t id, struct error *err);

enum {
  TOKENIZE_NO_BOS = 1,    /* no BOS / EOS, whatever the tokenizer's settings say */
  TOKENIZE_NO_SPECIAL = 2 /* the text of a special token is plain text */
};
/* Appends the ids of `text` (UTF-8; STATUS_REFUSED names the byte where it is not). Thread-safe
 * for one tokenizer and several outputs. Linear in the text but for single very long words. */
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                             unsigned flags, struct token_ids *out, struct error *err);
/* Appends the text of the ids; special tokens are left out when skip_special. */
enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count,
                             bool skip_special, struct strbuf *out, struct error *err);

/* Streaming decode: each call appends only whole UTF-8 characters to `out`, and keeps the rest. */
struct token_stream {
  const struct tokenizer *tokenizer;
  struct strbuf pending;
  bool started;
};
void token_stream_init(struct token_stream *s, const struct tokenizer *t);
enum status token_stream_put(struct token_stream *s, int32_t id, struct strbuf *out,
                             struct error *err);
void token_stream_finish(struct token_stream *s, struct strbuf *out); /* flush and release */

/* Chat: the family's own template (by family, recognised from the stored template; STATUS_REFUSED
 * for one that is not known). Appends the text of the conversation, ending with what makes the
 * model answer. That text is encoded with TOKENIZE_NO_BOS (the template writes its own). */
struct chat_message {
  const char *role; /* "system", "user", "assistant" */
  const char *content;
};
bool tokenizer_has_chat(const struct tokenizer *t);
enum status tokenizer_chat(const struct tokenizer *t, const struct chat_message *messages,
                           size_t count, struct strbuf *out, struct error *err);

/* Writes tokenizer.json and tokenizer_config.json (and what else the source had) into `directory`,
 * for exported models: copies where the source is a directory, made anew from a GGUF. */
enum status tokenizer_export(const struct tokenizer *t, const char *directory, struct error *err);

/* Sets the keys of a GGUF file that hold this tokenizer, for a model whose embedding has
 * `vocab_size` rows. STATUS_REFUSED when llama.cpp has no pre-tokenizer that cuts text alike, or
 * for a vocabulary without merges or scores (tiktoken files). */
struct gguf_builder;
enum status tokenizer_to_gguf(const struct tokenizer *t, int64_t vocab_size,
                              struct gguf_builder *builder, struct error *err);
/* Whether both give the same ids for a text full of cases (in composed form: a GGUF cannot say that
 * texts are to be normalized, and llama.cpp does not). */
enum status tokenizer_agree(const struct tokenizer *a, const struct tokenizer *b, bool *agree,
                            struct error *err);

#endif
