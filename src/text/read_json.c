/* tokenizer.json, the format of Hugging Face's tokenizers: a model (BPE) and the parts around it.
 * A part that is not supported is refused by its type's name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "text/parts.h"

/* ---- members ---- */

static enum status refuse(struct error *err, const char *part, const char *type) {
  return error_set(err, STATUS_REFUSED, "%s \"%s\" is not supported", part, type);
}

static enum status wrong_member(struct error *err, const char *part, const char *key) {
  return error_set(err, STATUS_REFUSED, "member \"%s\" of %s is missing or of another type", key,
                   part);
}

static bool is_text(const json_t *value) { return json_is_string(value); }

/* false = absent; absent members have the value the caller put there */
static bool get_flag(const json_t *object, const char *key, bool *out) {
  return json_get_bool(object, key, out, NULL);
}

/* ---- vocabulary and merges ---- */

static enum status read_vocab(struct tokenizer *t, const json_t *vocab, struct error *err) {
  const char *text;
  json_t *id;
  enum status status = STATUS_OK;
  if (!json_is_object(vocab) || !json_object_size(vocab))
    return wrong_member(err, "model", "vocab");
  json_object_foreach((json_t *)vocab, text, id) {
    if (!json_is_integer(id))
      return error_set(err, STATUS_REFUSED, "the id of token \"%.200s\" is no integer", text);
    status = vocab_put(&t->vocab, json_integer_value(id), text, strlen(text), 0, err);
    if (status != STATUS_OK) return status;
  }
  return status;
}

/* A merge is "left right" or ["left", "right"]. */
static bool split_merge(const json_t *merge, const char **left, size_t *left_length,
                        const char **right, size_t *right_length) {
  if (json_array_size(merge) == 2) {
    const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
    if (!is_text(a) || !is_text(b)) return false;
    *left = json_string_value(a);
    *left_length = json_string_length(a);
    *right = json_string_value(b);
    *right_length = json_string_length(b);
    return true;
  }
  if (!is_text(merge)) return false;
  const char *text = json_string_value(merge), *space = strchr(text, ' ');
  if (!space) return false;
  *left = text;
  *left_length = (size_t)(space - text);
  *right = space + 1;
  *right_length = strlen(*right);
  return true;
}

static enum status read_merges(struct tokenizer *t, const json_t *merges, struct error *err) {
  if (!json_is_array(merges)) return wrong_member(err, "model", "merges");
  enum status status = bpe_reserve_pairs(&t->bpe, json_array_size(merges), err);
  size_t rank;
  json_t *merge;
  json_array_foreach(merges, rank, merge) {
    const char *left, *right;
    size_t left_length, right_length;
    if (status != STATUS_OK) return status;
    if (!split_merge(merge, &left, &left_length, &right, &right_length))
      return error_set(err, STATUS_REFUSED, "merge %zu is neither \"a b\" nor [\"a\", \"b\"]",
                       rank);
    status =
        bpe_add_pair(&t->bpe, left, left_length, right, right_length, (uint32_t)rank, true, err);
  }
  return status;
}

static enum status read_model(struct tokenizer *t, const json_t *model, struct error *err) {
  const char *type = json_get_string(model, "type");
  if (!json_is_object(model)) return wrong_member(err, "the file", "model");
  if (type && strcmp(type, "BPE") != 0) return refuse(err, "tokenizer model", type);
  const char *prefix = json_get_string(model, "continuing_subword_prefix");
  const char *suffix = json_get_string(model, "end_of_word_suffix");
  double dropout = 0;
  if ((prefix && *prefix) || (suffix && *suffix))
    return refuse(err, "BPE with a subword mark", prefix && *prefix ? prefix : suffix);
  if (json_get_real(model, "dropout", &dropout, NULL) && dropout != 0)
    return refuse(err, "BPE with", "dropout");
  enum status status = read_vocab(t, json_object_get(model, "vocab"), err);
  if (status == STATUS_OK) status = read_merges(t, json_object_get(model, "merges"), err);
  if (status != STATUS_OK) return status;

