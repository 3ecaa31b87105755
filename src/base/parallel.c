/* The thread pool: see parallel.h. State: one global pool, made at first use.
 *
 * Workers spin for a moment before they sleep: a decoded token runs some two hundred short
 * sections, and a futex wake for each would cost more than the work. */
#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

#include "base/error.h"

enum { SPIN_ROUNDS = 4000 };

static struct {
  pthread_mutex_t mutex; /* guards generation, stop and the condition */
  pthread_cond_t wake;
  pthread_t threads[PARALLEL_THREADS_MAX];
  int count; /* including the caller; 0 = not started */
  atomic_uint generation;
  atomic_bool stop;
  void (*fn)(void *, int64_t, int);
  void *ctx;
  int64_t items;
  atomic_int_fast64_t next;
  atomic_int running; /* workers that have not finished the current section */
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static _Thread_local bool inside_section;
static _Thread_local int current_worker; /* what a nested call hands on */

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

static void run_items(int worker) {
  inside_section = true;
  current_worker = worker;
  for (;;) {
    int64_t item = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
    if (item >= pool.items) break;
    pool.fn(pool.ctx, item, worker);
  }
  inside_section = false;
}

static unsigned wait_for_section(unsigned seen) {
  for (int i = 0; i < SPIN_ROUNDS; i++) {
    unsigned now = atomic_load_explicit(&pool.generation, memory_order_acquire);
    if (now != seen) return now;
    relax();
  }
  pthread_mutex_lock(&pool.mutex);
  while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
  unsigned now = atomic_load(&pool.generation);
  pthread_mutex_unlock(&pool.mutex);
  return now;
}

struct worker_start {
  int worker;
  unsigned generation;
};
static struct worker_start starts[PARALLEL_THREADS_MAX];

static void *worker_main(void *arg) {
  struct worker_start *start = arg;
  unsigned seen = start->generation;
  for (;;) {
    seen = wait_for_section(seen);
    if (atomic_load(&pool.stop)) return NULL;
    run_items(start->worker);
    atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
  }
}

static void publish(void) {
  pthread_mutex_lock(&pool.mutex);
  atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.mutex);
}

static void pool_stop(void) {
  if (pool.count <= 1) return;
  atomic_store(&pool.stop, true);
  publish();
  for (int i = 1; i < pool.count; i++) pthread_join(pool.threads[i], NULL);
  atomic_store(&pool.stop, false);
}

void parallel_set_threads(int threads) {
  INVARIANT(!inside_section);
  if (threads <= 0) {
    cpu_set_t set; /* the cores this process may run on, which a container may have limited */
    threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : (int)sysconf(_SC_NPROCESSORS_ONLN);
  }
  if (threads < 1) threads = 1;
  if (threads > PARALLEL_THREADS_MAX) threads = PARALLEL_THREADS_MAX;
  if (threads == pool.count) return;
  pool_stop();
  pool.count = 1;
  for (int i = 1; i < threads; i++) {
    starts[i] = (struct worker_start){i, atomic_load(&pool.generation)};
    if (pthread_create(&pool.threads[i], NULL, worker_main, &starts[i])) break;
    pool.count = i + 1;
  }
}

int parallel_threads(void) {
  if (!pool.count) parallel_set_threads(0);
  return pool.count;
}

void parallel_for(int64_t items, void (*fn)(void *ctx, int64_t item, int worker), void *ctx) {
  if (items <= 0) return;
  if (inside_section || items == 1 || parallel_threads() == 1) {
    bool outer = inside_section;
    inside_section = true;
    if (!outer) current_worker = 0;
    for (int64_t i = 0; i < items; i++) fn(ctx, i, current_worker);
    inside_section = outer;
    return;
  }
  pool.fn = fn;
  pool.ctx = ctx;
  pool.items = items;
  atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.running, pool.count - 1, memory_order_relaxed);
  publish();
  run_items(0);
  while (atomic_load_explicit(&pool.running, memory_order_acquire) > 0) {
    for (int i = 0; i < 64; i++) relax();
    if (atomic_load_explicit(&pool.running, memory_order_acquire) > 0) sched_yield();
  }
}
