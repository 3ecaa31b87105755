/* What sets a family of models apart: its names, what its configuration means where it is silent,
 * and the keys that only it has. One family is one small file; adding one is adding that file and
 * a line to the list in family.c.
 *
 * Configurations are read through struct config_reader, which keeps the first error: a family
 * reads all its keys in a row and the caller looks at `status` once. */
#ifndef TSR_MODEL_FAMILY_H
#define TSR_MODEL_FAMILY_H

#include "model/config.h"

struct config_reader {
  const json_t *json;      /* one of the two is set */
  const struct gguf *gguf; /* keys get the architecture's prefix */
  const char *prefix;      /* "llama" of "llama.block_count" */
  const char *path;        /* names the file in errors */
  enum status status;
  struct error *err;
};

/* Each leaves *out alone when the key is absent (or null); a value of another type or outside
 * [low, high] is refused. */
void config_read_int(struct config_reader *in, const char *key, int64_t low, int64_t high,
                     int64_t *out);
void config_read_real(struct config_reader *in, const char *key, double low, double high,
                      double *out);
void config_read_bool(struct config_reader *in, const char *key, bool *out);
/* A string, or NULL: GGUF strings are not NUL-terminated, so the caller gives the room. */
const char *config_read_string(struct config_reader *in, const char *key, char *room, size_t size);
bool config_has(const struct config_reader *in, const char *key);
/* Refuses with the file's name in front, unless an error is kept already. */
void config_refuse(struct config_reader *in, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* "layer_types" of a config.json; layers keep what they have when the key is absent. */
void config_read_layer_types(struct config_reader *in, struct model_config *config);
void config_write_layer_types(const struct model_config *config, json_t *json);

struct model_family {
  const char *name;           /* as tessera prints it */
  const char *model_type;     /* config.json */
  const char *architecture;   /* the class that transformers loads */
  const char *wrapper_type;   /* model_type of a multimodal wrapper around it, or NULL */
  const char *gguf;           /* general.architecture, or NULL */
  bool gguf_interleaves_rope; /* rows of q and k are permuted in its GGUF files */
  bool norm_plus_one;         /* Hugging Face stores norm weights as w - 1, GGUF as w */
  bool json_attention_bias;   /* has the key attention_bias (for q, k, v and o) */
  /* What transformers assumes where config.json says nothing. */
  void (*defaults)(struct model_config *config);
  /* The keys of its own, after the common ones; any may be NULL. */
  void (*read_json)(struct config_reader *in, struct model_config *config);
  void (*read_gguf)(struct config_reader *in, struct model_config *config);
  void (*write_json)(const struct model_config *config, json_t *json);
};

extern const struct model_family family_llama, family_mistral, family_qwen2, family_qwen3,
    family_gemma3;

extern const struct model_family *const model_families[]; /* ends with NULL */
/* "llama, mistral, ..." for error sentences: out[size]. */
void model_family_list(char *out, size_t size);

#endif
