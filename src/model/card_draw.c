/* Tokens drawn on the card from the logits of the last pass: kernel/cuda/serve.h says how. */
#include "model/card_session.h"

#include "base/mem.h"

enum status card_slot_see(struct card_session *s, int64_t slot, const uint8_t *seen,
                          struct error *err) {
  const size_t vocab = (size_t)s->model->config.vocab_size;
  INVARIANT(card_is_slot(s, slot));
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
    INVARIANT(card_is_slot(s, draws[i].slot));
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
