/* LLaMA 2 and 3.x, and what has their shape: SmolLM2, TinyLlama, the stories models. */
#include "model/family.h"

static void defaults(struct model_config *config) {
  config->context_length = 2048;
  config->rope.theta = 10000;
}

static void read_json(struct config_reader *in, struct model_config *config) {
  config_read_bool(in, "mlp_bias", &config->mlp_bias);
}

static void write_json(const struct model_config *config, json_t *json) {
  json_object_set_new(json, "attention_bias", json_boolean(config->qkv_bias));
  json_object_set_new(json, "mlp_bias", json_boolean(config->mlp_bias));
}

const struct model_family family_llama = {
    .name = "llama",
    .model_type = "llama",
    .architecture = "LlamaForCausalLM",
    .gguf = "llama",
    .gguf_interleaves_rope = true,
    .json_attention_bias = true,
    .defaults = defaults,
    .read_json = read_json,
    .write_json = write_json,
};
