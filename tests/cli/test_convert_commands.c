/* The commands prune, pack, export, inspect and verify as a user runs them: exit statuses, JSON,
 * and outputs that are not replaced unasked. On a real model where the evaluation data is there. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

static char output[1 << 16];

static const char *real_model(void) {
  const char *path = shared_data("models/stories260K");
  if (!path) skip();
  return path;
}

static int run(const char *arguments) {
  return run_command(output, sizeof output, "%s %s --threads 1", program(), arguments);
}

#define run_f(...) (snprintf(line, sizeof line, __VA_ARGS__), run(line))

static json_t *read_json(const char *path) {
  struct error err = {0};
  json_t *json = json_read_file(path, 1 << 20, &err);
  if (!json) fail_msg("%s", err.text);
  return json;
}

static void from_prune_to_verify(void **state) {
  const char *model = real_model(), *calib = shared_data("calib/tiny.utf8");
  const char *mask = scratch_path("m.mask"), *packed = scratch_path("packed");
  const char *json = scratch_path("out.json"), *dense = scratch_path("dense");
  char line[2048];
  double density = 0;
  assert_int_equal(
      run_f("prune %s --method wanda --pattern hybrid --sparsity 45%% --tile 16 --calib "
            "%s --calib-tokens 2048 --out %s --json %s",
            model, calib, mask, json),
      0);
  json_t *found = read_json(json);
  assert_true(json_get_real(found, "density", &density, NULL));
  assert_true(density > 0.549 && density < 0.551);
  json_decref(found);
  assert_int_equal(run_f("pack %s --mask %s --out %s", model, mask, packed), 0);
  assert_int_equal(run_f("verify %s --against %s", packed, model), 0);
  assert_int_equal(run_f("verify %s --against %s", mask, model), 0);
  assert_int_equal(run_f("export %s --to hf --out %s", packed, dense), 0);
  assert_int_equal(run_f("verify %s --against %s --tile 16", dense, packed), 0);
  assert_int_equal(run_f("pack %s --tile 16 --type f32 --out %s", dense, scratch_path("repacked")),
                   0);
  assert_int_equal(run_f("verify %s --against %s", scratch_path("repacked"), packed), 0);
  assert_int_equal(run_f("inspect %s --json %s", packed, json), 0);
  found = read_json(json);
  double again = 0;
  assert_true(json_get_real(found, "density", &again, NULL));
  assert_true(again == density);
  assert_string_equal(json_get_string(found, "family"), "llama");
  assert_int_equal(json_array_size(json_object_get(found, "linears")), 35);
  json_decref(found);
  assert_int_equal(run_f("inspect %s --json %s", dense, json), 0);
  found = read_json(json);
  assert_true(json_is_null(json_object_get(found, "density")));
  json_decref(found);
  /* the same mask file, byte for byte, from another number of threads */
  const char *other = scratch_path("other.mask");
  assert_int_equal(run_command(output, sizeof output,
                               "%s prune %s --method wanda --pattern hybrid --sparsity 0.45 --tile "
                               "16 --calib %s --calib-tokens 2048 --out %s --threads 3",
                               program(), model, calib, other),
                   0);
  assert_int_equal(run_command(NULL, 0, "cmp %s %s", mask, other), 0);
}

/* Dense and hybrid integers, from pack to eval; --type is --dtype's older name. */
static void integers_from_pack_to_eval(void **state) {
  const char *model = real_model(), *calib = shared_data("calib/tiny.utf8");
  const char *mask = scratch_path("i.mask"), *json = scratch_path("eval.json");
  const char *dense = scratch_path("int8"), *hybrid = scratch_path("int4");
  char line[2048];
  double kl = NAN, loose = NAN, density = NAN;
  assert_int_equal(run_f("prune %s --method magnitude --pattern hybrid --sparsity 25%% --tile 16 "
                         "--out %s",
                         model, mask),
                   0);
  assert_int_equal(run_f("pack %s --dtype int8 --group row --out %s", model, dense), 0);
  assert_int_equal(run_f("pack %s --mask %s --type int4 --out %s", model, mask, hybrid), 0);
  assert_int_equal(run_f("verify %s --against %s", dense, model), 0);
  assert_int_equal(run_f("verify %s --against %s", hybrid, model), 0);
  assert_int_equal(run_f("eval %s --ppl %s --tokens 600 --window 128 --kl-to %s --json %s", dense,
                         calib, model, json),
                   0);
  json_t *found = read_json(json);
  assert_true(json_get_real(found, "kl", &kl, NULL) && kl > 0 && kl < 0.01);
  json_decref(found);
  assert_int_equal(run_f("eval %s --ppl %s --tokens 600 --window 128 --kl-to %s --json %s", hybrid,
                         calib, model, json),
                   0);
  found = read_json(json);
  assert_true(json_get_real(found, "kl", &loose, NULL) && loose > kl);
  assert_true(json_get_real(found, "density", &density, NULL));
  assert_true(density > 0.74 && density < 0.76);
  json_decref(found);
  assert_int_equal(run_f("export %s --to hf --out %s", hybrid, scratch_path("integers_hf")), 0);
  assert_int_equal(
      run_command(NULL, 0, "grep -q 'quantized to int4' %s/README.md", scratch_path("integers_hf")),
      0);
  assert_int_equal(run_f("generate %s --prompt 'Once upon' --tokens 4", hybrid), 0);
  assert_int_equal(run_f("pack %s --dtype int8 --mins --out %s", model, scratch_path("no")), 2);
  assert_int_equal(run_f("pack %s --group row --out %s", model, scratch_path("no")), 2);
  assert_int_equal(run_f("pack %s --out %s", model, scratch_path("no")), 3); /* no zeros, no mask */
}

