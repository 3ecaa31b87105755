/* One pool of threads for the whole process.
 *
 * Work is cut into items whose results must not depend on which thread runs them or in which
 * order: that is what keeps every result bit-identical at any thread count. Reductions over items
 * are therefore done by the caller, in a fixed order, over per-item partial results. */
#ifndef TSR_BASE_PARALLEL_H
#define TSR_BASE_PARALLEL_H

#include <stdint.h>

enum { PARALLEL_THREADS_MAX = 256 };

/* Sets the number of threads (1 to PARALLEL_THREADS_MAX); 0 asks for one per available core. May
 * be called again between parallel sections. Without a call the pool starts with one per core. */
void parallel_set_threads(int threads);
int parallel_threads(void);

/* Calls fn(ctx, item, worker) once for each item in [0, items); `worker` is in
 * [0, parallel_threads()) and is never used by two running items at a time, so it can index
 * scratch memory of the call. Returns when all are done. Nested calls run on the calling thread,
 * and so do calls from other threads while the pool is at work. */
void parallel_for(int64_t items, void (*fn)(void *ctx, int64_t item, int worker), void *ctx);

#endif
