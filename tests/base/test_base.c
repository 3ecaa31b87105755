/* base: Philox against Random123's known answers, the pool, allocation limits, numbers. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/number.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "support/support.h"

static void philox_known_answers(void **state) {
  (void)state;
  /* from Random123's kat_vectors, philox4x32 with 10 rounds */
  static const uint32_t input[3][6] = {
      {0, 0, 0, 0, 0, 0},
      {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
      {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0}};
  static const uint32_t expected[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                          {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                          {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    uint32_t out[4];
    philox4x32(&input[i][4], input[i], out);
    for (int j = 0; j < 4; j++) assert_int_equal(out[j], expected[i][j]);
  }
}

static void uniforms_stay_open(void **state) {
  (void)state;
  assert_true(rng_uniform_open(0) > 0.0f);
  assert_true(rng_uniform_open(0xffffffffu) < 1.0f);
}

/* Each of 126 bits moves one uniform by a step of its own; the two left over move none. */
static void six_uniforms_share_no_bits(void **state) {
  (void)state;
  const float step = 1.0f / 2097152.0f;
  float zero[6], u[6], sum[6] = {0};
  rng_six_uniforms((uint32_t[4]){0}, zero);
  for (int k = 0; k < 6; k++) assert_true(zero[k] == step / 2);
  int idle = 0;
  for (int bit = 0; bit < 128; bit++) {
    uint32_t words[4] = {0};
    words[bit / 32] = 1u << bit % 32;
    rng_six_uniforms(words, u);
    int moved = 0;
    for (int k = 0; k < 6; k++) {
      moved += u[k] != zero[k];
      sum[k] += u[k] - zero[k];
    }
    assert_true(moved <= 1);
    idle += !moved;
  }
  assert_int_equal(idle, 2);
  for (int k = 0; k < 6; k++) assert_true(sum[k] == 1 - step);
}

static void count_item(void *ctx, int64_t item, int worker) {
  (void)worker;
  ((int *)ctx)[item]++;
}

static void pool_runs_each_item_once(void **state) {
  (void)state;
  static int hits[5000];
  for (int threads = 1; threads <= 5; threads++) {
    parallel_set_threads(threads);
    for (int round = 0; round < 50; round++) parallel_for(5000, count_item, hits);
  }
  for (int i = 0; i < 5000; i++) assert_int_equal(hits[i], 250);
}

/* Calls within calls, and calls from several threads at once, run every item too. */
static void nested_item(void *ctx, int64_t item, int worker) {
  (void)worker;
  parallel_for(100, count_item, (int *)ctx + 100 * item);
}
static void *call_often(void *hits) {
  for (int round = 0; round < 200; round++) parallel_for(20, nested_item, hits);
  return NULL;
}
static void pool_is_shared(void **state) {
  (void)state;
  static int hits[3][2000];
  pthread_t threads[3];
  parallel_set_threads(3);
  for (int i = 0; i < 3; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, call_often, hits[i]), 0);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < 3 * 2000; i++) assert_int_equal(hits[i / 2000][i % 2000], 200);
}

/* A forked child has no workers, and must neither wait for them nor join them. */
static void pool_survives_fork(void **state) {
  (void)state;
  static int hits[1000];
  parallel_set_threads(3);
  parallel_for(1000, count_item, hits);
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    parallel_for(1000, count_item, hits);
    exit(hits[0] == 2 && hits[999] == 2 ? 0 : 1);
  }
  int status = -1;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void allocation_checks_overflow(void **state) {
  (void)state;
  struct error err = {0};
  assert_null(mem_alloc(SIZE_MAX / 2, 4, &err));
  assert_int_equal(err.status, STATUS_FAILED);
  char *block = mem_alloc(3 << 20, 1, &err);
  assert_non_null(block);
  for (int i = 0; i < 3 << 20; i += 4096) assert_int_equal(block[i], 0);
  mem_free(block);
}

static void numbers_are_taken_strictly(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int64_t most, value; /* -1: refused */
    const char *rest;
  } cases[] = {{"0", 9, 0, ""},
               {"0042:7", 42, 42, ":7"},
               {"43", 42, -1, "43"},
               {"", 9, -1, ""},
               {" 1", 9, -1, " 1"},
               {"+1", 9, -1, "+1"},
               {"-1", 9, -1, "-1"},
               {"5", 4, -1, "5"},
               {"1e3", 9, 1, "e3"},
               {"9223372036854775807", INT64_MAX, INT64_MAX, ""},
               {"9223372036854775808", INT64_MAX, -1, "9223372036854775808"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *at = cases[i].text;
    int64_t value = -1;
    assert_int_equal(number_take(&at, cases[i].most, &value), cases[i].value >= 0);
    assert_true(value == cases[i].value);
    assert_string_equal(at, cases[i].rest);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(philox_known_answers),
      cmocka_unit_test(uniforms_stay_open),
      cmocka_unit_test(six_uniforms_share_no_bits),
      cmocka_unit_test(pool_runs_each_item_once),
      cmocka_unit_test(pool_is_shared),
      cmocka_unit_test(pool_survives_fork),
      cmocka_unit_test(allocation_checks_overflow),
      cmocka_unit_test(numbers_are_taken_strictly),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
