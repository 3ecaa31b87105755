/* A GGUF file for llama.cpp: keys, names and row orders as its own converter writes them. What
 * llama.cpp would compute differently (another scale of q, another pattern of windows) is refused,
 * not written. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"
#include "model/family.h"
#include "model/rope.h"
#include "model/store.h"
#include "text/tokenizer.h"

enum { GEMMA_PATTERN = 6, GEMMA_LAYERS_OF_27B = 62, QUANT_BLOCK = 32, QUANTIZATION_VERSION = 2 };

struct gguf_export {
  const struct model *model;
  const struct mask_set *masks;
  const struct model_config *config;
  const char *arch, *out;
  enum dtype dtype;
  struct gguf_builder *builder;
  struct weight_stream *streams; /* (tensors) */
  struct tensor_source *sources; /* (tensors + 1) */
  char (*names)[STORE_NAME_BYTES];
  size_t count;
  float *rope_divisors; /* (head_dim / 2), or NULL */
};

/* --- what llama.cpp can do --- */

static enum status check_scale(const struct gguf_export *x, struct error *err) {
  const struct model_config *c = x->config;
  const bool large = !strcmp(x->arch, "gemma3") && c->layers == GEMMA_LAYERS_OF_27B;
  const double width = large ? (double)c->hidden_size / c->heads : (double)c->head_dim;
  if (fabs(c->query_scale * sqrt(width) - 1) < 1e-6) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "llama.cpp scales the queries of a %s model of %d layers by %g, this one needs "
                   "%g; it cannot be written as a GGUF",
                   x->arch, c->layers, 1 / sqrt(width), c->query_scale);
}

static enum status check_windows(const struct gguf_export *x, struct error *err) {
  const struct model_config *c = x->config;
  bool windowed = false;
  if (model_gguf(x->model)) return STATUS_OK; /* its own keys go along */
  for (int i = 0; i < c->layers; i++) windowed |= c->layer_sliding[i];
  if (strcmp(x->arch, "gemma3") != 0) {
    if (windowed && c->sliding_window < c->context_length)
      log_warn(
          "llama.cpp does not know the attention window of %lld tokens; keep its context below",
          (long long)c->sliding_window);
    return STATUS_OK;
  }
  for (int i = 0; i < c->layers; i++)
    if (c->layer_sliding[i] != ((i + 1) % GEMMA_PATTERN != 0))
      return error_set(err, STATUS_REFUSED,
                       "layer %d breaks the pattern of windows that llama.cpp has for gemma3; it "
                       "cannot be written as a GGUF",
                       i);
  return STATUS_OK;
}

/* --- keys --- */

static void set_text(struct gguf_builder *b, const char *key, const char *text) {
  gguf_set_string(b, key, text, strlen(text));
}

static const char *arch_key(const struct gguf_export *x, char room[96], const char *key) {
  snprintf(room, 96, "%s.%s", x->arch, key);
  return room;
}

