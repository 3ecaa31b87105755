/* Scratch memory of the forward and backward passes: one block of the backend's memory, cut into
 * arrays.
 *
 * What training keeps of a block is what is dear to compute again: the streams, the projections,
 * attention's output. Norms, rotation and the gated activation are computed a second time in the
 * backward pass: for SmolLM2 that leaves 5.6 K floats a token and block. The same code that cuts
 * the arena measures it, with a base of NULL. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/internal.h"

/* Logits are made for as many rows at a time as the backend wants, and no fewer than these. */
enum { CHUNK_ROWS_MIN = 16, ALIGN_FLOATS = 16 };

struct carver {
  float *base; /* NULL while measuring */
  size_t used; /* floats */
  bool overflow;
};

static float *carve(struct carver *c, int64_t rows, int64_t cols) {
  size_t count, end;
  if (!checked_mul((size_t)rows, (size_t)cols, &count) ||
      !checked_add(count, ALIGN_FLOATS - 1, &count) ||
      !checked_add(c->used, count / ALIGN_FLOATS * ALIGN_FLOATS, &end)) {
    c->overflow = true;
    return NULL;
  }
  float *start = c->base ? c->base + c->used : NULL;
  c->used = end;
  return start;
}

static void carve_block(struct carver *c, const struct model_workspace *ws,
                        struct block_memory *b) {
  const struct model_config *config = &ws->model->config;
  int64_t tokens = shape_tokens(ws->most), hidden = config->hidden_size;
  int64_t q = config_q_width(config), kv = config_kv_width(config);
  *b = (struct block_memory){0};
  b->q_raw = carve(c, tokens, q);
  b->k_raw = carve(c, tokens, kv);
  b->v = carve(c, tokens, kv);
  b->attended = carve(c, tokens, q);
  b->gate = carve(c, tokens, config->intermediate_size);
  b->up = carve(c, tokens, config->intermediate_size);
  if (config->sandwich_norms) {
    b->projected = carve(c, tokens, hidden);
    b->mlp = carve(c, tokens, hidden);
  }
  if (!ws->train) return;
  b->middle = carve(c, tokens, hidden);
  b->lse = carve(c, tokens, config->heads);
  b->inverse_1 = carve(c, tokens, 1);
  b->inverse_2 = carve(c, tokens, 1);
  if (config->sandwich_norms) {
    b->inverse_o = carve(c, tokens, 1);
    b->inverse_mlp = carve(c, tokens, 1);
  }
  if (config->qk_norm) {
    b->q_inverse = carve(c, tokens, config->heads);
    b->k_inverse = carve(c, tokens, config->kv_heads);
  }
}

static void carve_backward(struct carver *c, struct model_workspace *ws) {
  const struct model_config *config = &ws->model->config;
  int64_t tokens = shape_tokens(ws->most), hidden = config->hidden_size;
  int64_t q = config_q_width(config), kv = config_kv_width(config);
  if (config->final_softcap > 0) ws->capped = carve(c, ws->chunk_rows, config->vocab_size);
  ws->inverse_final = carve(c, tokens, 1);
  ws->dhidden = carve(c, tokens, hidden);
  ws->dbranch = carve(c, tokens, hidden);
  ws->dnormed = carve(c, tokens, hidden);
  ws->dact = carve(c, tokens, config->intermediate_size);
  ws->dq = carve(c, tokens, q);
  ws->dattended = carve(c, tokens, q);
  ws->dk = carve(c, tokens, kv);
  ws->dv = carve(c, tokens, kv);
  for (int i = 0; i < config->layers; i++) {
    float *input = carve(c, tokens, hidden);
    if (ws->inputs) ws->inputs[i] = input;
  }
}

static void carve_workspace(struct carver *c, struct model_workspace *ws) {
  const struct model_config *config = &ws->model->config;
  int64_t tokens = shape_tokens(ws->most);
  ws->hidden = carve(c, tokens, config->hidden_size);
  ws->normed = carve(c, tokens, config->hidden_size);
  ws->q = carve(c, tokens, config_q_width(config));
  ws->k = carve(c, tokens, config_kv_width(config));
  ws->act = carve(c, tokens, config->intermediate_size);
  ws->logits = carve(c, ws->chunk_rows, config->vocab_size);
  ws->nll = carve(c, tokens, 1);
  for (int i = 0; i < ws->block_count; i++) {
    struct block_memory block;
    carve_block(c, ws, &block);
    if (ws->blocks) ws->blocks[i] = block;
  }
  if (ws->train) carve_backward(c, ws);
}

