/* Storage of 2:4 logits: see groups.h. */
#include "learn/groups.h"

#include "base/mem.h"

size_t groups_bytes(int64_t rows, int64_t cols) {
  int64_t floats = 3 * mask_logit_count(rows, cols) + mask_second_count(rows, cols);
  return (size_t)floats * sizeof(float);
}

enum status groups_init(struct group_logits *g, int64_t rows, int64_t cols, struct error *err) {
  const size_t logits = (size_t)mask_logit_count(rows, cols);
  *g = (struct group_logits){.rows = rows, .cols = cols};
  g->logit = mem_alloc(logits, sizeof(float), err);
  g->gradient = mem_alloc(logits, sizeof(float), err);
  g->moment1 = mem_alloc(logits, sizeof(float), err);
  g->moment2 = mem_alloc((size_t)mask_second_count(rows, cols), sizeof(float), err);
  if (g->logit && g->gradient && g->moment1 && g->moment2) return STATUS_OK;
  groups_free(g);
  return STATUS_FAILED;
}

void groups_free(struct group_logits *g) {
  mem_free(g->logit);
  mem_free(g->gradient);
  mem_free(g->moment1);
  mem_free(g->moment2);
  *g = (struct group_logits){0};
}

void groups_set(struct group_logits *g, int64_t row, int64_t group,
                const float logits[SPARSE_CANDIDATES]) {
  for (int k = 0; k < MASK_STORED; k++)
    g->logit[mask_logit_index(g->cols, row, group, k)] = logits[k] - logits[MASK_STORED];
}
