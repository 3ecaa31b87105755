/* tokenizer.model: SentencePiece's ModelProto.
 *
 * The protobuf wire format is read by hand, not by generated code: five fields of three messages
 * are wanted, the texts stay where they are in the mapped file, and every length is checked in one
 * place. Fields that are absent have the defaults of sentencepiece_model.proto, where
 * add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces are true. */
#include <string.h>

#include "base/mem.h"
#include "text/parts.h"

/* ---- the wire format ---- */

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

struct wire {
  const uint8_t *at, *end;
};

struct field {
  uint64_t number;
  enum wire_type type;
  uint64_t value;       /* VARINT, FIXED32 */
  const uint8_t *bytes; /* BYTES */
  size_t length;
};

static bool wire_varint(struct wire *w, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
    uint8_t byte = *w->at++;
    *out |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return true;
  }
  return false;
}

static bool wire_fixed(struct wire *w, int bytes, uint64_t *out) {
  *out = 0;
  if (w->end - w->at < bytes) return false;
  for (int i = 0; i < bytes; i++) *out |= (uint64_t)w->at[i] << 8 * i;
  w->at += bytes;
  return true;
}

/* The next field; false when the message is damaged. Call while w->at < w->end. */
static bool wire_next(struct wire *w, struct field *f) {
  uint64_t tag;
  if (!wire_varint(w, &tag)) return false;
  *f = (struct field){.number = tag >> 3, .type = (enum wire_type)(tag & 7)};
  switch (f->type) {
    case WIRE_VARINT:
      return wire_varint(w, &f->value);
    case WIRE_FIXED64:
      return wire_fixed(w, 8, &f->value);
    case WIRE_FIXED32:
      return wire_fixed(w, 4, &f->value);
    case WIRE_BYTES:
      if (!wire_varint(w, &f->value) || f->value > (uint64_t)(w->end - w->at)) return false;
      f->bytes = w->at;
      f->length = (size_t)f->value;
      w->at += f->length;
      return true;
  }
  return false; /* groups are not used by this format */
}

static enum status damaged(struct error *err, const char *message) {
  return error_set(err, STATUS_REFUSED, "the %s of this SentencePiece model is damaged", message);
}

/* ---- messages ---- */

enum piece_type {
  PIECE_NORMAL = 1,
  PIECE_UNKNOWN = 2,
  PIECE_CONTROL = 3,
  PIECE_USER_DEFINED = 4,
  PIECE_UNUSED = 5,
  PIECE_BYTE = 6
};
enum { MODEL_BPE = 2 };

struct text_span {
  const char *data;
  size_t length;
};

struct model {
  float *scores;   /* (vocab->count) */
  bool *mergeable; /* (vocab->count) */
  uint64_t model_type;
  bool byte_fallback, whitespace_as_suffix;
  struct text_span bos, eos, padding, unknown_surface;
  struct sentencepiece_rules rules;
};

static enum status read_piece(struct tokenizer *t, struct model *m, const struct field *message,
                              struct error *err) {
  struct wire w = {message->bytes, message->bytes + message->length};
  struct text_span text = {"", 0};
  uint64_t type = PIECE_NORMAL;
  uint32_t score_bits = 0;
  while (w.at < w.end) {
    struct field f;
    if (!wire_next(&w, &f)) return damaged(err, "vocabulary");
    if (f.number == 1 && f.type == WIRE_BYTES)
      text = (struct text_span){(const char *)f.bytes, f.length};
    if (f.number == 2 && f.type == WIRE_FIXED32) score_bits = (uint32_t)f.value;
    if (f.number == 3 && f.type == WIRE_VARINT) type = f.value;
  }
  int64_t id = (int64_t)t->vocab.count;
  if (type == PIECE_UNUSED || type < PIECE_NORMAL || type > PIECE_BYTE)
    return error_set(err, STATUS_REFUSED, "token %lld has the type %s, which is not supported",
                     (long long)id, type == PIECE_UNUSED ? "UNUSED" : "unknown to this program");
  memcpy(&m->scores[id], &score_bits, sizeof score_bits);
  m->mergeable[id] = type == PIECE_NORMAL || type == PIECE_USER_DEFINED;
  enum status status =
      vocab_put(&t->vocab, id, text.data, text.length, type == PIECE_BYTE ? TOKEN_BYTE : 0, err);
  if (status != STATUS_OK) return status;
  if (type == PIECE_UNKNOWN) {
    if (t->unknown >= 0) return damaged(err, "vocabulary (two unknown tokens)");
    t->unknown = (int32_t)id;
  }
  if (type == PIECE_USER_DEFINED)
    return tokenizer_add_token(t, &t->added_normalized, id, text.data, text.length, 0, err);
  if (type == PIECE_CONTROL || type == PIECE_UNKNOWN)
    return tokenizer_add_token(t, &t->added, id, text.data, text.length, ADDED_SPECIAL, err);
  return STATUS_OK;
}

static enum status read_trainer(struct model *m, const struct field *message, struct error *err) {
  struct wire w = {message->bytes, message->bytes + message->length};
  while (w.at < w.end) {
    struct field f;
    if (!wire_next(&w, &f)) return damaged(err, "trainer settings");
    struct text_span text = {(const char *)f.bytes, f.length};
    if (f.type == WIRE_VARINT) {
      if (f.number == 3) m->model_type = f.value;
      if (f.number == 24) m->whitespace_as_suffix = f.value != 0;
      if (f.number == 35) m->byte_fallback = f.value != 0;
    } else if (f.type == WIRE_BYTES) {
      if (f.number == 44) m->unknown_surface = text;
      if (f.number == 46) m->bos = text;
      if (f.number == 47) m->eos = text;
      if (f.number == 48) m->padding = text;
    }
  }
  return STATUS_OK;
}