static struct model_workspace blank(const struct model *model, struct model_shape most,
                                    int64_t positions, bool train, bool checkpoint) {
  struct model_workspace ws = {.model = model,
                               .ops = model->backend,
                               .taught_by = model,
                               .most = most,
                               .positions = positions,
                               .train = train,
                               .checkpoint = checkpoint};
  ws.block_count = train && !checkpoint ? model->config.layers : 1;
  ws.chunk_rows = model->backend->logit_elements / model->config.vocab_size;
  if (ws.chunk_rows < CHUNK_ROWS_MIN) ws.chunk_rows = CHUNK_ROWS_MIN;
  if (ws.chunk_rows > shape_tokens(most)) ws.chunk_rows = shape_tokens(most);
  return ws;
}

/* Gemma's sliding layers rotate by a base of their own, and are never scaled. */
static bool has_sliding_rope(const struct model_config *c) {
  bool sliding = false;
  for (int i = 0; i < c->layers; i++) sliding |= c->layer_sliding[i];
  return sliding &&
         (c->rope.theta != c->rope_sliding.theta || c->rope.scaling != c->rope_sliding.scaling ||
          c->rope.factor != c->rope_sliding.factor);
}

size_t model_workspace_bytes(const struct model *model, struct model_shape most, bool train,
                             bool checkpoint) {
  struct model_workspace ws = blank(model, most, most.length, train, checkpoint);
  struct carver carver = {0};
  carve_workspace(&carver, &ws);
  size_t tables = has_sliding_rope(&model->config) ? 2 : 1;
  size_t table = (size_t)most.length * (size_t)model->config.head_dim;
  return (carver.used + tables * table) * sizeof(float);
}

/* Angles come from the host. */
static enum status make_rope(const struct model_workspace *ws, const struct rope_config *config,
                             struct rope_table *table, struct error *err) {
  const int64_t head_dim = ws->model->config.head_dim;
  const size_t bytes = (size_t)(ws->positions * (head_dim / 2)) * sizeof(float);
  struct rope_table host;
  enum status status = rope_table_init(&host, config, head_dim, ws->positions, err);
  if (status != STATUS_OK) return status;
  if (ws->ops->is_host) {
    *table = host;
    return STATUS_OK;
  }
  status = ws->ops->alloc(bytes, (void **)&table->cosine, err);
  if (status == STATUS_OK) status = ws->ops->alloc(bytes, (void **)&table->sine, err);
  if (status == STATUS_OK) status = ws->ops->upload(table->cosine, host.cosine, bytes, err);
  if (status == STATUS_OK) status = ws->ops->upload(table->sine, host.sine, bytes, err);
  rope_table_release(&host);
  return status;
}

static void free_rope(const struct model_workspace *ws, struct rope_table *table) {
  ws->ops->free(table->cosine);
  ws->ops->free(table->sine);
}

enum status workspace_make(struct model_workspace **out, const struct model *model,
                           struct model_shape most, int64_t positions, bool train, bool checkpoint,
                           struct error *err) {
  const struct model_config *config = &model->config;
  INVARIANT(most.sequences >= 1 && most.length >= 1 && positions >= most.length);
  INVARIANT(!model->headers_only && !model->card);
  struct model_workspace *ws = mem_alloc(1, sizeof *ws, err);
  if (!ws) return STATUS_FAILED;
  *ws = blank(model, most, positions, train, checkpoint);
  enum status status = STATUS_FAILED;
  ws->blocks = mem_alloc((size_t)ws->block_count, sizeof *ws->blocks, err);
  ws->inputs = mem_alloc((size_t)config->layers, sizeof *ws->inputs, err);
  if (!ws->blocks || !ws->inputs) goto out;
  struct carver carver = {0};
  carve_workspace(&carver, ws);
  if (carver.overflow) {
    error_set(err, STATUS_FAILED, "windows of %lld x %lld tokens are too large for this machine",
              (long long)most.sequences, (long long)most.length);
    goto out;
  }
  const size_t tokens = (size_t)shape_tokens(most);
  ws->targets = mem_alloc(tokens, sizeof *ws->targets, err);
  ws->losses = mem_alloc(tokens, sizeof *ws->losses, err);
  if (!ws->targets || !ws->losses) goto out;
  status = ws->ops->alloc(carver.used * sizeof(float), (void **)&ws->arena, err);
  if (status != STATUS_OK) goto out;
  carver = (struct carver){.base = ws->arena};
  carve_workspace(&carver, ws);
  status = make_rope(ws, &config->rope, &ws->rope, err);
  if (status == STATUS_OK && has_sliding_rope(config))
    status = make_rope(ws, &config->rope_sliding, &ws->rope_sliding, err);
out:
  if (status == STATUS_OK)
    *out = ws;
  else
    model_workspace_free(ws);
  return status;
}

