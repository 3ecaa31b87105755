/* The shared memory of the blocks of a cluster, and what is known of each of its words. */
#include <string.h>

#include "support/simt_internal.h"
#include "support/support.h"

enum { BANKS = 32, NOBODY = -1, SEVERAL = -2 };
enum word_state { WORD_UNKNOWN, WORD_EXPECTED, WORD_WRITTEN, WORD_BULK };

/* Barriers divide time into epochs; within one, what different threads do is unordered. */
struct word {
  enum word_state state;
  int writer, reader;
  uint32_t write_epoch, read_epoch;
  uint32_t barrier, phase; /* of a word that a bulk copy wrote */
};

static struct shared {
  _Alignas(16) uint8_t bytes[SIMT_SHARED_MAX];
  struct word words[SIMT_SHARED_MAX / 4];
  /* When each warp last read 16 bytes that a bulk copy brought, by its own clock; 0: never. */
  uint32_t read_clock[SIMT_SHARED_MAX / 16][SIMT_BLOCK_WARPS_MAX];
  uint32_t size, epoch;
} blocks[SIMT_CLUSTER_MAX], *shared_now = blocks;
#define shared (*shared_now)

void shared_select(uint32_t block) { shared_now = &blocks[block]; }

void shared_reset(uint32_t block, uint32_t bytes) {
  assert_true(bytes <= SIMT_SHARED_MAX);
  shared_select(block);
  shared.size = bytes;
  shared.epoch = 1;
  memset(shared.bytes, 0xa5, bytes);
  for (uint32_t w = 0; w < bytes / 4; w++)
    shared.words[w] = (struct word){.state = WORD_UNKNOWN, .writer = NOBODY, .reader = NOBODY};
  memset(shared.read_clock, 0, bytes / 16 * sizeof *shared.read_clock);
}

void shared_barrier(void) { shared.epoch++; }

static void check_address(uint32_t address, uint32_t bytes, int line) {
  if (address % bytes) simt_fail(line, "address %u in shared memory is misaligned", address);
  if (address > shared.size || bytes > shared.size - address)
    simt_fail(line, "address %u lies outside the %u bytes of shared memory", address, shared.size);
}

/* A read of what a bulk copy brought, by the warp that runs. */
static void read_bulk(const struct word *word, uint32_t address, int line) {
  if (!async_has_seen(word->barrier, word->phase))
    simt_fail(line, "reads shared memory at %u before it has waited for the mbarrier of the copy",
              address);
  const uint32_t warp = (uint32_t)simt.current / SIMT_WARP % (simt.launch->threads / SIMT_WARP);
  shared.read_clock[address / 16][warp] = async_warp_clock();
}

void shared_read(int thread, uint32_t address, uint32_t bytes, void *out, int line) {
  check_address(address, bytes, line);
  for (uint32_t w = address / 4; w < (address + bytes) / 4; w++) {
    struct word *word = &shared.words[w];
    if (word->state == WORD_UNKNOWN)
      simt_fail(line, "reads shared memory at %u, which nobody has written", 4 * w);
    if (word->state == WORD_BULK) {
      read_bulk(word, 4 * w, line);
      continue;
    }
    if (word->state == WORD_EXPECTED)
      simt_fail(line, "reads shared memory at %u before the copy of thread %d was waited for",
                4 * w, word->writer);
    if (word->writer != thread && word->write_epoch == shared.epoch)
      simt_fail(line, "reads shared memory at %u, written by thread %d since the last barrier",
                4 * w, word->writer);
    word->reader = word->read_epoch == shared.epoch && word->reader != thread ? SEVERAL : thread;
    word->read_epoch = shared.epoch;
  }
  memcpy(out, shared.bytes + address, bytes);
}

/* What holds for writes at once and for the start of asynchronous ones. */
static void check_write(int thread, const struct word *word, uint32_t address, int line) {
  if (word->state == WORD_BULK)
    simt_fail(line, "writes shared memory at %u, where bulk copies land", address);
  if (word->state == WORD_EXPECTED)
    simt_fail(line, "writes shared memory at %u, where the copy of thread %d has not arrived",
              address, word->writer);
  if (word->read_epoch == shared.epoch && word->reader != thread)
    simt_fail(line, "writes shared memory at %u, which others read since the last barrier",
              address);
  if (word->state == WORD_WRITTEN && word->write_epoch == shared.epoch && word->writer != thread)
    simt_fail(line, "writes shared memory at %u, as thread %d did since the last barrier", address,
              word->writer);
}

static void mark(int thread, uint32_t address, uint32_t bytes, enum word_state state) {
  for (uint32_t w = address / 4; w < (address + bytes) / 4; w++) {
    struct word *word = &shared.words[w];
    word->state = state;
    word->writer = thread;
    word->write_epoch = shared.epoch;
  }
}

void shared_write(int thread, uint32_t address, uint32_t bytes, const void *in, int line) {
  check_address(address, bytes, line);
  for (uint32_t w = address / 4; w < (address + bytes) / 4; w++)
    check_write(thread, &shared.words[w], 4 * w, line);
  mark(thread, address, bytes, WORD_WRITTEN);
  memcpy(shared.bytes + address, in, bytes);
}

void shared_expect(int thread, uint32_t address, int line) {
  check_address(address, 16, line);
  for (uint32_t w = address / 4; w < (address + 16) / 4; w++)
    check_write(thread, &shared.words[w], 4 * w, line);
  mark(thread, address, 16, WORD_EXPECTED);
}

void shared_arrive(int thread, uint32_t address, const void *in) {
  mark(thread, address, 16, WORD_WRITTEN);
  memcpy(shared.bytes + address, in, 16);
}

void shared_bulk(uint32_t address, const void *in, uint32_t barrier, uint32_t phase,
                 const uint32_t clocks[SIMT_BLOCK_WARPS_MAX], int line) {
  check_address(address, 16, line);
  const uint32_t *read = shared.read_clock[address / 16];
  for (uint32_t w = address / 4; w < address / 4 + 4; w++)
    if (shared.words[w].state != WORD_UNKNOWN && shared.words[w].state != WORD_BULK)
      simt_fail(line, "a bulk copy to %u, where threads have written", address);
  for (uint32_t warp = 0; warp < simt.launch->threads / SIMT_WARP; warp++)
    if (read[warp] > clocks[warp])
      simt_fail(line,
                "a bulk copy to %u, which warp %u has read without saying since that it is done",
                address, warp);
  mark(NOBODY, address, 16, WORD_BULK);
  for (uint32_t w = address / 4; w < address / 4 + 4; w++) {
    shared.words[w].barrier = barrier;
    shared.words[w].phase = phase;
  }
  memcpy(shared.bytes + address, in, 16);
}

int bank_conflicts(const uint32_t *addresses, int count, uint32_t bytes) {
  uint32_t seen[BANKS][SIMT_WARP];
  int used[BANKS] = {0}, most = 1;
  for (int i = 0; i < count; i++)
    for (uint32_t word = addresses[i] / 4; word < (addresses[i] + bytes) / 4; word++) {
      const uint32_t bank = word % BANKS;
      int known = 0;
      for (int j = 0; j < used[bank]; j++) known |= seen[bank][j] == word;
      if (!known) seen[bank][used[bank]++] = word;
      if (used[bank] > most) most = used[bank];
    }
  return most - 1;
}
