/* Distillation's loss in the vector vocabulary: included after rows_body.h, whose steps over lanes
 * and fp64 sums it uses. Formula: kernel/ops.h. */

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

static void fill_distill(struct kernel_table *table) { table->distill = distill_row; }
