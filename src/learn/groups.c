/* Storage of 2:4 logits: see groups.h. */
#include "learn/groups.h"

size_t groups_bytes(int64_t rows, int64_t cols) {
  int64_t floats = 3 * mask_logit_count(rows, cols) + mask_second_count(rows, cols);
  return (size_t)floats * sizeof(float);
}

enum status groups_init(struct group_logits *g, const struct backend *ops, int64_t rows,
                        int64_t cols, struct error *err) {
  const size_t logits = (size_t)mask_logit_count(rows, cols) * sizeof(float);
  const size_t seconds = (size_t)mask_second_count(rows, cols) * sizeof(float);
  *g = (struct group_logits){.ops = ops, .rows = rows, .cols = cols};
  enum status status = ops->alloc(logits, (void **)&g->logit, err);
  if (status == STATUS_OK) status = ops->alloc(logits, (void **)&g->gradient, err);
  if (status == STATUS_OK) status = ops->alloc(logits, (void **)&g->moment1, err);
  if (status == STATUS_OK) status = ops->alloc(seconds, (void **)&g->moment2, err);
  if (status != STATUS_OK) groups_free(g);
  return status;
}

void groups_free(struct group_logits *g) {
  if (!g->ops) return;
  g->ops->free(g->logit);
  g->ops->free(g->gradient);
  g->ops->free(g->moment1);
  g->ops->free(g->moment2);
  *g = (struct group_logits){0};
}

void groups_set(float *logit, int64_t cols, int64_t row, int64_t group,
                const float logits[SPARSE_CANDIDATES]) {
  for (int k = 0; k < MASK_STORED; k++)
    logit[mask_logit_index(cols, row, group, k)] = logits[k] - logits[MASK_STORED];
}
