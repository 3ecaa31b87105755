/* eval/speed, model_unpack and the bench command: what they count. How fast they are is no test. */
#include "eval/speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "convert/convert.h"
#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

static const char *dense_path(void) {
  const char *path = shared_data("models/stories260K");
  if (!path) skip();
  return path;
}

/* stories260K packed as bf16, every second tile dense. Also gives the kept share. */
static const char *packed_path(double *density) {
  struct error err = {0};
  struct model *model;
  struct mask_set set = {0};
  const char *out = scratch_path("packed");
  int64_t kept, total;
  must(model_open(&model, dense_path(), &err), err);
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    struct mask_matrix m;
    must(mask_matrix_init_hybrid(&m, site->name, linear_rows(&site->weight),
                                 linear_cols(&site->weight), 32, 32, &err),
         err);
    for (int64_t t = 0; t < mask_tile_count(&m); t++) m.tiles[t] = (uint8_t)(t % 2);
    must(mask_set_add(&set, &m, &err), err);
  }
  mask_set_count(&set, &kept, &total);
  *density = (double)kept / (double)total;
  must(convert_pack(model, &set, out, DTYPE_BF16, true, &err), err);
  mask_set_free(&set);
  model_close(model);
  return out;
}

static void unpacked_models_are_the_same(void **state) {
  (void)state;
  struct error err = {0};
  struct model *packed, *dense;
  double density;
  const char *path = packed_path(&density);
  must(model_open(&packed, path, &err), err);
  must(model_open(&dense, path, &err), err);
  must(model_unpack(dense, &err), err);
  assert_true(fabs(model_density(packed) - density) < 1e-12);
  for (int i = 0; i < model_site_count(packed); i++) {
    const struct linear_weight *a = &model_site(packed, i)->weight;
    const struct linear_weight *b = &model_site(dense, i)->weight;
    size_t count = (size_t)(linear_rows(a) * linear_cols(a));
    assert_non_null(a->hybrid);
    assert_null(b->hybrid);
    assert_int_equal(b->dense.dtype, DTYPE_BF16);
    float *x = mem_alloc(count, sizeof *x, &err), *y = mem_alloc(count, sizeof *y, &err);
    assert_true(x && y);
    model_site_expand(packed, i, x);
    model_site_expand(dense, i, y);
    assert_memory_equal(x, y, count * sizeof *x);
    mem_free(x);
    mem_free(y);
  }
  model_close(packed);
  model_close(dense);
}

static void bytes_are_those_of_the_weights(void **state) {
  (void)state;
  struct error err = {0};
  struct model *packed, *dense;
  double density;
  const char *path = packed_path(&density);
  must(model_open(&packed, path, &err), err);
  must(model_open(&dense, path, &err), err);
  must(model_unpack(dense, &err), err);
  double weights = 0;
  for (int i = 0; i < model_site_count(dense); i++)
    weights +=
        (double)(model_site(dense, i)->weight.dense.rows * model_site(dense, i)->weight.dense.cols);
  const struct linear_weight *head = model_head(dense);
  double head_bytes = (double)(linear_rows(head) * linear_cols(head)) * 2;
  assert_true((double)speed_weight_bytes(dense) == 2 * weights + head_bytes);
  /* 2 bytes for a kept weight, and a nibble for four of a 2:4 tile, rows padded to whole bytes */
  double expected = head_bytes + 2 * weights * density + weights * 2 * (1 - density) / 8;
  assert_true(fabs((double)speed_weight_bytes(packed) / expected - 1) < 0.01);
  model_close(packed);
  model_close(dense);
}

static void quantiles(void **state) {
  (void)state;
  double odd[] = {5, 1, 3}, even[] = {4, 1, 3, 2}, one[] = {7}, five[] = {50, 10, 20, 40, 30};
  assert_true(speed_quantile(odd, 3, 0.5) == 3);
  assert_true(speed_quantile(even, 4, 0.5) == 2.5);
  assert_true(speed_quantile(one, 1, 0.75) == 7);
  assert_true(speed_quantile(five, 5, 0.25) == 20 && speed_quantile(five, 5, 1) == 50);
}

/* Two entries, one case, five rounds. */
static struct speed_ratio ratio_of(const double a[5], const double b[5]) {
  double rates[10];
  struct speed_figure figures[2] = {{.tokens_per_s = a[2]}, {.tokens_per_s = b[2]}};
  struct speed_result result = {2, 1, 5, figures, rates, NULL};
  memcpy(rates, a, 5 * sizeof *rates);
  memcpy(rates + 5, b, 5 * sizeof *rates);
  return speed_compare(&result, 0, 1, 0);
}

