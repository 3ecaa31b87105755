/* See far.h. No state. */
#include "prune/far.h"

#include "base/mem.h"

static size_t product_bytes(const struct moments *m) {
  return (size_t)(m->cols * m->cols) * sizeof(float);
}

enum status far_moments_init(struct far_moments *far, const struct backend *ops,
                             const struct moments *m, int64_t most, struct error *err) {
  *far = (struct far_moments){.ops = ops};
  if (ops->is_host) return STATUS_OK;
  if (m->products) return ops->alloc(product_bytes(m), (void **)&far->products, err);
  far->room = mem_alloc((size_t)most, (size_t)m->cols * sizeof *far->room, err);
  return far->room ? STATUS_OK : STATUS_FAILED;
}

void far_moments_free(struct far_moments *far) {
  if (far->ops && far->products) far->ops->free(far->products);
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
  if (far->products) return far->ops->download(m->products, far->products, product_bytes(m), err);
  return far->ops->wait(err);
}
