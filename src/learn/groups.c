/* Storage of 2:4 logits: see groups.h. */
#include "learn/groups.h"

#include "base/error.h"

struct groups_bytes groups_bytes(int64_t rows, int64_t cols, bool compact) {
  const size_t five = (size_t)mask_logit_count(rows, cols);
  const size_t six = (size_t)mask_second_count(rows, cols);
  if (compact)
    return (struct groups_bytes){2 * five, 2 * five, five + six + (five + six) / MASK_BLOCK};
  return (struct groups_bytes){sizeof(float) * five, sizeof(float) * five,
                               sizeof(float) * (five + six)};
}

/* Where moments lie behind a pointer; `end` of them all. */
struct moments {
  void *first, *second; /* f32; compact: bytes */
  uint8_t *scale1, *scale2;
  char *end;
};

static struct moments moments_at(void *base, int64_t rows, int64_t cols, bool compact) {
  const size_t five = (size_t)mask_logit_count(rows, cols);
  const size_t six = (size_t)mask_second_count(rows, cols);
  const size_t size = compact ? 1 : sizeof(float); /* of a moment */
  struct moments m = {.first = base};
  /* whole blocks of groups keep what follows aligned to 16 bytes */
  m.second = (char *)m.first + five * size;
  m.end = (char *)m.second + six * size;
  if (!compact) return m;
  m.scale1 = (uint8_t *)m.end;
  m.scale2 = m.scale1 + five / MASK_BLOCK;
  m.end = (char *)m.scale2 + six / MASK_BLOCK;
  return m;
}

enum status groups_init(struct group_logits *g, const struct backend *ops, int64_t rows,
                        int64_t cols, bool compact, bool offload, struct error *err) {
  const struct groups_bytes bytes = groups_bytes(rows, cols, compact);
  INVARIANT(!offload || !ops->is_host);
  *g = (struct group_logits){.ops = ops,
                             .rows = rows,
                             .cols = cols,
                             .compact = compact,
                             .offload = offload,
                             .moment_bytes = bytes.moments};
  enum status status = ops->alloc(bytes.logits, &g->logit, err);
  if (status == STATUS_OK) status = ops->alloc(bytes.gradients, &g->gradient, err);
  if (status == STATUS_OK)
    status = (offload ? ops->alloc_host : ops->alloc)(bytes.moments, &g->moments, err);
  if (status != STATUS_OK) {
    groups_free(g);
    return status;
  }
  const struct moments m = moments_at(g->moments, rows, cols, compact);
  INVARIANT(m.end == (char *)g->moments + bytes.moments);
  g->moment1 = m.first;
  g->moment2 = m.second;
  g->scale1 = m.scale1;
  g->scale2 = m.scale2;
  return STATUS_OK;
}

void groups_free(struct group_logits *g) {
  if (!g->ops) return;
  g->ops->free(g->logit);
  g->ops->free(g->gradient);
  if (g->offload)
    g->ops->free_host(g->moments);
  else
    g->ops->free(g->moments);
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
                 const struct mask_rounding *rounding, void *moments, uint8_t *codes,
                 uint64_t *flips) {
  const struct moments m = moments_at(moments, g->rows, g->cols, g->compact);
  const struct mask_compact state = {.gradient = g->gradient,
                                     .logits = g->logit,
                                     .first = m.first,
                                     .second = m.second,
                                     .first_scale = m.scale1,
                                     .second_scale = m.scale2};
  if (g->compact)
    g->ops->mask_compact_step(settings, rounding, g->rows, g->cols, &state, codes, flips);
  else
    g->ops->mask_adamw_step(settings, g->rows, g->cols, g->gradient, g->logit, m.first, m.second,
                            codes, flips);
}
