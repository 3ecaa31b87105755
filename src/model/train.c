/* The loss of next-token prediction, forward alone and with the backward pass.
 *
 * Logits exist for one chunk of rows at a time: a chunk's loss and the gradient of its final hidden
 * states are done before the next chunk's logits are made. The last row of each sequence predicts
 * nothing and has target -1. */

#include "model/internal.h"

/* Targets of all rows. */
static void set_targets(const int32_t *ids, struct model_shape shape, int32_t *targets) {
  for (int64_t row = 0; row < shape_tokens(shape); row++)
    targets[row] = row % shape.length == shape.length - 1 ? -1 : ids[row + 1];
}

static int64_t chunk_rows(const struct model_workspace *ws, int64_t first, int64_t tokens) {
  return tokens - first < ws->chunk_rows ? tokens - first : ws->chunk_rows;
}

enum status model_nll(const struct model *m, const int32_t *ids, struct model_shape shape,
                      const struct tap *tap, struct model_workspace *ws, float *nll,
                      struct error *err) {
  enum status status = model_forward(m, ids, shape, tap, ws, ws->hidden, err);
  if (status != STATUS_OK) return status;
  int64_t tokens = shape_tokens(shape), vocab = m->config.vocab_size;
  set_targets(ids, shape, ws->targets);
  for (int64_t first = 0, rows; first < tokens; first += rows) {
    rows = chunk_rows(ws, first, tokens);
    model_logits(m, ws->hidden + first * m->config.hidden_size, rows, ws->precision, ws->logits);
    ws->ops->cross_entropy(ws->logits, ws->targets + first, rows, vocab, 1, ws->nll + first, NULL);
  }
  status = ws->ops->download(ws->losses, ws->nll, (size_t)tokens * sizeof *ws->nll, err);
  if (status == STATUS_OK) status = model_check_finite(m, ws->losses, tokens, "the loss is", err);
  if (status != STATUS_OK) return status;
  for (int64_t i = 0; i < tokens; i++)
    if (ws->targets[i] >= 0) *nll++ = ws->losses[i];
  return STATUS_OK;
}

/* The losses of a chunk of rows, from their logits, and the gradient of what is learned. */
static void chunk_losses(const struct model *m, int64_t first, int64_t rows,
                         struct distill_rule rule, float scale, struct model_workspace *ws,
                         float *dlogits) {
  const int64_t vocab = m->config.vocab_size;
  if (rule.weight > 0) {
    model_logits(ws->taught_by, ws->teacher + first * m->config.hidden_size, rows, ws->precision,
                 ws->teacher_logits);
    ws->ops->distill_loss(ws->logits, ws->teacher_logits, ws->targets + first, rows, vocab, rule,
                          scale, ws->nll + first, ws->kl + first, dlogits);
  } else {
    ws->ops->cross_entropy(ws->logits, ws->targets + first, rows, vocab, scale, ws->nll + first,
                           dlogits);
  }
}

/* The sum of `rows` losses. */
static enum status sum_losses(struct model_workspace *ws, const float *losses, int64_t rows,
                              double *sum, struct error *err) {
  enum status status = ws->ops->download(ws->losses, losses, (size_t)rows * sizeof *losses, err);
  if (status != STATUS_OK) return status;
  *sum = 0;
  for (int64_t i = 0; i < rows; i++) *sum += (double)ws->losses[i];
  return STATUS_OK;
}

/* Losses of all rows of ws->normed (T, hidden_size), left in ws->nll and ws->kl, and the gradient:
 * ws->dnormed. */
static void head_losses(const struct model *m, struct model_shape shape, struct distill_rule rule,
                        float scale, struct model_workspace *ws) {
  int64_t tokens = shape_tokens(shape), vocab = m->config.vocab_size;
  double cap = m->config.final_softcap;
  float *dlogits = cap > 0 ? ws->capped : ws->logits;
  for (int64_t first = 0, rows; first < tokens; first += rows) {
    int64_t at = first * m->config.hidden_size;
    rows = chunk_rows(ws, first, tokens);
    model_logits(m, ws->normed + at, rows, ws->precision, ws->logits);
    chunk_losses(m, first, rows, rule, scale, ws, dlogits);
    if (cap > 0) ws->ops->softcap_backward(dlogits, ws->logits, rows * vocab, cap);
    ws->ops->linear_backward_input(&m->lm_head, dlogits, rows, ws->precision, ws->dnormed + at,
                                   false);
  }
}

static struct block_run train_run(const struct model *m, int layer, struct model_shape shape,
                                  const struct tap *tap, struct model_workspace *ws) {
  struct block_run run = {.model = m, .layer = layer, .shape = shape, .tap = tap, .ws = ws};
  run.memory = &ws->blocks[ws->checkpoint ? 0 : layer];
  run.memory->input = ws->inputs[layer];
  return run;
}

