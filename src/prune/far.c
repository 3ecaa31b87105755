/* See far.h. No state. */
#include "prune/far.h"

#include "base/mem.h"
#include "kernel/sparsegpt.h"

static size_t product_bytes(const struct moments *m) {
  return (size_t)(m->cols * m->cols) * sizeof(float);
}

enum status far_moments_init(struct far_moments *far, const struct backend *ops, struct moments *m,
                             int64_t cols, bool products, int64_t most, struct error *err) {
  *far = (struct far_moments){.ops = ops};
  enum status status = moments_init(m, cols, products && ops->is_host, err);
  if (status != STATUS_OK || ops->is_host) return status;
  if (!products) {
    far->room = mem_alloc((size_t)most, (size_t)cols * sizeof *far->room, err);
    return far->room ? STATUS_OK : STATUS_FAILED;
  }
  INVARIANT(ops->sparsegpt);
  status = ops->alloc(product_bytes(m), (void **)&far->products, err);
  if (status != STATUS_OK) return status;
  return ops->alloc((size_t)cols * sizeof *far->diagonal, (void **)&far->diagonal, err);
}

void far_moments_free(struct far_moments *far) {
  if (far->ops && far->products) far->ops->free(far->products);
  if (far->ops && far->diagonal) far->ops->free(far->diagonal);
  mem_free(far->room);
  *far = (struct far_moments){0};
}

void far_moments_clear(struct far_moments *far, struct moments *m) {
  moments_clear(m);
  if (far->products) far->ops->clear(far->products, product_bytes(m));
}

void far_moments_add(struct far_moments *far, struct moments *m, const float *x, int64_t tokens) {
  if (far->products) {
    far->ops->linear_backward_weight(x, x, tokens, m->cols, m->cols, PRECISION_FP32, far->products,
                                     true);
    m->tokens += tokens;
    return;
  }
  if (far->room) {
    struct error err = {0};
    /* a failure stays with the backend, and far_moments_fetch asks it again */
    if (far->ops->download(far->room, x, (size_t)(tokens * m->cols) * sizeof *x, &err)) return;
    x = far->room;
  }
  moments_add(m, x, tokens);
}

enum status far_moments_fetch(struct far_moments *far, struct moments *m, struct error *err) {
  const int64_t n = m->cols;
  if (!far->products) return far->ops->wait(err);
  float *diagonal = mem_alloc((size_t)n, sizeof *diagonal, err);
  if (!diagonal) return STATUS_FAILED;
  far->ops->sparsegpt->copy_matrix(far->diagonal, 1, far->products, n + 1, n, 1);
  enum status status =
      far->ops->download(diagonal, far->diagonal, (size_t)n * sizeof *diagonal, err);
  for (int64_t c = 0; status == STATUS_OK && c < n; c++) m->squares[c] = (double)diagonal[c];
  mem_free(diagonal);
  return status;
}
