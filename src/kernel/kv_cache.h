/* The keys and values that one text has so far at one layer, as decoding reads them.
 *
 * Each head's lie together. Keys are transposed in blocks of KV_BLOCK positions, (blocks, head_dim,
 * KV_BLOCK): a vector of scores grows by one multiply-add for each load, with no sums across lanes,
 * and the load serves all query heads that share the key head. Values lie row by row, (capacity,
 * stride), since sums over positions keep a row's columns in registers; the stride is head_dim in
 * whole blocks, zero behind head_dim.
 * Elements are f32, f16, bf16, or i8 with an fp32 scale for each position and head. */
#ifndef TSR_KERNEL_KV_CACHE_H
#define TSR_KERNEL_KV_CACHE_H

#include "tensor/dtype.h"

enum { KV_BLOCK = 16 };

struct kv_cache {
  enum dtype dtype;
  int64_t heads, head_dim;
  int64_t capacity;    /* positions, a multiple of KV_BLOCK */
  char *keys, *values; /* (heads, blocks, head_dim, KV_BLOCK), (heads, capacity, stride) */
  float *key_scales, *value_scales; /* (heads, capacity) of i8, else NULL */
};

/* Sets up *cache for at least `capacity` positions and gives the bytes of memory it needs; false
 * when they cannot be counted. dtype is f32, f16, bf16 or i8. */
bool kv_cache_shape(struct kv_cache *cache, enum dtype dtype, int64_t heads, int64_t head_dim,
                    int64_t capacity, size_t *bytes);
/* The same cache in `memory` (64-byte aligned, zeroed before its first use). */
struct kv_cache kv_cache_at(const struct kv_cache *shape, void *memory);

/* Bytes that a position takes, and attention reads: keys, values and scales of all heads. */
int64_t kv_cache_position_bytes(const struct kv_cache *cache);

/* Writes positions [position, position + count) of one head. k, v: rows of head_dim, ld apart. */
void kv_cache_store(const struct kv_cache *cache, int64_t head, int64_t position, int64_t count,
                    const float *k, const float *v, int64_t ld);
/* Of several texts: k, v (sequences, length, heads, head_dim) go to positions starts[i] .. of
 * caches[i]. On all threads. */
void kv_cache_append(const struct kv_cache *caches, const int64_t *starts, int64_t sequences,
                     int64_t length, const float *k, const float *v);
/* Copies the first `length` positions of all heads; same shape and dtype. */
void kv_cache_copy(const struct kv_cache *to, const struct kv_cache *from, int64_t length);

/* Elements between rows of values. */
static inline int64_t kv_stride(const struct kv_cache *cache) {
  return (cache->head_dim + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
}
/* The block of keys that begins at `position`, a multiple of KV_BLOCK; the row of values. */
const char *kv_keys(const struct kv_cache *cache, int64_t head, int64_t position);
const char *kv_values(const struct kv_cache *cache, int64_t head, int64_t position);
/* Scales from a position on, or NULL. */
static inline const float *kv_scales(const struct kv_cache *cache, const float *scales,
                                     int64_t head, int64_t position) {
  return scales ? scales + head * cache->capacity + position : NULL;
}

/* For the products of a prompt: keys as panels of B, (panels, head_dim, width) for `count`
 * positions from `position` on, a multiple of KV_BLOCK; width is one too, or divides it. out has
 * room for whole panels and whole blocks. */
void kv_key_panels(const struct kv_cache *cache, int64_t head, int64_t position, int64_t count,
                   int64_t width, float *out);
/* A block of keys as fp32: out (head_dim, KV_BLOCK). */
void kv_key_block(const struct kv_cache *cache, int64_t head, int64_t position, float *out);
/* Values as rows of fp32: out (count, stride). */
void kv_value_rows(const struct kv_cache *cache, int64_t head, int64_t position, int64_t count,
                   float *out);

#endif
