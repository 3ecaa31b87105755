/* GGUF keys to struct model_config.
 *
 * GGUF says less than config.json: whether there are biases, q/k norms or a separate output matrix
 * shows in the tensors alone, and LLaMA 3's rotary scaling comes as a tensor of frequency
 * divisors, from which the settings are recovered here. */
#include <math.h>
#include <string.h>

#include "model/config.h"
#include "model/config_check.h"
#include "model/rope.h"

static bool has_tensor(const struct config_reader *in, const char *name) {
  return gguf_tensor_find(in->gguf, name) != NULL;
}

static const struct model_family *recognise(struct config_reader *in, char arch[64]) {
  char list[256];
  model_family_list(list, sizeof list);
  if (!config_read_string(in, "general.architecture", arch, 64)) {
    config_refuse(in, "\"general.architecture\" is missing: this GGUF holds no language model");
    return NULL;
  }
  for (int i = 0; model_families[i]; i++)
    if (model_families[i]->gguf && !strcmp(arch, model_families[i]->gguf)) return model_families[i];
  config_refuse(in, "GGUF architecture \"%s\" is not supported (%s are)", arch, list);
  return NULL;
}

static void read_sizes(struct config_reader *in, struct model_config *config) {
  int64_t layers = 0, heads = 0, kv_heads = 0, value_dim = 0, rotary = 0, experts = 0;
  config->head_dim = 0;
  config_read_int(in, "block_count", 1, MODEL_LAYERS_MAX, &layers);
  config_read_int(in, "embedding_length", 1, MODEL_WIDTH_MAX, &config->hidden_size);
  config_read_int(in, "feed_forward_length", 1, MODEL_WIDTH_MAX, &config->intermediate_size);
  config_read_int(in, "attention.head_count", 1, MODEL_HEADS_MAX, &heads);
  config_read_int(in, "attention.head_count_kv", 1, MODEL_HEADS_MAX, &kv_heads);
  config_read_int(in, "attention.key_length", 2, MODEL_HEAD_DIM_MAX, &config->head_dim);
  config_read_int(in, "attention.value_length", 2, MODEL_HEAD_DIM_MAX, &value_dim);
  config_read_int(in, "rope.dimension_count", 2, MODEL_HEAD_DIM_MAX, &rotary);
  config_read_int(in, "context_length", 1, MODEL_CONTEXT_MAX, &config->context_length);
  config_read_int(in, "expert_count", 0, INT32_MAX, &experts);
  config->layers = (int)layers;
  config->heads = (int)heads;
  config->kv_heads = (int)kv_heads;
  config_settle_heads(config);
  if (value_dim && value_dim != config->head_dim)
    config_refuse(in, "keys of %lld and values of %lld per head: they must be equal",
                  (long long)config->head_dim, (long long)value_dim);
  if (rotary && rotary != config->head_dim)
    config_refuse(in, "partial rotary embedding (%lld of %lld) is not supported", (long long)rotary,
                  (long long)config->head_dim);
  if (experts) config_refuse(in, "mixtures of experts are not supported");
}

static void read_vocab(struct config_reader *in, struct model_config *config) {
  const struct stored_tensor *table = gguf_tensor_find(in->gguf, "token_embd.weight");
  if (!table || table->rank != 2)
    config_refuse(in, "tensor \"token_embd.weight\" is missing or no matrix");
  else
    config->vocab_size = table->shape[0];
  config_read_int(in, "tokenizer.ggml.bos_token_id", -1, INT32_MAX, &config->bos_id);
  config_read_int(in, "tokenizer.ggml.eos_token_id", -1, INT32_MAX, &config->eos_id);
}

static void read_rope(struct config_reader *in, struct model_config *config) {
  char room[64];
  config_read_real(in, "rope.freq_base", 1, 1e15, &config->rope.theta);
  const char *type = config_read_string(in, "rope.scaling.type", room, sizeof room);
  bool scaled = config_has(in, "rope.scaling.factor") || config_has(in, "rope.scale_linear");
  if (type ? !strcmp(type, "linear") : scaled) { /* files older than the type's key mean linear */
    config->rope.scaling = ROPE_LINEAR;
    config->rope.factor = 1;
    config_read_real(in, "rope.scale_linear", 1e-3, 1e6, &config->rope.factor);
    config_read_real(in, "rope.scaling.factor", 1e-3, 1e6, &config->rope.factor);
  } else if (type && strcmp(type, "none") != 0) {
    config_refuse(in, "rotary scaling \"%s\" is not supported (none, linear, llama3)", type);
  }
  const struct stored_tensor *divisors = gguf_tensor_find(in->gguf, "rope_freqs.weight");
  if (!divisors || in->status != STATUS_OK) return;
  if (divisors->dtype != DTYPE_F32 || divisors->rank != 1 ||
      divisors->shape[0] != config->head_dim / 2) {
    config_refuse(in, "tensor \"rope_freqs.weight\" is not %lld fp32 numbers",
                  (long long)config->head_dim / 2);
    return;
  }
  if (!rope_recognise_llama3(&config->rope, divisors->data, config->head_dim))
    config_refuse(in, "\"rope_freqs.weight\" is no rotary scaling that tessera knows");
}

static void read_features(struct config_reader *in, struct model_config *config) {
  config->tied_embeddings = !has_tensor(in, "output.weight");
  config->qkv_bias = has_tensor(in, "blk.0.attn_q.bias");
  config->o_bias = has_tensor(in, "blk.0.attn_output.bias");
  config->mlp_bias = has_tensor(in, "blk.0.ffn_gate.bias");
  config_read_real(in, "attention.layer_norm_rms_epsilon", 0, 1, &config->rms_eps);
  config->sliding_window = 0;
  config_read_int(in, "attention.sliding_window", 0, MODEL_CONTEXT_MAX, &config->sliding_window);
}

enum status model_config_from_gguf(struct model_config *out, const struct gguf *gguf,
                                   const char *path, struct error *err) {
  struct config_reader in = {.gguf = gguf, .prefix = "general", .path = path, .err = err};
  char arch[64];
  const struct model_family *family = recognise(&in, arch);
  if (in.status != STATUS_OK) return in.status;
  in.prefix = arch;
  struct model_config config = config_blank(family);
  read_sizes(&in, &config);
  read_vocab(&in, &config);
  if (in.status == STATUS_OK) read_rope(&in, &config);
  read_features(&in, &config);
  config_settle(&config);
  if (in.status == STATUS_OK && family->read_gguf) family->read_gguf(&in, &config);
  if (!family->read_gguf && config.sliding_window)
    config_refuse(&in, "a sliding window in a GGUF of architecture \"%s\" is not supported", arch);
  if (in.status == STATUS_OK) config_check(&in, &config);
  if (in.status == STATUS_OK) *out = config;
  return in.status;
}
