/* Typed reading of configuration keys from JSON or GGUF, with limits and the first error kept. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/family.h"

void config_refuse(struct config_reader *in, const char *format, ...) {
  if (in->status != STATUS_OK) return;
  va_list args;
  va_start(args, format);
  in->status = error_setv(in->err, STATUS_REFUSED, format, args);
  va_end(args);
  error_prefix(in->err, "%s", in->path);
}

/* GGUF keys are "<architecture>.<key>", but for those that start with "general." and the like. */
static const char *gguf_key(const struct config_reader *in, const char *key, char room[160]) {
  if (!strncmp(key, "general.", 8) || !strncmp(key, "tokenizer.", 10)) return key;
  snprintf(room, 160, "%s.%s", in->prefix, key);
  return room;
}

bool config_has(const struct config_reader *in, const char *key) {
  char room[160];
  if (in->gguf) return gguf_find(in->gguf, gguf_key(in, key, room)) != NULL;
  const json_t *member = json_object_get(in->json, key);
  return member && !json_is_null(member);
}

void config_read_int(struct config_reader *in, const char *key, int64_t low, int64_t high,
                     int64_t *out) {
  char room[160];
  int64_t value = 0;
  if (in->status != STATUS_OK || !config_has(in, key)) return;
  bool found = in->gguf ? gguf_get_int(in->gguf, gguf_key(in, key, room), &value)
                        : json_get_int(in->json, key, &value, NULL);
  if (!found) {
    config_refuse(in, "\"%s\" is not one whole number; tessera cannot use this model", key);
    return;
  }
  if (value < low || value > high) {
    config_refuse(in, "\"%s\" is %lld, outside the range %lld to %lld", key, (long long)value,
                  (long long)low, (long long)high);
    return;
  }
  *out = value;
}

void config_read_real(struct config_reader *in, const char *key, double low, double high,
                      double *out) {
  char room[160];
  double value = 0;
  int64_t whole;
  if (in->status != STATUS_OK || !config_has(in, key)) return;
  bool found;
  if (in->gguf) {
    found = gguf_get_real(in->gguf, gguf_key(in, key, room), &value);
    if (!found && gguf_get_int(in->gguf, room, &whole)) found = true, value = (double)whole;
  } else {
    found = json_get_real(in->json, key, &value, NULL);
    if (!found && json_get_int(in->json, key, &whole, NULL)) found = true, value = (double)whole;
  }
  if (!found) {
    config_refuse(in, "\"%s\" is not a number; tessera cannot use this model", key);
    return;
  }
  if (!(value >= low && value <= high)) {
    config_refuse(in, "\"%s\" is %g, outside the range %g to %g", key, value, low, high);
    return;
  }
  *out = value;
}

void config_read_bool(struct config_reader *in, const char *key, bool *out) {
  char room[160];
  if (in->status != STATUS_OK || !config_has(in, key)) return;
  bool found = in->gguf ? gguf_get_bool(in->gguf, gguf_key(in, key, room), out)
                        : json_get_bool(in->json, key, out, NULL);
  if (!found) config_refuse(in, "\"%s\" is neither true nor false", key);
}

const char *config_read_string(struct config_reader *in, const char *key, char *room, size_t size) {
  if (in->status != STATUS_OK || !config_has(in, key)) return NULL;
  char name[160];
  struct gguf_string text = {0};
  if (in->gguf) {
    if (!gguf_get_string(in->gguf, gguf_key(in, key, name), &text)) text.data = NULL;
  } else {
    text.data = json_get_string(in->json, key);
    text.length = text.data ? strlen(text.data) : 0;
  }
  if (!text.data || text.length >= size || memchr(text.data, 0, text.length)) {
    config_refuse(in, "\"%s\" is not a short text", key);
    return NULL;
  }
  memcpy(room, text.data, text.length);
  room[text.length] = 0;
  return room;
}

void config_read_layer_types(struct config_reader *in, struct model_config *config) {
  const json_t *types = json_object_get(in->json, "layer_types");
  if (in->status != STATUS_OK || !types || json_is_null(types)) return;
  if (!json_is_array(types) || json_array_size(types) != (size_t)config->layers) {
    config_refuse(in, "\"layer_types\" is not a list of %d entries, one per layer", config->layers);
    return;
  }
  for (int i = 0; i < config->layers; i++) {
    const char *type = json_string_value(json_array_get(types, (size_t)i));
    bool sliding = type && !strcmp(type, "sliding_attention");
    if (!sliding && (!type || strcmp(type, "full_attention") != 0)) {
      config_refuse(in, "layer type \"%s\" is not supported (full_attention, sliding_attention)",
                    type ? type : "?");
      return;
    }
    config->layer_sliding[i] = sliding;
  }
}

void config_write_layer_types(const struct model_config *config, json_t *json) {
  json_t *types = json_array();
  for (int i = 0; i < config->layers; i++)
    json_array_append_new(
        types, json_string(config->layer_sliding[i] ? "sliding_attention" : "full_attention"));
  json_object_set_new(json, "layer_types", types);
}