static void set_sizes(struct gguf_export *x) {
  const struct model_config *c = x->config;
  char room[96];
  const struct {
    const char *key;
    int64_t value;
  } sizes[] = {{"block_count", c->layers},
               {"context_length", c->context_length},
               {"embedding_length", c->hidden_size},
               {"feed_forward_length", c->intermediate_size},
               {"attention.head_count", c->heads},
               {"attention.head_count_kv", c->kv_heads},
               {"attention.key_length", c->head_dim},
               {"attention.value_length", c->head_dim},
               {"rope.dimension_count", c->head_dim},
               {"vocab_size", c->vocab_size}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    gguf_set_u32(x->builder, arch_key(x, room, sizes[i].key), (uint32_t)sizes[i].value);
}

static void set_numbers(struct gguf_export *x) {
  const struct model_config *c = x->config;
  char room[96];
  struct gguf_builder *b = x->builder;
  gguf_set_f32(b, arch_key(x, room, "attention.layer_norm_rms_epsilon"), (float)c->rms_eps);
  gguf_set_f32(b, arch_key(x, room, "rope.freq_base"), (float)c->rope.theta);
  if (c->rope.scaling == ROPE_LINEAR) {
    set_text(b, arch_key(x, room, "rope.scaling.type"), "linear");
    gguf_set_f32(b, arch_key(x, room, "rope.scaling.factor"), (float)c->rope.factor);
  }
  if (c->sliding_window && !strcmp(x->arch, "gemma3")) {
    gguf_set_u32(b, arch_key(x, room, "attention.sliding_window"), (uint32_t)c->sliding_window);
    gguf_set_f32(b, arch_key(x, room, "rope.freq_base_swa"), (float)c->rope_sliding.theta);
  }
  if (c->attn_softcap > 0)
    gguf_set_f32(b, arch_key(x, room, "attn_logit_softcapping"), (float)c->attn_softcap);
  if (c->final_softcap > 0)
    gguf_set_f32(b, arch_key(x, room, "final_logit_softcapping"), (float)c->final_softcap);
}

/* Writes the keys alone to a file, reads them back as a tokenizer, and compares. */
static enum status check_tokenizer(struct gguf_export *x, const struct tokenizer *own,
                                   struct error *err) {
  struct strbuf path = {0};
  struct tokenizer *written = NULL;
  bool agree = false;
  strbuf_printf(&path, "%s.tokenizer", x->out);
  enum status status = gguf_write(x->builder, strbuf_text(&path), NULL, 0, err);
  if (!status) status = tokenizer_open(&written, strbuf_text(&path), err);
  if (!status) status = tokenizer_agree(own, written, &agree, err);
  if (!status && !agree)
    log_warn(
        "llama.cpp will cut some texts otherwise than the tokenizer of %s, whose rules (for "
        "repeated blanks, say) a GGUF cannot hold",
        model_path(x->model));
  tokenizer_close(written);
  unlink(strbuf_text(&path));
  strbuf_free(&path);
  return status;
}

static enum status set_tokenizer(struct gguf_export *x, struct error *err) {
  struct tokenizer *tokenizer;
  if (!directory_has_tokenizer(x->model)) {
    log_warn("%s has no tokenizer, so the output has none either", model_path(x->model));
    return STATUS_OK;
  }
  enum status status = tokenizer_open(&tokenizer, model_path(x->model), err);
  if (status) return status;
  status = tokenizer_to_gguf(tokenizer, x->config->vocab_size, x->builder, err);
  if (!status) status = check_tokenizer(x, tokenizer, err);
  tokenizer_close(tokenizer);
  return status;
}

/* The last part of the source's path, as a name. */
static void set_name(struct gguf_export *x) {
  struct strbuf path = {0};
  strbuf_puts(&path, model_path(x->model));
  while (path.length > 1 && path.data[path.length - 1] == '/') path.data[--path.length] = 0;
  const char *slash = strrchr(strbuf_text(&path), '/');
  set_text(x->builder, "general.name", slash && slash[1] ? slash + 1 : strbuf_text(&path));
  strbuf_free(&path);
}

static enum status set_keys_from_directory(struct gguf_export *x, struct error *err) {
  struct model_card card;
  set_text(x->builder, "general.architecture", x->arch);
  set_name(x);
  set_sizes(x);
  set_numbers(x);
  enum status status = directory_card(x->model, &card, err);
  if (status) return status;
  card_to_gguf(&card, x->builder);
  return set_tokenizer(x, err);
}

static enum status set_keys(struct gguf_export *x, struct error *err) {
  const struct gguf *source = model_gguf(x->model);
  const uint32_t file_type = x->dtype == DTYPE_F32    ? 0
                             : x->dtype == DTYPE_F16  ? 1
                             : x->dtype == DTYPE_Q8_0 ? 7
                             : x->dtype == DTYPE_Q4_0 ? 2
                                                      : 32;
  enum status status = STATUS_OK;
  if (!source) status = set_keys_from_directory(x, err);
  for (size_t i = 0; source && i < gguf_value_count(source); i++)
    gguf_set_copy(x->builder, gguf_value_at(source, i));
  gguf_set_u32(x->builder, "general.file_type", file_type);
  gguf_set_u32(x->builder, "general.quantization_version", QUANTIZATION_VERSION);
  return status;
}

/* --- tensors --- */

static bool ends_with(const char *text, const char *end) {
  const size_t length = strlen(text), tail = strlen(end);
  return length >= tail && !strcmp(text + length - tail, end);
}

static bool is_rotary(const char *name) {
  return strstr(name, ".self_attn.q_proj.") || strstr(name, ".self_attn.k_proj.");
}

static enum dtype tensor_dtype(const struct gguf_export *x, const struct model_tensor *t) {
  if (t->rank == 1) return DTYPE_F32;
  if (dtype_is_native(x->dtype)) return x->dtype;
  if (t->shape[1] % QUANT_BLOCK) return DTYPE_F16;
  return t->site < 0 ? DTYPE_Q8_0 : x->dtype; /* embeddings and head suffer most from four bits */
}

static enum status add_tensor(struct gguf_export *x, int index, struct error *err) {
  const struct model_tensor *t = model_tensor(x->model, index);
  const bool norm = t->rank == 1 && ends_with(t->name, "norm.weight");
  const bool plus_one = x->config->family->norm_plus_one;
  if (!store_name_to_gguf(t->name, x->config->sandwich_norms, x->names[index]))
    return error_set(err, STATUS_REFUSED, "%s has no name in GGUF files", t->name);
  x->streams[index] = (struct weight_stream){
      .model = x->model,
      .tensor = index,
      .mask = x->masks ? mask_set_find(x->masks, t->name) : NULL,
      .dtype = tensor_dtype(x, t),
      .interleaved = !strcmp(x->arch, "llama") && is_rotary(t->name) ? x->config->head_dim : 0,
      .shift = norm && plus_one ? 1.0f : 0.0f};
  x->sources[x->count++] = weight_source(&x->streams[index], x->names[index]);
  return STATUS_OK;
}

/* LLaMA 3's scaling, which GGUF stores as what each frequency is divided by. */
static enum status add_rope_divisors(struct gguf_export *x, struct error *err) {
  const int64_t half = x->config->head_dim / 2;
  if (x->config->rope.scaling != ROPE_LLAMA3) return STATUS_OK;
  x->rope_divisors = mem_alloc((size_t)half * 2, sizeof(float), err);
  if (!x->rope_divisors) return STATUS_FAILED;
  float *scaled = x->rope_divisors + half;
  struct rope_config plain = x->config->rope;
  plain.scaling = ROPE_PLAIN;
  rope_frequencies(&plain, x->config->head_dim, x->rope_divisors);
  rope_frequencies(&x->config->rope, x->config->head_dim, scaled);
  for (int64_t i = 0; i < half; i++) x->rope_divisors[i] /= scaled[i];
  x->sources[x->count++] = (struct tensor_source){.name = "rope_freqs.weight",
                                                  .dtype = DTYPE_F32,
                                                  .rank = 1,
                                                  .shape = {half},
                                                  .data = x->rope_divisors};
  return STATUS_OK;
}

static enum status add_tensors(struct gguf_export *x, struct error *err) {
  const size_t count = (size_t)model_tensor_count(x->model);
  x->streams = mem_alloc(count, sizeof *x->streams, err);
  x->sources = mem_alloc(count + 1, sizeof *x->sources, err);
  x->names = mem_alloc(count, sizeof *x->names, err);
  if (!x->streams || !x->sources || !x->names) return STATUS_FAILED;
  enum status status = add_rope_divisors(x, err);
  for (size_t i = 0; i < count && !status; i++) status = add_tensor(x, (int)i, err);
  return status;
}

enum status convert_to_gguf(const struct model *model, const struct mask_set *masks,
                            const char *out, enum dtype dtype, bool replace, struct error *err) {
  const struct model_config *config = model_config(model);
  struct gguf_export x = {.model = model,
                          .masks = masks,
                          .config = config,
                          .arch = config->family->gguf ? config->family->gguf : "llama",
                          .out = out,
                          .dtype = dtype};
  if (!replace && file_exists(out))
    return error_set(err, STATUS_REFUSED, "%s exists; give --force to replace it", out);
  enum status status = weights_check_masks(model, masks, err);
  if (!status) status = check_scale(&x, err);
  if (!status) status = check_windows(&x, err);
  if (status) return status;
  x.builder = gguf_builder_new();
  status = set_keys(&x, err);
  if (!status) status = add_tensors(&x, err);
  if (!status) status = gguf_write(x.builder, out, x.sources, x.count, err);
  gguf_builder_free(x.builder);
  mem_free(x.streams);
  mem_free(x.sources);
  mem_free(x.names);
  mem_free(x.rope_divisors);
  return status;
}
