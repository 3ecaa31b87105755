/* From logits to the next token.
 *
 * The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. Equal
 * logits are ordered by id, so that a seed gives the same text on every run; greedy takes the
 * smallest id of the largest logit. Nothing is allocated while drawing. */
#ifndef TSR_GENERATE_SAMPLER_H
#define TSR_GENERATE_SAMPLER_H

#include <stdint.h>

#include "base/error.h"
#include "base/rng.h"

struct sampler_settings {
  double temperature;        /* 0 = greedy */
  int64_t top_k;             /* keep the k likeliest; 0 = all */
  double top_p;              /* keep the likeliest whose mass reaches p (after top-k); 1 = all */
  double min_p;              /* drop what is less likely than min_p times the likeliest; 0 = none */
  double repetition_penalty; /* logits of tokens seen: positive ones divided, negative ones
                                multiplied by it (Keskar et al. 2019); 1 = off */
  uint64_t seed;
};
/* Greedy, nothing filtered. */
struct sampler_settings sampler_settings_default(void);

struct sampler {
  struct sampler_settings settings;
  struct rng rng;
  int64_t vocab_size;
  uint8_t *seen; /* (vocab_size) 1 = subject to the penalty */
  int32_t *heap; /* (vocab_size) candidates, the likeliest on top */
  double *mass;  /* (vocab_size) exp((logit - largest) / temperature), by id */
};

/* STATUS_USAGE names the setting that is out of range. */
enum status sampler_init(struct sampler *s, const struct sampler_settings *settings,
                         int64_t vocab_size, struct error *err);
void sampler_release(struct sampler *s);

/* Marks a token of the prompt or of the answer as seen. Ids outside the vocabulary are ignored. */
void sampler_see(struct sampler *s, int32_t id);
void sampler_forget(struct sampler *s); /* nothing is seen; the random stream goes on */

/* The uniform that a draw made elsewhere takes in place of sampler_draw: the next of the stream, 0
 * where the likeliest token is taken and none is needed. */
double sampler_uniform(struct sampler *s);

/* Draws from logits (vocab_size), which the penalty changes in place, and marks the token as seen.
 * -1 when a logit is NaN or +infinity, or all are -infinity: the model is broken. */
int32_t sampler_draw(struct sampler *s, float *logits);

#endif
