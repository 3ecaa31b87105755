/* Corpora: files to token ids. See windows.h.
 *
 * A plain text is one document and goes through the tokenizer as a whole, because words may stand
 * anywhere. With a token limit only as much of it is read as the limit needs: a prefix is encoded
 * and its last tokens, which the rest of the text could change, are not used. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "data/reader.h"
#include "data/windows.h"
#include "io/json.h"
#include "text/utf8.h"

enum {
  DOCUMENT_BYTES_MAX = 1 << 30,
  BLOCK_BYTES = 1 << 18,
  MARGIN_TOKENS = 256,    /* at the end of a prefix: more than any word of sane text has */
  GUESSED_TOKEN_BYTES = 6 /* of text per token, for the first prefix */
};

struct loader {
  struct corpus *corpus;
  const struct tokenizer *tokenizer;
  struct reader *reader;
  const char *path;
  int64_t limit; /* tokens; 0 = none */
  size_t start_capacity;
  struct strbuf text; /* read and not yet used */
  bool at_end;
};

static bool is_full(const struct loader *l) {
  return l->limit > 0 && (int64_t)l->corpus->ids.count >= l->limit;
}

/* Appends the next block of the file to l->text. */
static enum status read_block(struct loader *l, size_t bytes, struct error *err) {
  char *block = mem_alloc(bytes, 1, err);
  size_t got = 0;
  if (!block) return STATUS_FAILED;
  enum status status = reader_read(l->reader, block, bytes, &got, err);
  if (status == STATUS_OK && l->text.length + got > DOCUMENT_BYTES_MAX)
    status = error_set(err, STATUS_REFUSED,
                       "%s: a document of more than %d MiB; split the file, or use .jsonl", l->path,
                       DOCUMENT_BYTES_MAX >> 20);
  if (status == STATUS_OK) strbuf_append(&l->text, block, got);
  l->at_end = got < bytes;
  mem_free(block);
  return status;
}

static enum status close_document(struct loader *l, struct error *err) {
  struct corpus *c = l->corpus;
  enum status status = mem_grow((void **)&c->document_start, &l->start_capacity, c->documents + 2,
                                sizeof *c->document_start, err);
  if (status == STATUS_OK) c->document_start[++c->documents] = c->ids.count;
  return status;
}

/* ---- plain text ---- */

/* The text so far without a character that is cut off at its end. */
static size_t whole_characters(const struct strbuf *text) {
  size_t valid = utf8_check(strbuf_text(text), text->length);
  size_t rest = text->length - valid;
  return rest && rest < 4 && utf8_probe(text->data + valid, rest) == 0 ? valid : text->length;
}

static enum status load_plain(struct loader *l, struct error *err) {
  struct token_ids *ids = &l->corpus->ids;
  size_t wanted = l->limit > 0 && l->limit < DOCUMENT_BYTES_MAX / GUESSED_TOKEN_BYTES
                      ? (size_t)l->limit * GUESSED_TOKEN_BYTES + BLOCK_BYTES
                      : SIZE_MAX;
  for (;;) {
    while (!l->at_end && l->text.length < wanted) {
      enum status status = read_block(l, BLOCK_BYTES, err);
      if (status != STATUS_OK) return status;
    }
    size_t bytes = l->at_end ? l->text.length : whole_characters(&l->text);
    ids->count = 0;
    enum status status = tokenizer_encode(l->tokenizer, strbuf_text(&l->text), bytes, 0, ids, err);
    if (status != STATUS_OK) return error_prefix(err, "%s", l->path);
    l->corpus->text_bytes = bytes;
    if (l->at_end || (int64_t)ids->count >= l->limit + MARGIN_TOKENS) break;
    wanted = 2 * l->text.length;
  }
  return close_document(l, err);
}

/* ---- JSON lines ---- */

/* Not json_parse: a text may hold U+0000, which is a character like any other here. */
static json_t *parse_line(const char *line, size_t bytes, size_t number, struct error *err) {
  json_error_t wrong;
  json_t *object = json_loadb(line, bytes, JSON_ALLOW_NUL, &wrong);
  if (!object)
    error_set(err, STATUS_REFUSED, "line %zu is no valid JSON: %s at column %d", number, wrong.text,
              wrong.column);
  return object;
}

