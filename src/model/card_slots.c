/* The texts of a session on a card, as model.h has them: pages are taken before a pass and lengths
 * change after it, so that what is refused changes nothing. */
#include <string.h>

#include "model/card_session.h"

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

int64_t card_slot_length(const struct card_session *s, int64_t slot) {
  INVARIANT(card_is_slot(s, slot));
  return s->lengths[slot];
}

void card_slot_truncate(struct card_session *s, int64_t slot, int64_t length) {
  INVARIANT(card_is_slot(s, slot) && length >= 0 && length <= s->lengths[slot]);
  s->lengths[slot] = length;
  card_pages_drop(&s->pages, slot, length);
}

enum status card_slot_copy(struct card_session *s, int64_t to, int64_t from, int64_t length,
                           struct error *err) {
  INVARIANT(card_is_slot(s, to) && card_is_slot(s, from) && to != from);
  INVARIANT(length >= 0 && length <= s->lengths[from]);
  card_slot_truncate(s, to, 0);
  enum status status = card_pages_copy(&s->pages, to, from, length, err);
  if (!status) s->lengths[to] = length;
  return status;
}

enum status card_slot_append(struct card_session *s, int64_t slot, const int32_t *ids,
                             int64_t count, float *logits, struct error *err) {
  INVARIANT(card_is_slot(s, slot));
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
    status = card_run_pass(s, &p, err);
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
  if (!status) status = card_run_pass(s, &p, err);
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
      INVARIANT(card_is_slot(s, slots[t]));
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
    INVARIANT(card_is_slot(s, slots[i]));
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
  status = card_run_pass(s, &p, err);
  if (status) return status;
  for (int64_t i = 0; i < count; i++) s->lengths[slots[i]]++;
  return bring_logits(s, count, logits, err);
}
