/* eval/speed, model_unpack and the bench command: what they count. How fast they are is no test. */
#include "eval/speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "convert/convert.h"
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

static void medians(void **state) {
  (void)state;
  double odd[] = {5, 1, 3}, even[] = {4, 1, 3, 2}, one[] = {7};
  assert_true(speed_median(odd, 3) == 3);
  assert_true(speed_median(even, 4) == 2.5);
  assert_true(speed_median(one, 1) == 7);
}

static double number(const json_t *row, const char *key) {
  return json_number_value(json_object_get(row, key));
}

static void command_gives_rows(void **state) {
  (void)state;
  struct error err = {0};
  char output[8192];
  double density;
  const char *packed = packed_path(&density), *path = scratch_path("bench.json");
  int status = run_command(output, sizeof output,
                           "'%s' bench '%s' --rounds 2 --seconds 0.02 --prefill 16 --json '%s'",
                           program(), packed, path);
  if (status) fail_msg("%s", output);
  assert_non_null(strstr(output, "made dense"));
  json_t *json = json_read_file(path, 1 << 20, &err);
  assert_non_null(json);
  const json_t *rows = json_object_get(json, "rows");
  assert_int_equal(json_array_size(rows), 4); /* hybrid and its dense form, decode and prefill */
  const json_t *hybrid = json_array_get(rows, 0), *dense = json_array_get(rows, 2);
  assert_string_equal(json_get_string(hybrid, "form"), "hybrid");
  assert_string_equal(json_get_string(dense, "form"), "dense");
  assert_string_equal(json_get_string(hybrid, "dtype"), "bf16");
  assert_string_equal(json_get_string(hybrid, "phase"), "decode");
  assert_true(fabs(number(hybrid, "density") - density) < 1e-9);
  assert_true(number(dense, "density") == 1);
  assert_true(json_is_null(json_object_get(dense, "speedup")));
  double speedup = number(hybrid, "tokens_per_s") / number(dense, "tokens_per_s");
  double roofline = number(dense, "bytes_per_token") / number(hybrid, "bytes_per_token");
  assert_true(fabs(number(hybrid, "speedup") - speedup) < 1e-9);
  assert_true(fabs(number(hybrid, "roofline") - roofline) < 1e-9);
  assert_true(roofline > 1.1 && roofline < 16 / 9.0);
  assert_int_equal(number(json_array_get(rows, 1), "batch"), 16);
  json_decref(json);
}

static void command_ends_as_documented(void **state) {
  (void)state;
  char output[4096];
  const char *model = dense_path();
  assert_int_equal(run_command(output, sizeof output, "'%s' bench", program()), 2);
  assert_int_equal(
      run_command(output, sizeof output, "'%s' bench '%s' --prefill many", program(), model), 2);
  assert_int_equal(
      run_command(output, sizeof output, "'%s' bench '%s' --rounds 0", program(), model), 2);
  assert_int_equal(run_command(output, sizeof output, "'%s' bench /nowhere", program()), 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(unpacked_models_are_the_same),
      cmocka_unit_test(bytes_are_those_of_the_weights),
      cmocka_unit_test(medians),
      cmocka_unit_test(command_gives_rows),
      cmocka_unit_test(command_ends_as_documented),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
