/* Decoding: a session gives what one pass over the whole text gives, however the tokens arrive. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/model.h"
#include "support/support.h"

enum { LENGTH = 560, VOCAB = 101 }; /* longer than the session's inner chunk of 512 */

static struct error err;
static int32_t ids[LENGTH];
static float whole[LENGTH * VOCAB], got[VOCAB], again[VOCAB];

static struct model *open_golden(const char *name) {
  struct model *model;
  char path[512];
  snprintf(path, sizeof path, "%s/%s", golden("models"), name);
  must(model_open(&model, path, &err), err);
  return model;
}

static void make_ids(void) {
  for (int i = 0; i < LENGTH; i++) ids[i] = (i * i * 7 + i * 3) % VOCAB;
}

static void all_logits(const struct model *model) {
  struct model_workspace *ws;
  static float normed[LENGTH * 64];
  struct model_shape shape = {1, LENGTH};
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  must(model_forward(model, ids, shape, NULL, ws, normed, &err), err);
  model_logits(model, normed, LENGTH, PRECISION_FP32, whole);
  model_workspace_free(ws);
}

static void close_to_whole(const char *name, int64_t position) {
  double error = relative_error(got, whole + position * VOCAB, VOCAB);
  if (error > 1e-5) fail_msg("%s at %d: relative error %g", name, (int)position, error);
}

static void check_family(const char *name) {
  struct model *model = open_golden(name);
  struct model_session *s;
  make_ids();
  all_logits(model);
  must(model_session_new(&s, model, LENGTH, &err), err);
  static const int pieces[] = {1, 5, 1, 20, 1, 2, LENGTH - 30};
  int64_t at = 0;
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
    must(model_session_append(s, ids + at, pieces[i], got, &err), err);
    at += pieces[i];
    assert_int_equal(model_session_length(s), at);
    close_to_whole(name, at - 1);
  }
  assert_int_equal(model_session_append(s, ids, 1, got, &err), STATUS_REFUSED); /* full */
  model_session_truncate(s, 0);
  must(model_session_append(s, ids, LENGTH, got, &err), err); /* 512, then the rest */
  close_to_whole(name, LENGTH - 1);
  model_session_truncate(s, 40);
  for (at = 40; at < 60; at++) {
    must(model_session_append(s, ids + at, 1, got, &err), err);
    close_to_whole(name, at);
  }
  model_session_free(s);
  model_close(model);
}

static void llama(void **state) { check_family("llama"); }
static void mistral(void **state) { check_family("mistral"); }
static void qwen2(void **state) { check_family("qwen2"); }
static void qwen3(void **state) { check_family("qwen3"); }
static void gemma3(void **state) { check_family("gemma3"); }

static void threads(void **state) {
  struct model *model = open_golden("gemma3");
  struct model_session *s;
  make_ids();
  for (int count = 1; count <= 3; count++) {
    parallel_set_threads(count);
    must(model_session_new(&s, model, 50, &err), err);
    must(model_session_append(s, ids, 33, again, &err), err);
    must(model_session_append(s, ids + 33, 1, again, &err), err);
    if (count == 1) memcpy(got, again, sizeof got);
    assert_memory_equal(got, again, sizeof got);
    model_session_free(s);
  }
  parallel_set_threads(0);
  model_close(model);
}

/* --- several texts at once --- */

enum { SLOTS = 12 };

static float rows[SLOTS * VOCAB], alone[SLOTS * VOCAB];

/* Texts in all slots, of lengths 3, 4, 5, ..: each a prefix of ids. */
static struct model_session *open_slots(const struct model *model) {
  struct model_session *s;
  must(model_session_new_slots(&s, model, SLOTS, 64, &err), err);
  for (int slot = 0; slot < SLOTS; slot++)
    must(model_slot_append(s, slot, ids, 3 + slot, slot % 2 ? got : NULL, &err), err);
  return s;
}

/* Each of `slots` goes on with the next token of ids; their logits must be those of `whole`. */
static void step(const char *name, struct model_session *s, const int64_t *slots, int count) {
  int32_t next[SLOTS];
  int64_t at[SLOTS];
  for (int i = 0; i < count; i++) {
    at[i] = model_slot_length(s, slots[i]);
    next[i] = ids[at[i]];
  }
  must(model_session_step(s, slots, next, count, rows, &err), err);
  for (int i = 0; i < count; i++) {
    assert_int_equal(model_slot_length(s, slots[i]), at[i] + 1);
    memcpy(got, rows + i * VOCAB, sizeof got);
    close_to_whole(name, at[i]);
  }
}

static void check_slots(const char *name) {
  static const int64_t some[] = {7, 0, 3}, all[] = {5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6};
  struct model *model = open_golden(name);
  make_ids();
  all_logits(model);
  struct model_session *s = open_slots(model);
  for (int round = 0; round < 3; round++) {
    step(name, s, some, 3);
    step(name, s, all, SLOTS);
  }
  /* one text leaves, another takes its slot, a third is copied and both go on */
  model_slot_truncate(s, 3, 0);
  must(model_slot_append(s, 3, ids, 30, got, &err), err);
  close_to_whole(name, 29);
  must(model_slot_copy(s, 5, 3, 21, &err), err);
  assert_int_equal(model_slot_length(s, 5), 21);
  step(name, s, (int64_t[]){5, 3, 0}, 3);
  step(name, s, all, SLOTS);
  model_session_free(s);
  model_close(model);
}

