/* See synthetic_fill.h. No state. */
#include "model/synthetic_fill.h"

#include "base/parallel.h"
#include "base/rng.h"
#include "sparse/mask.h"

enum { FILL_ELEMENTS = 1 << 16 };

/* 16 random bytes: block `index` of a site's stream. */
static void random_block(const struct synthetic_fill *f, int64_t index, uint32_t words[4]) {
  const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), f->site, f->stream};
  philox4x32(f->key, counter, words);
}

static void fill_weights(void *ctx, int64_t item, int worker) {
  const struct synthetic_fill *f = ctx;
  int64_t first = item * FILL_ELEMENTS, last = first + FILL_ELEMENTS;
  if (last > f->count) last = f->count;
  size_t size = synthetic_element_bytes(f->dtype);
  for (int64_t i = first; i < last; i += 8) {
    uint32_t words[4];
    float values[8];
    random_block(f, i / 8, words);
    for (int k = 0; k < 8; k++)
      values[k] = f->scale * ((float)(words[k / 2] >> k % 2 * 16 & 0xffff) - 32767.5f) / 32768;
    dtype_from_f32(f->dtype, values, last - i < 8 ? last - i : 8, f->out + (size_t)i * size);
  }
}

static void fill_bytes(void *ctx, int64_t item, int worker) {
  const struct synthetic_fill *f = ctx;
  int64_t first = item * FILL_ELEMENTS, last = first + FILL_ELEMENTS;
  if (last > f->count) last = f->count;
  for (int64_t i = first; i < last; i += 16) {
    uint32_t words[4];
    random_block(f, i / 16, words);
    memcpy(f->out + i, words, (size_t)(last - i < 16 ? last - i : 16));
  }
}

/* One of the six codes, each as likely, but for one part in 2^8. */
static uint8_t random_code(uint32_t byte) {
  return sparse_candidate_code[byte * SPARSE_CANDIDATES >> 8];
}

static void fill_codes(void *ctx, int64_t item, int worker) {
  const struct synthetic_fill *f = ctx;
  int64_t first = item * FILL_ELEMENTS, last = first + FILL_ELEMENTS;
  if (last > f->count) last = f->count;
  for (int64_t i = first; i < last; i += 8) {
    uint32_t words[4];
    random_block(f, i / 8, words);
    for (int64_t k = 0; k < 8 && i + k < last; k++) {
      uint32_t pair = words[k / 2] >> k % 2 * 16;
      f->out[i + k] = (uint8_t)(random_code(pair & 0xff) | random_code(pair >> 8 & 0xff) << 4);
    }
  }
}

void synthetic_fill(struct synthetic_fill *f, enum synthetic_content content, int64_t count,
                    void *out) {
  void (*const items[])(void *, int64_t, int) = {fill_weights, fill_bytes, fill_codes};
  f->count = count;
  f->out = out;
  parallel_for((count + FILL_ELEMENTS - 1) / FILL_ELEMENTS, items[content], f);
}
