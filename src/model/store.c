/* Opening models and naming their tensors: see store.h. */
#include "model/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/number.h"

enum { NAME_BYTES = 256, CONFIG_LIMIT_BYTES = 16 << 20 };

/* GGUF's names of the tensors inside a block, and Hugging Face's. Where both norms of a block are
 * doubled (Gemma), Hugging Face calls the one before the MLP otherwise. */
static const struct {
  const char *gguf, *plain, *sandwich;
} block_names[] = {
    {"attn_norm", "input_layernorm", NULL},
    {"ffn_norm", "post_attention_layernorm", "pre_feedforward_layernorm"},
    {"post_attention_norm", "post_attention_layernorm", NULL},
    {"post_ffw_norm", "post_feedforward_layernorm", NULL},
    {"attn_q", "self_attn.q_proj", NULL},
    {"attn_k", "self_attn.k_proj", NULL},
    {"attn_v", "self_attn.v_proj", NULL},
    {"attn_output", "self_attn.o_proj", NULL},
    {"attn_q_norm", "self_attn.q_norm", NULL},
    {"attn_k_norm", "self_attn.k_norm", NULL},
    {"ffn_gate", "mlp.gate_proj", NULL},
    {"ffn_up", "mlp.up_proj", NULL},
    {"ffn_down", "mlp.down_proj", NULL},
};

static bool starts_with(const char *text, const char *start) {
  return !strncmp(text, start, strlen(start));
}

static const char *const end_names[][2] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                           {"output_norm.weight", "model.norm.weight"},
                                           {"output.weight", "lm_head.weight"}};

/* "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; other names stay. */
static void name_from_gguf(const char *name, bool sandwich, char out[NAME_BYTES]) {
  snprintf(out, NAME_BYTES, "%s", name);
  for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++)
    if (!strcmp(name, end_names[i][0])) snprintf(out, NAME_BYTES, "%s", end_names[i][1]);
  if (!starts_with(name, "blk.")) return;
  const char *layer = name + 4, *part = layer + strspn(layer, "0123456789");
  int digits = (int)(part - layer);
  if (digits == 0 || *part++ != '.') return;
  const char *dot = strchr(part, '.');
  size_t length = dot ? (size_t)(dot - part) : 0;
  for (size_t i = 0; length && i < sizeof block_names / sizeof *block_names; i++) {
    if (strlen(block_names[i].gguf) != length || strncmp(part, block_names[i].gguf, length) != 0)
      continue;
    bool other = sandwich && block_names[i].sandwich;
    snprintf(out, NAME_BYTES, "model.layers.%.*s.%s%s", digits, layer,
             other ? block_names[i].sandwich : block_names[i].plain, dot);
    return;
  }
}

bool store_name_to_gguf(const char *name, bool sandwich, char out[STORE_NAME_BYTES]) {
  static const char *const outer[][2] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                         {"model.norm.weight", "output_norm.weight"},
                                         {"lm_head.weight", "output.weight"}};
  for (size_t i = 0; i < sizeof outer / sizeof *outer; i++)
    if (!strcmp(name, outer[i][0])) {
      snprintf(out, STORE_NAME_BYTES, "%s", outer[i][1]);
      return true;
    }
  static const char layers[] = "model.layers.";
  const char *part = name + strlen(layers);
  int64_t layer;
  if (strncmp(name, layers, strlen(layers)) != 0 || !number_take(&part, INT32_MAX, &layer) ||
      *part++ != '.')
    return false;
  for (size_t i = 0; i < sizeof block_names / sizeof *block_names; i++) {
    const char *own =
        sandwich && block_names[i].sandwich ? block_names[i].sandwich : block_names[i].plain;
    size_t length = strlen(own);
    if (strncmp(part, own, length) != 0 || part[length] != '.') continue;
    snprintf(out, STORE_NAME_BYTES, "blk.%lld.%s%s", (long long)layer, block_names[i].gguf,
             part + length);
    return true;
  }
  return false;
}

/* Multimodal wrappers put the language model under a prefix, which has been in two places. */
static void name_from_directory(const char *name, char out[NAME_BYTES]) {
  static const char *const prefixes[][2] = {{"language_model.model.", "model."},
                                            {"model.language_model.", "model."},
                                            {"language_model.lm_head.", "lm_head."}};
  for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
    size_t length = strlen(prefixes[i][0]);
    if (!starts_with(name, prefixes[i][0])) continue;
    snprintf(out, NAME_BYTES, "%s%s", prefixes[i][1], name + length);
    return;
  }
  snprintf(out, NAME_BYTES, "%s", name);
}

static enum status add(struct tensor_store *store, const char *name,
                       const struct stored_tensor *tensor, struct error *err) {
  enum status status = mem_grow((void **)&store->entries, &store->capacity, store->count + 1,
                                sizeof *store->entries, err);
  if (status != STATUS_OK) return status;
  char *copy = mem_strdup(name, err);
  if (!copy) return STATUS_FAILED;
  store->entries[store->count++] = (struct store_entry){copy, tensor, false};
  return STATUS_OK;
}

static int compare_entries(const void *a, const void *b) {
  return strcmp(((const struct store_entry *)a)->name, ((const struct store_entry *)b)->name);
}

