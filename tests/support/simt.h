/* An emulator for GPU kernels: the vocabulary of src/kernel/cuda/simt_ptx.h on the host.
 *
 * A test includes this header and then a kernel's body, which is thus compiled as C. Each CUDA
 * thread is a fiber with a stack of its own; instructions of a whole warp (mma, ldmatrix, accesses
 * to shared memory) and barriers are meeting points. Clusters of blocks run one after the other, in
 * any order that the test asks for; the blocks of a cluster run together. What the hardware would
 * let pass in silence, or punish at random, ends the launch with a sentence:
 *   - lanes of a warp at different instructions, threads that never reach a barrier
 *   - shared memory: out of bounds, misaligned, never written, read before an asynchronous copy was
 *     waited for, written and read by different threads without a barrier between
 *   - global memory: outside the buffers that the test declared, misaligned, written where only
 *     reading is allowed
 *   - metadata of mma.sp and wgmma.sp that is not ordered
 *   - bulk copies: read without waiting for their mbarrier, or started before every warp that read
 *     the place has said so through an mbarrier that the copying warp has waited for (vector
 *     clocks of warps, across the blocks of a cluster); copies into a block that has ended
 *   - wgmma: accumulators or weights touched before it was waited for
 * Bank conflicts and the bytes moved are counted. What it cannot see: the order of memory between
 * blocks (a missing fence), timing, and rounding inside the tensor cores. */
#ifndef TSR_TESTS_SIMT_H
#define TSR_TESTS_SIMT_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tensor/dtype.h"

/* --- for tests --- */

enum {
  SIMT_WARP = 32,
  SIMT_THREADS_MAX = 512,
  SIMT_CLUSTER_MAX = 4,
  SIMT_SHARED_MAX = 227 << 10,
  SIMT_BUFFERS_MAX = 512
};

struct simt_buffer {
  const void *data;
  size_t bytes;
  bool writable;
};

struct simt_launch {
  uint32_t blocks, threads, shared_bytes;
  uint32_t cluster; /* blocks of a cluster, up to SIMT_CLUSTER_MAX; 0 counts as 1 */
  uint32_t order;   /* of clusters: 0 ascending, 1 descending, else the seed of a shuffle; warps
                       within a cluster take turns in an order drawn from it as well */
  struct simt_buffer buffers[SIMT_BUFFERS_MAX];
  size_t buffer_count;
};

struct simt_report {
  bool failed;
  char text[300];                 /* what went wrong first, where */
  uint64_t bank_conflicts;        /* extra passes over shared memory */
  uint64_t mma_dense, mma_sparse; /* of 16 x 8 results; a wgmma counts as those it stands for */
  uint64_t copied_bytes;          /* read from global memory by asynchronous copies */
  uint64_t shared_bytes; /* read from and written to shared memory by all but these copies */
};

/* Declares memory that the kernel may touch. */
void simt_buffer(struct simt_launch *launch, const void *data, size_t bytes, bool writable);
/* Skips the test, aloud, under the thread sanitizer and under valgrind, which cannot follow the
 * fibers. To be called before anything is allocated. */
void simt_need_fibers(void);
/* Runs kernel(args) on all blocks, up to the first failure. */
void simt_run(const struct simt_launch *launch, void (*kernel)(const void *args), const void *args,
              struct simt_report *report);

/* --- the vocabulary --- */

#define DEVICE static inline
#define UNROLL
#define KERNEL(name, body, threads, type) \
  static inline void name(const void *args) { body((const type *)args); }

struct words2 {
  uint32_t w[2];
};
struct words4 {
  uint32_t w[4];
};

uint32_t thread_index(void);
uint32_t block_index(void);
static inline uint32_t shared_base(void) { return 0; }

/* The line of the call tells whether all lanes are at the same instruction. */
uint32_t simt_shared_load4(uint32_t address, int line);
struct words2 simt_shared_load8(uint32_t address, int line);
struct words4 simt_shared_load16(uint32_t address, int line);
void simt_shared_store4(uint32_t address, uint32_t value, int line);
struct words4 simt_load_matrices(uint32_t address, int line);
struct words4 simt_load_transposed(uint32_t address, int line);
void simt_async_copy16(uint32_t to, const void *from, uint32_t bytes, int line);
void simt_barrier(uint32_t id, uint32_t threads, int line);
void simt_mma_dense(float d[4], const struct words4 *a, uint32_t b0, uint32_t b1, int line);
void simt_mma_sparse(float d[4], const struct words4 *a, const struct words4 *b, uint32_t meta,
                     int selector, int line);
#define shared_load4(address) simt_shared_load4(address, __LINE__)
#define shared_load8(address) simt_shared_load8(address, __LINE__)
#define shared_load16(address) simt_shared_load16(address, __LINE__)
#define shared_store4(address, value) simt_shared_store4(address, value, __LINE__)
#define load_matrices(address) simt_load_matrices(address, __LINE__)
#define load_matrices_transposed(address) simt_load_transposed(address, __LINE__)
#define async_copy16(to, from, bytes) simt_async_copy16(to, from, bytes, __LINE__)
#define block_barrier() simt_barrier(0, 0, __LINE__)
#define group_barrier(id, threads) simt_barrier(id, threads, __LINE__)
#define mma_dense(d, a, b0, b1) simt_mma_dense(d, a, b0, b1, __LINE__)
#define mma_sparse_low(d, a, b, meta) simt_mma_sparse(d, a, b, meta, 0, __LINE__)
#define mma_sparse_high(d, a, b, meta) simt_mma_sparse(d, a, b, meta, 1, __LINE__)

void async_commit(void);
void async_wait(uint32_t pending);
static inline void memory_fence(void) {}

