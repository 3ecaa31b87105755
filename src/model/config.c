/* config.json to struct model_config and back, and the checks that both sources share.
 *
 * Two forms of rotary settings are in use: transformers up to 4 wrote rope_theta and rope_scaling,
 * 5 writes rope_parameters, flat or per layer type. Both are read; the older is written, since
 * every version reads that. */
#include "model/config.h"

#include <math.h>
#include <string.h>

#include "model/config_check.h"
#include "model/family.h"

enum { NAME_BYTES = 128 };
static const double REAL_MAX = 1e15;

static void read_scaling(struct config_reader *in, int64_t context, struct rope_config *rope) {
  char room[NAME_BYTES];
  const char *type = config_read_string(in, "rope_type", room, sizeof room);
  if (!type) type = config_read_string(in, "type", room, sizeof room);
  config_read_real(in, "rope_theta", 1, REAL_MAX, &rope->theta);
  if (in->status != STATUS_OK || !type || !strcmp(type, "default")) return;
  bool linear = !strcmp(type, "linear");
  if (!linear && strcmp(type, "llama3") != 0) {
    config_refuse(in, "rotary scaling \"%s\" is not supported (default, linear, llama3)", type);
    return;
  }
  if (!config_has(in, "factor")) config_refuse(in, "rotary scaling \"%s\" has no factor", type);
  rope->scaling = linear ? ROPE_LINEAR : ROPE_LLAMA3;
  config_read_real(in, "factor", 1e-3, 1e6, &rope->factor);
  if (linear) return;
  if (!config_has(in, "low_freq_factor") || !config_has(in, "high_freq_factor"))
    config_refuse(in, "rotary scaling \"llama3\" lacks low_freq_factor or high_freq_factor");
  rope->original_context = (double)context;
  config_read_real(in, "low_freq_factor", 1e-6, 1e6, &rope->low_freq_factor);
  config_read_real(in, "high_freq_factor", 1e-6, 1e6, &rope->high_freq_factor);
  config_read_real(in, "original_max_position_embeddings", 1, 1e9, &rope->original_context);
}

static void read_rope_object(struct config_reader *in, const json_t *object, int64_t context,
                             struct rope_config *rope) {
  if (in->status != STATUS_OK || !object || json_is_null(object)) return;
  if (!json_is_object(object)) {
    config_refuse(in, "the rotary settings are not an object");
    return;
  }
  struct config_reader inner = *in;
  inner.json = object;
  read_scaling(&inner, context, rope);
  double partial = 1;
  config_read_real(&inner, "partial_rotary_factor", 0, 1, &partial);
  if (partial != 1) config_refuse(&inner, "partial rotary embedding is not supported");
  in->status = inner.status;
}

static void read_rope(struct config_reader *in, struct model_config *config) {
  const json_t *parameters = json_object_get(in->json, "rope_parameters");
  const json_t *full = json_object_get(parameters, "full_attention");
  const json_t *sliding = json_object_get(parameters, "sliding_attention");
  config_read_real(in, "rope_theta", 1, REAL_MAX, &config->rope.theta);
  config_read_real(in, "rope_local_base_freq", 1, REAL_MAX, &config->rope_sliding.theta);
  if (full || sliding) {
    read_rope_object(in, full, config->context_length, &config->rope);
    read_rope_object(in, sliding, config->context_length, &config->rope_sliding);
  } else {
    if (!json_is_object(parameters)) parameters = json_object_get(in->json, "rope_scaling");
    read_rope_object(in, parameters, config->context_length, &config->rope);
  }
  double partial = 1;
  config_read_real(in, "partial_rotary_factor", 0, 1, &partial);
  if (partial != 1) config_refuse(in, "partial rotary embedding is not supported");
}

static void read_activation(struct config_reader *in, struct model_config *config) {
  char room[NAME_BYTES];
  const char *name = config_read_string(in, "hidden_activation", room, sizeof room);
  if (!name) name = config_read_string(in, "hidden_act", room, sizeof room);
  if (!name) return;
  if (!strcmp(name, "silu") || !strcmp(name, "swish"))
    config->activation = ACTIVATION_SILU;
  else if (!strcmp(name, "gelu_pytorch_tanh") || !strcmp(name, "gelu_new"))
    config->activation = ACTIVATION_GELU_TANH;
  else
    config_refuse(in, "activation \"%s\" is not supported (silu, gelu_pytorch_tanh)", name);
}

