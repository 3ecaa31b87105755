/* model: the choice of kernels with a timer that is made up: who is taken, that dense is taken
 * where hybrid loses at either end of a bucket, that nothing is timed twice, and what becomes of
 * the file when it is damaged, of another card, or cannot be written. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "io/file.h"
#include "model/choice.h"
#include "support/support.h"

/* dense: 100 + tokens. small: 60 + 2 tokens, up to 64 tokens (as panels that are multiplied one by
 * one). large: 150 + tokens / 2, from 17 tokens on. In microseconds. */
struct fake {
  int calls;
  bool without_small, broken;
};

static int fake_candidates(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                           char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX]) {
  const struct fake *fake = ctx;
  int count = 0;
  strcpy(names[count++], "dense");
  if (tokens <= 64 && !fake->without_small) strcpy(names[count++], "small");
  if (tokens >= 17) strcpy(names[count++], "large");
  return count;
}

static double fake_seconds(const char *name, uint32_t tokens) {
  if (!strcmp(name, "dense")) return 1e-6 * (100 + tokens);
  if (!strcmp(name, "small")) return 1e-6 * (60 + 2.0 * tokens);
  return 1e-6 * (150 + tokens / 2.0);
}

static enum status fake_time(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                             const char *name, double *seconds, struct error *err) {
  struct fake *fake = ctx;
  fake->calls++;
  if (fake->broken) return error_set(err, STATUS_FAILED, "the card is on fire");
  *seconds = fake_seconds(name, tokens);
  return STATUS_OK;
}

static const struct choice_shape shape = {"bf16", 4096, 11008, 1000};
static const char *path;

static struct choice *open_table(const char *machine) {
  struct choice *c;
  struct error err = {0};
  must(choice_open(&c, path, machine, &err), err);
  return c;
}

static void expect_pick(struct choice *c, struct fake *fake, uint32_t tokens,
                        const char *expected) {
  const struct choice_timer timer = {fake, fake_candidates, fake_time};
  char name[CHOICE_NAME_MAX];
  struct error err = {0};
  must(choice_pick(c, &shape, tokens, &timer, name, &err), err);
  assert_string_equal(name, expected);
}

static void buckets_cover_every_batch(void **state) {
  (void)state;
  uint32_t next = 1;
  while (next < 100000) {
    uint32_t first, last = choice_bucket(next, &first), same;
    assert_int_equal(first, next);
    assert_true(last >= first);
    assert_int_equal(choice_bucket(last, &same), last);
    assert_int_equal(same, first);
    next = last + 1;
  }
  uint32_t first;
  assert_true(choice_bucket(UINT32_MAX, &first) >= UINT32_MAX / 2);
}

/* small wins up to 40 tokens, large from 101 on: the buckets (33..48) and (97..128) hold a change
 * of fortune, where dense must be taken. */
