/* Qwen3: like Qwen2, with norms on the heads of q and k instead of biases. */
#include "model/family.h"

static void defaults(struct model_config *config) {
  family_qwen2.defaults(config);
  config->qkv_bias = false;
  config->qk_norm = true;
  config->head_dim = 128;
}

static void write_json(const struct model_config *config, json_t *json) {
  family_qwen2.write_json(config, json);
  json_object_set_new(json, "attention_bias", json_boolean(config->qkv_bias));
}

static void read_json(struct config_reader *in, struct model_config *config) {
  family_qwen2.read_json(in, config);
}

const struct model_family family_qwen3 = {
    .name = "qwen3",
    .model_type = "qwen3",
    .architecture = "Qwen3ForCausalLM",
    .gguf = "qwen3",
    .json_attention_bias = true,
    .defaults = defaults,
    .read_json = read_json,
    .write_json = write_json,
};
