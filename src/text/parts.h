/* The parts that make a tokenizer, for the files that build, run and write one. */
#ifndef TSR_TEXT_PARTS_H
#define TSR_TEXT_PARTS_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/normalize.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum {
  TEMPLATE_IDS_MAX = 8,
  END_IDS_MAX = 32,
  DECODER_REPLACES_MAX = 4,
  CHAT_TEMPLATE_BYTES_MAX = 1 << 20,
  TOKENIZER_FILE_BYTES_MAX = 1 << 28
};

/* What decoding does with the bytes of byte tokens that are not UTF-8. */
enum invalid_bytes {
  INVALID_BY_PART, /* one U+FFFD for each maximal part (ByteLevel) */
  INVALID_BY_BYTE, /* one for each byte that belongs to no character (SentencePiece) */
  INVALID_BY_RUN   /* one for each byte of a run that is not wholly valid (ByteFallback) */
};

struct decoder {
  bool byte_level;           /* token texts are in the byte alphabet */
  bool added_as_is;          /* but those of added tokens are plain (GGUF) */
  bool byte_fallback;        /* "<0xNN>" is a byte */
  bool join_with_spaces;     /* no decoder at all: tokens side by side */
  bool strip_leading_space;  /* of the whole text */
  bool strip_each_token;     /* of every token until a text begins (SentencePiece) */
  bool first_without_spaces; /* the first token loses all its spaces (Metaspace) */
  enum invalid_bytes invalid;
  struct {
    struct strbuf from, to;
  } replaces[DECODER_REPLACES_MAX]; /* in every token's text */
  int replace_count;
  struct strbuf unknown; /* what the unknown token reads as, when not its own text */
};

enum tokenizer_source {
  SOURCE_JSON,          /* tokenizer.json */
  SOURCE_SENTENCEPIECE, /* tokenizer.model, protobuf */
  SOURCE_TIKTOKEN,      /* tokenizer.model, base64 lines */
  SOURCE_GGUF
};

struct tokenizer {
  enum tokenizer_source source;
  char *path;      /* the file read */
  char *directory; /* the Hugging Face directory it lies in, or NULL */
  struct vocab vocab;
  struct bpe bpe;
  bool byte_level;                      /* the model is fed the byte alphabet */
  struct added_tokens added;            /* matched in the text as it comes */
  struct added_tokens added_normalized; /* matched in the normalized text */
  struct normalizer normalizer;
  struct pretokenizer pretokenizer;
  struct decoder decoder;
  int32_t head[TEMPLATE_IDS_MAX], tail[TEMPLATE_IDS_MAX]; /* put before and behind a text */
  int head_count, tail_count;
  int32_t bos, eos, unknown, padding; /* -1 = none */
  int32_t ends[END_IDS_MAX];
  int end_count;
  char *chat_template; /* NULL = none */
  char *pre;           /* GGUF's name of the pre-tokenizer, or NULL */
};

/* The readers, by kind of file. Each fills the zeroed parts; the caller closes on failure. */
enum status tokenizer_read_json(struct tokenizer *t, const char *data, size_t bytes,
                                struct error *err);
enum status tokenizer_read_sentencepiece(struct tokenizer *t, const uint8_t *data, size_t bytes,
                                         struct error *err);
enum status tokenizer_read_tiktoken(struct tokenizer *t, const char *data, size_t bytes,
                                    struct error *err);
enum status tokenizer_read_gguf(struct tokenizer *t, const char *path, struct error *err);
/* What stands beside them in a directory: tokenizer_config.json, generation_config.json,
 * chat_template.jinja, special_tokens_map.json, added_tokens.json. None is required. */
enum status tokenizer_read_settings(struct tokenizer *t, const char *directory, struct error *err);

/* Adds a token to `added`, and to the vocabulary when it is not there. Marks it. */
enum status tokenizer_add_token(struct tokenizer *t, struct added_tokens *added, int64_t id,
                                const char *text, size_t length, uint32_t added_flags,
                                struct error *err);
/* Puts BOS at the head (or takes it away), EOS at the tail. No-op when the id is -1. */
void tokenizer_want_bos(struct tokenizer *t, bool wanted);
void tokenizer_want_eos(struct tokenizer *t, bool wanted);
/* An id that ends a turn; ids already known, and negative ones, are passed over. */
void tokenizer_add_end(struct tokenizer *t, int64_t id);

/* The pre-tokenizers of the families, by the names that GGUF files use. */
enum status pretokenizer_add_named(struct tokenizer *t, const char *name, struct error *err);
/* GPT-2's pattern, which tokenizer.json calls ByteLevel. */
enum status pretokenizer_add_gpt2(struct pretokenizer *p, struct error *err);
/* The patterns behind a name, ended by NULL; NULL when the name is not known. Also whether the
 * models of that name take whole words first, and have BOS when nothing is said. */
const char *const *pretokenizer_patterns(const char *name, bool *ignore_merges, bool *add_bos);

#endif