enum status model_workspace_new(struct model_workspace **out, const struct model *model,
                                struct model_shape most, bool train, bool checkpoint,
                                struct error *err) {
  return workspace_make(out, model, most, most.length, train, checkpoint, err);
}

static void carve_teacher(struct carver *c, struct model_workspace *ws, bool match) {
  const struct model_config *config = &ws->model->config;
  ws->teacher = carve(c, shape_tokens(ws->most), config->hidden_size);
  ws->teacher_logits = carve(c, ws->chunk_rows, config->vocab_size);
  ws->kl = carve(c, shape_tokens(ws->most), 1);
  if (!match) return;
  ws->distance = carve(c, shape_tokens(ws->most), 1);
  ws->states = carve(c, config->layers * shape_tokens(ws->most), config->hidden_size);
}

enum status model_workspace_distill(struct model_workspace *ws, bool match, struct error *err) {
  struct carver carver = {0};
  INVARIANT(ws->train && !ws->teacher);
  carve_teacher(&carver, ws, match);
  if (carver.overflow)
    return error_set(err, STATUS_FAILED, "windows of %lld x %lld tokens are too large to match",
                     (long long)ws->most.sequences, (long long)ws->most.length);
  enum status status = ws->ops->alloc(carver.used * sizeof(float), (void **)&carver.base, err);
  if (status != STATUS_OK) return status;
  carver.used = 0;
  carve_teacher(&carver, ws, match); /* the first array is where the allocation begins */
  return STATUS_OK;
}

/* Both run over the same scratch and the same rotary tables. */
static bool same_passes(const struct model_config *a, const struct model_config *b) {
  return a->vocab_size == b->vocab_size && a->hidden_size == b->hidden_size &&
         a->intermediate_size == b->intermediate_size && a->layers == b->layers &&
         a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim &&
         a->qk_norm == b->qk_norm && a->sandwich_norms == b->sandwich_norms &&
         a->rope.theta == b->rope.theta && a->rope.scaling == b->rope.scaling &&
         a->rope.factor == b->rope.factor && a->rope_sliding.theta == b->rope_sliding.theta;
}

enum status model_workspace_teacher(struct model_workspace *ws, const struct model *teacher,
                                    struct error *err) {
  INVARIANT(ws->teacher && teacher->backend == ws->ops && !teacher->headers_only);
  if (!same_passes(&ws->model->config, &teacher->config))
    return error_set(err, STATUS_REFUSED,
                     "%s cannot teach %s: their layers, widths, vocabularies or rotary positions "
                     "differ",
                     model_path(teacher), model_path(ws->model));
  ws->taught_by = teacher;
  return STATUS_OK;
}

size_t model_workspace_distill_bytes(const struct model *model, struct model_shape most,
                                     bool match) {
  struct model_workspace ws = blank(model, most, most.length, true, false);
  struct carver carver = {0};
  carve_teacher(&carver, &ws, match);
  return carver.used * sizeof(float);
}

void model_workspace_set_precision(struct model_workspace *ws, enum precision precision) {
  ws->precision = precision;
}

void model_workspace_free(struct model_workspace *ws) {
  if (!ws) return;
  ws->ops->free(ws->teacher);
  free_rope(ws, &ws->rope);
  free_rope(ws, &ws->rope_sliding);
  ws->ops->free(ws->arena);
  mem_free(ws->targets);
  mem_free(ws->losses);
  mem_free(ws->blocks);
  mem_free(ws->inputs);
  mem_free(ws);
}
