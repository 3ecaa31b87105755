/* Caches of keys and values: see kv_cache.h. No state. */
#include "kernel/kv_cache.h"

#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { ITEM_ELEMENTS = 1 << 13 };

static int64_t element_bytes(enum dtype dtype) { return dtype_traits(dtype)->block_bytes; }

/* Elements of all heads' keys (values), rounded so that what follows is aligned. */
static int64_t key_bytes(const struct kv_cache *c) {
  return c->heads * c->capacity * c->head_dim * element_bytes(c->dtype);
}
static int64_t value_bytes(const struct kv_cache *c) {
  return c->heads * c->capacity * kv_stride(c) * element_bytes(c->dtype);
}

bool kv_cache_shape(struct kv_cache *c, enum dtype dtype, int64_t heads, int64_t head_dim,
                    int64_t capacity, size_t *bytes) {
  INVARIANT(dtype_is_native(dtype) || dtype == DTYPE_I8);
  INVARIANT(heads > 0 && head_dim > 0 && capacity > 0);
  size_t width = (size_t)(head_dim + KV_BLOCK) * 8 + 2 * sizeof(float), rows;
  *c = (struct kv_cache){.dtype = dtype, .heads = heads, .head_dim = head_dim};
  if (!checked_add((size_t)capacity, 4 * KV_BLOCK - 1, &rows)) return false;
  rows &= ~(size_t)(4 * KV_BLOCK - 1); /* every part then begins at a whole cache line */
  c->capacity = (int64_t)rows;
  if (!checked_mul(rows, (size_t)heads, bytes) || !checked_mul(*bytes, width, bytes)) return false;
  *bytes = (size_t)(key_bytes(c) + value_bytes(c));
  if (dtype == DTYPE_I8) *bytes += 2 * (size_t)heads * rows * sizeof(float);
  return true;
}

struct kv_cache kv_cache_at(const struct kv_cache *shape, void *memory) {
  struct kv_cache c = *shape;
  c.keys = memory;
  c.values = c.keys + key_bytes(&c);
  if (c.dtype != DTYPE_I8) return c;
  c.key_scales = (float *)(void *)(c.values + value_bytes(&c));
  c.value_scales = c.key_scales + c.heads * c.capacity;
  return c;
}

int64_t kv_cache_position_bytes(const struct kv_cache *c) {
  int64_t scales = c->dtype == DTYPE_I8 ? 2 * (int64_t)sizeof(float) : 0;
  return c->heads * ((c->head_dim + kv_stride(c)) * element_bytes(c->dtype) + scales);
}

const char *kv_keys(const struct kv_cache *c, int64_t head, int64_t position) {
  return c->keys + (head * c->capacity + position) * c->head_dim * element_bytes(c->dtype);
}

const char *kv_values(const struct kv_cache *c, int64_t head, int64_t position) {
  return c->values + (head * c->capacity + position) * kv_stride(c) * element_bytes(c->dtype);
}

/* Row `lane` of a transposed block. */
static void scatter(int64_t bytes, int64_t n, const void *row, char *block, int64_t lane) {
  if (bytes == 4)
    for (int64_t i = 0; i < n; i++)
      ((uint32_t *)(void *)block)[i * KV_BLOCK + lane] = ((const uint32_t *)row)[i];
  else if (bytes == 2)
    for (int64_t i = 0; i < n; i++)
      ((uint16_t *)(void *)block)[i * KV_BLOCK + lane] = ((const uint16_t *)row)[i];
  else
    for (int64_t i = 0; i < n; i++) block[i * KV_BLOCK + lane] = ((const char *)row)[i];
}

static float round_row(enum dtype dtype, const float *x, int64_t n, void *out) {
  if (dtype != DTYPE_BF16) return kernel_table()->kv_round(dtype, x, n, out);
  kernel_table()->bf16.round(x, n, out);
  return 1;
}

void kv_cache_store(const struct kv_cache *c, int64_t head, int64_t position, int64_t count,
                    const float *k, const float *v, int64_t ld) {
  INVARIANT(position >= 0 && position + count <= c->capacity);
  float *row = kernel_scratch(SCRATCH_SEGMENT, (size_t)c->head_dim);
  for (int64_t i = 0; i < count; i++, position++) {
    int64_t lane = position % KV_BLOCK, at = head * c->capacity + position;
    float key_scale = round_row(c->dtype, k + i * ld, c->head_dim, row);
    scatter(element_bytes(c->dtype), c->head_dim, row, (char *)kv_keys(c, head, position - lane),
            lane);
    float value_scale =
        round_row(c->dtype, v + i * ld, c->head_dim, (char *)kv_values(c, head, position));
    if (c->dtype != DTYPE_I8) continue;
    c->key_scales[at] = key_scale;
    c->value_scales[at] = value_scale;
  }
}

