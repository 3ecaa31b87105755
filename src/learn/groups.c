/* Storage of 2:4 logits: see groups.h. */
#include "learn/groups.h"

struct groups_bytes groups_bytes(int64_t rows, int64_t cols, bool compact) {
  const size_t five = (size_t)mask_logit_count(rows, cols);
  const size_t six = (size_t)mask_second_count(rows, cols);
  if (compact)
    return (struct groups_bytes){2 * five, 2 * five, five + six + (five + six) / MASK_BLOCK};
  return (struct groups_bytes){sizeof(float) * five, sizeof(float) * five,
                               sizeof(float) * (five + six)};
}

enum status groups_init(struct group_logits *g, const struct backend *ops, int64_t rows,
                        int64_t cols, bool compact, struct error *err) {
  const struct groups_bytes bytes = groups_bytes(rows, cols, compact);
  const size_t five = (size_t)mask_logit_count(rows, cols);
  const size_t six = (size_t)mask_second_count(rows, cols);
  const size_t size = compact ? 1 : sizeof(float); /* of a moment */
  *g = (struct group_logits){.ops = ops, .rows = rows, .cols = cols, .compact = compact};
  enum status status = ops->alloc(bytes.logits, &g->logit, err);
  if (status == STATUS_OK) status = ops->alloc(bytes.gradients, &g->gradient, err);
  if (status == STATUS_OK) status = ops->alloc(five * size, &g->moment1, err);
  if (status == STATUS_OK) status = ops->alloc(six * size, &g->moment2, err);
  if (status == STATUS_OK && compact) {
    status = ops->alloc(five / MASK_BLOCK, (void **)&g->scale1, err);
    if (status == STATUS_OK) status = ops->alloc(six / MASK_BLOCK, (void **)&g->scale2, err);
  }
  if (status != STATUS_OK) groups_free(g);
  return status;
}

void groups_free(struct group_logits *g) {
  if (!g->ops) return;
  g->ops->free(g->logit);
  g->ops->free(g->gradient);
  g->ops->free(g->moment1);
  g->ops->free(g->moment2);
  g->ops->free(g->scale1);
  g->ops->free(g->scale2);
  *g = (struct group_logits){0};
}

void groups_set(float *logit, int64_t cols, int64_t row, int64_t group,
                const float logits[SPARSE_CANDIDATES]) {
  for (int k = 0; k < MASK_STORED; k++)
    logit[mask_logit_index(cols, row, group, k)] = logits[k] - logits[MASK_STORED];
}

/* fp32 to bf16 in the same memory. */
static void halve(float *values, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const uint16_t half = bf16_from_f32(values[i]);
    memcpy((char *)values + i * (int64_t)sizeof half, &half, sizeof half);
  }
}

enum status groups_load(const struct group_logits *g, float *made, struct error *err) {
  if (g->compact) halve(made, mask_logit_count(g->rows, g->cols));
  return g->ops->upload(g->logit, made, groups_bytes(g->rows, g->cols, g->compact).logits, err);
}

void groups_step(const struct group_logits *g, const struct mask_adamw *settings,
                 const struct mask_rounding *rounding, uint8_t *codes, uint64_t *flips) {
  const struct mask_compact state = {g->gradient, g->logit,  g->moment1,
                                     g->moment2,  g->scale1, g->scale2};
  if (g->compact)
    g->ops->mask_compact_step(settings, rounding, g->rows, g->cols, &state, codes, flips);
  else
    g->ops->mask_adamw_step(settings, g->rows, g->cols, g->gradient, g->logit, g->moment1,
                            g->moment2, codes, flips);
}