  bool byte_fallback = false;
  get_flag(model, "byte_fallback", &byte_fallback);
  get_flag(model, "fuse_unk", &t->bpe.fuse_unknown);
  get_flag(model, "ignore_merges", &t->bpe.ignore_merges);
  if (byte_fallback) bpe_find_byte_tokens(&t->bpe, &t->vocab);
  const char *unknown = json_get_string(model, "unk_token");
  if (unknown) {
    t->unknown = t->bpe.unknown = vocab_find(&t->vocab, unknown, strlen(unknown));
    if (t->unknown < 0)
      return error_set(err, STATUS_REFUSED, "the unknown token \"%s\" is not in the vocabulary",
                       unknown);
  }
  return STATUS_OK;
}

/* ---- patterns, shared by Split and Replace ---- */

/* {"String": text} or {"Regex": text} */
static enum status read_pattern(const json_t *owner, const char *part, const json_t **text,
                                bool *literal, struct error *err) {
  const json_t *pattern = json_object_get(owner, "pattern");
  const json_t *string = json_object_get(pattern, "String");
  *literal = string != NULL;
  *text = string ? string : json_object_get(pattern, "Regex");
  return is_text(*text) ? STATUS_OK : wrong_member(err, part, "pattern");
}

/* Calls `read` for the object, or for each of its members when it is a Sequence. */
static enum status for_each(struct tokenizer *t, const json_t *part, const char *list_key,
                            const char *what,
                            enum status (*read)(struct tokenizer *, const json_t *, const char *,
                                                struct error *),
                            struct error *err) {
  if (!part || json_is_null(part)) return STATUS_OK;
  const char *type = json_get_string(part, "type");
  if (!type) return wrong_member(err, what, "type");
  if (strcmp(type, "Sequence") != 0) return read(t, part, type, err);
  const json_t *list = json_object_get(part, list_key);
  if (!json_is_array(list)) return wrong_member(err, what, list_key);
  size_t index;
  json_t *item;
  enum status status = STATUS_OK;
  json_array_foreach(list, index, item) {
    if (status == STATUS_OK) status = for_each(t, item, list_key, what, read, err);
  }
  return status;
}

/* ---- normalizers ---- */

static enum status read_replace(struct tokenizer *t, const json_t *part, struct error *err) {
  const json_t *pattern, *content = json_object_get(part, "content");
  bool literal;
  enum status status = read_pattern(part, "a Replace normalizer", &pattern, &literal, err);
  if (status != STATUS_OK) return status;
  if (!is_text(content)) return wrong_member(err, "a Replace normalizer", "content");
  struct normalizer_step *step = normalizer_add(&t->normalizer, NORMALIZE_REPLACE, err);
  if (!step) return STATUS_REFUSED;
  strbuf_append(&step->content, json_string_value(content), json_string_length(content));
  return regex_new(&step->pattern, json_string_value(pattern), json_string_length(pattern), literal,
                   err);
}

static enum status read_normalizer(struct tokenizer *t, const json_t *part, const char *type,
                                   struct error *err) {
  static const struct {
    const char *type;
    enum normalizer_kind kind;
  } plain[] = {{"NFC", NORMALIZE_NFC},        {"NFD", NORMALIZE_NFD},
               {"NFKC", NORMALIZE_NFKC},      {"NFKD", NORMALIZE_NFKD},
               {"Strip", NORMALIZE_STRIP},    {"Lowercase", NORMALIZE_LOWERCASE},
               {"Prepend", NORMALIZE_PREPEND}};
  if (!strcmp(type, "Replace")) return read_replace(t, part, err);
  for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
    if (strcmp(type, plain[i].type) != 0) continue;
    struct normalizer_step *step = normalizer_add(&t->normalizer, plain[i].kind, err);
    if (!step) return STATUS_REFUSED;
    const char *prepend = json_get_string(part, "prepend");
    if (step->kind == NORMALIZE_PREPEND && !prepend)
      return wrong_member(err, "a Prepend normalizer", "prepend");
    if (step->kind == NORMALIZE_PREPEND) strbuf_puts(&step->content, prepend);
    step->left = step->right = true;
    get_flag(part, "strip_left", &step->left);
    get_flag(part, "strip_right", &step->right);
    return STATUS_OK;
  }
  return refuse(err, "normalizer", type);
}

