/* Sessions on a card: see model.h for the contract and kernel/cuda/serve.h for how keys and values
 * lie. One pass serves prompts and steps; what changes between steps is in arrays on the card, so
 * that a step can be recorded once for its number of texts and run again. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/card.h"
#include "model/card_pages.h"

enum {
  CHUNK_TOKENS = 2048,
  HEAD_TOKENS = 64, /* logits are fp32: the panels that leave them so */
  RECORDS_MAX = 16,
  ROW_ARRAYS = 3 /* ids, positions, slots */
};

struct step_record {
  int64_t rows, longest;
  uint64_t epoch;
  struct serve_record *record;
};

struct card_session {
  const struct model *model;
  const struct backend *ops;
  const struct serve_ops *serve;
  struct card_pages pages;
  int64_t slots, capacity, rows_most;
  int64_t *lengths; /* (slots) */
  bool *named;      /* (slots), of a step's arguments */
  int32_t *staged;  /* (ROW_ARRAYS, rows_most): what is uploaded before a pass */
  /* on the card */
  int32_t *rows;      /* (ROW_ARRAYS, rows_most) */
  float *hidden;      /* (rows_most, hidden_size) */
  uint16_t *normed;   /* (rows_most, normed_stride) */
  uint16_t *qkv;      /* (rows_most, qkv width) */
  float *q;           /* (rows_most, heads, head_dim) */
  uint16_t *attended; /* (rows_most, attended_stride) */
  uint16_t *branch;   /* (rows_most, normed_stride) */
  uint16_t *gates;    /* (rows_most, gate_up width) */
  uint16_t *act;      /* (rows_most, act_stride) */
  float *logits;      /* (slots, vocab_size): of the last pass */
  float *partials;
  uint32_t *counters;
  struct rope_table rope, rope_sliding; /* sliding: NULL where it is the same */
  int64_t normed_stride, attended_stride, act_stride, qkv_width, gates_width;
  int64_t logit_rows; /* that `logits` holds */
  /* sampling */
  struct serve_draw *draws; /* (slots) */
  uint8_t *seen;            /* (slots, vocab_size) */
  unsigned long long *mass; /* (slots, vocab_size), made when first needed */
  int32_t *drawn;           /* (slots) */
  bool recording;
  struct step_record records[RECORDS_MAX];
  int record_count;
};

/* --- opening --- */

static int64_t whole8(int64_t n) { return (n + 7) / 8 * 8; }

static struct serve_attend_args attend_args(const struct card_session *s, int layer, int64_t rows) {
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

/* Of the largest step and the largest chunk, and of the largest chunk that is cut into pieces. */
static void measure_attention(const struct card_session *s, size_t *partials, size_t *counters) {
  const int64_t rows[3] = {s->slots, s->rows_most, SERVE_WHOLE_ROWS - 1};
  *partials = *counters = 0;
  for (int i = 0; i < 3; i++) {
    size_t bytes, count;
    const int64_t most = rows[i] < s->rows_most ? rows[i] : s->rows_most;
    struct serve_attend_args args = attend_args(s, 0, most);
    args.window = 0;
    s->serve->attend_scratch(args, i ? most : 1, s->capacity, &bytes, &count);
    if (bytes > *partials) *partials = bytes;
    if (count > *counters) *counters = count;
  }
}

static enum status make_rope(struct card_session *s, const struct rope_config *config,
                             struct rope_table *out, struct error *err) {
  const int64_t half = s->model->config.head_dim / 2;
  const size_t bytes = (size_t)(s->capacity * half) * sizeof(float);
  struct rope_table host;
  enum status status = rope_table_init(&host, config, s->model->config.head_dim, s->capacity, err);
  if (status) return status;
  status = s->ops->alloc(bytes, (void **)&out->cosine, err);
  if (!status) status = s->ops->alloc(bytes, (void **)&out->sine, err);
  if (!status) status = s->ops->upload(out->cosine, host.cosine, bytes, err);
  if (!status) status = s->ops->upload(out->sine, host.sine, bytes, err);
  rope_table_release(&host);
  return status;
}

static enum status allocate(struct card_session *s, struct error *err) {
  const struct model_config *c = &s->model->config;
  const struct card *card = s->model->card;
  const size_t rows = (size_t)s->rows_most, logits = (size_t)(s->slots * c->vocab_size);
  size_t partials, counters;
  s->normed_stride = whole8(c->hidden_size);
  s->attended_stride = whole8(config_q_width(c));
  s->act_stride = whole8(c->intermediate_size);
  s->qkv_width = card->layers[0].qkv.width;
  s->gates_width = card->layers[0].gate_up.width;
  measure_attention(s, &partials, &counters);
  const struct {
    void **to;
    size_t bytes;
  } arrays[] = {
      {(void **)&s->rows, ROW_ARRAYS * rows * sizeof *s->rows},
      {(void **)&s->hidden, rows * (size_t)c->hidden_size * sizeof(float)},
      {(void **)&s->normed, rows * (size_t)s->normed_stride * 2},
      {(void **)&s->qkv, rows * (size_t)s->qkv_width * 2},
      {(void **)&s->q, rows * (size_t)config_q_width(c) * sizeof(float)},
      {(void **)&s->attended, rows * (size_t)s->attended_stride * 2},
      {(void **)&s->branch, rows * (size_t)s->normed_stride * 2},
      {(void **)&s->gates, rows * (size_t)s->gates_width * 2},
      {(void **)&s->act, rows * (size_t)s->act_stride * 2},
      {(void **)&s->logits, logits * sizeof(float)},
      {(void **)&s->partials, partials},
      {(void **)&s->counters, counters},
      {(void **)&s->draws, (size_t)s->slots * sizeof *s->draws},
      {(void **)&s->seen, logits},
      {(void **)&s->drawn, (size_t)s->slots * sizeof *s->drawn},
  };
  enum status status = STATUS_OK;
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays && !status; i++)
    status = s->ops->alloc(arrays[i].bytes, arrays[i].to, err);
  return status;
}