/* One id, or a list of which the first counts. */
static void read_special_id(struct config_reader *in, const char *key, int64_t *out) {
  const json_t *value = json_object_get(in->json, key);
  if (json_is_array(value)) value = json_array_get(value, 0);
  if (!value || json_is_null(value)) return;
  if (!json_is_integer(value) || json_integer_value(value) < -1 ||
      json_integer_value(value) > INT32_MAX)
    config_refuse(in, "\"%s\" is not a token id", key);
  else
    *out = json_integer_value(value);
}

static void read_sizes(struct config_reader *in, struct model_config *config) {
  int64_t layers = config->layers, heads = config->heads, kv_heads = config->kv_heads;
  config_read_int(in, "vocab_size", 1, MODEL_VOCAB_MAX, &config->vocab_size);
  config_read_int(in, "hidden_size", 1, MODEL_WIDTH_MAX, &config->hidden_size);
  config_read_int(in, "intermediate_size", 1, MODEL_WIDTH_MAX, &config->intermediate_size);
  config_read_int(in, "num_hidden_layers", 1, MODEL_LAYERS_MAX, &layers);
  config_read_int(in, "num_attention_heads", 1, MODEL_HEADS_MAX, &heads);
  config_read_int(in, "num_key_value_heads", 1, MODEL_HEADS_MAX, &kv_heads);
  if (json_is_null(json_object_get(in->json, "num_key_value_heads"))) kv_heads = heads;
  config_read_int(in, "head_dim", 2, MODEL_HEAD_DIM_MAX, &config->head_dim);
  config_read_int(in, "max_position_embeddings", 1, MODEL_CONTEXT_MAX, &config->context_length);
  config_read_int(in, "sliding_window", 1, MODEL_CONTEXT_MAX, &config->sliding_window);
  config->layers = (int)layers;
  config->heads = (int)heads;
  config->kv_heads = (int)kv_heads;
}

static void read_common(struct config_reader *in, struct model_config *config) {
  read_sizes(in, config);
  config_read_real(in, "rms_norm_eps", 0, 1, &config->rms_eps);
  config_read_bool(in, "tie_word_embeddings", &config->tied_embeddings);
  if (config->family->json_attention_bias) {
    config_read_bool(in, "attention_bias", &config->qkv_bias);
    config->o_bias = config->qkv_bias;
  }
  read_activation(in, config);
  read_special_id(in, "bos_token_id", &config->bos_id);
  read_special_id(in, "eos_token_id", &config->eos_id);
  read_rope(in, config);
}

/* Quantized checkpoints have other tensors than their family's; saying so beats "missing". */
static void refuse_quantized(struct config_reader *in) {
  const json_t *quantization = json_object_get(in->json, "quantization_config");
  if (!json_is_object(quantization)) return;
  const char *method = json_get_string(quantization, "quant_method");
  config_refuse(in, "quantized checkpoints (\"%s\") are not supported; use the original weights",
                method ? method : "unknown");
}

static const struct model_family *family_of_type(const char *type, bool *wrapped) {
  for (int i = 0; model_families[i]; i++) {
    const struct model_family *f = model_families[i];
    *wrapped = f->wrapper_type && !strcmp(type, f->wrapper_type);
    if (*wrapped || !strcmp(type, f->model_type)) return f;
  }
  return NULL;
}

static const struct model_family *recognise(struct config_reader *in, bool *wrapped) {
  char room[NAME_BYTES], list[256];
  const char *type = config_read_string(in, "model_type", room, sizeof room);
  model_family_list(list, sizeof list);
  if (!type) {
    config_refuse(in, "\"model_type\" is missing: this is no language model's config.json");
    return NULL;
  }
  const struct model_family *family = family_of_type(type, wrapped);
  if (!family) {
    config_refuse(in, "models of type \"%s\" are not supported (%s are)", type, list);
    return NULL;
  }
  const char *class =
      json_string_value(json_array_get(json_object_get(in->json, "architectures"), 0));
  if (!*wrapped && class && strcmp(class, family->architecture) != 0)
    config_refuse(in, "architecture \"%s\" is not supported; this family's is \"%s\"", class,
                  family->architecture);
  return family;
}

