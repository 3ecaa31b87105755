/* What stands beside a tokenizer in a Hugging Face directory: which tokens are BOS and EOS and
 * whether they are added, which end a turn, and the chat template. Every file is optional.
 *
 * Whether BOS is added beside a tokenizer.json is said by its own post-processor, as transformers
 * reads it since version 5: there add_bos_token counts only beside a tokenizer.model. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "text/parts.h"
#include "text/utf8.h"

/* The object in directory/name, or NULL when there is no such file (status OK). */
static enum status read_optional(const char *directory, const char *name, json_t **out,
                                 struct error *err) {
  char *path = path_join(directory, name);
  enum status status = STATUS_OK;
  *out = NULL;
  if (file_exists(path)) {
    *out = json_read_file(path, TOKENIZER_FILE_BYTES_MAX, err);
    if (!*out) status = STATUS_REFUSED;
    if (*out && !json_is_object(*out))
      status = error_set(err, STATUS_REFUSED, "%s: not a JSON object", path);
  }
  free(path);
  return status;
}

/* "text", or {"content": "text", ...} */
static const char *token_text(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return json_is_string(value) ? json_string_value(value) : json_get_string(value, "content");
}

static void read_token_name(const struct tokenizer *t, const json_t *object, const char *key,
                            int32_t *id) {
  const char *text = token_text(object, key);
  int32_t found = text ? vocab_find(&t->vocab, text, strlen(text)) : -1;
  if (found >= 0) *id = found;
}

static void read_token_names(struct tokenizer *t, const json_t *object) {
  read_token_name(t, object, "bos_token", &t->bos);
  read_token_name(t, object, "eos_token", &t->eos);
  read_token_name(t, object, "unk_token", &t->unknown);
  read_token_name(t, object, "pad_token", &t->padding);
}

static enum status keep_template(struct tokenizer *t, const char *text, struct error *err) {
  if (!text || !*text || strlen(text) > CHAT_TEMPLATE_BYTES_MAX) return STATUS_OK;
  free(t->chat_template);
  t->chat_template = mem_strdup(text, err);
  return t->chat_template ? STATUS_OK : STATUS_FAILED;
}

/* A text, or a list of {"name", "template"}, of which the one named "default" counts. */
static enum status read_template(struct tokenizer *t, const json_t *value, struct error *err) {
  size_t index;
  json_t *item;
  if (json_is_string(value)) return keep_template(t, json_string_value(value), err);
  json_array_foreach(value, index, item) {
    const char *name = json_get_string(item, "name");
    if (name && !strcmp(name, "default"))
      return keep_template(t, json_get_string(item, "template"), err);
  }
  return STATUS_OK;
}

static enum status read_template_file(struct tokenizer *t, const char *directory,
                                      struct error *err) {
  char *path = path_join(directory, "chat_template.jinja"), *text = NULL;
  size_t bytes;
  enum status status = STATUS_OK;
  if (file_exists(path)) {
    status = file_read(path, CHAT_TEMPLATE_BYTES_MAX, &text, &bytes, err);
    if (status == STATUS_OK && utf8_check(text, bytes) < bytes)
      status = error_set(err, STATUS_REFUSED, "%s is not UTF-8", path);
    if (status == STATUS_OK) status = keep_template(t, text, err);
  }
  free(text);
  free(path);
  return status;
}

static uint32_t added_token_flags(const json_t *token) {
  static const struct {
    const char *key;
    uint32_t flag;
  } keys[] = {{"special", ADDED_SPECIAL},
              {"single_word", ADDED_SINGLE_WORD},
              {"lstrip", ADDED_LEFT_STRIP},
              {"rstrip", ADDED_RIGHT_STRIP}};
  uint32_t flags = 0;
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (json_is_true(json_object_get(token, keys[i].key))) flags |= keys[i].flag;
  return flags;
}