void simt_check_global(const void *pointer, size_t bytes, bool write);
#define global_load(pointer) (simt_check_global(pointer, sizeof *(pointer), false), *(pointer))
#define global_load_fresh(pointer) global_load(pointer)
#define global_store(pointer, value) \
  (simt_check_global(pointer, sizeof *(pointer), true), *(pointer) = (value))
static inline uint32_t global_add(uint32_t *counter, uint32_t value) {
  const uint32_t before = global_load(counter);
  global_store(counter, before + value);
  return before;
}

static inline void global_add_long(unsigned long long *counter, unsigned long long value) {
  global_store(counter, global_load(counter) + value);
}
struct words4 simt_global_load16(const void *pointer);
void simt_global_store16(void *pointer, struct words4 value);
#define global_load16(pointer) simt_global_load16(pointer)
#define global_store16(pointer, value) simt_global_store16(pointer, value)

uint32_t simt_shuffle(uint32_t value, uint32_t lane, int line);
#define shuffle_xor(value, mask) simt_shuffle(value, thread_index() % SIMT_WARP ^ (mask), __LINE__)
#define shuffle_from(value, lane) simt_shuffle(value, lane, __LINE__)

/* --- the vocabulary of sm_90a --- */

struct panel_map;
uint32_t cluster_rank(void);
uint32_t cluster_index(void);
uint32_t cluster_count(void);
void simt_cluster_barrier(int line);
void simt_mbarrier_init(uint32_t barrier, uint32_t arrivals, int line);
void simt_mbarrier_expect(uint32_t barrier, uint32_t bytes, int line);
void simt_mbarrier_wait(uint32_t barrier, uint32_t parity, int line);
void simt_mbarrier_release(uint32_t barrier, uint32_t blocks, int line);
void simt_bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier, int line);
void simt_bulk_copy_panel(uint32_t to, const struct panel_map *map, uint32_t col, uint32_t token,
                          uint32_t barrier, uint32_t blocks, int line);
/* The map of a panel's activations as the emulator reads it: what the driver encodes on a card. */
void simt_panel_map(struct panel_map *out, const uint16_t *x, uint64_t x_stride, uint32_t tokens,
                    uint32_t cols, uint32_t box_tokens);
enum simt_wgmma { SIMT_WGMMA_DENSE, SIMT_WGMMA_SPARSE_LOW, SIMT_WGMMA_SPARSE_HIGH };
void simt_wgmma(enum simt_wgmma kind, float (*d)[4], uint32_t octets, const struct words4 *a,
                uint64_t panel, uint32_t meta, int line);
void simt_wgmma_fence(int line);
void simt_wgmma_commit(int line);
void simt_wgmma_wait(int line);
#define cluster_barrier() simt_cluster_barrier(__LINE__)
#define mbarrier_init(barrier, arrivals) simt_mbarrier_init(barrier, arrivals, __LINE__)
#define mbarrier_init_done() ((void)0)
#define mbarrier_expect(barrier, bytes) simt_mbarrier_expect(barrier, bytes, __LINE__)
#define mbarrier_wait(barrier, parity) simt_mbarrier_wait(barrier, parity, __LINE__)
#define mbarrier_release(barrier, blocks) simt_mbarrier_release(barrier, blocks, __LINE__)
#define bulk_copy(to, from, bytes, barrier) simt_bulk_copy(to, from, bytes, barrier, __LINE__)
#define bulk_copy_panel(to, map, col, token, barrier, blocks) \
  simt_bulk_copy_panel(to, map, col, token, barrier, blocks, __LINE__)
#define registers_give(count) ((void)0)
#define registers_take(count) ((void)0)
#define wgmma_fence() simt_wgmma_fence(__LINE__)
#define wgmma_commit() simt_wgmma_commit(__LINE__)
#define wgmma_wait() simt_wgmma_wait(__LINE__)
#define wgmma_dense(d, octets, a, panel) \
  simt_wgmma(SIMT_WGMMA_DENSE, d, octets, a, panel, 0, __LINE__)
#define wgmma_sparse_low(d, octets, a, panel, meta) \
  simt_wgmma(SIMT_WGMMA_SPARSE_LOW, d, octets, a, panel, meta, __LINE__)
#define wgmma_sparse_high(d, octets, a, panel, meta) \
  simt_wgmma(SIMT_WGMMA_SPARSE_HIGH, d, octets, a, panel, meta, __LINE__)

static inline uint16_t bf16_round(float x) { return bf16_from_f32(x); }
static inline float bf16_widen(uint16_t x) { return bf16_to_f32(x); }
static inline float f16_widen(uint16_t x) {
  float out;
  dtype_to_f32(DTYPE_F16, &x, 1, &out);
  return out;
}
static inline uint16_t f16_round(float x) {
  uint16_t out;
  dtype_from_f32(DTYPE_F16, &x, 1, &out);
  return out;
}
static inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static inline uint64_t bits_of_double(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline double double_of_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static inline float log_fast(float x) { return logf(x); }
static inline float exp_fast(float x) { return expf(x); }
static inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
static inline float exp2_fast(float x) { return exp2f(x); }
static inline uint32_t bf16_pair(float low, float high) {
  return bf16_from_f32(low) | (uint32_t)bf16_from_f32(high) << 16;
}
static inline uint32_t bf16_pair_subtract(uint32_t a, uint32_t b) {
  return bf16_pair(bf16_to_f32((uint16_t)a) - bf16_to_f32((uint16_t)b),
                   bf16_to_f32((uint16_t)(a >> 16)) - bf16_to_f32((uint16_t)(b >> 16)));
}
static inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++)
    out |= (uint32_t)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

#endif
