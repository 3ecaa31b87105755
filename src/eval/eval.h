/* Perplexity as the pruning field measures it, and how far a model strays from its reference.
 *
 * A text is tokenized once and cut into non-overlapping windows of L tokens, the remainder
 * dropped; each window gives L - 1 next-token predictions, and none sees another window. The
 * perplexity is exp of the mean negative log-likelihood. KL(reference || model) is taken per
 * predicted token over the whole vocabulary. Standard errors are those of the mean over windows,
 * which unlike tokens are nearly independent; NAN where there is only one.
 *
 * Logits exist for a few rows at a time only: with 150,000 tokens of vocabulary a window of 4096
 * would take 2.5 GB. */
#ifndef TSR_EVAL_EVAL_H
#define TSR_EVAL_EVAL_H

#include "data/windows.h"
#include "model/model.h"

struct eval_request {
  const struct model *model;
  const struct model *reference; /* for the KL, or NULL */
  const struct windows *windows; /* length at least 2 */
  const char *reference_cache;   /* keeps the reference's hidden states (states.h), or NULL */
  int64_t batch;                 /* windows in one pass; 0 = about EVAL_PASS_TOKENS tokens */
  enum precision precision;      /* of the model's products; the reference's are fp32 */
  bool decode;                   /* the model's logits token by token, as it generates: windows of a
                                    pass step together, keys and values are kept as f16 */
};
enum { EVAL_PASS_TOKENS = 2048 };

struct eval_figure {
  double mean;
  double standard_error; /* NAN for a single window */
};

struct eval_result {
  struct eval_figure nll;       /* nats per predicted token */
  struct eval_figure kl;        /* nats per predicted token; only with a reference */
  struct eval_figure agreement; /* share of predictions with the reference's likeliest token */
  double perplexity;            /* exp(nll.mean) */
  double perplexity_error;      /* to first order: perplexity times the standard error of nll */
  int64_t windows, predictions, batch;
  double seconds;
};

/* STATUS_REFUSED when the reference's vocabulary differs from the model's, STATUS_FAILED when a
 * figure is no number, STATUS_INTERRUPTED on a signal. Shows progress. */
enum status eval_run(struct eval_result *result, const struct eval_request *request,
                     struct error *err);

/* Mean and standard error of `count` values, in fp64. */
struct eval_figure eval_figure_of(const double *values, int64_t count);

#endif
