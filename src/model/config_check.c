/* Defaults, derived values and limits of a configuration: see config_check.h. */
#include "model/config_check.h"

#include <math.h>

struct model_config config_blank(const struct model_family *family) {
  struct model_config config = {
      .family = family, .rms_eps = 1e-6, .embed_scale = 1, .bos_id = -1, .eos_id = -1};
  if (family->defaults) family->defaults(&config);
  return config;
}

void config_settle_heads(struct model_config *c) {
  if (c->kv_heads == 0) c->kv_heads = c->heads;
  if (c->head_dim == 0 && c->heads > 0) c->head_dim = c->hidden_size / c->heads;
  if (c->query_scale == 0 && c->head_dim > 0) c->query_scale = 1 / sqrt((double)c->head_dim);
}

void config_settle(struct model_config *c) {
  config_settle_heads(c);
  if (c->rope_sliding.theta == 0) c->rope_sliding = c->rope;
}

static void check_size(struct config_reader *in, const char *what, int64_t value, int64_t high) {
  if (value < 1 || value > high)
    config_refuse(in, "the %s is %lld; it must be given, and lie between 1 and %lld", what,
                  (long long)value, (long long)high);
}

static void check_rope(struct config_reader *in, const struct rope_config *rope) {
  if (!(rope->theta >= 1))
    config_refuse(in, "the rotary base is %g, which is below 1", rope->theta);
  if (rope->scaling == ROPE_LLAMA3 && !(rope->high_freq_factor > rope->low_freq_factor))
    config_refuse(in, "high_freq_factor (%g) must be above low_freq_factor (%g)",
                  rope->high_freq_factor, rope->low_freq_factor);
}

void config_check(struct config_reader *in, const struct model_config *c) {
  check_size(in, "vocabulary size", c->vocab_size, MODEL_VOCAB_MAX);
  check_size(in, "hidden size", c->hidden_size, MODEL_WIDTH_MAX);
  check_size(in, "intermediate size", c->intermediate_size, MODEL_WIDTH_MAX);
  check_size(in, "number of layers", c->layers, MODEL_LAYERS_MAX);
  check_size(in, "number of attention heads", c->heads, MODEL_HEADS_MAX);
  check_size(in, "number of key-value heads", c->kv_heads, MODEL_HEADS_MAX);
  check_size(in, "head dimension", c->head_dim, MODEL_HEAD_DIM_MAX);
  check_size(in, "context length", c->context_length, MODEL_CONTEXT_MAX);
  if (in->status != STATUS_OK) return;
  if (c->heads % c->kv_heads)
    config_refuse(in, "%d attention heads cannot share %d key-value heads evenly", c->heads,
                  c->kv_heads);
  if (c->head_dim % 2)
    config_refuse(in, "the head dimension %lld is odd; rotary embedding needs pairs",
                  (long long)c->head_dim);
  if (c->heads * c->head_dim > MODEL_WIDTH_MAX)
    config_refuse(in, "%d heads of %lld are too wide", c->heads, (long long)c->head_dim);
  for (int i = 0; i < c->layers; i++)
    if (c->layer_sliding[i] && c->sliding_window < 1)
      config_refuse(in, "layer %d has a sliding window, but \"sliding_window\" is not set", i);
  check_rope(in, &c->rope);
  check_rope(in, &c->rope_sliding);
}
