/* The plain read in the vector vocabulary: included by strips_*.c after their vec_*.h. It does what
 * a kernel over strips cannot do without, and nothing else: it loads every byte once. */
#include "kernel/select.h"

enum {
  READ_VECTORS = 4,
  READ_STEP_BYTES = 4 * 4 * VL,
  READ_LINE_BYTES = 64,
  READ_AHEAD_BYTES = 2048
};

/* The first `bytes`, a multiple of READ_STEP_BYTES, of each of `streams` parts. */
INLINE void add_streams(const uint8_t *data, const int streams, size_t apart, size_t bytes,
                        vi sum[READ_VECTORS]) {
  for (size_t at = 0; at < bytes; at += READ_STEP_BYTES)
    for (int s = 0; s < streams; s++) {
      const uint8_t *from = data + (size_t)s * apart + at;
      for (int b = 0; b < READ_STEP_BYTES; b += READ_LINE_BYTES)
        __builtin_prefetch(from + b + READ_AHEAD_BYTES);
      for (int i = 0; i < READ_VECTORS; i++)
        sum[i] = vi_add(sum[i], vi_load((const int32_t *)(const void *)(from + 4 * VL * i)));
    }
}

static uint32_t sum_words(const void *data, size_t bytes, int streams) {
  const size_t part = bytes / (size_t)streams / READ_STEP_BYTES * READ_STEP_BYTES;
  const uint8_t *at = data, *end = at + bytes;
  vi sum[READ_VECTORS];
  for (int i = 0; i < READ_VECTORS; i++) sum[i] = vi_set(0);
  if (streams == 4)
    add_streams(at, 4, part, part, sum);
  else if (streams == 2)
    add_streams(at, 2, part, part, sum);
  else
    add_streams(at, streams = 1, part, part, sum);
  int32_t lanes[VL];
  vi_store(lanes, vi_add(vi_add(sum[0], sum[1]), vi_add(sum[2], sum[3])));
  uint32_t total = 0;
  for (int i = 0; i < VL; i++) total += (uint32_t)lanes[i];
  for (at += (size_t)streams * part; at < end;) {
    uint32_t word = 0;
    const size_t left = (size_t)(end - at), count = left < sizeof word ? left : sizeof word;
    memcpy(&word, at, count);
    total += word;
    at += count;
  }
  return total;
}

static void fill_read(struct kernel_table *table) { table->sum_words = sum_words; }
