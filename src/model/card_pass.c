/* The launches of a pass: prompts and steps alike. What changes between steps lies in arrays on the
 * card, so that a step can be recorded once for its number of texts and run again. */
#include "model/card_session.h"

enum { HEAD_TOKENS = 64 /* logits are fp32: the panels that leave them so */ };

struct serve_attend_args card_attend_args(const struct card_session *s, int layer, int64_t rows) {
  const struct model_config *c = &s->model->config;
  return (struct serve_attend_args){
      .q = s->q,
      .cache = card_pages_layer(&s->pages, layer),
      .positions = (const uint32_t *)s->rows + s->rows_most,
      .slots = (const uint32_t *)s->rows + 2 * s->rows_most,
      .out = s->attended,
      .partials = s->partials,
      .counters = s->counters,
      .rows = (uint32_t)rows,
      .heads = (uint32_t)c->heads,
      .head_dim = (uint32_t)c->head_dim,
      .out_stride = (uint32_t)s->attended_stride,
      .window = c->layer_sliding[layer] ? (uint32_t)c->sliding_window : 0,
      .scale = (float)c->query_scale,
      .softcap = (float)c->attn_softcap};
}

static void multiply(const struct card_session *s, const struct card_linears *l, int64_t rows,
                     const uint16_t *x, int64_t x_stride, uint16_t *y, int64_t y_stride) {
  for (int i = 0; i < l->weights; i++)
    s->serve->product(&(struct serve_product_call){.weight = l->weight[i],
                                                   .tokens = rows,
                                                   .x = x,
                                                   .x_stride = x_stride,
                                                   .y = y + l->at[i],
                                                   .y_stride = y_stride,
                                                   .bias = l->bias[i]});
}

/* hidden += branch, through the family's norm behind a half; then the norm before the next. */
static void join(const struct card_session *s, int64_t first, int64_t step, int64_t rows,
                 const uint16_t *branch, const float *after, const float *before) {
  const struct model_config *c = &s->model->config;
  s->serve->norm(
      (struct serve_norm_args){.hidden = s->hidden + first * c->hidden_size,
                               .branch = branch ? branch + first * s->normed_stride : NULL,
                               .branch_weight = after,
                               .weight = before,
                               .out = s->normed,
                               .n = (uint32_t)c->hidden_size,
                               .branch_stride = (uint32_t)s->normed_stride,
                               .out_stride = (uint32_t)s->normed_stride,
                               .step = (uint32_t)step,
                               .plus_one = c->norm_plus_one,
                               .eps = (float)c->rms_eps},
      rows);
}

static void attend(const struct card_session *s, const struct pass *p, int layer) {
  const struct model_config *c = &s->model->config;
  const struct card_layer *l = &s->model->card->layers[layer];
  const struct block_norms *norms = &s->model->blocks[layer];
  const bool own = c->layer_sliding[layer] && s->rope_sliding.cosine;
  const struct rope_table *rope = own ? &s->rope_sliding : &s->rope;
  struct serve_attend_args args = card_attend_args(s, layer, p->rows);
  multiply(s, &l->qkv, p->rows, s->normed, s->normed_stride, s->qkv, s->qkv_width);
  s->serve->rotate((struct serve_rotate_args){.qkv = s->qkv,
                                              .q_at = (uint32_t)l->qkv.at[0],
                                              .k_at = (uint32_t)l->qkv.at[1],
                                              .v_at = (uint32_t)l->qkv.at[2],
                                              .qkv_stride = (uint32_t)s->qkv_width,
                                              .q = s->q,
                                              .cache = args.cache,
                                              .q_norm = norms->q,
                                              .k_norm = norms->k,
                                              .cos = rope->cosine,
                                              .sin = rope->sine,
                                              .positions = args.positions,
                                              .slots = args.slots,
                                              .rows = args.rows,
                                              .heads = args.heads,
                                              .head_dim = args.head_dim,
                                              .plus_one = c->norm_plus_one,
                                              .eps = (float)c->rms_eps});
  s->serve->attend(args, p->run, p->longest);
  multiply(s, &l->o, p->rows, s->attended, s->attended_stride, s->branch, s->normed_stride);
}

