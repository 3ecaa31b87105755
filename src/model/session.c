/* Decoding with caches of keys and values, one cache a slot.
 *
 * Keys are cached as attention reads them, normed and rotated. A long prompt is read in chunks, so
 * that scratch memory does not grow with it; the caches take address space for their whole
 * capacity, but memory only for the (huge) pages that were written. */
#include <string.h>

#include "base/mem.h"
#include "model/card.h"

enum { CHUNK_TOKENS = 512 };

struct model_session {
  const struct model *model;
  struct card_session *card; /* of a model on a card: the session itself; the rest is not used */
  struct model_workspace *ws;
  int64_t slots, capacity, chunk;
  int64_t *lengths; /* (slots) */
  struct kv_cache shape;
  size_t layer_bytes;      /* of one cache */
  char *memory;            /* (slots, layers) caches */
  struct kv_cache *caches; /* (slots), of the run at hand and its layer */
  int64_t *starts;         /* (slots), of the run at hand */
  bool *named;             /* (slots), of a step's arguments */
  float *partials;         /* attention's scratch */
};

/* Attention's scratch for the largest step and for the largest chunk that attention takes row by
 * row. */
static size_t partial_count(const struct model_session *s) {
  const struct model_config *c = &s->model->config;
  struct attention_shape step = {.sequences = s->slots,
                                 .q_length = 1,
                                 .heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim};
  struct attention_shape chunk = step;
  chunk.sequences = 1;
  chunk.q_length = s->chunk;
  size_t of_step = attention_cached_floats(&step, s->capacity);
  size_t of_chunk = attention_cached_floats(&chunk, s->capacity);
  return of_step > of_chunk ? of_step : of_chunk;
}

static enum status allocate(struct model_session *s, enum dtype kv, struct error *err) {
  const struct model_config *c = &s->model->config;
  size_t slots = (size_t)s->slots;
  if (!kv_cache_shape(&s->shape, kv, c->kv_heads, c->head_dim, s->capacity, &s->layer_bytes))
    return error_set(err, STATUS_FAILED, "a session of %lld tokens is too long",
                     (long long)s->capacity);
  s->lengths = mem_alloc(slots, sizeof *s->lengths, err);
  s->caches = mem_alloc(slots, sizeof *s->caches, err);
  s->starts = mem_alloc(slots, sizeof *s->starts, err);
  s->named = mem_alloc(slots, sizeof *s->named, err);
  if (!s->lengths || !s->caches || !s->starts || !s->named) return STATUS_FAILED;
  s->partials = mem_alloc(partial_count(s), sizeof *s->partials, err);
  s->memory = mem_alloc(slots * (size_t)c->layers, s->layer_bytes, err);
  return s->partials && s->memory ? STATUS_OK : STATUS_FAILED;
}

enum status model_session_new_with(struct model_session **out, const struct model *model,
                                   const struct session_settings *settings, struct error *err) {
  int64_t capacity = settings->capacity, slots = settings->slots;
  INVARIANT(model->backend->is_host || model->card);
  if (capacity < 1)
    return error_set(err, STATUS_USAGE, "a session needs room for at least one token");
  if (slots < 1 || slots > SESSION_SLOTS_MAX)
    return error_set(err, STATUS_USAGE, "%lld texts cannot be decoded at once; 1 to %d can",
                     (long long)slots, SESSION_SLOTS_MAX);
  struct model_session *s = mem_alloc(1, sizeof *s, err);
  if (!s) return STATUS_FAILED;
  *s = (struct model_session){.model = model,
                              .slots = slots,
                              .capacity = capacity,
                              .chunk = capacity < CHUNK_TOKENS ? capacity : CHUNK_TOKENS};
  if (model->card) {
    enum status made = card_session_new(&s->card, model, settings, err);
    if (made)
      mem_free(s);
    else
      *out = s;
    return made;
  }
  enum status status = allocate(s, settings->kv, err);
  /* rows of a step or of a chunk: the workspace does not mind whose they are */
  struct model_shape most = {s->chunk > slots ? s->chunk : slots, 1};
  if (status == STATUS_OK)
    status = workspace_make(&s->ws, model, most, capacity, false, false, err);
  if (status == STATUS_OK)
    *out = s;
  else
    model_session_free(s);
  return status;
}

