/* Decoding: a session gives what one pass over the whole text gives, however the tokens arrive. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/model.h"
#include "support/support.h"

enum { LENGTH = 300, VOCAB = 101 }; /* longer than the session's inner chunk of 256 */

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
  model_logits(model, normed, LENGTH, whole);
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
  static const int pieces[] = {1, 5, 1, 20, 1, 2, 270};
  int64_t at = 0;
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
    must(model_session_append(s, ids + at, pieces[i], got, &err), err);
    at += pieces[i];
    assert_int_equal(model_session_length(s), at);
    close_to_whole(name, at - 1);
  }
  assert_int_equal(model_session_append(s, ids, 1, got, &err), STATUS_REFUSED); /* full */
  model_session_truncate(s, 0);
  must(model_session_append(s, ids, LENGTH, got, &err), err); /* 256, then the rest */
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
      cmocka_unit_test(llama),     cmocka_unit_test(mistral), cmocka_unit_test(qwen2),
      cmocka_unit_test(qwen3),     cmocka_unit_test(gemma3),  cmocka_unit_test(threads),
      cmocka_unit_test(bad_calls),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
