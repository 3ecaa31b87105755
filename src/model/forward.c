/* The forward pass: embedding, blocks, final norm, logits.
 *
 * One function runs a block for training, evaluation and decoding; they differ in what they leave
 * in run->memory and in where keys and values go. It runs where the model lies (kernel/backend.h).
 */

#include "model/internal.h"

/* --- embedding and head --- */

enum status model_embed(const struct model *m, const int32_t *ids, int64_t tokens, float *hidden,
                        struct error *err) {
  for (int64_t i = 0; i < tokens; i++)
    if (ids[i] < 0 || ids[i] >= m->config.vocab_size)
      return error_set(err, STATUS_REFUSED,
                       "token id %d at position %lld is outside the vocabulary of %lld: the "
                       "tokenizer belongs to another model",
                       ids[i], (long long)i, (long long)m->config.vocab_size);
  m->backend->embed(&m->embed, ids, tokens, (float)m->config.embed_scale, hidden);
  return STATUS_OK;
}

void model_final_norm(const struct model *m, const float *hidden, int64_t tokens, float *out) {
  m->backend->rmsnorm_forward(hidden, m->final_norm, m->config.norm_plus_one, m->config.rms_eps,
                              tokens, m->config.hidden_size, out, NULL);
}

void model_logits(const struct model *m, const float *normed, int64_t tokens,
                  enum precision precision, float *logits) {
  m->backend->linear_forward(&m->lm_head, NULL, normed, tokens, precision, logits);
  if (m->config.final_softcap > 0)
    m->backend->softcap_forward(logits, tokens * m->config.vocab_size, m->config.final_softcap);
}

/* --- a block --- */

const struct linear_weight *block_weight(const struct block_run *run,
                                         const struct linear_site *site, enum tap_pass pass) {
  const struct linear_weight *w = NULL;
  if (run->tap && run->tap->weight) w = run->tap->weight(run->tap->ctx, site, pass);
  return w ? w : &site->weight;
}

/* y = x W^T + b for one of the block's linears. */
static void project(const struct block_run *run, enum site_role role, const float *x, float *y) {
  const struct linear_site *site = &run->model->sites[model_block_site(run->layer) + (int)role];
  int64_t tokens = shape_tokens(run->shape);
  if (run->tap && run->tap->input && !run->repeated)
    run->tap->input(run->tap->ctx, site, x, tokens);
  run->ws->ops->linear_forward(block_weight(run, site, TAP_FORWARD), site->bias, x, tokens,
                               run->ws->precision, y);
}

/* The same for `count` roles from `first` on, which all meet x. A tap may have room for the weights
 * of one linear only. */
static void project_many(const struct block_run *run, enum site_role first, int count,
                         const float *x, float *const y[]) {
  struct linear_output outputs[LINEAR_MANY_MOST];
  if (run->tap || !run->ws->ops->linear_forward_many) {
    for (int i = 0; i < count; i++) project(run, (enum site_role)((int)first + i), x, y[i]);
    return;
  }
  for (int i = 0; i < count; i++) {
    const struct linear_site *site =
        &run->model->sites[model_block_site(run->layer) + (int)first + i];
    outputs[i] = (struct linear_output){&site->weight, site->bias, y[i]};
  }
  run->ws->ops->linear_forward_many(outputs, count, x, shape_tokens(run->shape),
                                    run->ws->precision);
}

const struct rope_table *block_rope(const struct block_run *run) {
  bool own = run->model->config.layer_sliding[run->layer] && run->ws->rope_sliding.cosine;
  return own ? &run->ws->rope_sliding : &run->ws->rope;
}

void block_rotate(const struct block_run *run, bool is_k, const float *raw, float *inverse,
                  float *dest) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  const struct rope_table *rope = block_rope(run);
  int64_t heads = is_k ? c->kv_heads : c->heads, tokens = shape_tokens(run->shape);
  if (c->qk_norm)
    run->ws->ops->rmsnorm_forward(raw, is_k ? norms->k : norms->q, c->norm_plus_one, c->rms_eps,
                                  tokens * heads, c->head_dim, dest, inverse);
  else
    run->ws->ops->copy_floats(dest, raw, tokens * heads * c->head_dim);
  run->ws->ops->rope_apply(dest, tokens, run->shape.length, run->starts, heads, c->head_dim,
                           rope->cosine, rope->sine, +1);
}

struct attention_shape block_attention_shape(const struct block_run *run) {
  const struct model_config *c = &run->model->config;
  return (struct attention_shape){
      .sequences = run->shape.sequences,
      .q_length = run->shape.length,
      .kv_length = run->shape.length,
      .heads = c->heads,
      .kv_heads = c->kv_heads,
      .head_dim = c->head_dim,
      .window = c->layer_sliding[run->layer] ? c->sliding_window : 0,
      .scale = (float)c->query_scale,
      .softcap = (float)c->attn_softcap,
      .precision = run->ws->precision,
  };
}