enum status model_train(const struct model *m, const int32_t *ids, struct model_shape shape,
                        double scale, const struct tap *tap, struct model_workspace *ws,
                        double *nll_sum, struct error *err) {
  const struct model_objective text = {{DISTILL_FORWARD, 0, 0}, 0};
  struct model_losses sums;
  enum status status = model_distill(m, ids, shape, scale, &text, tap, ws, &sums, err);
  if (status == STATUS_OK) *nll_sum = sums.nll;
  return status;
}

/* The teacher's states behind block `layer`, or the gradient there. */
static float *states_behind(const struct model_workspace *ws, int layer, int64_t tokens) {
  return ws->states + layer * tokens * ws->model->config.hidden_size;
}

/* The teacher's pass: its final states, normed, and with `match` those behind each block. */
static enum status teach(const int32_t *ids, struct model_shape shape, bool match,
                         struct model_workspace *ws, struct error *err) {
  const struct model *m = ws->taught_by;
  const int64_t tokens = shape_tokens(shape);
  if (!match) return model_forward(m, ids, shape, NULL, ws, ws->teacher, err);
  enum status status = model_embed(m, ids, tokens, ws->hidden, err);
  for (int i = 0; i < m->config.layers && status == STATUS_OK; i++) {
    model_block(m, i, shape, ws->hidden, NULL, ws);
    ws->ops->copy_floats(states_behind(ws, i, tokens), ws->hidden, tokens * m->config.hidden_size);
  }
  if (status == STATUS_OK) model_final_norm(m, ws->hidden, tokens, ws->teacher);
  return status;
}

static void forward_blocks(const struct model *m, struct model_shape shape, float match,
                           const struct tap *tap, struct model_workspace *ws) {
  const int64_t tokens = shape_tokens(shape), width = m->config.hidden_size;
  for (int i = 0; i < m->config.layers; i++) {
    struct block_run run = train_run(m, i, shape, tap, ws);
    ws->ops->copy_floats(ws->inputs[i], ws->hidden, tokens * width);
    block_forward(&run, ws->hidden);
    if (match > 0)
      ws->ops->match_rows(ws->hidden, states_behind(ws, i, tokens), ws->targets, tokens, width,
                          1 / (float)m->config.layers, match, ws->distance);
  }
}

static void backward_blocks(const struct model *m, struct model_shape shape, bool match,
                            const struct tap *tap, struct model_workspace *ws) {
  const int64_t tokens = shape_tokens(shape), width = m->config.hidden_size;
  for (int i = m->config.layers - 1; i >= 0; i--) {
    struct block_run run = train_run(m, i, shape, tap, ws);
    if (ws->checkpoint) {
      ws->ops->copy_floats(ws->hidden, ws->inputs[i], tokens * width);
      run.repeated = true;
      block_forward(&run, ws->hidden);
    }
    if (match) ws->ops->add_inplace(ws->dhidden, states_behind(ws, i, tokens), tokens * width);
    block_backward(&run, ws->dhidden);
  }
}

enum status model_distill(const struct model *m, const int32_t *ids, struct model_shape shape,
                          double scale, const struct model_objective *objective,
                          const struct tap *tap, struct model_workspace *ws,
                          struct model_losses *sums, struct error *err) {
  const struct distill_rule rule = objective->distill;
  const bool match = objective->match > 0, taught = model_has_teacher(objective);
  const struct model_config *c = &m->config;
  const int64_t tokens = shape_tokens(shape);
  INVARIANT(ws->train && ws->model == m && shape.length <= ws->positions);
  INVARIANT(tokens <= shape_tokens(ws->most));
  INVARIANT(rule.weight >= 0 && rule.weight <= 1 && (!taught || ws->teacher));
  INVARIANT(objective->match >= 0 && objective->match <= 1 && (!match || ws->states));
  set_targets(ids, shape, ws->targets);
  enum status status = taught ? teach(ids, shape, match, ws, err) : STATUS_OK;
  if (status == STATUS_OK) status = model_embed(m, ids, tokens, ws->hidden, err);
  if (status != STATUS_OK) return status;
  if (match) ws->ops->clear(ws->distance, (size_t)tokens * sizeof *ws->distance);
  forward_blocks(m, shape, (float)(scale * objective->match), tap, ws);
  ws->ops->rmsnorm_forward(ws->hidden, m->final_norm, c->norm_plus_one, c->rms_eps, tokens,
                           c->hidden_size, ws->normed, ws->inverse_final);
  head_losses(m, shape, rule, (float)(scale * (1 - objective->match)), ws);
  ws->ops->rmsnorm_backward(ws->dnormed, ws->hidden, m->final_norm, c->norm_plus_one,
                            ws->inverse_final, tokens, c->hidden_size, ws->dhidden, false);
  backward_blocks(m, shape, match, tap, ws);
  *sums = (struct model_losses){0, 0, 0};
  status = sum_losses(ws, ws->nll, tokens, &sums->nll, err);
  if (status == STATUS_OK && rule.weight > 0)
    status = sum_losses(ws, ws->kl, tokens, &sums->kl, err);
  if (status == STATUS_OK && match)
    status = sum_losses(ws, ws->distance, tokens, &sums->distance, err);
  return status;
}