/* Gate and up in one product that applies the activation, where it beats one after the other. */
static void feed_forward(const struct card_session *s, const struct pass *p, int layer) {
  const struct model_config *c = &s->model->config;
  const struct card_layer *l = &s->model->card->layers[layer];
  if (l->pair && s->serve->joins(l->pair, p->rows)) {
    s->serve->product(&(struct serve_product_call){.weight = l->pair,
                                                   .tokens = p->rows,
                                                   .x = s->normed,
                                                   .x_stride = s->normed_stride,
                                                   .y = s->act,
                                                   .y_stride = s->act_stride,
                                                   .bias = l->pair_bias});
  } else {
    multiply(s, &l->gate_up, p->rows, s->normed, s->normed_stride, s->gates, s->gates_width);
    s->serve->glu((struct serve_glu_args){.gate = s->gates + l->gate_up.at[0],
                                          .up = s->gates + l->gate_up.at[1],
                                          .out = s->act,
                                          .count = (uint64_t)(p->rows * c->intermediate_size),
                                          .n = (uint32_t)c->intermediate_size,
                                          .in_stride = (uint32_t)s->gates_width,
                                          .out_stride = (uint32_t)s->act_stride,
                                          .gelu = c->activation == ACTIVATION_GELU_TANH});
  }
  multiply(s, &l->down, p->rows, s->act, s->act_stride, s->branch, s->normed_stride);
}

static void run_head(const struct card_session *s, const struct pass *p) {
  const struct model_config *c = &s->model->config;
  const struct block_norms *last = &s->model->blocks[c->layers - 1];
  join(s, p->head_first, p->head_step, p->head_rows, s->branch, last->after_mlp,
       s->model->final_norm);
  for (int64_t done = 0; done < p->head_rows; done += HEAD_TOKENS) {
    const int64_t left = p->head_rows - done;
    s->serve->product(
        &(struct serve_product_call){.weight = s->model->card->head,
                                     .tokens = left < HEAD_TOKENS ? left : HEAD_TOKENS,
                                     .x = s->normed + done * s->normed_stride,
                                     .x_stride = s->normed_stride,
                                     .y_stride = c->vocab_size,
                                     .y_wide = s->logits + done * c->vocab_size});
  }
}

static void queue_pass(const struct card_session *s, const struct pass *p) {
  const struct model_config *c = &s->model->config;
  const struct card *card = s->model->card;
  s->serve->embed((struct serve_embed_args){
      .table = card->embeddings,
      .tiles = card->embeddings ? NULL : s->serve->weight_tiles(card->head),
      .ids = s->rows,
      .hidden = s->hidden,
      .count = (uint64_t)(p->rows * c->hidden_size),
      .n = (uint32_t)c->hidden_size,
      .type = ELEMENT_BF16,
      .tiles_per_strip = (uint32_t)((c->hidden_size + FRAGMENT_TILE_COLS - 1) / FRAGMENT_TILE_COLS),
      .scale = (float)c->embed_scale});
  for (int i = 0; i < c->layers; i++) {
    const struct block_norms *norms = &s->model->blocks[i];
    join(s, 0, 1, p->rows, i ? s->branch : NULL, i ? norms[-1].after_mlp : NULL,
         norms->before_attention);
    attend(s, p, i);
    join(s, 0, 1, p->rows, s->branch, norms->after_attention, norms->before_mlp);
    feed_forward(s, p, i);
  }
  if (p->head_rows) run_head(s, p);
}

/* --- records --- */

void card_forget_records(struct card_session *s) {
  for (int i = 0; i < s->record_count; i++) s->serve->record_free(s->records[i].record);
  s->record_count = 0;
}

/* Runs the step of so many rows from its record, after it was run once and then recorded. */
static enum status run_recorded(struct card_session *s, const struct pass *p, struct error *err) {
  if (s->record_count && s->records[0].epoch != s->serve->record_epoch()) card_forget_records(s);
  for (int i = 0; i < s->record_count; i++) {
    const struct step_record *r = &s->records[i];
    if (r->rows == p->rows && r->longest == p->longest) return s->serve->record_run(r->record, err);
  }
  queue_pass(s, p); /* prepares its products, which a record may not */
  enum status status = s->ops->wait(err);
  if (status) return status;
  if (s->record_count == CARD_RECORDS_MAX) card_forget_records(s);
  struct step_record made = {.rows = p->rows, .longest = p->longest};
  status = s->serve->record_begin(err);
  if (status) return status;
  queue_pass(s, p);
  status = s->serve->record_end(&made.record, err);
  made.epoch = s->serve->record_epoch();
  if (!status) s->records[s->record_count++] = made;
  return status;
}

enum status card_run_pass(struct card_session *s, const struct pass *p, struct error *err) {
  const struct model_config *c = &s->model->config;
  enum status status = s->ops->upload(
      s->rows, s->staged, CARD_ROW_ARRAYS * (size_t)s->rows_most * sizeof *s->rows, err);
  if (status) return status;
  if (s->recording && p->run == 1)
    status = run_recorded(s, p, err);
  else
    queue_pass(s, p);
  s->logit_rows = p->head_rows;
  if (!status && p->head_rows && c->final_softcap > 0)
    s->ops->softcap_forward(s->logits, p->head_rows * c->vocab_size, c->final_softcap);
  return status;
}

void card_session_record(struct card_session *s, bool on) {
  s->recording = on;
  if (!on) card_forget_records(s);
}
