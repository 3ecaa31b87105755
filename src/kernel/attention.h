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

/* Offsets of the first element of a row. */
static inline int64_t attention_q_at(const struct attention *x, int64_t sequence, int64_t row,
                                     int64_t head) {
  return (sequence * x->s.q_length + row) * x->q_step + head * x->s.head_dim;
}
static inline int64_t attention_kv_at(const struct attention *x, int64_t sequence, int64_t row,
                                      int64_t head) {
  return (sequence * x->s.kv_length + row) * x->kv_step + head * x->s.head_dim;
}
static inline int64_t attention_lse_at(const struct attention *x, int64_t sequence, int64_t row,
                                       int64_t head) {
  return (sequence * x->s.heads + head) * x->s.q_length + row;
}

/* Keys that query row `row` sees: [low, high). */
static inline int64_t attention_low(const struct attention *x, int64_t row) {
  int64_t low = x->s.window > 0 ? x->s.q_start + row + 1 - x->s.window : 0;
  return low > 0 ? low : 0;
}
static inline int64_t attention_high(const struct attention *x, int64_t row) {
  int64_t high = x->s.q_start + row + 1;
  return high < x->s.kv_length ? high : x->s.kv_length;
}

/* out, and lse unless NULL, from q and from k and v or the cache. */
void attention_run_forward(const struct attention *x);
/* attention_bf16.c: the same, and the backward pass, with operands rounded to bf16. */
void attention_bf16_forward(const struct attention *x);
void attention_bf16_backward(const struct attention *x);

#endif