static void slots_of_every_family(void **state) {
  static const char *const families[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};
  for (int i = 0; i < 5; i++) check_slots(families[i]);
}

/* The bits of a text's logits do not depend on its company, up to the skinny products' width, nor
 * on the number of threads. */
static void company_changes_nothing(void **state) {
  static const int64_t slots[] = {7, 2, 9, 0, 4, 11, 1, 6};
  struct model *model = open_golden("gemma3");
  make_ids();
  for (int threads = 1; threads <= 3; threads++) {
    parallel_set_threads(threads);
    for (int count = 1; count <= 8; count++) {
      struct model_session *s = open_slots(model);
      for (int i = 0; i < 8; i += count) {
        int some = count < 8 - i ? count : 8 - i;
        must(model_session_step(s, slots + i, ids + i, some, rows + i * VOCAB, &err), err);
      }
      if (threads == 1 && count == 1) memcpy(alone, rows, sizeof alone);
      assert_memory_equal(rows, alone, 8 * VOCAB * sizeof(float));
      model_session_free(s);
    }
  }
  parallel_set_threads(0);
  model_close(model);
}

/* Fewer bits for keys and values cost little: prompts, pieces and single tokens. */
static void kept_in_fewer_bits(void **state) {
  static const struct {
    enum dtype kv;
    double most; /* relative error of the logits */
  } kinds[] = {{DTYPE_F16, 1e-3}, {DTYPE_BF16, 1e-2}, {DTYPE_I8, 2e-2}};
  static const char *const families[] = {"llama", "gemma3"};
  static const int pieces[] = {40, 1, 3, 1, 200, 1};
  make_ids();
  for (int f = 0; f < 2; f++) {
    struct model *model = open_golden(families[f]);
    all_logits(model);
    for (int i = 0; i < 3; i++) {
      struct session_settings settings = {.slots = 2, .capacity = LENGTH, .kv = kinds[i].kv};
      struct model_session *s;
      must(model_session_new_with(&s, model, &settings, &err), err);
      for (int64_t p = 0, at = 0; p < 6; p++) {
        must(model_slot_append(s, 1, ids + at, pieces[p], got, &err), err);
        at += pieces[p];
        double error = relative_error(got, whole + (at - 1) * VOCAB, VOCAB);
        if (!(error > 0 && error < kinds[i].most))
          fail_msg("%s in %s at %d: relative error %g", families[f],
                   dtype_traits(kinds[i].kv)->name, (int)at, error);
      }
      must(model_slot_copy(s, 0, 1, 99, &err), err);
      must(model_slot_append(s, 0, ids + 99, 1, got, &err), err);
      assert_true(relative_error(got, whole + 99 * VOCAB, VOCAB) < kinds[i].most);
      model_session_free(s);
    }
    model_close(model);
  }
}

static void bad_steps(void **state) {
  struct model *model = open_golden("qwen2");
  struct model_session *s;
  static const int64_t slots[] = {1, 0, 1};
  static const int32_t outside[] = {1, VOCAB};
  make_ids();
  assert_int_equal(model_session_new_slots(&s, model, 0, 8, &err), STATUS_USAGE);
  assert_int_equal(model_session_new_slots(&s, model, SESSION_SLOTS_MAX + 1, 8, &err),
                   STATUS_USAGE);
  must(model_session_new_slots(&s, model, 3, 8, &err), err);
  must(model_slot_append(s, 0, ids, 7, NULL, &err), err);
  assert_int_equal(model_session_step(s, slots, ids, 3, rows, &err), STATUS_USAGE);
  assert_non_null(strstr(err.text, "twice"));
  assert_int_equal(model_session_step(s, slots, ids, 0, rows, &err), STATUS_USAGE);
  assert_int_equal(model_session_step(s, slots, outside, 2, rows, &err), STATUS_REFUSED);
  assert_int_equal(model_slot_length(s, 0), 7);
  must(model_session_step(s, slots, ids, 2, rows, &err), err);
  assert_int_equal(model_session_step(s, slots, ids, 2, rows, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "full"));
  assert_int_equal(model_slot_length(s, 0), 8);
  assert_int_equal(model_slot_length(s, 1), 1);
  model_session_free(s);
  model_close(model);
}

static void bad_calls(void **state) {
  struct model *model = open_golden("qwen2");
  struct model_session *s;
  make_ids();
  must(model_session_new(&s, model, 8, &err), err);
  must(model_session_append(s, ids, 4, got, &err), err);
  int32_t outside[2] = {3, VOCAB};
  assert_int_equal(model_session_append(s, outside, 2, again, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "101"));
  assert_int_equal(model_session_length(s), 4);
  outside[1] = -1;
  assert_int_equal(model_session_append(s, outside, 2, again, &err), STATUS_REFUSED);
  assert_int_equal(model_session_append(s, ids, 5, again, &err), STATUS_REFUSED);
  assert_int_equal(model_session_append(s, ids, 0, again, &err), STATUS_USAGE);
  assert_int_equal(model_session_new(&s, model, 0, &err), STATUS_USAGE);
  model_session_free(s);
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(llama),
      cmocka_unit_test(mistral),
      cmocka_unit_test(qwen2),
      cmocka_unit_test(qwen3),
      cmocka_unit_test(gemma3),
      cmocka_unit_test(threads),
      cmocka_unit_test(bad_calls),
      cmocka_unit_test(slots_of_every_family),
      cmocka_unit_test(company_changes_nothing),
      cmocka_unit_test(bad_steps),
      cmocka_unit_test(kept_in_fewer_bits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