/* ---- pre-tokenizers ---- */

static enum status read_split(struct tokenizer *t, const json_t *part, struct error *err) {
  static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious",
                                          "MergedWithNext", "Contiguous"};
  const json_t *pattern;
  bool literal, invert = false;
  enum status status = read_pattern(part, "a Split pre-tokenizer", &pattern, &literal, err);
  if (status != STATUS_OK) return status;
  get_flag(part, "invert", &invert);
  const char *behavior = json_get_string(part, "behavior");
  for (int i = 0; behavior && i < 5; i++)
    if (!strcmp(behavior, behaviors[i]))
      return pretokenizer_add_split(&t->pretokenizer, json_string_value(pattern),
                                    json_string_length(pattern), literal, (enum split_behavior)i,
                                    invert, err);
  return behavior ? refuse(err, "split behavior", behavior)
                  : wrong_member(err, "a Split pre-tokenizer", "behavior");
}

static enum status read_byte_level(struct tokenizer *t, const json_t *part, struct error *err) {
  bool use_regex = true, add_prefix_space = true;
  get_flag(part, "use_regex", &use_regex);
  get_flag(part, "add_prefix_space", &add_prefix_space);
  t->byte_level = true;
  if (add_prefix_space && !pretokenizer_add(&t->pretokenizer, PRETOKENIZE_PREFIX, err))
    return STATUS_REFUSED;
  return use_regex ? pretokenizer_add_gpt2(&t->pretokenizer, err) : STATUS_OK;
}

static enum status read_prepend_scheme(const json_t *part, enum prepend_scheme *scheme,
                                       struct error *err) {
  static const char *const names[] = {"never", "first", "always"};
  const char *name = json_get_string(part, "prepend_scheme");
  bool add_prefix_space = true; /* what older files say */
  get_flag(part, "add_prefix_space", &add_prefix_space);
  *scheme = add_prefix_space ? PREPEND_ALWAYS : PREPEND_NEVER;
  for (int i = 0; name && i < 3; i++)
    if (!strcmp(name, names[i])) {
      *scheme = (enum prepend_scheme)i;
      return STATUS_OK;
    }
  return name ? refuse(err, "prepend scheme", name) : STATUS_OK;
}

static enum status read_metaspace(struct tokenizer *t, const json_t *part, struct error *err) {
  const char *replacement = json_get_string(part, "replacement");
  bool split = true;
  struct pretokenizer_step *step = pretokenizer_add(&t->pretokenizer, PRETOKENIZE_METASPACE, err);
  if (!step) return STATUS_REFUSED;
  if (!replacement || !*replacement || strlen(replacement) > 4)
    return wrong_member(err, "a Metaspace pre-tokenizer", "replacement");
  snprintf(step->replacement, sizeof step->replacement, "%s", replacement);
  enum status status = read_prepend_scheme(part, &step->prepend, err);
  get_flag(part, "split", &split);
  if (status != STATUS_OK || !split) return status;
  return pretokenizer_add_split(&t->pretokenizer, replacement, strlen(replacement), true,
                                SPLIT_MERGED_WITH_NEXT, false, err);
}

static enum status read_pretokenizer(struct tokenizer *t, const json_t *part, const char *type,
                                     struct error *err) {
  if (t->byte_level) return refuse(err, "a pre-tokenizer behind ByteLevel:", type);
  if (!strcmp(type, "Split")) return read_split(t, part, err);
  if (!strcmp(type, "ByteLevel")) return read_byte_level(t, part, err);
  if (!strcmp(type, "Metaspace")) return read_metaspace(t, part, err);
  if (!strcmp(type, "Digits")) {
    bool individual = false;
    get_flag(part, "individual_digits", &individual);
    return pretokenizer_add_split(&t->pretokenizer, "\\p{N}", 5, false,
                                  individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false, err);
  }
  return refuse(err, "pre-tokenizer", type);
}

/* ---- decoders ---- */

static enum status add_decoder_replace(struct tokenizer *t, const char *from, const char *to,
                                       struct error *err) {
  struct decoder *d = &t->decoder;
  if (d->replace_count == DECODER_REPLACES_MAX || !*from)
    return refuse(err, "a decoder that replaces", from);
  strbuf_puts(&d->replaces[d->replace_count].from, from);
  strbuf_puts(&d->replaces[d->replace_count++].to, to);
  return STATUS_OK;
}

