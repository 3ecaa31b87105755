/* Normalizer steps: see normalize.h. Unicode normalization is utf8proc's. */
#include "text/normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

bool codepoint_is_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

struct normalizer_step *normalizer_add(struct normalizer *n, enum normalizer_kind kind,
                                       struct error *err) {
  if (n->count == NORMALIZER_STEPS_MAX) {
    error_set(err, STATUS_REFUSED, "the tokenizer has more than %d normalizers",
              NORMALIZER_STEPS_MAX);
    return NULL;
  }
  n->steps[n->count].kind = kind;
  return &n->steps[n->count++];
}

void normalizer_release(struct normalizer *n) {
  for (int i = 0; i < n->count; i++) {
    regex_free(n->steps[i].pattern);
    strbuf_free(&n->steps[i].content);
    charsmap_release(&n->steps[i].rules.charsmap);
  }
  n->count = 0;
}

static bool is_ascii(const char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if ((uint8_t)text[i] >= 0x80) return false;
  return true;
}

static enum status run_unicode(enum normalizer_kind kind, const char *text, size_t bytes,
                               struct strbuf *out, struct error *err) {
  static const utf8proc_option_t options[] = {
      [NORMALIZE_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
      [NORMALIZE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
      [NORMALIZE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
      [NORMALIZE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT};
  if (is_ascii(text, bytes)) {
    strbuf_append(out, text, bytes);
    return STATUS_OK;
  }
  utf8proc_uint8_t *result = NULL;
  utf8proc_ssize_t length =
      utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &result, options[kind]);
  if (length < 0)
    return error_set(err, STATUS_FAILED, "the text could not be normalized: %s",
                     utf8proc_errmsg(length));
  strbuf_append(out, (const char *)result, (size_t)length);
  free(result);
  return STATUS_OK;
}

static void run_lowercase(const char *text, size_t bytes, struct strbuf *out) {
  for (size_t at = 0; at < bytes; at += utf8_length(text[at])) {
    uint32_t c = utf8_decode(text + at);
    if (c == 0x130) /* the one letter whose lower case is two: i and a dot above */
      strbuf_puts(out, "i\xcc\x87");
    else
      utf8_put(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
  }
}

static enum status run_replace(const struct normalizer_step *step, struct regex_scratch *scratch,
                               const char *text, size_t bytes, struct strbuf *out,
                               struct error *err) {
  size_t at = 0;
  for (;;) {
    bool found;
    size_t start, end;
    enum status status =
        regex_next(step->pattern, scratch, text, bytes, at, &found, &start, &end, err);
    if (status != STATUS_OK) return status;
    if (!found) break;
    strbuf_append(out, text + at, start - at);
    strbuf_append(out, strbuf_text(&step->content), step->content.length);
    at = end;
  }
  strbuf_append(out, text + at, bytes - at);
  return STATUS_OK;
}

static void run_strip(const struct normalizer_step *step, const char *text, size_t bytes,
                      struct strbuf *out) {
  size_t start = 0, end = bytes;
  while (step->left && start < end && codepoint_is_space(utf8_decode(text + start)))
    start += utf8_length(text[start]);
  while (step->right && end > start) {
    size_t before = end - 1;
    while (((uint8_t)text[before] & 0xc0) == 0x80) before--;
    if (!codepoint_is_space(utf8_decode(text + before))) break;
    end = before;
  }
  strbuf_append(out, text + start, end - start);
}

/* ---- SentencePiece ---- */

#define SPACE_SYMBOL "\xe2\x96\x81" /* U+2581 */

/* What the text at `at` becomes: *piece[0, *length), having read the returned number of bytes. */
static size_t next_normalized(const struct sentencepiece_rules *rules, const char *text,
                              size_t bytes, const char **piece, size_t *length) {
  const struct added_token *token;
  size_t read =
      rules->protected_tokens ? added_match(rules->protected_tokens, text, bytes, &token) : 0;
  if (!read) {
    read = charsmap_match(&rules->charsmap, text, bytes, piece);
    if (read) {
      *length = strlen(*piece);
      return read;
    }
    read = utf8_length(*text);
  }
  *piece = text;
  *length = read;
  return read;
}

static void put_escaped(const struct sentencepiece_rules *rules, const char *piece, size_t length,
                        struct strbuf *out) {
  for (size_t i = 0; i < length; i++) {
    if (piece[i] == ' ' && rules->escape_whitespaces)
      strbuf_puts(out, SPACE_SYMBOL);
    else
      strbuf_putc(out, piece[i]);
  }
}

static void drop_trailing_spaces(const struct sentencepiece_rules *rules, struct strbuf *out) {
  const char *space = rules->escape_whitespaces ? SPACE_SYMBOL : " ";
  size_t length = strlen(space);
  while (out->length >= length && memcmp(out->data + out->length - length, space, length) == 0)
    out->length -= length;
  if (out->data) out->data[out->length] = 0;
}

static void run_sentencepiece(const struct sentencepiece_rules *rules, const char *text,
                              size_t bytes, struct strbuf *out) {
  size_t at = 0, length;
  const char *piece;
  if (rules->remove_extra_whitespaces) /* leading ones: pieces that are nothing but a space */
    while (at < bytes) {
      size_t read = next_normalized(rules, text + at, bytes - at, &piece, &length);
      if (length != 1 || *piece != ' ') break;
      at += read;
    }
  if (at == bytes) return;
  if (rules->add_dummy_prefix) put_escaped(rules, " ", 1, out);
  bool after_space = rules->remove_extra_whitespaces;
  while (at < bytes) {
    at += next_normalized(rules, text + at, bytes - at, &piece, &length);
    while (after_space && length && *piece == ' ') {
      piece++;
      length--;
    }
    put_escaped(rules, piece, length, out);
    if (length) after_space = piece[length - 1] == ' ';
    if (!rules->remove_extra_whitespaces) after_space = false;
  }
  if (rules->remove_extra_whitespaces) drop_trailing_spaces(rules, out);
}

/* ---- the chain ---- */

static enum status run_step(const struct normalizer_step *step, struct regex_scratch *scratch,
                            const char *text, size_t bytes, struct strbuf *out, struct error *err) {
  switch (step->kind) {
    case NORMALIZE_NFC:
    case NORMALIZE_NFD:
    case NORMALIZE_NFKC:
    case NORMALIZE_NFKD:
      return run_unicode(step->kind, text, bytes, out, err);
    case NORMALIZE_LOWERCASE:
      run_lowercase(text, bytes, out);
      return STATUS_OK;
    case NORMALIZE_PREPEND:
      if (bytes) strbuf_append(out, strbuf_text(&step->content), step->content.length);
      strbuf_append(out, text, bytes);
      return STATUS_OK;
    case NORMALIZE_REPLACE:
      return run_replace(step, scratch, text, bytes, out, err);
    case NORMALIZE_STRIP:
      run_strip(step, text, bytes, out);
      return STATUS_OK;
    case NORMALIZE_SENTENCEPIECE:
      run_sentencepiece(&step->rules, text, bytes, out);
      return STATUS_OK;
  }
  INVARIANT(!"a normalizer kind without code");
  return STATUS_FAILED;
}

enum status normalizer_run(const struct normalizer *n, struct regex_scratch *scratch,
                           const char *text, size_t bytes, struct strbuf *out, struct strbuf *spare,
                           struct error *err) {
  strbuf_clear(out);
  if (!n->count) strbuf_append(out, text, bytes);
  for (int i = 0; i < n->count; i++) {
    if (i) { /* the last result is the next input */
      struct strbuf swap = *out;
      *out = *spare;
      *spare = swap;
      strbuf_clear(out);
      text = strbuf_text(spare);
      bytes = spare->length;
    }
    enum status status = run_step(&n->steps[i], scratch, text, bytes, out, err);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}
