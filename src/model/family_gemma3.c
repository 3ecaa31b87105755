/* Gemma 3, text only. Norms before and after each half of a block, stored as w - 1; embeddings
 * scaled by sqrt(hidden_size); heads of q and k normed; five layers with a window and a rotary
 * base of their own, then one that sees everything, and so on. */
#include <math.h>

#include "model/family.h"

enum { PATTERN = 6, LAYERS_OF_27B = 62 };

static void defaults(struct model_config *config) {
  config->vocab_size = 262208;
  config->hidden_size = 2304;
  config->intermediate_size = 9216;
  config->layers = 26;
  config->heads = 8;
  config->kv_heads = 4;
  config->head_dim = 256;
  config->context_length = 131072;
  config->activation = ACTIVATION_GELU_TANH;
  config->tied_embeddings = true;
  config->sliding_window = 4096;
  config->rope.theta = 1e6;
  config->rope_sliding.theta = 1e4;
  config->bos_id = 2;
  config->eos_id = 1;
}

static void always(struct model_config *config, int64_t pattern) {
  config->qk_norm = true;
  config->sandwich_norms = true;
  config->embed_scale = sqrt((double)config->hidden_size);
  for (int i = 0; i < config->layers; i++) config->layer_sliding[i] = (i + 1) % pattern != 0;
}

static void read_json(struct config_reader *in, struct model_config *config) {
  int64_t pattern = PATTERN;
  double scalar = 256;
  bool bidirectional = false;
  config_read_int(in, "sliding_window_pattern", 1, MODEL_LAYERS_MAX, &pattern);
  config_read_int(in, "_sliding_window_pattern", 1, MODEL_LAYERS_MAX, &pattern);
  config_read_real(in, "query_pre_attn_scalar", 1e-6, 1e9, &scalar);
  config_read_real(in, "attn_logit_softcapping", 1e-3, 1e9, &config->attn_softcap);
  config_read_real(in, "final_logit_softcapping", 1e-3, 1e9, &config->final_softcap);
  config_read_bool(in, "use_bidirectional_attention", &bidirectional);
  if (bidirectional) config_refuse(in, "bidirectional attention is not supported");
  always(config, pattern);
  config->query_scale = 1 / sqrt(scalar);
  config_read_layer_types(in, config);
}

/* The rotary base of the sliding layers and the pattern have no key of their own in older files,
 * nor has the scale of q: only the 27B model differs from head_dim^-0.5. */
static void read_gguf(struct config_reader *in, struct model_config *config) {
  int64_t pattern = PATTERN;
  config_read_int(in, "attention.sliding_window_pattern", 1, MODEL_LAYERS_MAX, &pattern);
  config_read_real(in, "rope.freq_base_swa", 1, 1e12, &config->rope_sliding.theta);
  config_read_real(in, "attn_logit_softcapping", 1e-3, 1e9, &config->attn_softcap);
  config_read_real(in, "final_logit_softcapping", 1e-3, 1e9, &config->final_softcap);
  always(config, pattern);
  if (config->layers == LAYERS_OF_27B)
    config->query_scale = 1 / sqrt((double)config->hidden_size / config->heads);
}

static void write_json(const struct model_config *config, json_t *json) {
  config_write_layer_types(config, json);
  json_object_set_new(json, "sliding_window", json_integer(config->sliding_window));
  json_object_set_new(json, "rope_local_base_freq", json_real(config->rope_sliding.theta));
  double scalar = 1 / (config->query_scale * config->query_scale);
  json_object_set_new(json, "query_pre_attn_scalar", json_integer(llround(scalar)));
  json_object_set_new(json, "attention_bias", json_boolean(config->qkv_bias));
  json_object_set_new(json, "attn_logit_softcapping",
                      config->attn_softcap > 0 ? json_real(config->attn_softcap) : json_null());
  json_object_set_new(json, "final_logit_softcapping",
                      config->final_softcap > 0 ? json_real(config->final_softcap) : json_null());
}

const struct model_family family_gemma3 = {
    .name = "gemma3",
    .model_type = "gemma3_text",
    .architecture = "Gemma3ForCausalLM",
    .wrapper_type = "gemma3",
    .gguf = "gemma3",
    .norm_plus_one = true,
    .json_attention_bias = true,
    .defaults = defaults,
    .read_json = read_json,
    .read_gguf = read_gguf,
    .write_json = write_json,
};