static void the_best_is_taken_and_dense_where_hybrid_loses(void **state) {
  (void)state;
  struct fake fake = {0};
  unlink(path);
  struct choice *c = open_table("card 1");
  static const struct {
    uint32_t tokens;
    const char *pick;
  } cases[] = {{1, "small"},   {7, "small"},   {32, "small"},  {33, "dense"},  {48, "dense"},
               {60, "dense"},  {65, "dense"},  {97, "dense"},  {127, "dense"}, {129, "large"},
               {300, "large"}, {600, "large"}, {9000, "large"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    expect_pick(c, &fake, cases[i].tokens, cases[i].pick);
  const int calls = fake.calls;
  for (uint32_t tokens = 1; tokens <= 512; tokens++) {
    const struct choice_timer timer = {&fake, fake_candidates, fake_time};
    char name[CHOICE_NAME_MAX];
    struct error err = {0};
    must(choice_pick(c, &shape, tokens, &timer, name, &err), err);
    assert_true(fake_seconds(name, tokens) <= 1.02 * fake_seconds("dense", tokens));
  }
  assert_true(fake.calls > calls);
  const int all = fake.calls;
  expect_pick(c, &fake, 5, "small");
  assert_int_equal(fake.calls, all);
  choice_close(c);
}

static void what_was_timed_is_kept_for_the_same_machine(void **state) {
  (void)state;
  struct fake fake = {0}, again = {0}, other = {0};
  struct error err = {0};
  unlink(path);
  struct choice *c = open_table("card 1");
  expect_pick(c, &fake, 3, "small");
  expect_pick(c, &fake, 1000, "large");
  must(choice_save(c, &err), err);
  choice_close(c);
  c = open_table("card 1");
  expect_pick(c, &again, 4, "small");
  expect_pick(c, &again, 700, "large");
  assert_int_equal(again.calls, 0);
  /* A pick that this build no longer has is timed again. */
  again.without_small = true;
  expect_pick(c, &again, 4, "dense");
  assert_true(again.calls > 0);
  choice_close(c);
  c = open_table("card 2");
  expect_pick(c, &other, 3, "small");
  assert_true(other.calls > 0);
  choice_close(c);
}

static void damaged_files_are_measured_anew(void **state) {
  (void)state;
  static const char *const texts[] = {
      "",
      "{",
      "[]",
      "{\"version\": 1, \"machine\": \"card 1\"}",
      "{\"version\": 1, \"machine\": \"card 1\", \"entries\": [7]}",
      "{\"version\": 1, \"machine\": \"card 1\", \"entries\": [{\"weights\": \"bf16\", \"rows\": "
      "4096, "
      "\"cols\": 11008, \"sparse_tiles\": 1000, \"tokens\": 3, \"pick\": \"large\", \"first\": 1, "
      "\"last\": 1}]}",
      "{\"version\": 1, \"machine\": \"card 1\", \"entries\": [{\"weights\": \"bf16\", \"rows\": "
      "4096, "
      "\"cols\": 11008, \"sparse_tiles\": 1000, \"tokens\": 4, \"pick\": "
      "\"a name that is much longer than names of kernels\", \"first\": 1, \"last\": 1}]}"};
  struct error err = {0};
  log_set_level(LOG_ERROR);
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    struct fake fake = {0};
    must(file_write_all(path, texts[i], strlen(texts[i]), &err), err);
    struct choice *c = open_table("card 1");
    expect_pick(c, &fake, 4, "small");
    assert_true(fake.calls > 0);
    must(choice_save(c, &err), err);
    choice_close(c);
    c = open_table("card 1");
    expect_pick(c, &fake, 4, "small");
    choice_close(c);
  }
  log_set_level(LOG_WARN);
}

static void failures_are_said_and_leave_nothing(void **state) {
  (void)state;
  struct fake fake = {.broken = true};
  const struct choice_timer timer = {&fake, fake_candidates, fake_time};
  char name[CHOICE_NAME_MAX];
  struct error err = {0};
  struct choice *c;
  unlink(path);
  c = open_table("card 1");
  assert_int_equal(choice_pick(c, &shape, 3, &timer, name, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "on fire"));
  must(choice_save(c, &err), err); /* nothing to write */
  assert_false(file_exists(path));
  fake.broken = false;
  expect_pick(c, &fake, 3, "small");
  choice_close(c);
  must(choice_open(&c, "/proc/none/of/this.json", "card 1", &err), err);
  expect_pick(c, &fake, 3, "small");
  assert_int_not_equal(choice_save(c, &err), STATUS_OK);
  choice_close(c);
}

static void paths_are_below_the_cache(void **state) {
  (void)state;
  char *found;
  struct error err = {0};
  setenv("XDG_CACHE_HOME", "/x/y", 1);
  must(choice_path("NVIDIA H100 80GB/HBM3", &found, &err), err);
  assert_string_equal(found, "/x/y/tessera/gpu-NVIDIA-H100-80GB-HBM3.json");
  free(found);
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", "/h", 1);
  must(choice_path("a", &found, &err), err);
  assert_string_equal(found, "/h/.cache/tessera/gpu-a.json");
  free(found);
  unsetenv("HOME");
  assert_int_equal(choice_path("a", &found, &err), STATUS_REFUSED);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(buckets_cover_every_batch),
      cmocka_unit_test(the_best_is_taken_and_dense_where_hybrid_loses),
      cmocka_unit_test(what_was_timed_is_kept_for_the_same_machine),
      cmocka_unit_test(damaged_files_are_measured_anew),
      cmocka_unit_test(failures_are_said_and_leave_nothing),
      cmocka_unit_test(paths_are_below_the_cache),
  };
  path = scratch_path("a/gpu.json");
  return cmocka_run_group_tests(tests, NULL, NULL);
}