static enum status read_normalizer(struct model *m, const struct field *message,
                                   struct error *err) {
  struct wire w = {message->bytes, message->bytes + message->length};
  while (w.at < w.end) {
    struct field f;
    if (!wire_next(&w, &f)) return damaged(err, "normalizer settings");
    if (f.type == WIRE_BYTES && f.number == 2) {
      charsmap_release(&m->rules.charsmap);
      enum status status = charsmap_read(&m->rules.charsmap, f.bytes, f.length, err);
      if (status != STATUS_OK) return status;
    } else if (f.type == WIRE_VARINT) {
      if (f.number == 3) m->rules.add_dummy_prefix = f.value != 0;
      if (f.number == 4) m->rules.remove_extra_whitespaces = f.value != 0;
      if (f.number == 5) m->rules.escape_whitespaces = f.value != 0;
    }
  }
  return STATUS_OK;
}

static enum status read_model(struct tokenizer *t, struct model *m, const uint8_t *data,
                              size_t bytes, struct error *err) {
  struct wire w = {data, data + bytes};
  enum status status = STATUS_OK;
  while (status == STATUS_OK && w.at < w.end) {
    struct field f;
    if (!wire_next(&w, &f)) return damaged(err, "outermost message");
    if (f.type != WIRE_BYTES) continue;
    if (f.number == 1) status = read_piece(t, m, &f, err);
    if (f.number == 2) status = read_trainer(m, &f, err);
    if (f.number == 3) status = read_normalizer(m, &f, err);
  }
  return status;
}

/* ---- the tokenizer ---- */

static int32_t find_text(const struct tokenizer *t, struct text_span text) {
  return vocab_find(&t->vocab, text.data, text.length);
}

static enum status build(struct tokenizer *t, struct model *m, struct error *err) {
  if (m->model_type != MODEL_BPE)
    return error_set(err, STATUS_REFUSED,
                     "SentencePiece model type %llu (1 unigram, 3 word, 4 char) is not supported; "
                     "only BPE (2) is",
                     (unsigned long long)m->model_type);
  if (m->whitespace_as_suffix)
    return error_set(err, STATUS_REFUSED, "treat_whitespace_as_suffix is not supported");
  if (!t->vocab.count || t->unknown < 0) return damaged(err, "vocabulary (no unknown token)");
  struct normalizer_step *step = normalizer_add(&t->normalizer, NORMALIZE_SENTENCEPIECE, err);
  if (!step) return STATUS_REFUSED;
  step->rules = m->rules;
  step->rules.protected_tokens = &t->added_normalized;
  m->rules.charsmap = (struct charsmap){0}; /* now the step's */
  t->decoder.strip_leading_space = m->rules.add_dummy_prefix || m->rules.remove_extra_whitespaces;
  t->decoder.strip_each_token = m->rules.remove_extra_whitespaces;
  t->decoder.byte_fallback = true;
  t->decoder.invalid = INVALID_BY_BYTE;
  t->decoder.replace_count = 1;
  strbuf_puts(&t->decoder.replaces[0].from, "\xe2\x96\x81");
  strbuf_puts(&t->decoder.replaces[0].to, " ");
  strbuf_append(&t->decoder.unknown, m->unknown_surface.data, m->unknown_surface.length);

  if (m->byte_fallback) bpe_find_byte_tokens(&t->bpe, &t->vocab);
  t->bpe.unknown = t->unknown;
  t->bpe.fuse_unknown = true;
  t->bos = find_text(t, m->bos);
  t->eos = find_text(t, m->eos);
  t->padding = find_text(t, m->padding);
  tokenizer_want_bos(t, true); /* unless tokenizer_config.json says otherwise */
  enum status status = bpe_rank_by_score(&t->bpe, m->scores, m->mergeable, err);
  if (status == STATUS_OK) status = bpe_prepare_cuts(&t->bpe, err);
  return status;
}

enum status tokenizer_read_sentencepiece(struct tokenizer *t, const uint8_t *data, size_t bytes,
                                         struct error *err) {
  static const char surface[] = " \xe2\x81\x87 "; /* U+2047 between spaces */
  struct model m = {
      .model_type = 1,
      .bos = {"<s>", 3},
      .eos = {"</s>", 4},
      .padding = {"<pad>", 5},
      .unknown_surface = {surface, sizeof surface - 1},
      .rules = {
          .add_dummy_prefix = true, .remove_extra_whitespaces = true, .escape_whitespaces = true}};
  /* Each piece takes at least two bytes of the file. */
  size_t most = bytes / 2 + 1 < VOCAB_TOKENS_MAX ? bytes / 2 + 1 : VOCAB_TOKENS_MAX;
  m.scores = mem_alloc(most + 1, sizeof *m.scores, err);
  m.mergeable = mem_alloc(most + 1, sizeof *m.mergeable, err);
  enum status status = m.scores && m.mergeable ? STATUS_OK : STATUS_FAILED;
  if (status == STATUS_OK) status = read_model(t, &m, data, bytes, err);
  if (status == STATUS_OK) status = build(t, &m, err);
  charsmap_release(&m.rules.charsmap);
  mem_free(m.scores);
  mem_free(m.mergeable);
  return status;
}
