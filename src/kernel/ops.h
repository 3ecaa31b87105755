/* The operations of a transformer between its matrix products. All fp32, row-major, all threads;
 * the bits do not depend on the number of threads. */
#ifndef TSR_KERNEL_OPS_H
#define TSR_KERNEL_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/kv_cache.h"
#include "kernel/precision.h"

/* y = x / sqrt(mean(x^2) + eps) * (weight + (plus_one ? 1 : 0)), row by row.
 * x, y (rows, n), y may be x; weight (n); inverse (rows) gets 1/sqrt(...) unless NULL. */
void rmsnorm_forward(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                     int64_t n, float *y, float *inverse);
/* dx = or += the gradient of x, from dy, x and the inverse that the forward pass stored. */
void rmsnorm_backward(const float *dy, const float *x, const float *weight, bool plus_one,
                      const float *inverse, int64_t rows, int64_t n, float *dx, bool accumulate);

/* Rotary embedding in Hugging Face's "half" form: pairs (i, i + head_dim / 2). x (rows, heads,
 * head_dim) in place, sequences of `length` rows; row r has position starts[r / length] + r %
 * length, where `starts` may be NULL for zeros; cos, sin (positions, head_dim / 2). `direction` +1
 * rotates, -1 rotates back (the backward pass). */
void rope_apply(float *x, int64_t rows, int64_t length, const int64_t *starts, int64_t heads,
                int64_t head_dim, const float *cos, const float *sin, int direction);

/* out = act(gate) * up over n elements; act: silu, or gelu with the tanh approximation. */
void glu_forward(bool gelu, const float *gate, const float *up, int64_t n, float *out);
/* dgate and dup from dout; they may overwrite gate and up. */
void glu_backward(bool gelu, const float *gate, const float *up, const float *dout, int64_t n,
                  float *dgate, float *dup);

/* x = cap * tanh(x / cap) over n elements, and dx *= 1 - (y / cap)^2 for its output y. */
void softcap_forward(float *x, int64_t n, double cap);
void softcap_backward(float *dx, const float *y, int64_t n, double cap);

/* Causal attention with grouped heads. Query row i of a sequence has position q_start + i and sees
 * key positions j with j <= its own and, when window > 0, j > its own - window.
 * softcap > 0: scores are softcap * tanh(score / softcap) before the softmax.
 * q, out (sequences, q_length, heads, head_dim); k, v (sequences, kv_length, kv_heads, head_dim).
 * Memory is linear in the length: no (q_length, kv_length) matrix is stored. */
struct attention_shape {
  int64_t sequences, q_length, kv_length, q_start;
  int64_t heads, kv_heads, head_dim;
  int64_t window;
  float scale, softcap;
  /* Of the products' operands: probabilities and gradients of scores are operands too. */
  enum precision precision;
};
/* lse (sequences, heads, q_length): log of the softmax denominator, for the backward pass; or
 * NULL. */
void attention_forward(const struct attention_shape *shape, const float *q, const float *k,
                       const float *v, float *out, float *lse);
/* The same over caches (kernel/kv_cache.h), which hold the new rows already: row r of sequence i
 * has position starts[i] + r of caches[i]. kv_length and q_start of the shape are not looked at; q,
 * out as above. What a sequence gets does not depend on the others. Sums are fp32, over elements as
 * the cache holds them. partials: scratch of attention_cached_floats(shape, capacity of the
 * caches). */
void attention_cached(const struct attention_shape *shape, const struct kv_cache *caches,
                      const int64_t *starts, const float *q, float *out, float *partials);
size_t attention_cached_floats(const struct attention_shape *shape, int64_t capacity);
/* q_start = 0 and q_length = kv_length. dq, dk, dv are overwritten. */
void attention_backward(const struct attention_shape *shape, const float *q, const float *k,
                        const float *v, const float *out, const float *lse, const float *dout,
                        float *dq, float *dk, float *dv);

/* Cross-entropy over rows of logits (rows, vocab): nll (rows) = -log softmax(logits)[target]. A
 * target of -1 is skipped (nll 0, zero gradient). With dlogits (may be logits itself, or NULL for
 * forward only): scale * (softmax - onehot). */
void cross_entropy(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                   float scale, float *nll, float *dlogits);
/* nll (rows) as cross_entropy's, and whether the target is what argmax would give, the first of the
 * largest: likeliest (rows). No target is -1. */
void score_targets(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                   float *nll, uint8_t *likeliest);
/* KL(softmax(reference) || softmax(model)) per row, in nats, and whether both have the same
 * argmax: kl (rows), agree (rows) or NULL. */
void softmax_kl(const float *reference, const float *model, int64_t rows, int64_t vocab, float *kl,
                uint8_t *agree);

/* x += y over n elements. */
void add_inplace(float *x, const float *y, int64_t n);
/* to = from over n elements that do not overlap. */
void copy_floats(float *to, const float *from, int64_t n);
/* Sum of squares in fp64, in a fixed order. */
double sum_squares(const float *x, int64_t n);

/* Which instruction set the kernels use: "reference", "avx2", "avx512", "avx512bf16" or "amx".
 * Chosen from the processor at first use; the environment variable TSR_ISA asks for another. */
const char *kernel_isa(void);

#endif