static void outputs_are_not_replaced_unasked(void **state) {
  const char *model = real_model(), *mask = scratch_path("magnitude.mask");
  const char *packed = scratch_path("once");
  char line[2048];
  assert_int_equal(run_f("prune %s --method magnitude --out %s", model, mask), 0);
  assert_int_equal(run_f("prune %s --method magnitude --out %s", model, mask), 3);
  assert_int_equal(run_f("prune %s --method magnitude --out %s --force", model, mask), 0);
  assert_int_equal(run_f("pack %s --mask %s --out %s", model, mask, packed), 0);
  assert_int_equal(run_f("pack %s --mask %s --out %s", model, mask, packed), 3);
  assert_int_equal(run_f("pack %s --mask %s --out %s --force", model, mask, packed), 0);
  assert_int_equal(run_f("pack %s --mask %s --out %s", packed, mask, scratch_path("twice")), 3);
  assert_false(file_exists(scratch_path("twice")));
}

static void other_patterns_are_masks_too(void **state) {
  const char *model = real_model();
  static const char *const patterns[] = {"4:8", "3:8", "unstructured --sparsity 0.7",
                                         "hybrid-4:8 --sparsity 0.4", "hybrid-1:4 --sparsity 0.7"};
  char line[2048];
  for (int i = 0; i < 5; i++) {
    const char *mask = scratch_path("pattern.mask"), *dense = scratch_path("pattern");
    assert_int_equal(run_f("prune %s --method magnitude --pattern %s --out %s --force", model,
                           patterns[i], mask),
                     0);
    assert_int_equal(run_f("verify %s --against %s", mask, model), 0);
    assert_int_equal(run_f("pack %s --mask %s --out %s", model, mask, scratch_path("no")), 3);
    assert_non_null(strstr(output, "self_attn"));
    assert_int_equal(run_f("export %s --mask %s --to hf --out %s --force", model, mask, dense), 0);
    assert_int_equal(run_f("inspect %s --scan", dense), 0);
    const char *name = i < 2 ? patterns[i] : i == 2 ? "unstructured" : "q_proj";
    assert_non_null(strstr(output, name));
    assert_int_equal(run_f("export %s --mask %s --to mask-npz --out %s --force", model, mask,
                           scratch_path("m.npz")),
                     0);
    assert_int_equal(run_f("verify %s --against %s", scratch_path("m.npz"), model), 0);
  }
}

static void wrong_usage_is_two(void **state) {
  static const char *const lines[] = {
      "prune nowhere",
      "prune nowhere --out x --method wanda",
      "prune nowhere --out x --method magnitude --pattern hybrid",
      "prune nowhere --out x --method magnitude --pattern hybrid --sparsity 0.6",
      "prune nowhere --out x --method magnitude --pattern hybrid-1:4 --sparsity 0.8",
      "prune nowhere --out x --method magnitude --pattern hybrid-5:7 --sparsity 0.2",
      "prune nowhere --out x --method magnitude --pattern hybrid-4",
      "prune nowhere --out x --method magnitude --pattern 2:4 --sparsity 0.3",
      "prune nowhere --out x --method magnitude --pattern 4:4",
      "prune nowhere --out x --method magnitude --pattern unstructured --sparsity 1",
      "prune nowhere --out x --method magnitude --tile 30",
      "pack nowhere",
      "pack nowhere --out x --tile 6",
      "export nowhere --out x",
      "export nowhere --to hf --type q8_0",
      "inspect",
      "inspect a b",
      "verify a --tile 6"};
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
    if (run(lines[i]) != 2) fail_msg("%s: not a usage error: %s", lines[i], output);
  assert_int_equal(run("inspect /nonexistent/model"), 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(integers_from_pack_to_eval),
      cmocka_unit_test(from_prune_to_verify),
      cmocka_unit_test(outputs_are_not_replaced_unasked),
      cmocka_unit_test(other_patterns_are_masks_too),
      cmocka_unit_test(wrong_usage_is_two),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
