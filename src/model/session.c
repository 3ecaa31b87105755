/* Decoding with a cache of keys and values.
 *
 * Keys are cached as attention reads them, normed and rotated. A long prompt is read in chunks, so
 * that scratch memory does not grow with it; the cache takes address space for its whole capacity,
 * but memory only for the positions used. */
#include "base/mem.h"
#include "model/internal.h"

enum { CHUNK_TOKENS = 256 };

struct model_session {
  const struct model *model;
  struct model_workspace *ws;
  int64_t capacity, length, chunk;
  float *keys, *values; /* (layers, capacity, kv_heads * head_dim) */
};

enum status model_session_new(struct model_session **out, const struct model *model,
                              int64_t capacity, struct error *err) {
  if (capacity < 1)
    return error_set(err, STATUS_USAGE, "a session needs room for at least one token");
  size_t width = (size_t)config_kv_width(&model->config), rows;
  if (!checked_mul((size_t)model->config.layers, (size_t)capacity, &rows))
    return error_set(err, STATUS_FAILED, "a session of %lld tokens is too long",
                     (long long)capacity);
  struct model_session *s = mem_alloc(1, sizeof *s, err);
  if (!s) return STATUS_FAILED;
  s->model = model;
  s->capacity = capacity;
  s->chunk = capacity < CHUNK_TOKENS ? capacity : CHUNK_TOKENS;
  s->keys = mem_alloc(rows, width * sizeof(float), err);
  s->values = mem_alloc(rows, width * sizeof(float), err);
  enum status status = s->keys && s->values ? STATUS_OK : STATUS_FAILED;
  if (status == STATUS_OK)
    status = workspace_make(&s->ws, model, (struct model_shape){1, s->chunk}, capacity, false,
                            false, err);
  if (status == STATUS_OK)
    *out = s;
  else
    model_session_free(s);
  return status;
}

void model_session_free(struct model_session *s) {
  if (!s) return;
  model_workspace_free(s->ws);
  mem_free(s->keys);
  mem_free(s->values);
  mem_free(s);
}

int64_t model_session_length(const struct model_session *s) { return s->length; }

void model_session_truncate(struct model_session *s, int64_t length) {
  INVARIANT(length >= 0 && length <= s->length);
  s->length = length;
}

/* Blocks over `count` embedded tokens in ws->hidden. */
static void run_blocks(struct model_session *s, int64_t count) {
  const struct model *m = s->model;
  int64_t layer_floats = s->capacity * config_kv_width(&m->config);
  for (int i = 0; i < m->config.layers; i++) {
    struct block_run run = {.model = m,
                            .layer = i,
                            .shape = {1, count},
                            .start = s->length,
                            .ws = s->ws,
                            .memory = &s->ws->blocks[0],
                            .cache_k = s->keys + i * layer_floats,
                            .cache_v = s->values + i * layer_floats};
    block_forward(&run, s->ws->hidden);
  }
  s->length += count;
}

enum status model_session_append(struct model_session *s, const int32_t *ids, int64_t count,
                                 float *logits, struct error *err) {
  const struct model *m = s->model;
  int64_t before = s->length, last = 0;
  if (count < 1) return error_set(err, STATUS_USAGE, "there are no tokens to append");
  if (count > s->capacity - s->length)
    return error_set(err, STATUS_REFUSED,
                     "%lld tokens do not fit: the session holds %lld of at most %lld",
                     (long long)count, (long long)s->length, (long long)s->capacity);
  for (int64_t done = 0; done < count; done += last) {
    last = count - done < s->chunk ? count - done : s->chunk;
    enum status status = model_embed(m, ids + done, last, s->ws->hidden, err);
    if (status != STATUS_OK) {
      s->length = before;
      return status;
    }
    run_blocks(s, last);
  }
  float *row = s->ws->hidden + (last - 1) * m->config.hidden_size;
  model_final_norm(m, row, 1, row);
  model_logits(m, row, 1, logits);
  return model_check_finite(m, logits, m->config.vocab_size, "the logits are", err);
}
