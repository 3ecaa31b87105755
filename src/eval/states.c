/* Hidden states, computed or kept: see states.h. The file is a safetensors file with one tensor. */
#include "eval/states.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"

static const char format_name[] = "tessera-states 1";
/* Between instruction sets the states differ by rounding, between models by much more. */
static const double SAME_STATES = 1e-3;

enum status states_compute(const struct model *model, const struct windows *windows, int64_t first,
                           int64_t count, struct model_workspace *workspace, int32_t *ids,
                           float *normed, struct error *err) {
  for (int64_t w = 0; w < count; w++)
    memcpy(ids + w * windows->length, windows_at(windows, first + w),
           (size_t)windows->length * sizeof *ids);
  return model_forward(model, ids, (struct model_shape){count, windows->length}, NULL, workspace,
                       normed, err);
}

/* FNV-1a over all tokens of the windows. */
static uint64_t hash_tokens(const struct windows *windows) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int64_t w = 0; w < windows->count; w++)
    for (int64_t i = 0; i < windows->length; i++) {
      hash ^= (uint32_t)windows_at(windows, w)[i];
      hash *= 0x100000001b3u;
    }
  return hash;
}

/* What computing batches of windows needs. */
struct computer {
  const struct model *model;
  const struct windows *windows;
  struct model_workspace *workspace;
  int64_t batch;
  int32_t *ids;  /* (batch * length) */
  float *normed; /* (batch * length, hidden_size) */
  float *far;    /* the same where the model runs; `normed` itself on the CPU */
};

static size_t hidden_size_of(const struct computer *c) {
  return (size_t)model_config(c->model)->hidden_size;
}

static enum status computer_init(struct computer *c, struct error *err) {
  size_t tokens = (size_t)(c->batch * c->windows->length);
  c->ids = mem_alloc(tokens, sizeof *c->ids, err);
  c->normed = mem_alloc(tokens, hidden_size_of(c) * sizeof(float), err);
  if (!c->ids || !c->normed) return STATUS_FAILED;
  const struct backend *ops = model_backend(c->model);
  c->far = c->normed;
  if (!ops->is_host) {
    c->far = NULL;
    const enum status status =
        ops->alloc(tokens * hidden_size_of(c) * sizeof(float), (void **)&c->far, err);
    if (status) return status;
  }
  return model_workspace_new(&c->workspace, c->model,
                             (struct model_shape){c->batch, c->windows->length}, false, false, err);
}

static void computer_release(struct computer *c) {
  model_workspace_free(c->workspace);
  if (c->far != c->normed) model_backend(c->model)->free(c->far);
  mem_free(c->ids);
  mem_free(c->normed);
}

static enum status compute(struct computer *c, int64_t first, int64_t count, struct error *err) {
  const size_t bytes = (size_t)(count * c->windows->length) * hidden_size_of(c) * sizeof *c->normed;
  enum status status =
      states_compute(c->model, c->windows, first, count, c->workspace, c->ids, c->far, err);
  return status ? status : model_backend(c->model)->download(c->normed, c->far, bytes, err);
}

/* The tensor's bytes, batch after batch. */
static enum status produce(void *ctx, struct file_writer *out, struct error *err) {
  struct computer *c = ctx;
  struct progress progress;
  enum status status = STATUS_OK;
  size_t window_bytes = (size_t)c->windows->length * hidden_size_of(c) * sizeof(float);
  progress_begin(&progress, "reference", "tokens",
                 (double)(c->windows->count * c->windows->length));
  for (int64_t first = 0; first < c->windows->count && !status; first += c->batch) {
    int64_t left = c->windows->count - first, count = left < c->batch ? left : c->batch;
    status = interrupt_check(err);
    if (!status) status = compute(c, first, count, err);
    if (!status) status = file_writer_put(out, c->normed, (size_t)count * window_bytes, err);
    progress_add(&progress, (double)(count * c->windows->length));
  }
  progress_end(&progress);
  return status;
}

static enum status write_states(struct computer *c, const char *path, const char *tokens_hash,
                                struct error *err) {
  struct tensor_source tensor = {
      .name = "normed",
      .dtype = DTYPE_F32,
      .rank = 3,
      .shape = {c->windows->count, c->windows->length, (int64_t)hidden_size_of(c)},
      .produce = produce,
      .ctx = c};
  json_t *meta = json_pack("{s:s, s:s}", "format", format_name, "tokens", tokens_hash);
  INVARIANT(meta != NULL);
  enum status status = safetensors_write(path, &tensor, 1, meta, err);
  json_decref(meta);
  return status;
}

/* True when the first window's states are what the model computes now. */
static enum status same_model(struct computer *c, const float *kept, bool *same,
                              struct error *err) {
  enum status status = compute(c, 0, 1, err);
  double difference = 0, size = 0;
  size_t count = (size_t)c->windows->length * hidden_size_of(c);
  for (size_t i = 0; i < count && !status; i++) {
    double d = (double)kept[i] - c->normed[i];
    difference += d * d;
    size += (double)c->normed[i] * c->normed[i];
  }
  *same = sqrt(difference) <= SAME_STATES * sqrt(size);
  return status;
}

/* Opens `path`; leaves cache->normed NULL when it holds states of something else. */
static enum status try_open(struct states_cache *cache, struct computer *c, const char *path,
                            const char *tokens_hash, struct error *err) {
  enum status status = safetensors_open(&cache->file, path, err);
  if (status) return error_prefix(err, "the kept states");
  const char *format = safetensors_metadata(cache->file, "format");
  const char *tokens = safetensors_metadata(cache->file, "tokens");
  const struct stored_tensor *t = safetensors_find(cache->file, "normed");
  if (!format || strcmp(format, format_name) != 0 || !t)
    return error_set(err, STATUS_REFUSED,
                     "%s holds no states that tessera kept; give --kl-cache another name", path);
  bool same = tokens && !strcmp(tokens, tokens_hash) && t->dtype == DTYPE_F32 && t->rank == 3 &&
              t->shape[0] == c->windows->count && t->shape[1] == c->windows->length &&
              t->shape[2] == (int64_t)hidden_size_of(c) && (uintptr_t)t->data % sizeof(float) == 0;
  if (same) status = same_model(c, (const float *)(const void *)t->data, &same, err);
  if (!status && same) cache->normed = (const float *)(const void *)t->data;
  return status;
}

enum status states_cache_open(struct states_cache *cache, const char *path,
                              const struct model *model, const struct windows *windows,
                              int64_t batch, struct error *err) {
  char tokens_hash[24];
  struct computer c = {.model = model, .windows = windows, .batch = batch};
  *cache = (struct states_cache){0};
  snprintf(tokens_hash, sizeof tokens_hash, "%016llx", (unsigned long long)hash_tokens(windows));
  enum status status = computer_init(&c, err);
  if (!status && file_exists(path)) {
    status = try_open(cache, &c, path, tokens_hash, err);
    if (!status && !cache->normed) {
      log_info("%s is of another model or text; made anew", path);
      states_cache_close(cache);
    }
  }
  if (!status && !cache->normed) {
    status = write_states(&c, path, tokens_hash, err);
    if (!status) status = try_open(cache, &c, path, tokens_hash, err);
    if (!status && !cache->normed)
      status = error_set(err, STATUS_FAILED, "%s was changed while it was in use", path);
  }
  if (status) states_cache_close(cache);
  computer_release(&c);
  return status;
}

void states_cache_close(struct states_cache *cache) {
  safetensors_close(cache->file);
  *cache = (struct states_cache){0};
}
