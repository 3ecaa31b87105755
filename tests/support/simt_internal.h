/* Inside the emulator: what its files share. simt.c has the fibers, their meeting points and the
 * launch; simt_warp.c the instructions of a warp; simt_async.c mbarriers, bulk copies and wgmma;
 * simt_memory.c a block's shared memory and what is known of each of its words. */
#ifndef TSR_TESTS_SIMT_INTERNAL_H
#define TSR_TESTS_SIMT_INTERNAL_H

#include <setjmp.h>

#include "support/simt.h"

enum {
  SIMT_LANES_MAX = SIMT_THREADS_MAX * SIMT_CLUSTER_MAX,
  SIMT_BLOCK_WARPS_MAX = SIMT_THREADS_MAX / SIMT_WARP,
  SIMT_WARPS_MAX = SIMT_LANES_MAX / SIMT_WARP, /* of a cluster */
  SIMT_COPIES_MAX = 512,
  SIMT_BARRIERS_MAX = 4
};

enum lane_state {
  LANE_READY,
  LANE_IN_WARP,
  LANE_AT_BARRIER,
  LANE_AT_CLUSTER_BARRIER,
  LANE_AT_MBARRIER,
  LANE_DONE
};

enum operation {
  OP_LOAD4,
  OP_LOAD8,
  OP_LOAD16,
  OP_STORE4,
  OP_MATRICES,
  OP_MATRICES_TRANSPOSED,
  OP_COPY,
  OP_DENSE,
  OP_SPARSE_LOW,
  OP_SPARSE_HIGH,
  OP_SHUFFLE,
  OP_EXPECT,
  OP_WAIT,
  OP_RELEASE,
  OP_BULK,
  OP_BULK_PANEL,
  OP_WGMMA,
  OP_WGMMA_FENCE,
  OP_WGMMA_COMMIT,
  OP_WGMMA_WAIT
};

/* What a lane brings to a meeting point of its warp. */
struct call {
  enum operation op;
  int line;
  uint32_t address, value, bytes;
  const void *from;
  float (*d)[4];
  const struct words4 *a;
  struct words4 b, out;
  uint32_t barrier, blocks, col, token; /* of bulk copies and mbarriers */
  enum simt_wgmma kind;
  uint32_t octets;
  uint64_t panel;
};

/* A 16-byte copy of one lane that has not been waited for. */
struct copy {
  uint32_t to, bytes, group;
  const void *from;
};

struct lane {
  enum lane_state state;
  int line;         /* where it waits */
  uint32_t barrier; /* of its block, while it waits there */
  jmp_buf context;
  struct call call;
  struct copy copies[SIMT_COPIES_MAX]; /* oldest first */
  uint32_t copy_count, group;          /* group: the one that is open */
};

/* The launch and the cluster that is running. Lanes are those of its blocks, one after the other.
 */
struct simt_state {
  struct lane lanes[SIMT_LANES_MAX];
  char *stacks; /* of stack_count lanes, as many as any launch so far has had */
  uint32_t stack_count;
  const struct simt_launch *launch;
  struct simt_report *report;
  void (*kernel)(const void *);
  const void *args;
  uint32_t cluster, first_block; /* its number; its first block's */
  uint32_t blocks, lane_count;   /* of the cluster */
  int current;                   /* lane */
  uint32_t arrived[SIMT_WARPS_MAX], at_barrier[SIMT_CLUSTER_MAX][SIMT_BARRIERS_MAX];
  uint32_t at_cluster_barrier, cluster_epoch;
  jmp_buf scheduler;
};
extern struct simt_state simt;

static inline uint32_t simt_lane_block(uint32_t lane) { return lane / simt.launch->threads; }

/* Ends the launch: notes the sentence, with the thread and line it is about, and leaves the fiber
 * for good. */
_Noreturn void simt_fail(int line, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Gives way to the other lanes until this one is made ready again. */
void simt_leave_fiber(void);
/* Brings the lane's call to its warp and returns when the warp has executed it. */
struct call *simt_meet(struct call call);

/* --- simt_warp.c --- */

/* Executes the call that all lanes of the warp have brought. */
void warp_run(uint32_t first_lane);
/* Operand A of a warp, 16 rows of 16 stored columns, and for each the column of B it multiplies.
 * `words` and `meta`: by lane; `sparse` also looks at the codes. */
struct operand_a {
  float value[16][16];
  int column[16][16];
};
void warp_unpack_a(struct operand_a *out, const struct words4 words[SIMT_WARP],
                   const uint32_t meta[SIMT_WARP], bool sparse, int selector, int line);
/* d (by lane, 4 each) += a b, b (columns, 8 tokens). Sums run in fp64 within an instruction and are
 * rounded once: what the tensor cores lose inside is bounded, but not documented. */
void warp_multiply(const struct operand_a *a, float b[32][8], float *const d[SIMT_WARP]);

/* --- simt_async.c --- */

void async_reset(void); /* a new cluster */
void async_run(struct call *const calls[SIMT_WARP], uint32_t first_lane);
bool async_may_pass(const struct lane *lane); /* the mbarrier it waits at */
void async_check_end(uint32_t lane);
/* For shared memory: whether the running warp has seen phase `phase` of its block's barrier end,
 * and the running warp's own clock. */
bool async_has_seen(uint32_t barrier, uint32_t phase);
uint32_t async_warp_clock(void);

/* --- simt_memory.c --- */

/* Forgets everything in the memory of the cluster's block `block`, and turns to it. */
void shared_reset(uint32_t block, uint32_t bytes);
/* Turns to the memory of a block of the cluster. */
void shared_select(uint32_t block);
/* What thread `thread` reads or writes: `bytes` (4, 8 or 16) at an address aligned to that.
 * `thread` SHARED_WARP stands for a read on behalf of a whole warp. */
enum { SHARED_WARP = -3 };
void shared_read(int thread, uint32_t address, uint32_t bytes, void *out, int line);
void shared_write(int thread, uint32_t address, uint32_t bytes, const void *in, int line);
/* An asynchronous copy is under way to / has arrived at 16 bytes. */
void shared_expect(int thread, uint32_t address, int line);
void shared_arrive(int thread, uint32_t address, const void *in);
/* A bulk copy of 16 bytes, which phase `phase` of the barrier stands for. `clocks`: what the
 * copying warp knows of the warps of this block. */
void shared_bulk(uint32_t address, const void *in, uint32_t barrier, uint32_t phase,
                 const uint32_t clocks[SIMT_BLOCK_WARPS_MAX], int line);
/* A barrier was passed by all. */
void shared_barrier(void);

/* How many passes beyond the first `count` accesses of `bytes` each take: the largest number of
 * different words in one of the 32 banks, less one. */
int bank_conflicts(const uint32_t *addresses, int count, uint32_t bytes);

#endif
