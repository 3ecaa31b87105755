/* The backward pass of a block, from what the forward pass left in run->memory.
 *
 * Norm outputs, rotated q and k, and the gated activation are computed again. gate and up of the
 * memory are overwritten by their gradients: a block is pulled back once. Weights are frozen, so
 * their gradients exist only if the tap forms them from (x, dy). */
#include <string.h>

#include "model/internal.h"

/* (x, dy) of one of the block's linears to the tap, and dx = dy W (or +=). In this order, so that a
 * tap whose weights are made on the fly can make them along with what it takes from (x, dy). */
static void pull_back(const struct block_run *run, enum site_role role, const float *x,
                      const float *dy, float *dx, bool accumulate) {
  const struct linear_site *site = &run->model->sites[model_block_site(run->layer) + (int)role];
  int64_t tokens = shape_tokens(run->shape);
  if (run->tap && run->tap->gradient) run->tap->gradient(run->tap->ctx, site, x, dy, tokens);
  run->ws->ops->linear_backward_input(block_weight(run, site, TAP_BACKWARD), dy, tokens,
                                      run->ws->precision, dx, accumulate);
}

/* The gradient of a half's output, which the norm behind it has changed (sandwich_norms). */
static const float *split(const struct block_run *run, const float *weight, const float *branch,
                          const float *inverse, const float *dhidden) {
  const struct model_config *c = &run->model->config;
  if (!c->sandwich_norms) return dhidden;
  run->ws->ops->rmsnorm_backward(dhidden, branch, weight, c->norm_plus_one, inverse,
                                 shape_tokens(run->shape), c->hidden_size, run->ws->dbranch, false);
  return run->ws->dbranch;
}

/* The norm at the head of a half once more: its output is the linears' x. */
static const float *norm_again(const struct block_run *run, const float *x, const float *weight) {
  const struct model_config *c = &run->model->config;
  run->ws->ops->rmsnorm_forward(x, weight, c->norm_plus_one, c->rms_eps, shape_tokens(run->shape),
                                c->hidden_size, run->ws->normed, NULL);
  return run->ws->normed;
}

static void mlp_backward(const struct block_run *run, float *dhidden) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  struct model_workspace *ws = run->ws;
  struct block_memory *b = run->memory;
  bool gelu = c->activation == ACTIVATION_GELU_TANH;
  int64_t tokens = shape_tokens(run->shape), inner = tokens * c->intermediate_size;
  const float *dbranch = split(run, norms->after_mlp, b->mlp, b->inverse_mlp, dhidden);
  ws->ops->glu_forward(gelu, b->gate, b->up, inner, ws->act);
  pull_back(run, SITE_DOWN, ws->act, dbranch, ws->dact, false);
  ws->ops->glu_backward(gelu, b->gate, b->up, ws->dact, inner, b->gate, b->up);
  const float *normed = norm_again(run, b->middle, norms->before_mlp);
  pull_back(run, SITE_UP, normed, b->up, ws->dnormed, false);
  pull_back(run, SITE_GATE, normed, b->gate, ws->dnormed, true);
  ws->ops->rmsnorm_backward(ws->dnormed, b->middle, norms->before_mlp, c->norm_plus_one,
                            b->inverse_2, tokens, c->hidden_size, dhidden, true);
}

/* The gradient of a projection from that of the rotated heads; `room` may be used for it. */
static const float *rotate_back(const struct block_run *run, bool is_k, const float *raw,
                                const float *inverse, float *d, float *room) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  const struct rope_table *rope = block_rope(run);
  int64_t heads = is_k ? c->kv_heads : c->heads, tokens = shape_tokens(run->shape);
  run->ws->ops->rope_apply(d, tokens, run->shape.length, run->starts, heads, c->head_dim,
                           rope->cosine, rope->sine, -1);
  if (!c->qk_norm) return d;
  run->ws->ops->rmsnorm_backward(d, raw, is_k ? norms->k : norms->q, c->norm_plus_one, inverse,
                                 tokens * heads, c->head_dim, room, false);
  return room;
}

static void attention_half_backward(const struct block_run *run, float *dhidden) {
  const struct model_config *c = &run->model->config;
  const struct block_norms *norms = &run->model->blocks[run->layer];
  struct model_workspace *ws = run->ws;
  struct block_memory *b = run->memory;
  const float *dbranch = split(run, norms->after_attention, b->projected, b->inverse_o, dhidden);
  pull_back(run, SITE_O, b->attended, dbranch, ws->dattended, false);
  block_rotate(run, false, b->q_raw, b->q_inverse, ws->q);
  block_rotate(run, true, b->k_raw, b->k_inverse, ws->k);
  struct attention_shape shape = block_attention_shape(run);
  ws->ops->attention_backward(&shape, ws->q, ws->k, b->v, b->attended, b->lse, ws->dattended,
                              ws->dq, ws->dk, ws->dv);
  const float *dq = rotate_back(run, false, b->q_raw, b->q_inverse, ws->dq, ws->q);
  const float *dk = rotate_back(run, true, b->k_raw, b->k_inverse, ws->dk, ws->k);
  const float *normed = norm_again(run, b->input, norms->before_attention);
  pull_back(run, SITE_V, normed, ws->dv, ws->dnormed, false);
  pull_back(run, SITE_K, normed, dk, ws->dnormed, true);
  pull_back(run, SITE_Q, normed, dq, ws->dnormed, true);
  ws->ops->rmsnorm_backward(ws->dnormed, b->input, norms->before_attention, c->norm_plus_one,
                            b->inverse_1, shape_tokens(run->shape), c->hidden_size, dhidden, true);
}

void block_backward(const struct block_run *run, float *dhidden) {
  mlp_backward(run, dhidden);
  attention_half_backward(run, dhidden);
}