struct append {
  const struct kv_cache *caches;
  const int64_t *starts;
  int64_t length, rows_per_item, items_per_sequence;
  const float *k, *v;
};

static void append_item(void *ctx, int64_t item, int worker) {
  const struct append *a = ctx;
  (void)worker;
  int64_t sequence = item / a->items_per_sequence;
  int64_t row = item % a->items_per_sequence * a->rows_per_item, left = a->length - row;
  const struct kv_cache *c = &a->caches[sequence];
  int64_t count = left < a->rows_per_item ? left : a->rows_per_item, ld = c->heads * c->head_dim;
  int64_t at = (sequence * a->length + row) * ld;
  for (int64_t h = 0; h < c->heads; h++, at += c->head_dim)
    kv_cache_store(c, h, a->starts[sequence] + row, count, a->k + at, a->v + at, ld);
}

void kv_cache_append(const struct kv_cache *caches, const int64_t *starts, int64_t sequences,
                     int64_t length, const float *k, const float *v) {
  int64_t width = caches->heads * caches->head_dim;
  struct append a = {caches, starts, length, (ITEM_ELEMENTS + width - 1) / width, 0, k, v};
  a.items_per_sequence = (length + a.rows_per_item - 1) / a.rows_per_item;
  int64_t items = sequences * a.items_per_sequence;
  if (sequences * length * width > ITEM_ELEMENTS)
    parallel_for(items, append_item, &a);
  else
    for (int64_t i = 0; i < items; i++) append_item(&a, i, 0);
}

void kv_cache_copy(const struct kv_cache *to, const struct kv_cache *from, int64_t length) {
  INVARIANT(to->dtype == from->dtype && to->capacity == from->capacity);
  int64_t bytes = element_bytes(to->dtype);
  size_t rows = (size_t)((length + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK);
  for (int64_t h = 0; h < to->heads; h++) {
    memcpy((char *)kv_keys(to, h, 0), kv_keys(from, h, 0), rows * (size_t)(to->head_dim * bytes));
    memcpy((char *)kv_values(to, h, 0), kv_values(from, h, 0),
           (size_t)(length * kv_stride(to) * bytes));
    if (to->dtype != DTYPE_I8) continue;
    int64_t at = h * to->capacity;
    memcpy(to->key_scales + at, from->key_scales + at, (size_t)length * sizeof(float));
    memcpy(to->value_scales + at, from->value_scales + at, (size_t)length * sizeof(float));
  }
}

void kv_key_block(const struct kv_cache *c, int64_t head, int64_t position, float *out) {
  const float *scales = kv_scales(c, c->key_scales, head, position);
  kernel_table()->kv_widen(c->dtype, kv_keys(c, head, position), c->head_dim * KV_BLOCK, out);
  for (int64_t i = 0; scales && i < c->head_dim * KV_BLOCK; i++) out[i] *= scales[i % KV_BLOCK];
}

/* A block (head_dim, KV_BLOCK) becomes columns [at, at + KV_BLOCK) of the panels. */
static void place_block(const float *block, int64_t head_dim, int64_t at, int64_t width,
                        float *out) {
  int64_t step = width < KV_BLOCK ? width : KV_BLOCK;
  for (int64_t lane = 0; lane < KV_BLOCK; lane += step) {
    float *panel = out + (at + lane) / width * width * head_dim + (at + lane) % width;
    for (int64_t i = 0; i < head_dim; i++)
      memcpy(panel + i * width, block + i * KV_BLOCK + lane, (size_t)step * sizeof *block);
  }
}

void kv_key_panels(const struct kv_cache *c, int64_t head, int64_t position, int64_t count,
                   int64_t width, float *out) {
  float *block = kernel_scratch(SCRATCH_SEGMENT, (size_t)(c->head_dim * KV_BLOCK));
  int64_t end = (count + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
  if (width > KV_BLOCK) end = (count + width - 1) / width * width;
  for (int64_t at = 0; at < end; at += KV_BLOCK) {
    if (at < count)
      kv_key_block(c, head, position + at, block);
    else
      memset(block, 0, (size_t)(c->head_dim * KV_BLOCK) * sizeof *block);
    place_block(block, c->head_dim, at, width, out);
  }
}

void kv_value_rows(const struct kv_cache *c, int64_t head, int64_t position, int64_t count,
                   float *out) {
  int64_t stride = kv_stride(c);
  const float *scales = kv_scales(c, c->value_scales, head, position);
  kernel_table()->kv_widen(c->dtype, kv_values(c, head, position), count * stride, out);
  for (int64_t i = 0; scales && i < count; i++)
    kernel_table()->scale(out + i * stride, stride, scales[i]);
}
