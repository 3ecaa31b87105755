/* Added tokens: texts that become one token wherever they stand, before the model sees the rest.
 * Leftmost first, the longest among those that begin at the same place. */
#ifndef TSR_TEXT_ADDED_H
#define TSR_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { ADDED_TOKENS_MAX = 1 << 20 };

enum added_flags {
  ADDED_SPECIAL = 1,     /* plain text when special tokens are not wanted */
  ADDED_SINGLE_WORD = 2, /* only where no letter or digit touches it */
  ADDED_LEFT_STRIP = 4,  /* takes the white space before it along */
  ADDED_RIGHT_STRIP = 8, /* and behind it */
  ADDED_ASCII_SPACE = 16 /* where white space is only ASCII's (llama.cpp) */
};

struct added_token {
  int32_t id;
  uint32_t flags;
};

/* A trie over bytes: children of a node are a linked list of siblings. */
struct added_node {
  uint32_t child, sibling; /* 0 = none */
  uint32_t token;          /* index + 1 into tokens, 0 = none ends here */
  uint8_t byte;
};

struct added_tokens {
  struct added_token *tokens;
  size_t count, capacity;
  struct added_node *nodes; /* nodes[0] unused */
  size_t node_count, node_capacity;
  uint32_t root[256]; /* first nodes by byte */
};

/* Adds a text; of a text added twice the last counts. Empty texts are passed over. */
enum status added_put(struct added_tokens *a, const char *text, size_t length, int32_t id,
                      uint32_t flags, struct error *err);
void added_release(struct added_tokens *a);

/* The longest added text that text[0, bytes) begins with: its length, or 0. */
size_t added_match(const struct added_tokens *a, const char *text, size_t bytes,
                   const struct added_token **token);

/* Calls put_token and put_text in the order of the text. Texts are never empty. */
struct added_sink {
  enum status (*put_token)(void *ctx, int32_t id, struct error *err);
  enum status (*put_text)(void *ctx, const char *text, size_t bytes, struct error *err);
  void *ctx;
};
enum status added_split(const struct added_tokens *a, const char *text, size_t bytes,
                        bool plain_specials, const struct added_sink *sink, struct error *err);

#endif
