/* The thread pool: see parallel.h. State: one global pool, made at first use, joined at exit.
 *
 * A section is open while its caller still takes items; workers enter it, take items, and leave.
 * The caller closes it when no items are left and then waits for those inside alone: a worker that
 * the system did not wake in time has missed nothing, and nobody waits for it.
 * Workers spin for a moment before they sleep: a decoded token runs some two hundred short
 * sections, and a futex wake for each would cost more than the work. */
#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

enum { SPIN_ROUNDS = 4000 };

/* pool.section: the section's number, whether it is open, and how many workers are inside. */
enum { SECTION_OPEN = 1 << 16, SECTION_INSIDE = SECTION_OPEN - 1, SECTION_NUMBER = 32 };
_Static_assert((int)PARALLEL_THREADS_MAX < (int)SECTION_OPEN, "the workers inside are counted");

static struct {
  pthread_mutex_t mutex; /* for the condition */
  pthread_cond_t wake;
  pthread_t threads[PARALLEL_THREADS_MAX];
  pthread_mutex_t setup; /* one thread at a time starts or stops the pool */
  atomic_int count;      /* including the caller; 0 = not started */
  atomic_bool stop, busy;
  atomic_int sleeping;
  _Atomic uint64_t section;
  /* Set while no section is open, read by those inside one. */
  void (*fn)(void *, int64_t, int);
  void *ctx;
  int64_t items;
  atomic_int_fast64_t next;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .setup = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local bool inside_section;
static _Thread_local int current_worker; /* what a nested call hands on */

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
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

/* Whether `section` is one to enter for a worker whose last was number `seen`. */
static bool is_news(uint64_t section, uint64_t seen) {
  return section & SECTION_OPEN && section >> SECTION_NUMBER != seen;
}

static bool try_enter(uint64_t *seen) {
  uint64_t section = atomic_load(&pool.section);
  while (is_news(section, *seen))
    if (atomic_compare_exchange_weak(&pool.section, &section, section + 1)) {
      *seen = section >> SECTION_NUMBER;
      return true;
    }
  return false;
}

/* The counter is raised before the section is looked at, and publish() does it the other way
 * round: one of the two sees the other. */
static void sleep_until_news(uint64_t seen) {
  pthread_mutex_lock(&pool.mutex);
  atomic_fetch_add(&pool.sleeping, 1);
  while (!is_news(atomic_load(&pool.section), seen) && !atomic_load(&pool.stop))
    pthread_cond_wait(&pool.wake, &pool.mutex);
  atomic_fetch_sub(&pool.sleeping, 1);
  pthread_mutex_unlock(&pool.mutex);
}

static void *worker_main(void *arg) {
  int worker = (int)(intptr_t)arg;
  uint64_t seen = 0; /* sections count from 1 */
  for (int spun = 0; !atomic_load(&pool.stop);) {
    if (try_enter(&seen)) {
      run_items(worker);
      atomic_fetch_sub(&pool.section, 1);
      spun = 0;
    } else if (spun++ < SPIN_ROUNDS) {
      relax();
    } else {
      sleep_until_news(seen);
      spun = 0;
    }
  }
  return NULL;
}

static void wake_sleepers(void) {
  if (!atomic_load(&pool.sleeping)) return;
  pthread_mutex_lock(&pool.mutex);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.mutex);
}

static void pool_stop(void) {
  if (pool.count <= 1) return;
  atomic_store(&pool.stop, true);
  wake_sleepers();
  for (int i = 1; i < pool.count; i++) pthread_join(pool.threads[i], NULL);
  atomic_store(&pool.stop, false);
  pool.count = 0;
}

static void stop_at_exit(void) {
  if (!inside_section) pool_stop();
}

/* A forked child has none of the workers; it goes on alone. */
static void forget_workers(void) {
  pool.count = 1;
  pool.sleeping = 0;
  pool.section = 0;
  pthread_mutex_init(&pool.mutex, NULL);
  pthread_cond_init(&pool.wake, NULL);
}

static void watch_process(void) {
  atexit(stop_at_exit);
  pthread_atfork(NULL, NULL, forget_workers);
}

/* One per core that this process may run on, which a container may have limited. */
static int threads_wanted(int threads) {
  cpu_set_t set;
  if (threads <= 0)
    threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : (int)sysconf(_SC_NPROCESSORS_ONLN);
  if (threads < 1) return 1;
  return threads < PARALLEL_THREADS_MAX ? threads : PARALLEL_THREADS_MAX;
}

static void pool_start(int threads) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_process);
  int count = 1;
  while (count < threads &&
         !pthread_create(&pool.threads[count], NULL, worker_main, (void *)(intptr_t)count))
    count++;
  pool.count = count;
}

void parallel_set_threads(int threads) {
  INVARIANT(!inside_section);
  threads = threads_wanted(threads);
  pthread_mutex_lock(&pool.setup);
  if (threads != pool.count) {
    pool_stop();
    pool_start(threads);
  }
  pthread_mutex_unlock(&pool.setup);
}

int parallel_threads(void) {
  if (!pool.count) {
    pthread_mutex_lock(&pool.setup);
    if (!pool.count) pool_start(threads_wanted(0));
    pthread_mutex_unlock(&pool.setup);
  }
  return pool.count;
}

/* All items on the calling thread. */
static void run_alone(int64_t items, void (*fn)(void *, int64_t, int), void *ctx) {
  bool outer = inside_section;
  inside_section = true;
  if (!outer) current_worker = 0;
  for (int64_t i = 0; i < items; i++) fn(ctx, i, current_worker);
  inside_section = outer;
}

void parallel_for(int64_t items, void (*fn)(void *ctx, int64_t item, int worker), void *ctx) {
  if (items <= 0) return;
  if (inside_section || items == 1 || parallel_threads() == 1 ||
      atomic_exchange(&pool.busy, true)) {
    run_alone(items, fn, ctx);
    return;
  }
  pool.fn = fn;
  pool.ctx = ctx;
  pool.items = items;
  atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
  uint64_t number = (atomic_load(&pool.section) >> SECTION_NUMBER) + 1;
  atomic_store(&pool.section, number << SECTION_NUMBER | SECTION_OPEN);
  wake_sleepers();
  run_items(0);
  atomic_fetch_and(&pool.section, ~(uint64_t)SECTION_OPEN);
  while (atomic_load(&pool.section) & SECTION_INSIDE) {
    for (int i = 0; i < 64; i++) relax();
    if (atomic_load(&pool.section) & SECTION_INSIDE) sched_yield();
  }
  atomic_store(&pool.busy, false);
}
