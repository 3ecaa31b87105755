/* A model that decodes on a card: its weights there, and sessions over pages of keys and values.
 * card.c makes the weights, card_session.h says which files run them; session.c is the face of both
 * kinds of session. */
#ifndef TSR_MODEL_CARD_H
#define TSR_MODEL_CARD_H

#include "kernel/serve.h"
#include "model/internal.h"

/* Linears that meet the same x: as one matrix where their weights have one form, else one by one.
 * Outputs lie side by side in rows of `width`; the part of linear i begins at column at[i]. */
struct card_linears {
  struct serve_weight *weight[LINEAR_MANY_MOST];
  const uint16_t *bias[LINEAR_MANY_MOST]; /* bf16, as wide as the weight's rows, or NULL */
  int weights;                            /* 1, or one for each linear */
  int64_t at[LINEAR_MANY_MOST], width;
};

struct card_layer {
  struct card_linears qkv, gate_up, o, down;
  struct serve_weight *pair; /* gate and up as one that applies the activation; or NULL */
  const uint16_t *pair_bias; /* (2 * intermediate_size) or NULL */
};

struct card {
  struct card_layer *layers; /* (layer_count) */
  int layer_count;
  struct serve_weight *head;
  const void *embeddings; /* bf16, row-major, where the head does not serve for them; else NULL */
  size_t embedding_bytes;
  bool choose; /* as model_place_to_run */
};

/* place.c: what a placed model is being given. */
struct placing {
  struct model *to;
  enum status status;
  struct error *err;
};
/* The copy of `bytes` at `from`, remembered for model_give_back; NULL for NULL, or after a failure.
 */
void *place(struct placing *p, const void *from, size_t bytes);

enum status card_new(struct placing *p, const struct model *host, bool choose);
void card_free(struct card *card, const struct backend *backend); /* NULL is fine */

/* Bytes on the card: of all weights; of what a step reads, packed linears and the head. */
size_t card_bytes(const struct card *card, const struct serve_ops *serve, bool step);

/* card_choose.c: for passes of up to `rows` rows the kernels that the card's table names
 * (model/choice.h); what it lacks is measured, and kept. Weights of integers stay with the first of
 * their kernels: they have no dense product to be held against. */
enum status card_choose(struct card *card, const struct serve_ops *serve, int64_t rows,
                        struct error *err);

/* --- sessions: as the functions of model.h --- */
struct card_session;
enum status card_session_new(struct card_session **out, const struct model *model,
                             const struct session_settings *settings, struct error *err);
void card_session_free(struct card_session *s);
int64_t card_slot_length(const struct card_session *s, int64_t slot);
enum status card_slot_append(struct card_session *s, int64_t slot, const int32_t *ids,
                             int64_t count, float *logits, struct error *err);
void card_slot_truncate(struct card_session *s, int64_t slot, int64_t length);
enum status card_slot_copy(struct card_session *s, int64_t to, int64_t from, int64_t length,
                           struct error *err);
enum status card_session_step(struct card_session *s, const int64_t *slots, const int32_t *ids,
                              int64_t count, float *logits, struct error *err);
enum status card_session_prompts(struct card_session *s, const int64_t *slots, const int32_t *ids,
                                 int64_t count, int64_t length, float *logits, struct error *err);
enum status card_session_draw(struct card_session *s, const struct model_draw *draws, int64_t count,
                              int32_t *ids, struct error *err);
enum status card_slot_see(struct card_session *s, int64_t slot, const uint8_t *seen,
                          struct error *err);
void card_session_record(struct card_session *s, bool on);

#endif