/* hidden += branch, through a norm where the family has one behind each half. `branch` is left as
 * it is. */
static void join(const struct block_run *run, const float *weight, const float *branch,
                 float *inverse, float *hidden) {
  const struct model_config *c = &run->model->config;
  int64_t tokens = shape_tokens(run->shape);
  if (c->sandwich_norms) {
    run->ws->ops->rmsnorm_forward(branch, weight, c->norm_plus_one, c->rms_eps, tokens,
                                  c->hidden_size, run->ws->normed, inverse);
    branch = run->ws->normed;
  }
  run->ws->ops->add_inplace(hidden, branch, tokens * c->hidden_size);
}

/* From the rotated q and k and from v; a session's keys and values join its caches first. */
static void attend(const struct block_run *run) {
  struct attention_shape shape = block_attention_shape(run);
  const struct model_workspace *ws = run->ws;
  const struct block_memory *b = run->memory;
  if (run->branches) {
    branches_attend(run, ws->q, ws->k, b->v, b->attended);
    return;
  }
  if (!run->kv) {
    ws->ops->attention_forward(&shape, ws->q, ws->k, b->v, b->attended, b->lse);
    return;
  }
  kv_cache_append(run->kv, run->starts, shape.sequences, shape.q_length, ws->k, b->v);
  attention_cached(&shape, run->kv, run->starts, ws->q, b->attended, run->partials);
}

static void attention_half(const struct block_run *run, float *hidden) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  struct model_workspace *ws = run->ws;
  struct block_memory *b = run->memory;
  ws->ops->rmsnorm_forward(hidden, norms->before_attention, c->norm_plus_one, c->rms_eps,
                           shape_tokens(run->shape), c->hidden_size, ws->normed, b->inverse_1);
  project_many(run, SITE_Q, 3, ws->normed, (float *[]){b->q_raw, b->k_raw, b->v});
  block_rotate(run, false, b->q_raw, b->q_inverse, ws->q);
  block_rotate(run, true, b->k_raw, b->k_inverse, ws->k);
  attend(run);
  float *branch = c->sandwich_norms ? b->projected : ws->normed;
  project(run, SITE_O, b->attended, branch);
  join(run, norms->after_attention, branch, b->inverse_o, hidden);
}

static void mlp_half(const struct block_run *run, float *hidden) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  struct model_workspace *ws = run->ws;
  struct block_memory *b = run->memory;
  int64_t tokens = shape_tokens(run->shape);
  ws->ops->rmsnorm_forward(hidden, norms->before_mlp, c->norm_plus_one, c->rms_eps, tokens,
                           c->hidden_size, ws->normed, b->inverse_2);
  project_many(run, SITE_GATE, 2, ws->normed, (float *[]){b->gate, b->up});
  ws->ops->glu_forward(c->activation == ACTIVATION_GELU_TANH, b->gate, b->up,
                       tokens * c->intermediate_size, ws->act);
  float *branch = c->sandwich_norms ? b->mlp : ws->normed;
  project(run, SITE_DOWN, ws->act, branch);
  join(run, norms->after_mlp, branch, b->inverse_mlp, hidden);
}

void block_forward(const struct block_run *run, float *hidden) {
  attention_half(run, hidden);
  if (run->memory->middle)
    run->ws->ops->copy_floats(run->memory->middle, hidden,
                              shape_tokens(run->shape) * run->model->config.hidden_size);
  mlp_half(run, hidden);
}

static void check_shape(const struct model_workspace *ws, const struct model *m,
                        struct model_shape shape) {
  INVARIANT(ws->model == m || ws->taught_by == m);
  INVARIANT(shape.sequences >= 1 && shape.length >= 1 && shape.length <= ws->positions);
  INVARIANT(shape_tokens(shape) <= shape_tokens(ws->most));
}

void model_block(const struct model *m, int layer, struct model_shape shape, float *hidden,
                 const struct tap *tap, struct model_workspace *ws) {
  check_shape(ws, m, shape);
  INVARIANT(layer >= 0 && layer < m->config.layers);
  struct block_run run = {
      .model = m, .layer = layer, .shape = shape, .tap = tap, .ws = ws, .memory = &ws->blocks[0]};
  block_forward(&run, hidden);
}

enum status model_forward(const struct model *m, const int32_t *ids, struct model_shape shape,
                          const struct tap *tap, struct model_workspace *ws, float *normed,
                          struct error *err) {
  check_shape(ws, m, shape);
  enum status status = model_embed(m, ids, shape_tokens(shape), ws->hidden, err);
  if (status != STATUS_OK) return status;
  for (int i = 0; i < m->config.layers; i++) model_block(m, i, shape, ws->hidden, tap, ws);
  model_final_norm(m, ws->hidden, shape_tokens(shape), normed);
  return STATUS_OK;
}
