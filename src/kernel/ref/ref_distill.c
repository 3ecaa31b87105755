/* Reference kernels of distillation's losses: see kernel/distill.h for the formulas. Sums are fp64.
 */
#include <math.h>

#include "kernel/distill.h"
#include "kernel/ref/ref.h"

/* log of the sum of exponentials. */
static double log_total(const float *x, int64_t n) {
  double max = x[0], sum = 0;
  for (int64_t i = 1; i < n; i++) max = fmax(max, x[i]);
  for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
  INVARIANT(n > 0);
  return max + log(sum);
}

static void distill_row(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                        float weight, float scale, float *nll, float *kl, float *dlogits) {
  const double total = log_total(logits, vocab), teacher_total = log_total(teacher, vocab);
  double divergence = 0;
  *nll = (float)(total - logits[target]);
  for (int64_t i = 0; i < vocab; i++) {
    const double log_p = teacher[i] - teacher_total, log_q = logits[i] - total;
    divergence += exp(log_p) * (log_p - log_q);
    const double wanted = weight * exp(log_p) + (i == target ? 1 - (double)weight : 0);
    dlogits[i] = (float)(scale * (exp(log_q) - wanted));
  }
  *kl = (float)divergence;
}

static void reverse_row(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                        float weight, float scale, float *nll, float *kl, float *dlogits) {
  const double total = log_total(logits, vocab), teacher_total = log_total(teacher, vocab);
  double divergence = 0;
  *nll = (float)(total - logits[target]);
  for (int64_t i = 0; i < vocab; i++) {
    const double log_p = teacher[i] - teacher_total, log_q = logits[i] - total;
    divergence += exp(log_q) * (log_q - log_p);
  }
  for (int64_t i = 0; i < vocab; i++) {
    const double log_p = teacher[i] - teacher_total, log_q = logits[i] - total, q = exp(log_q);
    const double text = q - (i == target), dense = q * (log_q - log_p - divergence);
    dlogits[i] = (float)(scale * ((1 - (double)weight) * text + weight * dense));
  }
  *kl = (float)divergence;
}

static void top_row(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                    float least, float weight, float scale, float *nll, float *kl, float *dlogits) {
  const double total = log_total(logits, vocab), teacher_total = log_total(teacher, vocab);
  double divergence = 0, p_rest = 0, q_rest = 0;
  *nll = (float)(total - logits[target]);
  for (int64_t i = 0; i < vocab; i++) {
    const double log_p = teacher[i] - teacher_total, log_q = logits[i] - total;
    if (teacher[i] < least) {
      p_rest += exp(log_p);
      q_rest += exp(log_q);
    } else {
      divergence += exp(log_p) * (log_p - log_q);
    }
  }
  q_rest = fmax(q_rest, DISTILL_LEAST);
  if (p_rest > 0) divergence += p_rest * log(p_rest / q_rest);
  for (int64_t i = 0; i < vocab; i++) {
    const double p = exp(teacher[i] - teacher_total), q = exp(logits[i] - total);
    const double text = q - (i == target);
    const double dense = teacher[i] < least ? q * (1 - p_rest / q_rest) : q - p;
    dlogits[i] = (float)(scale * ((1 - (double)weight) * text + weight * dense));
  }
  *kl = (float)divergence;
}

void ref_fill_distill(struct kernel_table *table) {
  table->distill = distill_row;
  table->distill_reverse = reverse_row;
  table->distill_top = top_row;
}