enum status model_session_new_slots(struct model_session **out, const struct model *model,
                                    int64_t slots, int64_t capacity, struct error *err) {
  struct session_settings settings = {.slots = slots, .capacity = capacity, .kv = DTYPE_F32};
  return model_session_new_with(out, model, &settings, err);
}

enum status model_session_new(struct model_session **out, const struct model *model,
                              int64_t capacity, struct error *err) {
  return model_session_new_slots(out, model, 1, capacity, err);
}

void model_session_set_precision(struct model_session *s, enum precision precision) {
  if (!s->card) model_workspace_set_precision(s->ws, precision);
}

void model_session_free(struct model_session *s) {
  if (!s) return;
  card_session_free(s->card);
  model_workspace_free(s->ws);
  mem_free(s->memory);
  mem_free(s->partials);
  mem_free(s->lengths);
  mem_free(s->caches);
  mem_free(s->starts);
  mem_free(s->named);
  mem_free(s);
}

static bool is_slot(const struct model_session *s, int64_t slot) {
  return slot >= 0 && slot < s->slots;
}

int64_t model_slot_length(const struct model_session *s, int64_t slot) {
  if (s->card) return card_slot_length(s->card, slot);
  INVARIANT(is_slot(s, slot));
  return s->lengths[slot];
}

void model_slot_truncate(struct model_session *s, int64_t slot, int64_t length) {
  if (s->card) {
    card_slot_truncate(s->card, slot, length);
    return;
  }
  INVARIANT(is_slot(s, slot) && length >= 0 && length <= s->lengths[slot]);
  s->lengths[slot] = length;
}

static struct kv_cache cache_of(const struct model_session *s, int64_t slot, int layer) {
  size_t at = (size_t)(slot * s->model->config.layers + layer);
  return kv_cache_at(&s->shape, s->memory + at * s->layer_bytes);
}

enum status model_slot_copy(struct model_session *s, int64_t to, int64_t from, int64_t length,
                            struct error *err) {
  if (s->card) return card_slot_copy(s->card, to, from, length, err);
  INVARIANT(is_slot(s, to) && is_slot(s, from) && to != from);
  INVARIANT(length >= 0 && length <= s->lengths[from]);
  for (int i = 0; i < s->model->config.layers; i++) {
    struct kv_cache dest = cache_of(s, to, i), source = cache_of(s, from, i);
    kv_cache_copy(&dest, &source, length);
  }
  s->lengths[to] = length;
  return STATUS_OK;
}

/* Blocks over the embedded tokens in ws->hidden: `length` of each of slots (count). */
static void run_blocks(struct model_session *s, const int64_t *slots, int64_t count,
                       int64_t length) {
  for (int64_t i = 0; i < count; i++) s->starts[i] = s->lengths[slots[i]];
  for (int layer = 0; layer < s->model->config.layers; layer++) {
    for (int64_t i = 0; i < count; i++) s->caches[i] = cache_of(s, slots[i], layer);
    struct block_run run = {.model = s->model,
                            .layer = layer,
                            .shape = {count, length},
                            .ws = s->ws,
                            .memory = &s->ws->blocks[0],
                            .kv = s->caches,
                            .starts = s->starts,
                            .partials = s->partials};
    block_forward(&run, s->ws->hidden);
  }
  for (int64_t i = 0; i < count; i++) s->lengths[slots[i]] += length;
}

/* Logits of `count` rows of ws->hidden from row `first` on. */
static enum status read_logits(struct model_session *s, int64_t first, int64_t count, float *logits,
                               struct error *err) {
  const struct model *m = s->model;
  float *rows = s->ws->hidden + first * m->config.hidden_size;
  model_final_norm(m, rows, count, rows);
  model_logits(m, rows, count, s->ws->precision, logits);
  return model_check_finite(m, logits, count * m->config.vocab_size, "the logits are", err);
}

