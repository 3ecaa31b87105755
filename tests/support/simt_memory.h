/* Inside the emulator: the block's shared memory, and what is known of each of its words. */
#ifndef TSR_TESTS_SIMT_MEMORY_H
#define TSR_TESTS_SIMT_MEMORY_H

#include "support/simt.h"

/* Ends the launch: notes the sentence, with the thread and line it is about, and leaves the fiber
 * for good. */
_Noreturn void simt_fail(int line, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forgets everything: a new block. */
void shared_reset(uint32_t bytes);
/* What thread `thread` reads or writes: `bytes` (4 or 16) at an address aligned to that. `thread`
 * SHARED_WARP stands for a read on behalf of a whole warp. */
enum { SHARED_WARP = -3 };
void shared_read(int thread, uint32_t address, uint32_t bytes, void *out, int line);
void shared_write(int thread, uint32_t address, uint32_t bytes, const void *in, int line);
/* An asynchronous copy is under way to / has arrived at 16 bytes. */
void shared_expect(int thread, uint32_t address, int line);
void shared_arrive(int thread, uint32_t address, const void *in);
/* A barrier was passed by all. */
void shared_barrier(void);

/* How many passes beyond the first `count` accesses of `bytes` each take: the largest number of
 * different words in one of the 32 banks, less one. */
int bank_conflicts(const uint32_t *addresses, int count, uint32_t bytes);

#endif
