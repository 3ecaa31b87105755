/* What the files of attention share: one call's arguments, and the blocked forward pass. */
#ifndef TSR_KERNEL_ATTENTION_H
#define TSR_KERNEL_ATTENTION_H

#include "kernel/ops.h"

struct attention {
  struct attention_shape s;
  const float *q, *k, *v, *dout, *out_in;
  const struct kv_cache *cache; /* in place of k and v, of the one sequence; or NULL */
  float *out, *lse;
  const float *lse_in;
  float *dq, *dk, *dv;
  int64_t q_step, kv_step; /* elements between rows of q and of k */
};

static inline struct attention attention_make(const struct attention_shape *s) {
  return (struct attention){
      .s = *s, .q_step = s->heads * s->head_dim, .kv_step = s->kv_heads * s->head_dim};
}

/* out, and lse unless NULL, from q and from k and v or the cache. */
void attention_run_forward(const struct attention *x);

#endif
