/* Finding added tokens: see added.h. The rules for white space and word borders are those of
 * Hugging Face's AddedVocabulary. */
#include "text/added.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "text/normalize.h"
#include "text/utf8.h"

static enum status node_add(struct added_tokens *a, uint8_t byte, uint32_t *link,
                            struct error *err) {
  /* `link` may point into nodes, which grow: so it is kept as an offset. */
  bool in_root = link >= a->root && link < a->root + 256;
  size_t offset = in_root ? 0 : (size_t)((char *)link - (char *)a->nodes);
  enum status status =
      mem_grow((void **)&a->nodes, &a->node_capacity, a->node_count + 2, sizeof *a->nodes, err);
  if (status != STATUS_OK) return status;
  if (!in_root) link = (uint32_t *)((char *)a->nodes + offset);
  if (!a->node_count) a->node_count = 1;
  a->nodes[a->node_count] = (struct added_node){.byte = byte};
  *link = (uint32_t)a->node_count++;
  return STATUS_OK;
}

enum status added_put(struct added_tokens *a, const char *text, size_t length, int32_t id,
                      uint32_t flags, struct error *err) {
  if (!length) return STATUS_OK;
  if (a->count >= ADDED_TOKENS_MAX)
    return error_set(err, STATUS_REFUSED, "more than %d added tokens", ADDED_TOKENS_MAX);
  uint32_t *link = &a->root[(uint8_t)text[0]];
  uint32_t node = 0;
  for (size_t i = 0; i < length; i++) {
    while (*link && a->nodes[*link].byte != (uint8_t)text[i]) link = &a->nodes[*link].sibling;
    if (!*link) {
      enum status status = node_add(a, (uint8_t)text[i], link, err);
      if (status != STATUS_OK) return status;
      node = (uint32_t)a->node_count - 1;
    } else {
      node = *link;
    }
    link = &a->nodes[node].child;
  }
  enum status status =
      mem_grow((void **)&a->tokens, &a->capacity, a->count + 1, sizeof *a->tokens, err);
  if (status != STATUS_OK) return status;
  a->tokens[a->count++] = (struct added_token){id, flags};
  a->nodes[node].token = (uint32_t)a->count;
  return STATUS_OK;
}

void added_release(struct added_tokens *a) {
  free(a->tokens);
  free(a->nodes);
  *a = (struct added_tokens){0};
}

size_t added_match(const struct added_tokens *a, const char *text, size_t bytes,
                   const struct added_token **token) {
  size_t longest = 0;
  uint32_t node = bytes ? a->root[(uint8_t)text[0]] : 0;
  for (size_t i = 0; node; node = a->nodes[node].child) {
    while (node && a->nodes[node].byte != (uint8_t)text[i]) node = a->nodes[node].sibling;
    if (!node) break;
    i++;
    if (a->nodes[node].token) {
      longest = i;
      *token = &a->tokens[a->nodes[node].token - 1];
    }
    if (i == bytes) break;
  }
  return longest;
}

/* What Oniguruma calls a word character. */
static bool is_word(uint32_t c) {
  switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

/* Start of the character that ends at `at` > 0. */
static size_t character_before(const char *text, size_t at) {
  do at--;
  while (((uint8_t)text[at] & 0xc0) == 0x80);
  return at;
}

static bool stands_alone(const char *text, size_t bytes, size_t start, size_t end) {
  return (start == 0 || !is_word(utf8_decode(text + character_before(text, start)))) &&
         (end == bytes || !is_word(utf8_decode(text + end)));
}

static bool is_space(const char *text, uint32_t flags) {
  uint32_t c = utf8_decode(text);
  return codepoint_is_space(c) && (c < 0x80 || !(flags & ADDED_ASCII_SPACE));
}

static size_t strip_left(const char *text, size_t start, size_t floor, uint32_t flags) {
  while (start > floor) {
    size_t before = character_before(text, start);
    if (!is_space(text + before, flags)) break;
    start = before;
  }
  return start;
}

static size_t strip_right(const char *text, size_t bytes, size_t end, uint32_t flags) {
  while (end < bytes && is_space(text + end, flags)) end += utf8_length(text[end]);
  return end;
}

enum status added_split(const struct added_tokens *a, const char *text, size_t bytes,
                        bool plain_specials, const struct added_sink *sink, struct error *err) {
  size_t done = 0; /* all before this has been put */
  enum status status = STATUS_OK;
  for (size_t at = 0; a->count && status == STATUS_OK && at < bytes;) {
    const struct added_token *token = NULL;
    size_t length = a->root[(uint8_t)text[at]] ? added_match(a, text + at, bytes - at, &token) : 0;
    if (!length) {
      at += utf8_length(text[at]);
      continue;
    }
    size_t start = at, end = at + length;
    at = end; /* also past a match that does not count */
    if (plain_specials && token->flags & ADDED_SPECIAL) continue;
    if (token->flags & ADDED_SINGLE_WORD && !stands_alone(text, bytes, start, end)) continue;
    if (start < done) continue; /* taken by the white space behind the token before */
    if (token->flags & ADDED_LEFT_STRIP) start = strip_left(text, start, done, token->flags);
    if (token->flags & ADDED_RIGHT_STRIP) end = strip_right(text, bytes, end, token->flags);
    if (start > done) status = sink->put_text(sink->ctx, text + done, start - done, err);
    if (status == STATUS_OK) status = sink->put_token(sink->ctx, token->id, err);
    done = end;
  }
  if (status == STATUS_OK && done < bytes)
    status = sink->put_text(sink->ctx, text + done, bytes - done, err);
  return status;
}
