/* Ids back to text: see tokenizer.h.
 *
 * A token gives either text or bytes; bytes wait in `pending` until they are whole characters,
 * because one character may be spread over several tokens. */
#include <string.h>

#include "text/byte_level.h"
#include "text/parts.h"
#include "text/utf8.h"

static bool is_utf8(const struct strbuf *s) {
  return utf8_check(strbuf_text(s), s->length) == s->length;
}

struct decoding {
  const struct decoder *decoder;
  struct strbuf *pending;
  struct strbuf *out;
  bool *started; /* text has come out */
};

static void put_text(struct decoding *d, const char *text, size_t bytes) {
  if (bytes && !*d->started) {
    if (d->decoder->strip_leading_space && *text == ' ') {
      text++;
      bytes--;
    }
    *d->started = bytes || !d->decoder->strip_each_token;
  }
  strbuf_append(d->out, text, bytes);
}

/* Moves whole characters from pending to out. At the end, or before a text, what is left of a
 * character is not going to be one. */
static void put_pending(struct decoding *d, bool at_end) {
  struct strbuf *p = d->pending;
  size_t at = 0;
  bool by_run = at_end && d->decoder->invalid == INVALID_BY_RUN && !is_utf8(p);
  while (at < p->length) {
    int length = by_run ? -1 : utf8_probe(p->data + at, p->length - at);
    if (length == 0 && !at_end) break;
    if (length > 0) {
      put_text(d, p->data + at, (size_t)length);
      at += (size_t)length;
      continue;
    }
    size_t bad = length ? (size_t)-length : p->length - at;
    if (d->decoder->invalid != INVALID_BY_PART) bad = 1;
    put_text(d, "\xef\xbf\xbd", 3);
    at += bad;
  }
  if (!at) return;
  memmove(p->data, p->data + at, p->length - at);
  p->length -= at;
  p->data[p->length] = 0;
}

static bool starts_with(const char *text, size_t length, const struct strbuf *start) {
  return length >= start->length && memcmp(text, strbuf_text(start), start->length) == 0;
}

static void append_replaced(const struct decoder *decoder, const char *text, size_t length,
                            struct strbuf *out) {
  for (size_t at = 0; at < length;) {
    int i = 0;
    while (i < decoder->replace_count &&
           !starts_with(text + at, length - at, &decoder->replaces[i].from))
      i++;
    if (i < decoder->replace_count) {
      strbuf_append(out, strbuf_text(&decoder->replaces[i].to), decoder->replaces[i].to.length);
      at += decoder->replaces[i].from.length;
    } else {
      strbuf_putc(out, text[at++]);
    }
  }
}

static void remove_spaces(struct strbuf *text) {
  size_t kept = 0;
  for (size_t i = 0; i < text->length; i++)
    if (text->data[i] != ' ') text->data[kept++] = text->data[i];
  text->length = kept;
}

static int hex_digit(char c) { return c <= '9' ? c - '0' : c - 'A' + 10; }

/* One token. `eager`: characters go out as soon as they are whole. */
static void put_token(struct decoding *d, const struct tokenizer *t, int32_t id, bool eager) {
  const struct decoder *decoder = d->decoder;
  size_t length;
  const char *text = vocab_text(&t->vocab, id, &length);
  uint32_t flags = t->vocab.entries[id].flags;
  if (decoder->byte_fallback && flags & TOKEN_BYTE) {
    strbuf_putc(d->pending, (char)(hex_digit(text[3]) << 4 | hex_digit(text[4])));
    if (eager) put_pending(d, false);
    return;
  }
  if (decoder->byte_level) {
    bool as_is = decoder->added_as_is && flags & TOKEN_ADDED;
    if (as_is || !byte_level_decode(text, length, d->pending))
      strbuf_append(d->pending, text, length);
    put_pending(d, false); /* the same characters come out, now or later */
    return;
  }
  put_pending(d, true);
  if (decoder->join_with_spaces && *d->started) put_text(d, " ", 1);
  if (id == t->unknown && decoder->unknown.data) {
    *d->started = true; /* its leading space is its own */
    put_text(d, decoder->unknown.data, decoder->unknown.length);
    return;
  }
  struct strbuf replaced = {0};
  append_replaced(decoder, text, length, &replaced);
  if (decoder->first_without_spaces && !*d->started) {
    *d->started = true;
    remove_spaces(&replaced);
  }
  put_text(d, strbuf_text(&replaced), replaced.length);
  strbuf_free(&replaced);
}

/* Tokens that are left out when special ones are. SentencePiece shows what was unknown. */
static bool is_hidden(const struct tokenizer *t, int32_t id) {
  bool shown = id == t->unknown && t->decoder.unknown.data;
  return vocab_is(&t->vocab, id, TOKEN_SPECIAL) && !shown;
}

static enum status check_id(const struct tokenizer *t, int32_t id, struct error *err) {
  if (vocab_has(&t->vocab, id)) return STATUS_OK;
  return error_set(err, STATUS_REFUSED, "%d is not a token of %s (0 to %zu)", id, t->path,
                   t->vocab.count - 1);
}

enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count,
                             bool skip_special, struct strbuf *out, struct error *err) {
  struct strbuf pending = {0};
  bool started = false;
  struct decoding d = {&t->decoder, &pending, out, &started};
  enum status status = STATUS_OK;
  for (size_t i = 0; status == STATUS_OK && i < count; i++) {
    status = check_id(t, ids[i], err);
    if (status != STATUS_OK) break;
    if (skip_special && is_hidden(t, ids[i])) continue;
    put_token(&d, t, ids[i], false);
  }
  if (status == STATUS_OK) put_pending(&d, true);
  strbuf_free(&pending);
  return status;
}

void token_stream_init(struct token_stream *s, const struct tokenizer *t) {
  *s = (struct token_stream){.tokenizer = t};
}

enum status token_stream_put(struct token_stream *s, int32_t id, struct strbuf *out,
                             struct error *err) {
  enum status status = check_id(s->tokenizer, id, err);
  if (status != STATUS_OK) return status;
  struct decoding d = {&s->tokenizer->decoder, &s->pending, out, &s->started};
  if (!is_hidden(s->tokenizer, id)) put_token(&d, s->tokenizer, id, true);
  return STATUS_OK;
}

void token_stream_finish(struct token_stream *s, struct strbuf *out) {
  struct decoding d = {&s->tokenizer->decoder, &s->pending, out, &s->started};
  put_pending(&d, true);
  strbuf_free(&s->pending);
}