enum status model_slot_append(struct model_session *s, int64_t slot, const int32_t *ids,
                              int64_t count, float *logits, struct error *err) {
  if (s->card) return card_slot_append(s->card, slot, ids, count, logits, err);
  INVARIANT(is_slot(s, slot));
  int64_t before = s->lengths[slot], last = 0;
  if (count < 1) return error_set(err, STATUS_USAGE, "there are no tokens to append");
  if (count > s->capacity - before)
    return error_set(err, STATUS_REFUSED,
                     "%lld tokens do not fit: the session holds %lld of at most %lld",
                     (long long)count, (long long)before, (long long)s->capacity);
  for (int64_t done = 0; done < count; done += last) {
    last = count - done < s->chunk ? count - done : s->chunk;
    enum status status = model_embed(s->model, ids + done, last, s->ws->hidden, err);
    if (status != STATUS_OK) {
      s->lengths[slot] = before;
      return status;
    }
    run_blocks(s, &slot, 1, last);
  }
  return logits ? read_logits(s, last - 1, 1, logits, err) : STATUS_OK;
}

static enum status check_step(struct model_session *s, const int64_t *slots, int64_t count,
                              struct error *err) {
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
  }
  return STATUS_OK;
}

enum status model_session_step(struct model_session *s, const int64_t *slots, const int32_t *ids,
                               int64_t count, float *logits, struct error *err) {
  if (s->card) return card_session_step(s->card, slots, ids, count, logits, err);
  enum status status = check_step(s, slots, count, err);
  if (status == STATUS_OK) status = model_embed(s->model, ids, count, s->ws->hidden, err);
  if (status != STATUS_OK) return status;
  run_blocks(s, slots, count, 1);
  return read_logits(s, 0, count, logits, err);
}

int64_t model_kv_bytes_per_position(const struct model *m, enum dtype kv) {
  struct kv_cache shape;
  size_t bytes;
  INVARIANT(kv_cache_shape(&shape, kv, m->config.kv_heads, m->config.head_dim, 1, &bytes));
  return m->config.layers * kv_cache_position_bytes(&shape);
}

enum status model_session_prompts(struct model_session *s, const int64_t *slots, const int32_t *ids,
                                  int64_t count, int64_t length, float *logits, struct error *err) {
  enum status status = STATUS_OK;
  if (s->card) return card_session_prompts(s->card, slots, ids, count, length, logits, err);
  for (int64_t i = 0; i < count && !status; i++) {
    float *out = logits ? logits + i * s->model->config.vocab_size : NULL;
    model_slot_truncate(s, slots[i], 0);
    status = model_slot_append(s, slots[i], ids + i * length, length, out, err);
  }
  return status;
}

/* --- on a card --- */

size_t model_placed_bytes(const struct model *m) {
  return card_bytes(m->card, m->backend->serve, false);
}
size_t model_step_bytes(const struct model *m) {
  return card_bytes(m->card, m->backend->serve, true);
}

bool model_session_draws(const struct model_session *s) { return s->card != NULL; }

enum status model_session_draw(struct model_session *s, const struct model_draw *draws,
                               int64_t count, int32_t *ids, struct error *err) {
  INVARIANT(s->card);
  return card_session_draw(s->card, draws, count, ids, err);
}

enum status model_slot_see(struct model_session *s, int64_t slot, const uint8_t *seen,
                           struct error *err) {
  INVARIANT(s->card);
  return card_slot_see(s->card, slot, seen, err);
}

void model_session_record(struct model_session *s, bool on) {
  if (s->card) card_session_record(s->card, on);
}

/* --- the face of a session of one text --- */

int64_t model_session_length(const struct model_session *s) { return model_slot_length(s, 0); }

enum status model_session_append(struct model_session *s, const int32_t *ids, int64_t count,
                                 float *logits, struct error *err) {
  return model_slot_append(s, 0, ids, count, logits, err);
}

void model_session_truncate(struct model_session *s, int64_t length) {
  model_slot_truncate(s, 0, length);
}
