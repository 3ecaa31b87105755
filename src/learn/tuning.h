/* What recovery tunes: all the weights that masks keep, or low-rank adapters under the masks.
 *
 * The model's masked linears hold their weights in fp32, +0 where the mask drops, from
 * tuning_init on. Gradients of dropped weights count as zero, and so do their moments, so that what
 * is dropped stays +0 whatever is tuned. Memory: 16 bytes for each weight of the masked linears;
 * with adapters 8, and 16 for each number of theirs. */
#ifndef TSR_LEARN_TUNING_H
#define TSR_LEARN_TUNING_H

#include "learn/lora.h"
#include "learn/state_file.h"
#include "model/model.h"

struct tuned_linear {
  const struct mask_matrix *mask;   /* NULL: not tuned */
  float *weight;                    /* (rows, cols), the model's */
  float *gradient, *first, *second; /* (rows, cols), of all weights; NULL with adapters */
  struct lora lora;                 /* zero without */
};
struct tuning {
  struct model *model;
  enum precision precision;     /* of the gradients' products */
  int64_t rank;                 /* of the adapters; 0: all kept weights */
  struct tuned_linear *linears; /* (model_site_count) */
  float *gradient;              /* adapters: of one linear at a time, the largest */
  float *keeps;                 /* (threads, most_cols): a row of a mask for each thread */
  int64_t most_cols;
};

/* STATUS_REFUSED when a mask is for none of the model's linears or of another shape, or when the
 * model is packed. Changes nothing. */
enum status tuning_check(const struct model *model, const struct mask_set *masks,
                         struct error *err);
/* Masks the model's weights. The masks must outlive it. */
enum status tuning_init(struct tuning *t, struct model *model, const struct mask_set *masks,
                        int64_t rank, uint64_t seed, enum precision precision, struct error *err);
void tuning_free(struct tuning *t);

/* A linear's gradient from its input x (tokens, cols) and dy (tokens, rows); once a step each. */
void tuning_take(struct tuning *t, const struct linear_site *site, const float *x, const float *dy,
                 int64_t tokens);
/* The norm of all that is tuned, after all gradients were taken. */
double tuning_norm(struct tuning *t);
void tuning_update(struct tuning *t, const struct mask_adamw *settings);

/* A sum of the masked weights and of what is kept of them: another mask, or another model, shows.
 */
uint32_t tuning_sum(struct tuning *t);
/* What must be kept to go on, and the weights made from it after it was read. */
enum status tuning_add_state(struct tuning *t, struct state_tensors *tensors, struct error *err);
void tuning_restored(struct tuning *t);

/* How many numbers are tuned; fails if a weight that a mask drops is anything but zero. */
enum status tuning_count(const struct tuning *t, int64_t *count, struct error *err);

#endif
