/* See card_pages.h. */
#include "model/card_pages.h"

#include "base/mem.h"

static int64_t pages_of(int64_t length) { return (length + SERVE_PAGE - 1) / SERVE_PAGE; }

static size_t page_bytes(const struct card_pages *p) {
  return (size_t)p->cache.page_elements * sizeof(uint16_t);
}

size_t card_pages_bytes(const struct card_pages *p) { return (size_t)p->count * page_bytes(p); }

static void describe(struct card_pages *p, const struct model_config *c, enum dtype kv,
                     int64_t capacity) {
  const uint32_t stride = (uint32_t)(c->head_dim + 7) / 8 * 8;
  p->cache = (struct serve_cache){.page_most = (uint32_t)pages_of(capacity),
                                  .type = kv == DTYPE_BF16 ? ELEMENT_BF16 : ELEMENT_F16,
                                  .stride = stride,
                                  .kv_heads = (uint32_t)c->kv_heads};
  p->layer_step = 2ull * SERVE_PAGE * stride * (uint64_t)c->kv_heads;
  p->cache.page_elements = p->layer_step * (uint64_t)c->layers;
}

enum status card_pages_new(struct card_pages *out, const struct backend *ops,
                           const struct model_config *config, enum dtype kv, int64_t slots,
                           int64_t capacity, int64_t count, struct error *err) {
  struct card_pages p = {.ops = ops, .slots = slots, .count = count};
  *out = p;
  if (kv != DTYPE_F16 && kv != DTYPE_BF16)
    return error_set(err, STATUS_USAGE,
                     "a GPU keeps keys and values as f16 or bf16, not as %s: give --kv f16",
                     dtype_traits(kv)->name);
  describe(&p, config, kv, capacity);
  const size_t table = (size_t)slots * p.cache.page_most;
  if (!count) p.count = (int64_t)table;
  if (p.count > UINT32_MAX || capacity > INT32_MAX)
    return error_set(err, STATUS_USAGE, "a session of %lld texts of %lld tokens is too large",
                     (long long)slots, (long long)capacity);
  p.table = mem_alloc(table, sizeof *p.table, err);
  p.held = mem_alloc((size_t)slots, sizeof *p.held, err);
  p.free = mem_alloc((size_t)p.count, sizeof *p.free, err);
  enum status status = p.table && p.held && p.free ? STATUS_OK : STATUS_FAILED;
  size_t bytes = 0;
  if (!status && !checked_mul((size_t)p.count, page_bytes(&p), &bytes))
    status = error_set(err, STATUS_FAILED, "%lld pages are more than can be counted",
                       (long long)p.count);
  if (!status) status = ops->alloc(bytes, (void **)&p.cache.memory, err);
  void *pages = NULL;
  if (!status) status = ops->alloc(table * sizeof *p.table, &pages, err);
  p.cache.pages = pages;
  for (; !status && p.free_count < p.count; p.free_count++)
    p.free[p.free_count] = (uint32_t)(p.count - 1 - p.free_count);
  if (status)
    card_pages_free(&p);
  else
    *out = p;
  return status;
}

void card_pages_free(struct card_pages *p) {
  if (p->ops) {
    p->ops->free(p->cache.memory);
    p->ops->free((void *)(uintptr_t)p->cache.pages);
  }
  mem_free(p->table);
  mem_free(p->held);
  mem_free(p->free);
  *p = (struct card_pages){0};
}

enum status card_pages_hold(struct card_pages *p, int64_t slot, int64_t length, struct error *err) {
  const int64_t needed = pages_of(length), held = p->held[slot];
  uint32_t *row = p->table + slot * p->cache.page_most;
  if (needed <= held) return STATUS_OK;
  INVARIANT(needed <= p->cache.page_most);
  if (needed - held > p->free_count)
    return error_set(err, STATUS_REFUSED,
                     "%lld of the session's %lld pages of %d tokens are free and %lld more are "
                     "needed: end a text or open the session with more pages",
                     (long long)p->free_count, (long long)p->count, SERVE_PAGE,
                     (long long)(needed - held));
  for (int64_t i = held; i < needed; i++) row[i] = p->free[--p->free_count];
  p->held[slot] = needed;
  const uint32_t *far = p->cache.pages + slot * p->cache.page_most;
  return p->ops->upload((void *)(uintptr_t)(far + held), row + held,
                        (size_t)(needed - held) * sizeof *row, err);
}

void card_pages_drop(struct card_pages *p, int64_t slot, int64_t length) {
  const uint32_t *row = p->table + slot * p->cache.page_most;
  while (p->held[slot] > pages_of(length)) p->free[p->free_count++] = row[--p->held[slot]];
}

enum status card_pages_copy(struct card_pages *p, int64_t to, int64_t from, int64_t length,
                            struct error *err) {
  enum status status = card_pages_hold(p, to, length, err);
  const size_t floats = page_bytes(p) / sizeof(float);
  for (int64_t i = 0; i < pages_of(length) && !status; i++) {
    uint16_t *const memory = p->cache.memory;
    const uint64_t a = p->table[to * p->cache.page_most + i];
    const uint64_t b = p->table[from * p->cache.page_most + i];
    p->ops->copy_floats((float *)(void *)(memory + a * p->cache.page_elements),
                        (const float *)(const void *)(memory + b * p->cache.page_elements),
                        (int64_t)floats);
  }
  return status;
}

struct serve_cache card_pages_layer(const struct card_pages *p, int layer) {
  struct serve_cache cache = p->cache;
  cache.layer_elements = p->layer_step * (uint64_t)layer;
  return cache;
}