static enum status read_strip_decoder(struct tokenizer *t, const json_t *part, struct error *err) {
  const char *content = json_get_string(part, "content");
  int64_t start = 0, stop = 0;
  json_get_int(part, "start", &start, NULL);
  json_get_int(part, "stop", &stop, NULL);
  if (!content || strcmp(content, " ") != 0 || start != 1 || stop != 0)
    return refuse(err, "decoder", "Strip of anything but one leading space");
  t->decoder.strip_leading_space = true;
  return STATUS_OK;
}

static enum status read_metaspace_decoder(struct tokenizer *t, const json_t *part,
                                          struct error *err) {
  const char *replacement = json_get_string(part, "replacement");
  enum prepend_scheme scheme;
  enum status status = read_prepend_scheme(part, &scheme, err);
  if (status != STATUS_OK) return status;
  t->decoder.first_without_spaces = scheme != PREPEND_NEVER;
  return add_decoder_replace(t, replacement ? replacement : "\xe2\x96\x81", " ", err);
}

static enum status read_decoder(struct tokenizer *t, const json_t *part, const char *type,
                                struct error *err) {
  if (!strcmp(type, "ByteLevel")) {
    t->decoder.byte_level = true;
    return STATUS_OK;
  }
  if (!strcmp(type, "Fuse")) return STATUS_OK; /* tokens are always joined without a gap */
  if (!strcmp(type, "ByteFallback")) {
    t->decoder.byte_fallback = true;
    t->decoder.invalid = INVALID_BY_RUN;
    return STATUS_OK;
  }
  if (!strcmp(type, "Strip")) return read_strip_decoder(t, part, err);
  if (!strcmp(type, "Metaspace")) return read_metaspace_decoder(t, part, err);
  if (strcmp(type, "Replace") != 0) return refuse(err, "decoder", type);
  const json_t *pattern;
  bool literal;
  const char *content = json_get_string(part, "content");
  enum status status = read_pattern(part, "a Replace decoder", &pattern, &literal, err);
  if (status != STATUS_OK) return status;
  if (!literal || !content) return refuse(err, "decoder", "Replace by a regular expression");
  return add_decoder_replace(t, json_string_value(pattern), content, err);
}

/* ---- post-processors ---- */

static enum status add_template_ids(struct tokenizer *t, const json_t *ids, bool behind,
                                    struct error *err) {
  size_t index;
  json_t *id;
  int *count = behind ? &t->tail_count : &t->head_count;
  json_array_foreach(ids, index, id) {
    if (!json_is_integer(id) || !vocab_has(&t->vocab, json_integer_value(id)) ||
        *count == TEMPLATE_IDS_MAX)
      return wrong_member(err, "a TemplateProcessing", "ids");
    (behind ? t->tail : t->head)[(*count)++] = (int32_t)json_integer_value(id);
  }
  return STATUS_OK;
}