static void noise_is_told_from_a_difference(void **state) {
  (void)state;
  const double steady[5] = {10, 10, 10, 10, 10}, faster[5] = {12, 13, 13, 14, 9};
  const double mixed[5] = {9, 9.5, 10, 10.5, 11};
  struct speed_ratio r = ratio_of(faster, steady);
  assert_true(r.ratio == 1.3 && r.low == 1.2 && r.high == 1.3 && !r.noise);
  r = ratio_of(mixed, steady);
  assert_true(r.ratio == 1 && r.low == 0.95 && r.high == 1.05 && r.noise);
  r = ratio_of(steady, faster);
  assert_true(!r.noise && r.ratio < 1);
}

/* --- the command --- */

static double number(const json_t *row, const char *key) {
  return json_number_value(json_object_get(row, key));
}

/* Runs `tessera bench` with short runs and gives its JSON. */
static json_t *bench(char *output, size_t output_bytes, const char *arguments) {
  struct error err = {0};
  const char *path = scratch_path("bench.json");
  int status = run_command(output, output_bytes,
                           "'%s' bench %s --rounds 2 --seconds 0.01 --force --json '%s'", program(),
                           arguments, path);
  if (status) fail_msg("%s", output);
  json_t *json = json_read_file(path, 1 << 20, &err);
  if (!json) fail_msg("%s", err.text);
  return json;
}

/* The fields that docs/BENCH.md names, in its order, and no others. */
static void row_has_its_fields(const json_t *row) {
  static const char *const fields[] = {"model",      "form",    "dtype",        "density",
                                       "phase",      "batch",   "tokens_per_s", "bytes_per_token",
                                       "read_share", "speedup", "roofline"};
  const char *key;
  json_t *value;
  size_t at = 0;
  json_object_foreach((json_t *)row, key, value) {
    assert_true(at < sizeof fields / sizeof *fields);
    assert_string_equal(key, fields[at++]);
  }
  assert_int_equal(at, sizeof fields / sizeof *fields);
  assert_true(number(row, "tokens_per_s") > 0 && number(row, "read_share") > 0);
}

static void command_gives_rows(void **state) {
  (void)state;
  char output[8192], arguments[512];
  double density;
  snprintf(arguments, sizeof arguments, "'%s' --decode 1,3 --prefill 16", packed_path(&density));
  json_t *json = bench(output, sizeof output, arguments);
  assert_non_null(strstr(output, "decode 3"));
  assert_non_null(strstr(output, "not counted")); /* keys and values */
  const json_t *rows = json_object_get(json, "rows"), *row;
  size_t index;
  assert_int_equal(json_array_size(rows), 6); /* hybrid and its dense form, three cases */
  json_array_foreach(rows, index, row) row_has_its_fields(row);
  const json_t *hybrid = json_array_get(rows, 1), *dense = json_array_get(rows, 4);
  assert_string_equal(json_get_string(hybrid, "form"), "hybrid");
  assert_string_equal(json_get_string(dense, "form"), "dense");
  assert_string_equal(json_get_string(hybrid, "dtype"), "bf16");
  assert_string_equal(json_get_string(hybrid, "phase"), "decode");
  assert_int_equal(number(hybrid, "batch"), 3);
  assert_true(fabs(number(hybrid, "density") - density) < 1e-9);
  assert_true(number(dense, "density") == 1);
  assert_true(json_is_null(json_object_get(dense, "speedup")));
  double speedup = number(hybrid, "tokens_per_s") / number(dense, "tokens_per_s");
  double roofline = number(dense, "bytes_per_token") / number(hybrid, "bytes_per_token");
  assert_true(fabs(number(hybrid, "speedup") - speedup) < 1e-9);
  assert_true(fabs(number(hybrid, "roofline") - roofline) < 1e-9);
  assert_true(roofline > 1.1 && roofline < 16 / 9.0);
  /* a pass over the weights serves the whole batch */
  assert_true(number(json_array_get(rows, 3), "bytes_per_token") ==
              3 * number(dense, "bytes_per_token"));
  assert_string_equal(json_get_string(json_array_get(rows, 2), "phase"), "prefill");
  assert_int_equal(number(json_array_get(rows, 2), "batch"), 16);
  const json_t *samples = json_object_get(json, "samples");
  assert_int_equal(json_array_size(samples), 6);
  assert_int_equal(json_array_size(json_object_get(json_array_get(samples, 0), "tokens_per_s")), 2);
  assert_int_equal(json_array_size(json_object_get(json, "models")), 2);
  assert_int_equal(json_array_size(json_object_get(json, "peers")), 0);
  assert_non_null(json_get_string(json, "isa"));
  json_decref(json);
}

