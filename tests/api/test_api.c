/* include/tessera.h, used as somebody outside would: the public header alone. */
#include "tessera.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/support.h"

static tsr_model *model;
static tsr_error err;

static int open_model(void **state) {
  (void)state;
  const char *path = shared_data("models/stories260K");
  if (path && tsr_model_open(&model, path, &err)) fail_msg("%s", err.text);
  return 0;
}

static int close_model(void **state) {
  (void)state;
  tsr_model_close(model);
  return 0;
}

#define NEED_MODEL() \
  (void)state;       \
  if (!model) skip()

static void describes_what_it_opened(void **state) {
  NEED_MODEL();
  tsr_model_info info;
  tsr_model_describe(model, &info);
  assert_string_equal(info.family, "llama");
  assert_int_equal(info.hidden_size, 64);
  assert_int_equal(info.vocab_size, 512);
  assert_true(info.parameters > 250000 && info.parameters < 300000);
  assert_true(info.linear_parameters < info.parameters);
  assert_true(info.density == 1.0);
}

static void refuses_in_a_sentence(void **state) {
  (void)state;
  tsr_model *none = NULL;
  assert_int_equal(tsr_model_open(&none, "/nowhere/at/all", &err), TSR_REFUSED);
  assert_null(none);
  assert_non_null(strstr(err.text, "/nowhere/at/all"));
  assert_int_equal(tsr_model_open(&none, "/nowhere/at/all", NULL), TSR_REFUSED);
}

static void text_goes_there_and_back(void **state) {
  NEED_MODEL();
  static const char text[] = "Once upon a time there was a girl.";
  int32_t *ids;
  size_t count, bytes;
  char *back;
  assert_int_equal(tsr_tokenize(model, text, strlen(text), &ids, &count, &err), TSR_OK);
  assert_true(count > 5);
  assert_int_equal(tsr_detokenize(model, ids, count, &back, &bytes, &err), TSR_OK);
  assert_string_equal(back, text);
  free(ids);
  free(back);
}

struct streamed {
  char text[2000];
  size_t used;
};

static void collect(void *context, const char *text, size_t bytes) {
  struct streamed *s = context;
  assert_true(s->used + bytes < sizeof s->text);
  memcpy(s->text + s->used, text, bytes);
  s->used += bytes;
}

static void streams_what_it_returns(void **state) {
  NEED_MODEL();
  struct streamed streamed = {0};
  tsr_generate_options options = {.tokens = 24, .put = collect, .context = &streamed};
  char *text, *again;
  assert_int_equal(tsr_generate(model, "Once upon a time", &options, &text, &err), TSR_OK);
  assert_string_equal(streamed.text, text);
  assert_true(strlen(text) > 20);
  options.put = NULL;
  tsr_set_threads(1);
  assert_int_equal(tsr_generate(model, "Once upon a time", &options, &again, &err), TSR_OK);
  tsr_set_threads(0);
  assert_string_equal(text, again);
  free(text);
  free(again);
}

static void a_session_agrees_with_itself(void **state) {
  NEED_MODEL();
  tsr_session *session;
  float *whole = malloc(512 * sizeof *whole), *pieces = malloc(512 * sizeof *pieces);
  int32_t ids[] = {1, 403, 407, 261, 378};
  assert_int_equal(tsr_session_open(&session, model, 16, &err), TSR_OK);
  assert_int_equal(tsr_session_append(session, ids, 5, whole, &err), TSR_OK);
  tsr_session_truncate(session, 2);
  assert_int_equal(tsr_session_append(session, ids + 2, 1, pieces, &err), TSR_OK);
  assert_int_equal(tsr_session_append(session, ids + 3, 2, pieces, &err), TSR_OK);
  assert_true(largest_difference(whole, pieces, 512) < 1e-3);
  ids[0] = 512; /* outside the vocabulary */
  assert_int_equal(tsr_session_append(session, ids, 1, pieces, &err), TSR_REFUSED);
  tsr_session_close(session);
  free(whole);
  free(pieces);
}

