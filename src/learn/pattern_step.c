/* A step's work on the masks of another pattern than 2:4: see learner.h. On the CPU. */
#include <math.h>

#include "learn/learner.h"

static struct pattern_source source_of(const struct learner *l, const struct learn_site *s) {
  const struct learn_settings *set = &l->settings;
  return (struct pattern_source){
      .pattern = &s->pattern.table,
      .rows = s->mask.rows,
      .cols = s->mask.cols,
      .tile_rows = s->mask.tile_rows,
      .tile_cols = s->mask.tile_cols,
      .logits = learn_uses_groups(set) ? s->pattern.logit : NULL,
      .bits = learn_uses_groups(set) ? NULL : s->mask.bits,
      .tile_soft = learn_uses_tiles(set) ? l->tile_soft + s->first_tile : NULL,
      .kappa = (float)l->relax_24.kappa,
      .tau = (float)l->relax_24.tau,
      .noise = l->noise,
      .key = {(uint32_t)set->seed, (uint32_t)(set->seed >> 32)},
      .tensor = (uint32_t)s->site->index,
      .draw = l->draw,
  };
}

void learner_pattern_sample(struct learner *l, struct learn_site *s, struct matrix_view w,
                            enum dtype out_dtype) {
  const struct pattern_source source = source_of(l, s);
  l->sums[s - l->sites] = pattern_sample(&source, w, out_dtype, l->masked);
}

static float decay_value(struct mask_decay decay) {
  if (!decay.squares) return (float)decay.factor;
  const double norm = sqrt(*decay.squares);
  return norm > 0 ? (float)(decay.factor / norm) : 0;
}

void learner_pattern_gradient(struct learner *l, struct learn_site *s, struct matrix_view w,
                              struct mask_decay decay, enum dtype out_dtype) {
  const struct pattern_source source = source_of(l, s);
  double *soft = learn_uses_tiles(&l->settings) ? l->tile_gradient + s->first_tile : NULL;
  pattern_backward(&source, w, l->gradient, decay_value(decay), l->micro > 0, s->pattern.gradient,
                   soft, out_dtype, l->masked);
}

int64_t learner_pattern_update(struct learn_site *s, const struct mask_adamw *settings) {
  struct pattern_logits *p = &s->pattern;
  return pattern_adamw_step(&p->table, settings, p->rows, p->cols, p->gradient, p->logit,
                            p->moment1, p->moment2, s->codes);
}