static void command_measures_synthetic_models(void **state) {
  (void)state;
  char output[8192];
  json_t *json = bench(output, sizeof output,
                       "--synthetic qwen2.5-0.5b --layers 1 --density 0.75,0.65,0.55 --density 0.5 "
                       "--decode 2 --prefill none");
  const json_t *rows = json_object_get(json, "rows");
  const double densities[] = {1, 0.75, 0.65, 0.55, 0.5},
               rooflines[] = {0, 1.280, 1.441, 1.649, 1.778};
  assert_int_equal(json_array_size(rows), 5);
  for (int i = 0; i < 5; i++) {
    const json_t *row = json_array_get(rows, (size_t)i);
    row_has_its_fields(row);
    /* 910 tiles: exact to half a tile's weights that go */
    assert_true(fabs(number(row, "density") - densities[i]) <= 0.5 / 910 / 2 + 1e-12);
    assert_string_equal(json_get_string(row, "model"), "qwen2.5-0.5b, 1 layer");
    if (i == 0)
      assert_true(json_is_null(json_object_get(row, "roofline")));
    else
      assert_true(fabs(number(row, "roofline") - rooflines[i]) < 2e-3);
  }
  json_decref(json);
}

static void command_lowers_the_instruction_set(void **state) {
  (void)state;
  char output[8192], arguments[512];
  snprintf(arguments, sizeof arguments, "'%s' --decode 1 --prefill none --isa reference",
           dense_path());
  json_t *json = bench(output, sizeof output, arguments);
  assert_string_equal(json_get_string(json, "isa"), "reference");
  assert_non_null(strstr(output, "reference"));
  json_decref(json);
}

/* --- peers, played by a shell script --- */

static const char *fake_peer(void) {
  const char *root = getenv("TSR_SOURCE");
  return path_kept(root ? root : ".", "tests/support/fake_peer.sh");
}

static void command_measures_peers(void **state) {
  (void)state;
  char output[8192], arguments[1024];
  setenv("PYTHON", "sh", 1);
  setenv("TSR_PEERS", fake_peer(), 1);
  setenv("FAKE_PEER_LOG", scratch_path("peer.log"), 1);
  setenv("TMPDIR", scratch(), 1);
  snprintf(arguments, sizeof arguments, "'%s' --decode 2 --prefill 16 --peers --threads 2",
           dense_path());
  json_t *json = bench(output, sizeof output, arguments);
  const json_t *rows = json_object_get(json, "rows"), *peers = json_object_get(json, "peers");
  assert_int_equal(json_array_size(rows), 2);
  assert_int_equal(json_array_size(peers), 4); /* two peers, two cases */
  const json_t *first = json_array_get(peers, 0), *last = json_array_get(peers, 3);
  assert_string_equal(json_get_string(first, "peer"), "llama.cpp");
  assert_string_equal(json_get_string(first, "version"), "1.2");
  assert_string_equal(json_get_string(first, "dtype"), "f32, played");
  assert_string_equal(json_get_string(last, "peer"), "pytorch");
  assert_true(number(first, "tokens_per_s") == 500); /* 250 tokens in half a second */
  assert_true(number(last, "tokens_per_s") == 1000);
  assert_true(fabs(number(first, "speedup") -
                   500 / number(json_array_get(rows, 0), "tokens_per_s")) < 1e-9);
  json_decref(json);

  /* what they were told: the same weights, threads, batches and positions */
  char *log;
  size_t bytes;
  struct error err = {0};
  must(file_read(scratch_path("peer.log"), 1 << 20, &log, &bytes, &err), err);
  assert_non_null(strstr(log, "\"threads\": 2, \"batch\": 2, \"length\": 16"));
  assert_non_null(strstr(log, "/0.gguf"));    /* exported for llama.cpp */
  assert_non_null(strstr(log, dense_path())); /* pytorch reads the directory itself */
  assert_non_null(strstr(log, "\"batch\": 2, \"context\": 32, \"most\": 64"));
  free(log);
  /* the exported weights are gone */
  assert_int_equal(run_command(output, sizeof output, "ls '%s' | grep tessera-peers", scratch()),
                   1);
}