static bool sliding_rope_differs(const struct model_config *c) {
  bool sliding = false;
  for (int i = 0; i < c->layers; i++) sliding |= c->layer_sliding[i];
  return sliding &&
         (c->rope.theta != c->rope_sliding.theta || c->rope.scaling != c->rope_sliding.scaling ||
          c->rope.factor != c->rope_sliding.factor);
}

static enum status open_session(struct card_session *s, const struct session_settings *settings,
                                struct error *err) {
  const struct model_config *c = &s->model->config;
  s->lengths = mem_alloc((size_t)s->slots, sizeof *s->lengths, err);
  s->named = mem_alloc((size_t)s->slots, sizeof *s->named, err);
  s->staged = mem_alloc((size_t)s->rows_most, ROW_ARRAYS * sizeof *s->staged, err);
  if (!s->lengths || !s->named || !s->staged) return STATUS_FAILED;
  enum status status = card_pages_new(&s->pages, s->ops, c, settings->kv, s->slots, s->capacity,
                                      settings->pages, err);
  if (!status) status = allocate(s, err);
  if (!status) status = make_rope(s, &c->rope, &s->rope, err);
  if (!status && sliding_rope_differs(c))
    status = make_rope(s, &c->rope_sliding, &s->rope_sliding, err);
  if (!status && s->model->card->choose)
    status = card_choose(s->model->card, s->serve, s->rows_most, err);
  return status;
}

enum status card_session_new(struct card_session **out, const struct model *model,
                             const struct session_settings *settings, struct error *err) {
  const int64_t all = settings->slots * settings->capacity;
  const int64_t chunk = all < CHUNK_TOKENS ? all : CHUNK_TOKENS;
  struct card_session *s = mem_alloc(1, sizeof *s, err);
  if (!s) return STATUS_FAILED;
  *s = (struct card_session){.model = model,
                             .ops = model->backend,
                             .serve = model->backend->serve,
                             .slots = settings->slots,
                             .capacity = settings->capacity,
                             .rows_most = chunk > settings->slots ? chunk : settings->slots};
  enum status status = open_session(s, settings, err);
  if (status)
    card_session_free(s);
  else
    *out = s;
  return status;
}

static void forget_records(struct card_session *s) {
  for (int i = 0; i < s->record_count; i++) s->serve->record_free(s->records[i].record);
  s->record_count = 0;
}

