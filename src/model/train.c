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
static void chunk_losses(const struct model *m, int64_t first, int64_t rows, double weight,
                         float scale, struct model_workspace *ws, float *dlogits) {
  const int64_t vocab = m->config.vocab_size;
  if (weight > 0) {
    model_logits(ws->taught_by, ws->teacher + first * m->config.hidden_size, rows, ws->precision,
                 ws->teacher_logits);
    ws->ops->distill_loss(ws->logits, ws->teacher_logits, ws->targets + first, rows, vocab,
                          (float)weight, scale, ws->nll + first, ws->kl + first, dlogits);
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
static void head_losses(const struct model *m, const int32_t *ids, struct model_shape shape,
                        double weight, float scale, struct model_workspace *ws) {
  int64_t tokens = shape_tokens(shape), vocab = m->config.vocab_size;
  double cap = m->config.final_softcap;
  float *dlogits = cap > 0 ? ws->capped : ws->logits;
  set_targets(ids, shape, ws->targets);
  for (int64_t first = 0, rows; first < tokens; first += rows) {
    int64_t at = first * m->config.hidden_size;
    rows = chunk_rows(ws, first, tokens);
    model_logits(m, ws->normed + at, rows, ws->precision, ws->logits);
    chunk_losses(m, first, rows, weight, scale, ws, dlogits);
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
  struct model_losses sums;
  enum status status = model_distill(m, ids, shape, scale, 0, tap, ws, &sums, err);
  if (status == STATUS_OK) *nll_sum = sums.nll;
  return status;
}

enum status model_distill(const struct model *m, const int32_t *ids, struct model_shape shape,
                          double scale, double weight, const struct tap *tap,
                          struct model_workspace *ws, struct model_losses *sums,
                          struct error *err) {
  INVARIANT(ws->train && ws->model == m && shape.length <= ws->positions);
  INVARIANT(shape_tokens(shape) <= shape_tokens(ws->most));
  INVARIANT(weight >= 0 && weight <= 1 && (weight == 0 || ws->teacher));
  const struct model_config *c = &m->config;
  int64_t tokens = shape_tokens(shape);
  enum status status = STATUS_OK;
  if (weight > 0) status = model_forward(ws->taught_by, ids, shape, NULL, ws, ws->teacher, err);
  if (status == STATUS_OK) status = model_embed(m, ids, tokens, ws->hidden, err);
  if (status != STATUS_OK) return status;
  for (int i = 0; i < c->layers; i++) {
    struct block_run run = train_run(m, i, shape, tap, ws);
    ws->ops->copy_floats(ws->inputs[i], ws->hidden, tokens * c->hidden_size);
    block_forward(&run, ws->hidden);
  }
  ws->ops->rmsnorm_forward(ws->hidden, m->final_norm, c->norm_plus_one, c->rms_eps, tokens,
                           c->hidden_size, ws->normed, ws->inverse_final);
  head_losses(m, ids, shape, weight, (float)scale, ws);
  ws->ops->rmsnorm_backward(ws->dnormed, ws->hidden, m->final_norm, c->norm_plus_one,
                            ws->inverse_final, tokens, c->hidden_size, ws->dhidden, false);
  for (int i = c->layers - 1; i >= 0; i--) {
    struct block_run run = train_run(m, i, shape, tap, ws);
    if (ws->checkpoint) {
      ws->ops->copy_floats(ws->hidden, ws->inputs[i], tokens * c->hidden_size);
      run.repeated = true;
      block_forward(&run, ws->hidden);
    }
    block_backward(&run, ws->dhidden);
  }
  *sums = (struct model_losses){0, 0};
  status = sum_losses(ws, ws->nll, tokens, &sums->nll, err);
  if (status == STATUS_OK && weight > 0) status = sum_losses(ws, ws->kl, tokens, &sums->kl, err);
  return status;
}