/* Each way a peer can fail ends in a sentence and a status. */
static void failing_peers_are_named(void **state) {
  (void)state;
  static const struct {
    const char *how, *says;
  } cases[] = {{"missing", "llama.cpp: the package is missing"},
               {"silent", "ended with status 3"},
               {"killed", "ended by signal 9"},
               {"mute", "lacks \"tokens\""},
               {"garbled", "not JSON: \"llama_model"},
               {"nameless", "does not say which program"},
               {"load", "cannot load"}};
  char output[4096];
  setenv("PYTHON", "sh", 1);
  setenv("TSR_PEERS", fake_peer(), 1);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    setenv("FAKE_PEER", cases[i].how, 1);
    int status = run_command(output, sizeof output,
                             "'%s' bench '%s' --decode 1 --prefill none --peer llama.cpp "
                             "--rounds 1 --seconds 0.01",
                             program(), dense_path());
    if (status != 1 || !strstr(output, cases[i].says))
      fail_msg("%s: %d, %s", cases[i].how, status, output);
  }
  unsetenv("FAKE_PEER");
  setenv("PYTHON", "/nowhere/python", 1);
  assert_int_equal(
      run_command(output, sizeof output, "'%s' bench '%s' --peers", program(), dense_path()), 1);
  assert_non_null(strstr(output, "/nowhere/python cannot be started"));
  unsetenv("PYTHON");
  unsetenv("TSR_PEERS");
}

static void command_ends_as_documented(void **state) {
  (void)state;
  static const struct {
    const char *arguments;
    int status;
    const char *says;
  } cases[] = {
      {"", 2, "--synthetic"},
      {"MODEL --prefill many", 2, "--prefill"},
      {"MODEL --prefill 16,,32", 2, "--prefill"},
      {"MODEL --decode 0", 2, "from 1 to 256"},
      {"MODEL --decode 257", 2, "from 1 to 256"},
      {"MODEL --decode 1.5", 2, "whole numbers"},
      {"MODEL --decode none --prefill none", 2, "nothing to measure"},
      {"MODEL --text 16+4", 2, "128+1024x16"},
      {"MODEL --text 0+4x1", 2, "128+1024x16"},
      {"MODEL --text +16+4x1", 2, "128+1024x16"},
      {"MODEL --text 16+4x1,", 2, "128+1024x16"},
      {"MODEL --text 16+4x18446744073709551617", 2, "128+1024x16"},
      {"MODEL --rounds 0", 2, "rounds"},
      {"MODEL --layers 2", 2, "--synthetic"},
      {"MODEL --isa neon9", 2, "neon9"},
      {"MODEL --peer vllm", 2, "llama.cpp or pytorch"},
      {"--synthetic gpt-2", 2, "llama2-7b"},
      {"--synthetic llama2-7b --density 0.4", 2, "--density"},
      {"--synthetic llama2-7b --layers 33", 2, "32 layers"},
      {"--synthetic qwen2.5-0.5b --peers", 2, "files"},
      {"/nowhere", 3, "/nowhere"},
  };
  char output[4096], arguments[1024];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool model = !strncmp(cases[i].arguments, "MODEL", 5);
    snprintf(arguments, sizeof arguments, "%s%s", model ? dense_path() : "",
             cases[i].arguments + (model ? 5 : 0));
    int status = run_command(output, sizeof output, "'%s' bench %s", program(), arguments);
    if (status != cases[i].status || !strstr(output, cases[i].says))
      fail_msg("%s: %d, %s", cases[i].arguments, status, output);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(unpacked_models_are_the_same),
      cmocka_unit_test(bytes_are_those_of_the_weights),
      cmocka_unit_test(quantiles),
      cmocka_unit_test(noise_is_told_from_a_difference),
      cmocka_unit_test(command_gives_rows),
      cmocka_unit_test(command_measures_synthetic_models),
      cmocka_unit_test(command_lowers_the_instruction_set),
      cmocka_unit_test(command_measures_peers),
      cmocka_unit_test(failing_peers_are_named),
      cmocka_unit_test(command_ends_as_documented),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