static enum status read_template(struct tokenizer *t, const json_t *part, struct error *err) {
  const json_t *single = json_object_get(part, "single");
  size_t index;
  json_t *item;
  bool behind = false;
  if (!json_is_array(single)) return wrong_member(err, "a TemplateProcessing", "single");
  json_array_foreach(single, index, item) {
    if (json_object_get(item, "Sequence")) {
      behind = true;
      continue;
    }
    const char *name = json_get_string(json_object_get(item, "SpecialToken"), "id");
    const json_t *token =
        name ? json_object_get(json_object_get(part, "special_tokens"), name) : NULL;
    const json_t *ids = json_object_get(token, "ids");
    if (!json_is_array(ids)) return wrong_member(err, "a TemplateProcessing", "special_tokens");
    enum status status = add_template_ids(t, ids, behind, err);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static enum status read_postprocessor(struct tokenizer *t, const json_t *part, const char *type,
                                      struct error *err) {
  if (!strcmp(type, "TemplateProcessing")) return read_template(t, part, err);
  if (!strcmp(type, "ByteLevel")) return STATUS_OK; /* trims offsets, which are not kept */
  return refuse(err, "post-processor", type);
}

/* ---- added tokens ---- */

static enum status read_added_token(struct tokenizer *t, const json_t *token,
                                    struct regex_scratch *scratch, struct error *err) {
  static const struct {
    const char *key;
    uint32_t flag;
  } keys[] = {{"special", ADDED_SPECIAL},
              {"single_word", ADDED_SINGLE_WORD},
              {"lstrip", ADDED_LEFT_STRIP},
              {"rstrip", ADDED_RIGHT_STRIP}};
  const json_t *content = json_object_get(token, "content");
  int64_t id;
  uint32_t flags = 0;
  if (!is_text(content) || !json_get_int(token, "id", &id, NULL))
    return wrong_member(err, "an added token", "content\" or \"id");
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    bool set = false;
    if (get_flag(token, keys[i].key, &set) && set) flags |= keys[i].flag;
  }
  bool normalized = !(flags & ADDED_SPECIAL);
  get_flag(token, "normalized", &normalized);
  const char *text = json_string_value(content);
  size_t length = json_string_length(content);
  if (!normalized) return tokenizer_add_token(t, &t->added, id, text, length, flags, err);

  struct added_tokens none = {0}; /* registers the token; its normalized text is what is matched */
  struct strbuf out = {0}, spare = {0};
  enum status status = tokenizer_add_token(t, &none, id, text, length, flags, err);
  int32_t known = vocab_find(&t->vocab, text, length);
  if (status == STATUS_OK)
    status = normalizer_run(&t->normalizer, scratch, text, length, &out, &spare, err);
  if (status == STATUS_OK)
    status = added_put(&t->added_normalized, strbuf_text(&out), out.length, known, flags, err);
  added_release(&none);
  strbuf_free(&out);
  strbuf_free(&spare);
  return status;
}

static enum status read_added(struct tokenizer *t, const json_t *list, struct error *err) {
  if (!list || json_is_null(list)) return STATUS_OK;
  if (!json_is_array(list)) return wrong_member(err, "the file", "added_tokens");
  struct regex_scratch *scratch = regex_scratch_new(err);
  enum status status = scratch ? STATUS_OK : STATUS_FAILED;
  size_t index;
  json_t *token;
  json_array_foreach(list, index, token) {
    if (status == STATUS_OK) status = read_added_token(t, token, scratch, err);
  }
  regex_scratch_free(scratch);
  return status;
}

/* ---- the file ---- */

enum status tokenizer_read_json(struct tokenizer *t, const char *data, size_t bytes,
                                struct error *err) {
  json_t *root = json_parse(data, bytes, "tokenizer.json", err);
  if (!root) return STATUS_REFUSED;
  enum status status = json_is_object(root) ? read_model(t, json_object_get(root, "model"), err)
                                            : wrong_member(err, "the file", "model");
  if (status == STATUS_OK)
    status = for_each(t, json_object_get(root, "normalizer"), "normalizers", "a normalizer",
                      read_normalizer, err);
  if (status == STATUS_OK)
    status = for_each(t, json_object_get(root, "pre_tokenizer"), "pretokenizers", "a pre-tokenizer",
                      read_pretokenizer, err);
  if (status == STATUS_OK) status = read_added(t, json_object_get(root, "added_tokens"), err);
  if (status == STATUS_OK)
    status = for_each(t, json_object_get(root, "post_processor"), "processors", "a post-processor",
                      read_postprocessor, err);
  t->decoder.join_with_spaces = !json_is_object(json_object_get(root, "decoder"));
  if (status == STATUS_OK)
    status =
        for_each(t, json_object_get(root, "decoder"), "decoders", "a decoder", read_decoder, err);
  if (status == STATUS_OK && t->head_count) t->bos = t->head[0];
  if (status == STATUS_OK && t->tail_count) t->eos = t->tail[t->tail_count - 1];
  /* A dropped unknown character makes its neighbours meet, so that no cut would be safe. */
  if (status == STATUS_OK && !t->byte_level && t->unknown >= 0)
    status = bpe_prepare_cuts(&t->bpe, err);
  json_decref(root);
  return status;
}
