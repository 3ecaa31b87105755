/* What a model is taught by beside the text: a teacher's distribution over the next token, and its
 * states between blocks. Row-wise; the same bits at any number of threads. */
#ifndef TSR_KERNEL_DISTILL_H
#define TSR_KERNEL_DISTILL_H

#include <stdint.h>

/* The divergence of the model's distribution q from the teacher's p. */
enum distill_kind {
  DISTILL_FORWARD, /* KL(p || q): Hinton, Vinyals, Dean 2015 */
  DISTILL_REVERSE, /* KL(q || p): q is not asked for all that p does. Gu et al. 2023 (MiniLLM) */
  /* KL(p' || q') over the teacher's `top` most likely tokens and one bucket of all others; tokens
   * that tie with the last of them belong to them. With all tokens it is DISTILL_FORWARD. */
  DISTILL_TOP,
  DISTILL_KINDS
};
extern const char *const distill_kind_name[DISTILL_KINDS]; /* "forward", "reverse", "top-k" */
enum { DISTILL_TOP_DEFAULT = 64, DISTILL_TOP_MOST = 1024 };

struct distill_rule {
  enum distill_kind kind;
  int64_t top;   /* of DISTILL_TOP: 1 to DISTILL_TOP_MOST */
  double weight; /* share of the divergence in the loss; the rest is the nll's */
};

/* Per row (1 - weight) * nll + weight * kl, with nll (rows) as cross_entropy's (kernel/ops.h) and
 * kl (rows) the divergence of the rule's kind, p = softmax(teacher), q = softmax(logits). Both and
 * the gradient are zero where the target is -1. dlogits (rows, vocab; may be logits itself, not
 * NULL) = scale * the derivative: (1 - weight) * (q - onehot) + weight * g, with g forward  q - p
 *   reverse  q * (log(q / p) - kl)
 *   top-k    q - p for the teacher's tokens, q * (1 - P / Q) for the others, P and Q what p and q
 *            give the bucket (Q no less than DISTILL_LEAST, so that the divergence stays finite) */
#define DISTILL_LEAST 1e-30
void distill_loss(const float *logits, const float *teacher, const int32_t *targets, int64_t rows,
                  int64_t vocab, struct distill_rule rule, float scale, float *nll, float *kl,
                  float *dlogits);

/* The `top`-th largest of x (n), 1 <= top <= DISTILL_TOP_MOST; -infinity with top >= n, and where
 * NaNs leave fewer numbers. */
float distill_threshold(const float *x, int64_t n, int64_t top);

/* How far states x (rows, width) are from those of the teacher, d: distance (rows) += share *
 * |x - d|^2 / |d|^2, and d becomes the gradient of scale * that: 2 * scale * share * (x - d) /
 * |d|^2. Rows whose target is -1, and those where d is zero, add nothing and get a zero gradient.
 * Each row by its own energy, for that of the first tokens is often a thousand times the others'.
 */
void match_rows(const float *x, float *d, const int32_t *targets, int64_t rows, int64_t width,
                float share, float scale, float *distance);

#endif