static enum status load_line(struct loader *l, const char *line, size_t bytes, size_t number,
                             struct error *err) {
  json_t *object = parse_line(line, bytes, number, err);
  if (!object) return STATUS_REFUSED;
  const json_t *text = json_object_get(object, "text");
  enum status status;
  if (!json_is_string(text)) {
    status =
        error_set(err, STATUS_REFUSED, "line %zu has no member \"text\" that is a string", number);
  } else {
    status = tokenizer_encode(l->tokenizer, json_string_value(text), json_string_length(text), 0,
                              &l->corpus->ids, err);
    l->corpus->text_bytes += json_string_length(text);
    if (status == STATUS_OK) status = close_document(l, err);
  }
  json_decref(object);
  return status;
}

static bool is_blank(const char *line, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if (!strchr(" \t\r", line[i]) || !line[i]) return false;
  return true;
}

/* Reads until l->text holds a whole line, its newline at *length, or the file ends. */
static enum status find_line(struct loader *l, size_t from, size_t *length, bool *found,
                             struct error *err) {
  size_t searched = from;
  for (;;) {
    const char *data = strbuf_text(&l->text);
    const char *end =
        l->text.length > searched ? memchr(data + searched, '\n', l->text.length - searched) : NULL;
    if (end || l->at_end) {
      *length = end ? (size_t)(end - data) - from : l->text.length - from;
      *found = *length > 0 || end;
      return STATUS_OK;
    }
    searched = l->text.length;
    enum status status = read_block(l, BLOCK_BYTES, err);
    if (status != STATUS_OK) return status;
  }
}

static enum status load_jsonl(struct loader *l, struct error *err) {
  size_t at = 0;
  for (size_t number = 1; !is_full(l); number++) {
    size_t length;
    bool found;
    if (at > BLOCK_BYTES) { /* forget the lines that are done */
      memmove(l->text.data, l->text.data + at, l->text.length - at);
      l->text.length -= at;
      at = 0;
    }
    enum status status = find_line(l, at, &length, &found, err);
    if (status != STATUS_OK) return status;
    if (!found) return STATUS_OK;
    if (!is_blank(l->text.data + at, length))
      status = load_line(l, l->text.data + at, length, number, err);
    if (status != STATUS_OK) return error_prefix(err, "%s", l->path);
    at += length + 1;
    if (at > l->text.length) at = l->text.length;
  }
  return STATUS_OK;
}

/* ---- both ---- */

static void cut_to_limit(struct loader *l) {
  struct corpus *c = l->corpus;
  if (!is_full(l)) return;
  c->ids.count = (size_t)l->limit;
  while (c->documents > 1 && c->document_start[c->documents - 1] >= c->ids.count) c->documents--;
  c->document_start[c->documents] = c->ids.count;
}

enum status corpus_load(struct corpus *corpus, const char *path, const struct tokenizer *tokenizer,
                        int64_t token_limit, struct error *err) {
  *corpus = (struct corpus){0};
  struct loader l = {.corpus = corpus, .tokenizer = tokenizer, .path = path, .limit = token_limit};
  enum status status = reader_open(&l.reader, path, err);
  if (status == STATUS_OK)
    status = mem_grow((void **)&corpus->document_start, &l.start_capacity, 1,
                      sizeof *corpus->document_start, err);
  if (status == STATUS_OK) {
    corpus->document_start[0] = 0;
    status = reader_is_jsonl(path) ? load_jsonl(&l, err) : load_plain(&l, err);
  }
  if (status == STATUS_OK)
    cut_to_limit(&l);
  else
    corpus_free(corpus);
  reader_close(l.reader);
  strbuf_free(&l.text);
  return status;
}

void corpus_free(struct corpus *corpus) {
  token_ids_free(&corpus->ids);
  free(corpus->document_start);
  *corpus = (struct corpus){0};
}
