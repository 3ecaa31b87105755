/* Mistral: LLaMA whose layers all see a sliding window, where the configuration has one. Its GGUF
 * files say "llama" and carry no window, and are read as that. */
#include "model/family.h"

static void defaults(struct model_config *config) {
  config->kv_heads = 8;
  config->context_length = 131072;
  config->sliding_window = 4096;
  config->rope.theta = 10000;
}

static void read_json(struct config_reader *in, struct model_config *config) {
  const json_t *window = json_object_get(in->json, "sliding_window");
  if (json_is_null(window)) config->sliding_window = 0;
  for (int i = 0; i < config->layers; i++) config->layer_sliding[i] = config->sliding_window > 0;
}

static void write_json(const struct model_config *config, json_t *json) {
  json_object_set_new(json, "sliding_window",
                      config->sliding_window ? json_integer(config->sliding_window) : json_null());
}

const struct model_family family_mistral = {
    .name = "mistral",
    .model_type = "mistral",
    .architecture = "MistralForCausalLM",
    .defaults = defaults,
    .read_json = read_json,
    .write_json = write_json,
};
