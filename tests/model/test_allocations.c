/* Nothing is allocated inside a training step or a decoded token: this program stands between the
 * library and the C library's allocator, and counts. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/parallel.h"
#include "model/model.h"
#include "support/support.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTING 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTING 0
#endif
#endif
#if !defined(COUNTING) && defined(__GLIBC__)
#define COUNTING 1
#endif
#ifndef COUNTING
#define COUNTING 0
#endif

#if COUNTING

static struct error err;
static atomic_long allocations;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  atomic_fetch_add(&allocations, 1);
  return __libc_memalign(alignment, size);
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
  atomic_fetch_add(&allocations, 1);
  return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

enum { LENGTH = 40 };

static int32_t ids[LENGTH];

static struct model *open_gemma(void) {
  struct model *model;
  must(model_open(&model, golden("models/gemma3"), &err), err);
  for (int i = 0; i < LENGTH; i++) ids[i] = (i * 31) % 101;
  return model;
}

static const struct linear_weight *own_weight(void *ctx, const struct linear_site *site,
                                              enum tap_pass pass) {
  return &site->weight;
}

static void count_gradient(void *ctx, const struct linear_site *site, const float *x,
                           const float *dy, int64_t tokens) {
  ++*(int *)ctx;
}

/* The first step may grow the kernels' scratch, which each thread keeps; later ones may not. With
 * several threads a late one may see its first item of a kind only now, so one is used here. */
static void training_step(void **state) {
  struct model *model = open_gemma();
  struct model_shape shape = {2, LENGTH / 2};
  int sites = 0;
  struct tap tap = {.ctx = &sites, .weight = own_weight, .gradient = count_gradient};
  for (int checkpoint = 0; checkpoint < 2; checkpoint++) {
    struct model_workspace *ws;
    double loss;
    struct model_losses losses;
    must(model_workspace_new(&ws, model, shape, true, checkpoint, &err), err);
    must(model_train(model, ids, shape, 1, &tap, ws, &loss, &err), err);
    long before = atomic_load(&allocations);
    must(model_train(model, ids, shape, 1, &tap, ws, &loss, &err), err);
    assert_int_equal(atomic_load(&allocations) - before, 0);
    const struct model_objective taught = {{.weight = 0.5}, 0.5};
    must(model_workspace_distill(ws, true, &err), err);
    before = atomic_load(&allocations);
    must(model_distill(model, ids, shape, 1, &taught, &tap, ws, &losses, &err), err);
    assert_int_equal(atomic_load(&allocations) - before, 0);
    model_workspace_free(ws);
  }
  assert_int_equal(sites, 6 * model_site_count(model));
  model_close(model);
}

static void decoded_token(void **state) {
  struct model *model = open_gemma();
  struct model_session *session;
  static float logits[101];
  must(model_session_new(&session, model, LENGTH, &err), err);
  must(model_session_append(session, ids, LENGTH / 2, logits, &err), err);
  must(model_session_append(session, ids, 1, logits, &err), err);
  long before = atomic_load(&allocations);
  for (int i = 0; i < 8; i++) must(model_session_append(session, ids + i, 1, logits, &err), err);
  assert_int_equal(atomic_load(&allocations) - before, 0);
  model_session_free(session);
  model_close(model);
}

static void decoded_step(void **state) {
  enum { SLOTS = 12 };
  struct model *model = open_gemma();
  struct model_session *session;
  static float logits[SLOTS * 101];
  static const int64_t slots[SLOTS] = {3, 1, 2, 0, 11, 10, 9, 8, 7, 6, 5, 4};
  must(model_session_new_slots(&session, model, SLOTS, LENGTH, &err), err);
  for (int i = 0; i < SLOTS; i++) must(model_slot_append(session, i, ids, 1 + i, NULL, &err), err);
  for (int count = 1; count <= SLOTS; count++)
    must(model_session_step(session, slots, ids, count, logits, &err), err);
  long before = atomic_load(&allocations);
  for (int count = 1; count <= SLOTS; count++)
    must(model_session_step(session, slots, ids, count, logits, &err), err);
  assert_int_equal(atomic_load(&allocations) - before, 0);
  model_session_free(session);
  model_close(model);
}

/* A counter that counts nothing would let everything pass. */
static void counter_counts(void **state) {
  long before = atomic_load(&allocations);
  struct model *model = open_gemma();
  model_close(model);
  assert_true(atomic_load(&allocations) - before > 10);
}

#else

static void skipped(void **state) {
  printf("skip: allocations are not counted under a sanitizer\n");
  skip();
}

#endif

int main(void) {
  parallel_set_threads(1);
  const struct CMUnitTest tests[] = {
#if COUNTING
    cmocka_unit_test(training_step),
    cmocka_unit_test(decoded_token),
    cmocka_unit_test(decoded_step),
    cmocka_unit_test(counter_counts),
#else
    cmocka_unit_test(skipped),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
