/* Qwen2 and Qwen2.5: biases on q, k and v; layers from max_window_layers on may see a window. */
#include "model/family.h"

static void defaults(struct model_config *config) {
  config->kv_heads = 32;
  config->context_length = 32768;
  config->sliding_window = 4096;
  config->qkv_bias = true;
  config->rope.theta = 10000;
}

static void read_json(struct config_reader *in, struct model_config *config) {
  bool use_window = false;
  int64_t first = 28;
  config_read_bool(in, "use_sliding_window", &use_window);
  config_read_int(in, "max_window_layers", 0, INT32_MAX, &first);
  if (!use_window || json_is_null(json_object_get(in->json, "sliding_window")))
    config->sliding_window = 0;
  for (int i = 0; i < config->layers; i++)
    config->layer_sliding[i] = config->sliding_window > 0 && i >= first;
  config_read_layer_types(in, config);
}

/* Both ways of saying which layers slide: older readers know max_window_layers only. */
static void write_json(const struct model_config *config, json_t *json) {
  int first = 0;
  while (first < config->layers && !config->layer_sliding[first]) first++;
  json_object_set_new(json, "use_sliding_window", json_boolean(config->sliding_window > 0));
  json_object_set_new(json, "sliding_window",
                      config->sliding_window ? json_integer(config->sliding_window) : json_null());
  json_object_set_new(json, "max_window_layers", json_integer(first));
  config_write_layer_types(config, json);
}

const struct model_family family_qwen2 = {
    .name = "qwen2",
    .model_type = "qwen2",
    .architecture = "Qwen2ForCausalLM",
    .gguf = "qwen2",
    .defaults = defaults,
    .read_json = read_json,
    .write_json = write_json,
};
