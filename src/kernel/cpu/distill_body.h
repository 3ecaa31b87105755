/* Distillation's losses in the vector vocabulary: included after rows_body.h, whose steps over
 * lanes and fp64 sums it uses. Formulas: kernel/distill.h. */
#include "kernel/distill.h"

/* dlogits = own * exp(logits - top) - from_teacher * exp(teacher - teacher_top). */
INLINE void distill_step(int64_t i, int64_t lanes, const float *logits, const float *teacher,
                         vf top, vf teacher_top, vf own, vf from_teacher, float *dlogits) {
  vf q = vf_mul(own, exponentials(logits + i, lanes, top));
  vf p = exponentials(teacher + i, lanes, teacher_top);
  store_lanes(dlogits + i, lanes, vf_fnma(p, from_teacher, q));
}

/* The exponentials are made twice, for the sums and for the gradient: dlogits may be where the
 * logits are, so there is no room to keep both rows of them. */
static void distill_row(const float *logits, const float *teacher, int64_t vocab, int32_t target,
                        float weight, float gradient_scale, float *nll, float *kl, float *dlogits) {
  const float p_top = top_of(teacher, vocab).value, q_top = top_of(logits, vocab).value;
  struct divergence d = {wide_zero(), wide_zero(), wide_zero()};
  FOR_LANES(vocab, divergence_step, teacher, logits, vf_set(p_top), vf_set(q_top), &d);
  const double p_sum = wide_total(&d.reference), q_sum = wide_total(&d.model);
  *nll = (float)(q_top + log(q_sum) - logits[target]);
  *kl = (float)(wide_total(&d.difference) / p_sum -
                ((double)p_top - q_top + log(p_sum) - log(q_sum)));
  FOR_LANES(vocab, distill_step, logits, teacher, vf_set(q_top), vf_set(p_top),
            vf_set((float)(gradient_scale / q_sum)),
            vf_set((float)((double)gradient_scale * weight / p_sum)), dlogits);
  dlogits[target] -= gradient_scale * (1 - weight);
}

/* --- KL(model || teacher) --- */

/* dlogits = q ((1 - weight) + weight ((logits - teacher) - mean)), q = own * exp(logits - top). */
INLINE void reverse_step(int64_t i, int64_t lanes, const float *logits, const float *teacher,
                         vf top, vf own, vf weight, vf rest, vf mean, float *dlogits) {
  vf away = vf_sub(load_lanes(logits + i, lanes), load_lanes(teacher + i, lanes));
  vf q = vf_mul(own, exponentials(logits + i, lanes, top));
  store_lanes(dlogits + i, lanes, vf_mul(q, vf_fma(weight, vf_sub(away, mean), rest)));
}

/* log(q / p) - kl is logits - teacher less its mean under q: the denominators cancel. */
static void distill_reverse_row(const float *logits, const float *teacher, int64_t vocab,
                                int32_t target, float weight, float gradient_scale, float *nll,
                                float *kl, float *dlogits) {
  const float p_top = top_of(teacher, vocab).value, q_top = top_of(logits, vocab).value;
  struct divergence d = {wide_zero(), wide_zero(), wide_zero()};
  FOR_LANES(vocab, divergence_step, logits, teacher, vf_set(q_top), vf_set(p_top), &d);
  const double q_sum = wide_total(&d.reference), p_sum = wide_total(&d.model);
  const double mean = wide_total(&d.difference) / q_sum;
  *nll = (float)(q_top + log(q_sum) - logits[target]);
  *kl = (float)(mean - ((double)q_top - p_top + log(q_sum) - log(p_sum)));
  FOR_LANES(vocab, reverse_step, logits, teacher, vf_set(q_top),
            vf_set((float)(gradient_scale / q_sum)), vf_set(weight), vf_set(1 - weight),
            vf_set((float)mean), dlogits);
  dlogits[target] -= gradient_scale * (1 - weight);
}

/* --- the teacher's most likely tokens and the rest --- */

/* Sums of exp(teacher) and exp(logits) over the tokens whose teacher's logit is at least `least`,
 * of the former times the difference, and over the others. */
struct top_sums {
  struct wide_sum p, q, difference, p_rest, q_rest;
};

INLINE void top_step(int64_t i, int64_t lanes, const float *logits, const float *teacher, vf top,
                     vf teacher_top, vf least, struct top_sums *sums) {
  vf t = load_lanes(teacher + i, lanes), s = load_lanes(logits + i, lanes);
  vm other = vf_less(t, least);
  vf p = exponentials(teacher + i, lanes, teacher_top), q = exponentials(logits + i, lanes, top);
  vf p_chosen = vf_select(other, vf_zero(), p);
  wide_add(&sums->p, p_chosen);
  wide_add(&sums->q, vf_select(other, vf_zero(), q));
  wide_add(&sums->p_rest, vf_select(other, p, vf_zero()));
  wide_add(&sums->q_rest, vf_select(other, q, vf_zero()));
  wide_add_product(&sums->difference, p_chosen, vf_sub(t, s));
}

/* dlogits = own * exp(logits - top) - from_teacher * exp(teacher - teacher_top), and own_rest *
 * exp(logits - top) for the others. */
INLINE void top_gradient_step(int64_t i, int64_t lanes, const float *logits, const float *teacher,
                              vf top, vf teacher_top, vf least, vf own, vf own_rest,
                              vf from_teacher, float *dlogits) {
  vm other = vf_less(load_lanes(teacher + i, lanes), least);
  vf q = exponentials(logits + i, lanes, top), p = exponentials(teacher + i, lanes, teacher_top);
  vf chosen = vf_fnma(p, from_teacher, vf_mul(own, q));
  store_lanes(dlogits + i, lanes, vf_select(other, vf_mul(own_rest, q), chosen));
}

static void distill_top_row(const float *logits, const float *teacher, int64_t vocab,
                            int32_t target, float least, float weight, float gradient_scale,
                            float *nll, float *kl, float *dlogits) {
  const float p_top = top_of(teacher, vocab).value, q_top = top_of(logits, vocab).value;
  const vf p_from = vf_set(p_top), q_from = vf_set(q_top);
  struct top_sums s = {wide_zero(), wide_zero(), wide_zero(), wide_zero(), wide_zero()};
  FOR_LANES(vocab, top_step, logits, teacher, q_from, p_from, vf_set(least), &s);
  const double p_sum = wide_total(&s.p) + wide_total(&s.p_rest),
               q_sum = wide_total(&s.q) + wide_total(&s.q_rest);
  const double p_rest = wide_total(&s.p_rest) / p_sum, q_share = wide_total(&s.q_rest) / q_sum;
  const double q_rest = q_share < DISTILL_LEAST ? DISTILL_LEAST : q_share;
  const double own = gradient_scale / q_sum;
  *nll = (float)(q_top + log(q_sum) - logits[target]);
  *kl = (float)((wide_total(&s.difference) -
                 wide_total(&s.p) * ((double)p_top - q_top + log(p_sum) - log(q_sum))) /
                    p_sum +
                (p_rest > 0 ? p_rest * log(p_rest / q_rest) : 0));
  FOR_LANES(vocab, top_gradient_step, logits, teacher, q_from, p_from, vf_set(least),
            vf_set((float)own), vf_set((float)(own * (1 - weight * p_rest / q_rest))),
            vf_set((float)((double)gradient_scale * weight / p_sum)), dlogits);
  dlogits[target] -= gradient_scale * (1 - weight);
}

static void fill_distill(struct kernel_table *table) {
  table->distill = distill_row;
  table->distill_reverse = distill_reverse_row;
  table->distill_top = distill_top_row;
}