void card_session_free(struct card_session *s) {
  if (!s) return;
  forget_records(s);
  void *const far[] = {s->rows,
                       s->hidden,
                       s->normed,
                       s->qkv,
                       s->q,
                       s->attended,
                       s->branch,
                       s->gates,
                       s->act,
                       s->logits,
                       s->partials,
                       s->counters,
                       s->draws,
                       s->seen,
                       s->mass,
                       s->drawn,
                       s->rope.cosine,
                       s->rope.sine,
                       s->rope_sliding.cosine,
                       s->rope_sliding.sine};
  for (size_t i = 0; i < sizeof far / sizeof *far; i++) s->ops->free(far[i]);
  card_pages_free(&s->pages);
  mem_free(s->lengths);
  mem_free(s->named);
  mem_free(s->staged);
  mem_free(s);
}

/* --- a pass --- */

struct pass {
  int64_t rows, longest;
  int64_t run;                              /* rows of a text that follow each other */
  int64_t head_first, head_step, head_rows; /* rows that get logits */
};

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
  struct serve_attend_args args = attend_args(s, layer, p->rows);
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

/* Few tokens take gate and up in one product that applies the activation. */
static void feed_forward(const struct card_session *s, const struct pass *p, int layer) {
  const struct model_config *c = &s->model->config;
  const struct card_layer *l = &s->model->card->layers[layer];
  if (l->pair && p->rows <= l->pair_most) {
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

/* Runs the step of so many rows from its record, after it was run once and then recorded. */
static enum status run_recorded(struct card_session *s, const struct pass *p, struct error *err) {
  if (s->record_count && s->records[0].epoch != s->serve->record_epoch()) forget_records(s);
  for (int i = 0; i < s->record_count; i++) {
    const struct step_record *r = &s->records[i];
    if (r->rows == p->rows && r->longest == p->longest) return s->serve->record_run(r->record, err);
  }
  queue_pass(s, p); /* prepares its products, which a record may not */
  enum status status = s->ops->wait(err);
  if (status) return status;
  if (s->record_count == RECORDS_MAX) forget_records(s);
  struct step_record made = {.rows = p->rows, .longest = p->longest};
  status = s->serve->record_begin(err);
  if (status) return status;
  queue_pass(s, p);
  status = s->serve->record_end(&made.record, err);
  made.epoch = s->serve->record_epoch();
  if (!status) s->records[s->record_count++] = made;
  return status;
}

static enum status run_pass(struct card_session *s, const struct pass *p, struct error *err) {
  const struct model_config *c = &s->model->config;
  enum status status =
      s->ops->upload(s->rows, s->staged, ROW_ARRAYS * (size_t)s->rows_most * sizeof *s->rows, err);
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

static enum status bring_logits(struct card_session *s, int64_t rows, float *logits,
                                struct error *err) {
  const int64_t count = rows * s->model->config.vocab_size;
  if (!logits) return STATUS_OK;
  enum status status = s->ops->download(logits, s->logits, (size_t)count * sizeof *logits, err);
  return status ? status : model_check_finite(s->model->host, logits, count, "the logits are", err);
}

static enum status check_id(const struct card_session *s, int32_t id, int64_t at,
                            struct error *err) {
  if (id >= 0 && id < s->model->config.vocab_size) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "token id %d at position %lld is outside the vocabulary of %lld: the tokenizer "
                   "belongs to another model",
                   id, (long long)at, (long long)s->model->config.vocab_size);
}

static void stage(struct card_session *s, int64_t row, int32_t id, int64_t position, int64_t slot) {
  s->staged[row] = id;
  s->staged[s->rows_most + row] = (int32_t)position;
  s->staged[2 * s->rows_most + row] = (int32_t)slot;
}

/* --- the face --- */

static bool is_slot(const struct card_session *s, int64_t slot) {
  return slot >= 0 && slot < s->slots;
}

int64_t card_slot_length(const struct card_session *s, int64_t slot) {
  INVARIANT(is_slot(s, slot));
  return s->lengths[slot];
}

void card_slot_truncate(struct card_session *s, int64_t slot, int64_t length) {
  INVARIANT(is_slot(s, slot) && length >= 0 && length <= s->lengths[slot]);
  s->lengths[slot] = length;
  card_pages_drop(&s->pages, slot, length);
}

enum status card_slot_copy(struct card_session *s, int64_t to, int64_t from, int64_t length,
                           struct error *err) {
  INVARIANT(is_slot(s, to) && is_slot(s, from) && to != from);
  INVARIANT(length >= 0 && length <= s->lengths[from]);
  card_slot_truncate(s, to, 0);
  enum status status = card_pages_copy(&s->pages, to, from, length, err);
  if (!status) s->lengths[to] = length;
  return status;
}

enum status card_slot_append(struct card_session *s, int64_t slot, const int32_t *ids,
                             int64_t count, float *logits, struct error *err) {
  INVARIANT(is_slot(s, slot));
  const int64_t before = s->lengths[slot];
  if (count < 1) return error_set(err, STATUS_USAGE, "there are no tokens to append");
  if (count > s->capacity - before)
    return error_set(err, STATUS_REFUSED,
                     "%lld tokens do not fit: the session holds %lld of at most %lld",
                     (long long)count, (long long)before, (long long)s->capacity);
  enum status status = STATUS_OK;
  for (int64_t i = 0; i < count && !status; i++) status = check_id(s, ids[i], i, err);
  if (!status) status = card_pages_hold(&s->pages, slot, before + count, err);
  for (int64_t done = 0, n = 0; done < count && !status; done += n) {
    n = count - done < s->rows_most ? count - done : s->rows_most;
    for (int64_t i = 0; i < n; i++) stage(s, i, ids[done + i], before + done + i, slot);
    const struct pass p = {.rows = n,
                           .longest = before + done + n,
                           .run = n,
                           .head_first = n - 1,
                           .head_step = 1,
                           .head_rows = done + n == count};
    status = run_pass(s, &p, err);
  }
  if (!status) s->lengths[slot] = before + count;
  return status ? status : bring_logits(s, 1, logits, err);
}

/* `count` empty slots, a prompt of `length` tokens for each: as many as the rows hold. */
static enum status read_prompts(struct card_session *s, const int64_t *slots, const int32_t *ids,
                                int64_t count, int64_t length, struct error *err) {
  enum status status = STATUS_OK;
  for (int64_t t = 0; t < count && !status; t++) {
    status = card_pages_hold(&s->pages, slots[t], length, err);
    for (int64_t i = 0; i < length && !status; i++) {
      status = check_id(s, ids[t * length + i], i, err);
      stage(s, t * length + i, ids[t * length + i], i, slots[t]);
    }
  }
  const struct pass p = {.rows = count * length,
                         .longest = length,
                         .run = length,
                         .head_first = length - 1,
                         .head_step = length,
                         .head_rows = count};
  if (!status) status = run_pass(s, &p, err);
  for (int64_t t = 0; t < count && !status; t++) s->lengths[slots[t]] = length;
  return status;
}

enum status card_session_prompts(struct card_session *s, const int64_t *slots, const int32_t *ids,
                                 int64_t count, int64_t length, float *logits, struct error *err) {
  const int64_t at_once = s->rows_most / length ? s->rows_most / length : 1;
  enum status status = STATUS_OK;
  if (length > s->capacity || length < 1)
    return error_set(err, STATUS_REFUSED, "prompts of %lld tokens do not fit sessions of %lld",
                     (long long)length, (long long)s->capacity);
  for (int64_t done = 0, n = 0; done < count && !status; done += n) {
    float *out = logits ? logits + done * s->model->config.vocab_size : NULL;
    n = count - done < at_once ? count - done : at_once;
    for (int64_t t = done; t < done + n; t++) {
      INVARIANT(is_slot(s, slots[t]));
      card_slot_truncate(s, slots[t], 0);
    }
    if (length > s->rows_most) {
      status = card_slot_append(s, slots[done], ids + done * length, length, out, err);
      continue;
    }
    status = read_prompts(s, slots + done, ids + done * length, n, length, err);
    if (!status) status = bring_logits(s, n, out, err);
  }
  return status;
}

static enum status check_step(struct card_session *s, const int64_t *slots, const int32_t *ids,
                              int64_t count, struct error *err) {
  if (count < 1 || count > s->slots)
    return error_set(err, STATUS_USAGE, "a session of %lld slots cannot step %lld of them",
                     (long long)s->slots, (long long)count);
  memset(s->named, 0, (size_t)s->slots * sizeof *s->named);
  for (int64_t i = 0; i < count; i++) {
    INVARIANT(is_slot(s, slots[i]));
    if (s->named[slots[i]])
      return error_set(err, STATUS_USAGE, "slot %lld is named twice in one step",
                       (long long)slots[i]);
    s->named[slots[i]] = true;
    if (s->lengths[slots[i]] == s->capacity)
      return error_set(err, STATUS_REFUSED, "slot %lld holds %lld tokens and is full",
                       (long long)slots[i], (long long)s->capacity);
    enum status status = check_id(s, ids[i], i, err);
    if (status) return status;
  }
  return STATUS_OK;
}

/* What a recorded step is good for: a power of two, so that few are made while texts grow. */
static int64_t bound_of(const struct card_session *s, int64_t longest) {
  int64_t bound = SERVE_PIECE;
  while (bound < longest) bound *= 2;
  return bound < s->capacity ? bound : s->capacity;
}

enum status card_session_step(struct card_session *s, const int64_t *slots, const int32_t *ids,
                              int64_t count, float *logits, struct error *err) {
  enum status status = check_step(s, slots, ids, count, err);
  int64_t longest = 0;
  for (int64_t i = 0; i < count && !status; i++) {
    const int64_t length = s->lengths[slots[i]];
    status = card_pages_hold(&s->pages, slots[i], length + 1, err);
    stage(s, i, ids[i], length, slots[i]);
    if (length + 1 > longest) longest = length + 1;
  }
  if (status) return status;
  const struct pass p = {
      .rows = count, .longest = bound_of(s, longest), .run = 1, .head_step = 1, .head_rows = count};
  status = run_pass(s, &p, err);
  if (status) return status;
  for (int64_t i = 0; i < count; i++) s->lengths[slots[i]]++;
  return bring_logits(s, count, logits, err);
}

void card_session_record(struct card_session *s, bool on) {
  s->recording = on;
  if (!on) forget_records(s);
}

/* --- drawing --- */

enum status card_slot_see(struct card_session *s, int64_t slot, const uint8_t *seen,
                          struct error *err) {
  const size_t vocab = (size_t)s->model->config.vocab_size;
  INVARIANT(is_slot(s, slot));
  return s->ops->upload(s->seen + (size_t)slot * vocab, seen, vocab, err);
}

static struct serve_draw draw_of(const struct model_draw *d) {
  return (struct serve_draw){.uniform = d->uniform,
                             .temperature = d->temperature,
                             .top_p = d->top_p,
                             .min_p = d->min_p,
                             .penalty = (float)d->repetition_penalty,
                             .top_k = d->top_k > UINT32_MAX ? UINT32_MAX : (uint32_t)d->top_k,
                             .slot = (uint32_t)d->slot};
}

enum status card_session_draw(struct card_session *s, const struct model_draw *draws, int64_t count,
                              int32_t *ids, struct error *err) {
  const size_t vocab = (size_t)s->model->config.vocab_size;
  enum status status = STATUS_OK;
  INVARIANT(count >= 1 && count <= s->logit_rows);
  struct serve_draw *made = mem_alloc((size_t)count, sizeof *made, err);
  if (!made) return STATUS_FAILED;
  for (int64_t i = 0; i < count; i++) {
    INVARIANT(is_slot(s, draws[i].slot));
    made[i] = draw_of(&draws[i]);
  }
  if (!s->mass)
    status = s->ops->alloc((size_t)s->slots * vocab * sizeof *s->mass, (void **)&s->mass, err);
  if (!status) status = s->ops->upload(s->draws, made, (size_t)count * sizeof *made, err);
  if (!status) {
    s->serve->sample((struct serve_sample_args){.logits = s->logits,
                                                .draws = s->draws,
                                                .seen = s->seen,
                                                .mass = s->mass,
                                                .ids = s->drawn,
                                                .vocab = (uint32_t)vocab},
                     count);
    status = s->ops->download(ids, s->drawn, (size_t)count * sizeof *ids, err);
  }
  mem_free(made);
  for (int64_t i = 0; i < count && !status; i++)
    if (ids[i] < 0)
      status = error_set(err, STATUS_FAILED,
                         "the logits of %s are not numbers: its weights are damaged or overflow",
                         s->model->store.path);
  return status;
}