/* tokenizer.json lists its added tokens itself; beside a tokenizer.model they stand in
 * tokenizer_config.json, {"id": {"content": ...}}, or in added_tokens.json, {"content": id}. */
static enum status read_added_decoder(struct tokenizer *t, const json_t *config,
                                      struct error *err) {
  const char *key;
  json_t *token;
  json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, token) {
    const char *text = json_get_string(token, "content");
    char *end;
    long long id = strtoll(key, &end, 10);
    if (!text || !*key || *end)
      return error_set(err, STATUS_REFUSED,
                       "tokenizer_config.json: added_tokens_decoder, \"%s\": not an id with a text",
                       key);
    enum status status =
        tokenizer_add_token(t, &t->added, id, text, strlen(text), added_token_flags(token), err);
    if (status != STATUS_OK) return error_prefix(err, "tokenizer_config.json");
  }
  return STATUS_OK;
}

static enum status read_added_file(struct tokenizer *t, const char *directory, struct error *err) {
  json_t *list, *id;
  const char *text;
  enum status status = read_optional(directory, "added_tokens.json", &list, err);
  json_object_foreach(list, text, id) {
    if (status != STATUS_OK) break;
    if (vocab_find(&t->vocab, text, strlen(text)) >= 0) continue;
    status =
        json_is_integer(id)
            ? tokenizer_add_token(t, &t->added, json_integer_value(id), text, strlen(text), 0, err)
            : error_set(err, STATUS_REFUSED, "the id of \"%.100s\" is no integer", text);
    if (status != STATUS_OK) error_prefix(err, "added_tokens.json");
  }
  json_decref(list);
  return status;
}

static enum status read_config(struct tokenizer *t, const char *directory, struct error *err) {
  json_t *config;
  enum status status = read_optional(directory, "tokenizer_config.json", &config, err);
  if (status == STATUS_OK && config) {
    bool wanted, whole = t->source == SOURCE_JSON; /* which lists its tokens and its frame itself */
    if (!whole) status = read_added_decoder(t, config, err);
    read_token_names(t, config);
    if (!whole && json_get_bool(config, "add_bos_token", &wanted, NULL))
      tokenizer_want_bos(t, wanted);
    if (!whole && json_get_bool(config, "add_eos_token", &wanted, NULL))
      tokenizer_want_eos(t, wanted);
    if (status == STATUS_OK)
      status = read_template(t, json_object_get(config, "chat_template"), err);
  }
  json_decref(config);
  return status;
}

static enum status read_special_map(struct tokenizer *t, const char *directory, struct error *err) {
  json_t *map;
  enum status status = read_optional(directory, "special_tokens_map.json", &map, err);
  if (status == STATUS_OK && map) read_token_names(t, map);
  json_decref(map);
  return status;
}

/* eos_token_id: one id or a list of them. */
static enum status read_generation(struct tokenizer *t, const char *directory, struct error *err) {
  json_t *config, *id;
  size_t index;
  enum status status = read_optional(directory, "generation_config.json", &config, err);
  if (status == STATUS_OK && config) {
    const json_t *ends = json_object_get(config, "eos_token_id");
    if (json_is_integer(ends)) tokenizer_add_end(t, json_integer_value(ends));
    json_array_foreach(ends, index, id) {
      if (json_is_integer(id)) tokenizer_add_end(t, json_integer_value(id));
    }
  }
  json_decref(config);
  return status;
}

enum status tokenizer_read_settings(struct tokenizer *t, const char *directory, struct error *err) {
  enum status status = STATUS_OK;
  if (t->source == SOURCE_SENTENCEPIECE) status = read_added_file(t, directory, err);
  if (status == STATUS_OK) status = read_special_map(t, directory, err);
  if (status == STATUS_OK) status = read_config(t, directory, err);
  if (status == STATUS_OK) status = read_generation(t, directory, err);
  if (status == STATUS_OK) status = read_template_file(t, directory, err);
  return status;
}
