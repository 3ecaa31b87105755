/* Windows over a corpus, and the order in which they are drawn: see windows.h. */
#include "data/windows.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/rng.h"

static int64_t windows_in(size_t tokens, int64_t length) { return (int64_t)tokens / length; }

static enum status refuse_short(const struct corpus *corpus, int64_t length, bool per_document,
                                struct error *err) {
  return error_set(err, STATUS_REFUSED,
                   "the text has %zu tokens in %zu documents, not enough for one window of %lld%s; "
                   "use a shorter --window or more text",
                   corpus->ids.count, corpus->documents, (long long)length,
                   per_document ? " within a document" : "");
}

enum status windows_cut(struct windows *windows, const struct corpus *corpus, int64_t length,
                        bool per_document, struct error *err) {
  *windows = (struct windows){.corpus = corpus, .length = length};
  if (length < 1)
    return error_set(err, STATUS_USAGE, "a window of %lld tokens; it must have at least 1",
                     (long long)length);
  size_t documents = per_document ? corpus->documents : 1;
  const size_t whole[2] = {0, corpus->ids.count};
  const size_t *start = per_document ? corpus->document_start : whole;
  for (size_t d = 0; d < documents; d++)
    windows->count += windows_in(start[d + 1] - start[d], length);
  if (!windows->count) return refuse_short(corpus, length, per_document, err);
  windows->start = mem_alloc((size_t)windows->count, sizeof *windows->start, err);
  if (!windows->start) return STATUS_FAILED;
  int64_t next = 0;
  for (size_t d = 0; d < documents; d++)
    for (int64_t i = 0; i < windows_in(start[d + 1] - start[d], length); i++)
      windows->start[next++] = (int64_t)start[d] + i * length;
  return STATUS_OK;
}

void windows_free(struct windows *windows) {
  mem_free(windows->start);
  *windows = (struct windows){0};
}

/* A Feistel network permutes [0, 4^half_bits) whatever its round function is; values outside
 * [0, count) are sent round again until one is inside, which permutes [0, count). */
static uint64_t feistel(uint64_t value, int half_bits, uint64_t seed, uint64_t epoch) {
  enum { ROUNDS = 8 };
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
  uint64_t left = value >> half_bits, right = value & mask;
  for (uint32_t round = 0; round < ROUNDS; round++) {
    const uint32_t counter[4] = {(uint32_t)right, round, (uint32_t)epoch, (uint32_t)(epoch >> 32)};
    uint32_t noise[4];
    philox4x32(key, counter, noise);
    uint64_t mixed = left ^ (noise[0] & mask);
    left = right;
    right = mixed;
  }
  return left << half_bits | right;
}

int64_t windows_draw(int64_t count, uint64_t seed, uint64_t draw) {
  INVARIANT(count > 0);
  uint64_t epoch = draw / (uint64_t)count, value = draw % (uint64_t)count;
  int half_bits = 1;
  while (((uint64_t)1 << 2 * half_bits) < (uint64_t)count) half_bits++;
  do value = feistel(value, half_bits, seed, epoch);
  while (value >= (uint64_t)count);
  return (int64_t)value;
}