static enum status sort_entries(struct tensor_store *store, struct error *err) {
  if (store->count == 0) return error_set(err, STATUS_REFUSED, "%s holds no tensors", store->path);
  qsort(store->entries, store->count, sizeof *store->entries, compare_entries);
  for (size_t i = 1; i < store->count; i++)
    if (!strcmp(store->entries[i - 1].name, store->entries[i].name))
      return error_set(err, STATUS_REFUSED, "%s holds the tensor \"%s\" twice", store->path,
                       store->entries[i].name);
  return STATUS_OK;
}

static enum status add_gguf(struct tensor_store *store, struct error *err) {
  char name[NAME_BYTES];
  bool sandwich = gguf_tensor_find(store->gguf, "blk.0.post_ffw_norm.weight") != NULL;
  for (size_t i = 0; i < gguf_tensor_count(store->gguf); i++) {
    const struct stored_tensor *tensor = gguf_tensor_at(store->gguf, i);
    enum status status = gguf_tensor_get(store->gguf, tensor->name, &tensor, err);
    if (status != STATUS_OK) return status; /* a type that is not read */
    name_from_gguf(tensor->name, sandwich, name);
    status = add(store, name, tensor, err);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static enum status open_directory(struct tensor_store *store, struct error *err) {
  char *config = path_join(store->path, "config.json"), name[NAME_BYTES];
  enum status status = STATUS_OK;
  store->json = json_read_file(config, CONFIG_LIMIT_BYTES, err);
  if (!store->json) status = err ? err->status : STATUS_REFUSED;
  if (status == STATUS_OK) status = safetensors_set_open(&store->files, store->path, err);
  size_t count = status == STATUS_OK ? safetensors_set_size(store->files) : 0;
  for (size_t i = 0; i < count && status == STATUS_OK; i++) {
    const struct stored_tensor *tensor = safetensors_set_at(store->files, i);
    name_from_directory(tensor->name, name);
    status = add(store, name, tensor, err);
  }
  free(config);
  return status == STATUS_OK ? sort_entries(store, err) : status;
}

static enum status open_gguf(struct tensor_store *store, struct error *err) {
  enum status status = gguf_open(&store->gguf, store->path, err);
  if (status == STATUS_OK) status = add_gguf(store, err);
  return status == STATUS_OK ? sort_entries(store, err) : status;
}

enum status store_open(struct tensor_store *store, const char *path, struct error *err) {
  *store = (struct tensor_store){0};
  store->path = mem_strdup(path, err);
  if (!store->path) return STATUS_FAILED;
  enum status status;
  if (file_is_directory(path))
    status = open_directory(store, err);
  else if (!file_exists(path))
    status = error_set(err, STATUS_REFUSED, "%s: there is no such file or directory", path);
  else if (gguf_recognise(path))
    status = open_gguf(store, err);
  else
    status = error_set(err, STATUS_REFUSED,
                       "%s is no model: a directory with config.json and safetensors files, or a "
                       "GGUF file, is expected",
                       path);
  if (status != STATUS_OK) store_close(store);
  return status;
}

void store_close(struct tensor_store *store) {
  if (store->files) safetensors_set_close(store->files);
  if (store->gguf) gguf_close(store->gguf);
  for (size_t i = 0; i < store->count; i++) free(store->entries[i].name);
  json_decref(store->json);
  free(store->entries);
  free(store->path);
  *store = (struct tensor_store){0};
}

static struct store_entry *find(const struct tensor_store *store, const char *name) {
  struct store_entry key = {.name = (char *)name};
  return bsearch(&key, store->entries, store->count, sizeof key, compare_entries);
}

bool store_has(const struct tensor_store *store, const char *name) {
  return store->count && find(store, name);
}

const struct stored_tensor *store_peek(const struct tensor_store *store, const char *name) {
  const struct store_entry *entry = store->count ? find(store, name) : NULL;
  return entry ? entry->tensor : NULL;
}

const struct stored_tensor *store_take(struct tensor_store *store, const char *name) {
  struct store_entry *entry = find(store, name);
  if (!entry) return NULL;
  entry->used = true;
  return entry->tensor;
}

static bool ends_with(const char *text, const char *end) {
  size_t length = strlen(text), tail = strlen(end);
  return length >= tail && !strcmp(text + length - tail, end);
}

static bool may_be_left(const char *name, bool tied) {
  return ends_with(name, "rotary_emb.inv_freq") || !strcmp(name, "rope_freqs.weight") ||
         (tied && !strcmp(name, "lm_head.weight")) || starts_with(name, "vision_tower.") ||
         starts_with(name, "multi_modal_projector.") || starts_with(name, "model.vision_tower.") ||
         starts_with(name, "model.multi_modal_projector.");
}

enum status store_check_all_used(const struct tensor_store *store, bool tied, struct error *err) {
  for (size_t i = 0; i < store->count; i++) {
    const struct store_entry *entry = &store->entries[i];
    if (!entry->used && !may_be_left(entry->name, tied))
      return error_set(err, STATUS_REFUSED,
                       "%s holds the tensor \"%s\", which its configuration has no place for",
                       store->path, entry->name);
  }
  return STATUS_OK;
}
