/* Opening and closing a session on a card: see model.h for the contract and kernel/cuda/serve.h for
 * how keys and values lie. */
#include "model/card_session.h"

#include "base/mem.h"

enum { CHUNK_TOKENS = 2048 };

static int64_t whole8(int64_t n) { return (n + 7) / 8 * 8; }

/* Of the largest step and the largest chunk, and of the largest chunk that is cut into pieces. */
static void measure_attention(const struct card_session *s, size_t *partials, size_t *counters) {
  const int64_t rows[3] = {s->slots, s->rows_most, SERVE_WHOLE_ROWS - 1};
  *partials = *counters = 0;
  for (int i = 0; i < 3; i++) {
    size_t bytes, count;
    const int64_t most = rows[i] < s->rows_most ? rows[i] : s->rows_most;
    struct serve_attend_args args = card_attend_args(s, 0, most);
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
      {(void **)&s->rows, CARD_ROW_ARRAYS * rows * sizeof *s->rows},
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
  s->staged = mem_alloc((size_t)s->rows_most, CARD_ROW_ARRAYS * sizeof *s->staged, err);
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

void card_session_free(struct card_session *s) {
  if (!s) return;
  card_forget_records(s);
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