static void measures_against_itself(void **state) {
  NEED_MODEL();
  const char *text = shared_data("calib/tiny.utf8");
  if (!text) skip();
  const char *head = scratch_path("head.txt");
  assert_int_equal(run_command(NULL, 0, "head -c 8000 '%s' > '%s'", text, head), 0);
  tsr_perplexity measured;
  assert_int_equal(tsr_measure(model, model, head, 128, &measured, &err), TSR_OK);
  assert_true(measured.predictions == measured.windows * 127 && measured.windows > 4);
  assert_true(measured.kl == 0.0);
  assert_true(measured.perplexity > 1 && measured.perplexity < 100);
  assert_true(fabs(measured.perplexity - exp(measured.nll)) < 1e-9 * measured.perplexity);
  assert_int_equal(tsr_measure(model, NULL, head, 1 << 20, &measured, &err), TSR_REFUSED);
}

static void prunes_applies_and_packs(void **state) {
  NEED_MODEL();
  const char *path = shared_data("models/stories260K"), *mask = scratch_path("api.mask");
  const char *packed = scratch_path("api.packed");
  tsr_prune_options options = {.method = TSR_MAGNITUDE, .pattern = "hybrid", .sparsity = 0.45};
  options.tile = 16;
  assert_int_equal(tsr_prune(model, &options, mask, &err), TSR_OK);
  assert_int_equal(tsr_pack(path, mask, packed, &err), TSR_OK);
  assert_int_equal(tsr_pack(path, mask, packed, &err), TSR_REFUSED); /* it exists */
  tsr_model *masked, *hybrid;
  tsr_model_info before, after;
  assert_int_equal(tsr_model_open(&masked, path, &err), TSR_OK);
  assert_int_equal(tsr_model_apply_mask(masked, mask, &err), TSR_OK);
  assert_int_equal(tsr_model_open(&hybrid, packed, &err), TSR_OK);
  tsr_model_describe(masked, &before);
  tsr_model_describe(hybrid, &after);
  assert_true(fabs(before.density - 0.55) < 0.01);
  assert_true(before.density == after.density);
  tsr_model_close(masked);
  tsr_model_close(hybrid);
  options.pattern = "3:3";
  assert_int_equal(tsr_prune(model, &options, mask, &err), TSR_USAGE);
  options.method = TSR_WANDA;
  options.pattern = "2:4";
  assert_int_equal(tsr_prune(model, &options, mask, &err), TSR_USAGE); /* no text */
}

static void learns_a_mask(void **state) {
  NEED_MODEL();
  const char *text = shared_data("calib/tiny.utf8");
  if (!text) skip();
  const char *path = shared_data("models/stories260K"), *run = scratch_path("api.run");
  tsr_learn_options options = {.mode = TSR_TILE, .sparsity = 0.4, .data = text, .tokens = 2048};
  options.tile = 16;
  options.window = 128;
  if (tsr_learn(path, &options, run, &err)) fail_msg("%s", err.text);
  assert_int_equal(tsr_learn(path, &options, run, &err), TSR_REFUSED); /* it exists */
  options.resume = 1;
  assert_int_equal(tsr_learn(path, &options, run, &err), TSR_OK); /* and is finished */
  char mask[4200];
  snprintf(mask, sizeof mask, "%s/mask.safetensors", run);
  tsr_model *masked;
  tsr_model_info info;
  assert_int_equal(tsr_model_open(&masked, path, &err), TSR_OK);
  assert_int_equal(tsr_model_apply_mask(masked, mask, &err), TSR_OK);
  tsr_model_describe(masked, &info);
  assert_true(fabs(info.density - 0.6) < 0.01);
  tsr_model_close(masked);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(describes_what_it_opened),     cmocka_unit_test(refuses_in_a_sentence),
      cmocka_unit_test(text_goes_there_and_back),     cmocka_unit_test(streams_what_it_returns),
      cmocka_unit_test(a_session_agrees_with_itself), cmocka_unit_test(measures_against_itself),
      cmocka_unit_test(prunes_applies_and_packs),     cmocka_unit_test(learns_a_mask),
  };
  return cmocka_run_group_tests(tests, open_model, close_model);
}
