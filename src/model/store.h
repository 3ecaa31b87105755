/* Where a model's tensors come from: a Hugging Face directory or a GGUF file, seen through one
 * list of tensors under Hugging Face's names. Nothing is read but headers; tensors are views of the
 * mapped files and live as long as the store. */
#ifndef TSR_MODEL_STORE_H
#define TSR_MODEL_STORE_H

#include "io/gguf.h"
#include "io/safetensors_set.h"
#include "model/config.h"

struct store_entry {
  char *name; /* Hugging Face's, wrappers' prefixes taken off; owned */
  const struct stored_tensor *tensor;
  bool used;
};

struct tensor_store {
  char *path;
  struct gguf *gguf;             /* set for a GGUF file, else */
  struct safetensors_set *files; /* those of a directory */
  json_t *json;                  /* and its config.json */
  struct store_entry *entries;   /* by name */
  size_t count, capacity;
};

enum status store_open(struct tensor_store *store, const char *path, struct error *err);
void store_close(struct tensor_store *store);

/* The tensor of that name, marked as used; NULL when there is none. */
const struct stored_tensor *store_take(struct tensor_store *store, const char *name);
/* The same without marking it. */
const struct stored_tensor *store_peek(const struct tensor_store *store, const char *name);
bool store_has(const struct tensor_store *store, const char *name);
/* Refuses tensors that nobody took: a model with more weights than its configuration speaks of
 * would run wrong. Frequencies, towers of other senses and a tied lm_head are known and let be. */
enum status store_check_all_used(const struct tensor_store *store, bool tied, struct error *err);

/* GGUF's name of a tensor: "blk.3.attn_q.weight". `sandwich` as in the configuration
 * (sandwich_norms). False when GGUF has none. */
enum { STORE_NAME_BYTES = 256 };
bool store_name_to_gguf(const char *name, bool sandwich, char out[STORE_NAME_BYTES]);

#endif
