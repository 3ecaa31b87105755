/* Scratch memory: see scratch.h. State: a set of buffers per thread, freed when the thread ends. */
#include "kernel/scratch.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

struct scratch {
  void *data[SCRATCH_SLOTS];
  size_t count[SCRATCH_SLOTS];
};

static _Thread_local struct scratch *mine;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *pointer) {
  struct scratch *s = pointer;
  for (int i = 0; i < SCRATCH_SLOTS; i++) mem_free(s->data[i]);
  mem_free(s);
}

/* Threads run their key's destructor; the main thread, which returns from main, needs atexit. */
static void release_mine(void) {
  if (!mine) return;
  pthread_setspecific(key, NULL);
  release(mine);
  mine = NULL;
}

static void make_key(void) {
  INVARIANT(pthread_key_create(&key, release) == 0);
  atexit(release_mine);
}

static void *must_alloc(size_t count, size_t size) {
  struct error err;
  void *block = mem_alloc(count, size, &err);
  if (!block) {
    fprintf(stderr, "tessera: scratch memory: %s\n", err.text);
    abort();
  }
  return block;
}

void *kernel_scratch(enum scratch_slot slot, size_t count) {
  if (!mine) {
    pthread_once(&once, make_key);
    mine = must_alloc(1, sizeof *mine);
    pthread_setspecific(key, mine);
  }
  if (mine->count[slot] < count) {
    mem_free(mine->data[slot]);
    mine->data[slot] = NULL;
    mine->count[slot] = 0;
    mine->data[slot] = must_alloc(count, sizeof(float));
    mine->count[slot] = count;
  }
  return mine->data[slot];
}