enum status model_config_from_json(struct model_config *out, const json_t *json, const char *path,
                                   struct error *err) {
  struct config_reader in = {.json = json, .path = path, .err = err};
  bool wrapped = false;
  if (!json_is_object(json)) {
    config_refuse(&in, "this is not a JSON object");
    return in.status;
  }
  const struct model_family *family = recognise(&in, &wrapped);
  if (in.status != STATUS_OK) return in.status;
  struct model_config config = config_blank(family);
  config.norm_plus_one = family->norm_plus_one;
  refuse_quantized(&in);
  if (wrapped) {
    config_read_bool(&in, "tie_word_embeddings", &config.tied_embeddings);
    in.json = json_object_get(json, "text_config");
    if (!json_is_object(in.json)) config_refuse(&in, "\"text_config\" is missing");
  }
  if (in.status == STATUS_OK) read_common(&in, &config);
  if (in.status == STATUS_OK) config_settle(&config);
  if (in.status == STATUS_OK && family->read_json) family->read_json(&in, &config);
  if (in.status == STATUS_OK) config_check(&in, &config);
  if (in.status == STATUS_OK) *out = config;
  return in.status;
}

static json_t *scaling_to_json(const struct rope_config *rope) {
  if (rope->scaling == ROPE_PLAIN) return json_null();
  bool llama3 = rope->scaling == ROPE_LLAMA3;
  json_t *json = json_object();
  json_object_set_new(json, "rope_type", json_string(llama3 ? "llama3" : "linear"));
  json_object_set_new(json, "factor", json_real(rope->factor));
  if (llama3) {
    json_object_set_new(json, "low_freq_factor", json_real(rope->low_freq_factor));
    json_object_set_new(json, "high_freq_factor", json_real(rope->high_freq_factor));
    json_object_set_new(json, "original_max_position_embeddings",
                        json_integer((json_int_t)rope->original_context));
  }
  return json;
}

static void set_id(json_t *json, const char *key, int64_t id) {
  json_object_set_new(json, key, id >= 0 ? json_integer(id) : json_null());
}

json_t *model_config_to_json(const struct model_config *c, const char *torch_dtype) {
  bool gelu = c->activation == ACTIVATION_GELU_TANH;
  json_t *json = json_object(), *classes = json_array();
  json_array_append_new(classes, json_string(c->family->architecture));
  json_object_set_new(json, "architectures", classes);
  json_object_set_new(json, "model_type", json_string(c->family->model_type));
  json_object_set_new(json, "vocab_size", json_integer(c->vocab_size));
  json_object_set_new(json, "hidden_size", json_integer(c->hidden_size));
  json_object_set_new(json, "intermediate_size", json_integer(c->intermediate_size));
  json_object_set_new(json, "num_hidden_layers", json_integer(c->layers));
  json_object_set_new(json, "num_attention_heads", json_integer(c->heads));
  json_object_set_new(json, "num_key_value_heads", json_integer(c->kv_heads));
  json_object_set_new(json, "head_dim", json_integer(c->head_dim));
  json_object_set_new(json, "max_position_embeddings", json_integer(c->context_length));
  json_object_set_new(json, "rms_norm_eps", json_real(c->rms_eps));
  json_object_set_new(json, gelu ? "hidden_activation" : "hidden_act",
                      json_string(gelu ? "gelu_pytorch_tanh" : "silu"));
  json_object_set_new(json, "tie_word_embeddings", json_boolean(c->tied_embeddings));
  json_object_set_new(json, "rope_theta", json_real(c->rope.theta));
  json_object_set_new(json, "rope_scaling", scaling_to_json(&c->rope));
  set_id(json, "bos_token_id", c->bos_id);
  set_id(json, "eos_token_id", c->eos_id);
  if (c->family->write_json) c->family->write_json(c, json);
  json_object_set_new(json, "torch_dtype", json_string(torch_dtype));
  return json;
}
