/* What a decoder of one of the supported families looks like: every number and switch that the
 * forward pass needs, whatever it was read from (config.json or GGUF keys). */
#ifndef TSR_MODEL_CONFIG_H
#define TSR_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "io/gguf.h"
#include "io/json.h"

enum { MODEL_LAYERS_MAX = 1024 };
enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH };
enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_config {
  double theta;
  enum rope_scaling scaling;
  double factor;                            /* linear and llama3 */
  double low_freq_factor, high_freq_factor; /* llama3 */
  double original_context;                  /* llama3 */
};

struct model_family; /* model/family.h: one per small file */

struct model_config {
  const struct model_family *family;
  int64_t vocab_size, hidden_size, intermediate_size;
  int layers, heads, kv_heads;
  int64_t head_dim, context_length;
  double rms_eps;
  enum activation activation;
  bool tied_embeddings;
  bool qkv_bias, o_bias, mlp_bias;
  bool qk_norm;                       /* RMSNorm of each head of q and k before rotary */
  bool norm_plus_one;                 /* weights are stored as w - 1 (Gemma, Hugging Face form) */
  bool sandwich_norms;                /* norms after attention and MLP too (Gemma) */
  double embed_scale;                 /* 1 when none */
  double query_scale;                 /* what q k^T is multiplied with: usually head_dim^-0.5 */
  double attn_softcap, final_softcap; /* 0 = none */
  int64_t sliding_window;             /* 0 = none */
  bool layer_sliding[MODEL_LAYERS_MAX];
  struct rope_config rope;         /* of full-attention layers */
  struct rope_config rope_sliding; /* of sliding layers; equals rope where a family has one */
  int64_t bos_id, eos_id;          /* -1 = none */
};

const char *model_family_name(const struct model_config *config); /* "llama", "qwen2", ... */

/* From config.json (its text_config is used where a multimodal wrapper has one) or GGUF keys.
 * Unknown architectures and features that are not implemented are refused by name. */
enum status model_config_from_json(struct model_config *out, const json_t *json, const char *path,
                                   struct error *err);
enum status model_config_from_gguf(struct model_config *out, const struct gguf *gguf,
                                   const char *path, struct error *err);
/* The config.json that transformers would read, for `export` and `pack`. New reference. */
json_t *model_config_to_json(const struct model_config *config, const char *torch_dtype);

#endif
