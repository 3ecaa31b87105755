/* The logits of one linear under another pattern than 2:4, and what AdamW keeps for them: one for
 * each candidate of each group, in the layout of kernel/pattern_ops.h. They lie in the host's
 * memory: other patterns are learned on the CPU. */
#ifndef TSR_LEARN_PATTERN_H
#define TSR_LEARN_PATTERN_H

#include "kernel/pattern_ops.h"
#include "learn/settings.h"

struct pattern_logits {
  struct mask_pattern table;
  int64_t rows, cols, count;                   /* logits */
  float *logit, *gradient, *moment1, *moment2; /* (rows, groups, candidates) */
};

/* STATUS_USAGE when the settings' pattern has too large a table. */
enum status pattern_logits_init(struct pattern_logits *p, const struct learn_settings *settings,
                                int64_t rows, int64_t cols, struct error *err);
void pattern_logits_free(struct pattern_logits *p);
/* Logits of a matrix under the settings' pattern: there are as many gradients, and as many of each
 * moment. */
int64_t pattern_logits_count(const struct learn_settings *settings, int64_t rows, int64_t cols);

/* The logits that a run starts from, a function of the seed, the tensor and the prior (bits at the
 * pattern): init_std times a normal in maskllm mode or without a prior, and init_std *
 * prior_strength_24 * (overlap - n^2 / m), overlap = kept entries that candidate and prior share,
 * n^2 / m its mean over the candidates. */
void pattern_logits_start(struct pattern_logits *p, const struct mask_matrix *prior,
                          const struct learn_settings *settings, int tensor);

#endif
