/* Damaged files of every format that src/io reads: opened or refused with a sentence, never a
 * crash. */
#include <string.h>

#include "io/gguf.h"
#include "io/record.h"
#include "io/safetensors.h"
#include "support/damage.h"
#include "support/support.h"
#include "support/walk.h"

enum { ROUNDS = 2000 };

static void damaged_safetensors(void **state) {
  (void)state;
  struct error err = {0};
  float a[24];
  uint8_t b[10] = {1, 2, 3};
  fill_normal(a, 24, 1, 1);
  struct tensor_source tensors[] = {
      {.name = "a.weight", .dtype = DTYPE_F32, .rank = 2, .shape = {4, 6}, .data = a},
      {.name = "scalar", .dtype = DTYPE_BF16, .rank = 0, .data = a},
      {.name = "none", .dtype = DTYPE_F16, .rank = 2, .shape = {0, 7}, .data = a},
      {.name = "b.codes", .dtype = DTYPE_U8, .rank = 1, .shape = {10}, .data = b},
  };
  json_t *metadata = json_pack("{s:s, s:s}", "format", "pt", "licence", "apache-2.0");
  must(safetensors_write(scratch_path("a.safetensors"), tensors, 4, metadata, &err), err);
  json_decref(metadata);
  struct damage d = {"safetensors", NULL, NULL, 0, walk_safetensors, NULL, 11, ROUNDS};
  damage_run_file(&d, scratch_path("a.safetensors"));
}

static void damaged_gguf(void **state) {
  (void)state;
  struct error err = {0};
  float a[64];
  uint8_t q[68];
  fill_normal(a, 64, 2, 1);
  dtype_from_f32(DTYPE_Q8_0, a, 64, q);
  struct gguf_builder *b = gguf_builder_new();
  struct gguf_string words[] = {{"<s>", 3}, {"", 0}, {"word", 4}};
  gguf_set_string(b, "general.architecture", "llama", 5);
  gguf_set_u32(b, "llama.block_count", 2);
  gguf_set_u64(b, "big", UINT64_MAX);
  gguf_set_f32(b, "llama.rope.freq_base", 1e4f);
  gguf_set_bool(b, "flag", true);
  gguf_set_strings(b, "tokenizer.ggml.tokens", words, 3);
  gguf_set_i32s(b, "tokenizer.ggml.token_type", (int32_t[]){1, 2, 3}, 3);
  gguf_set_f32s(b, "tokenizer.ggml.scores", a, 3);
  struct tensor_source tensors[] = {
      {.name = "token_embd.weight", .dtype = DTYPE_F32, .rank = 2, .shape = {8, 8}, .data = a},
      {.name = "blk.0.attn_q.weight", .dtype = DTYPE_Q8_0, .rank = 2, .shape = {2, 32}, .data = q},
  };
  must(gguf_write(b, scratch_path("a.gguf"), tensors, 2, &err), err);
  gguf_builder_free(b);
  struct damage d = {"gguf", NULL, NULL, 0, walk_gguf, NULL, 12, ROUNDS};
  damage_run_file(&d, scratch_path("a.gguf"));
}

static void damaged_json(void **state) {
  (void)state;
  static const char text[] =
      "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 576, \"rope_theta\": 1e5,\n"
      " \"tie\": true, \"nothing\": null, \"limit\": 1000000000000000019884624838656,\n"
      " \"nested\": {\"a\": [1, -2.5, \"\\u00e9\\n\\\"\", {}], \"b\": []}}\n";
  struct damage d = {"json", NULL, text, sizeof text - 1, walk_json, NULL, 13, ROUNDS};
  damage_run(&d);
}

static void damaged_index(void **state) {
  (void)state;
  struct error err = {0};
  float a[4] = {1, 2, 3, 4};
  struct tensor_source t = {.name = "x", .dtype = DTYPE_F32, .rank = 1, .shape = {4}, .data = a};
  must(safetensors_write(scratch_path("one.safetensors"), &t, 1, NULL, &err), err);
  t.name = "y";
  must(safetensors_write(scratch_path("two.safetensors"), &t, 1, NULL, &err), err);
  static const char text[] =
      "{\"metadata\": {\"total_size\": 32}, \"weight_map\": {\"x\": \"one.safetensors\", "
      "\"y\": \"two.safetensors\"}}";
  /* the damaged file must be the index itself, so its name is made to fit */
  struct damage d = {"model", NULL, text, sizeof text - 1, walk_safetensors_set, NULL, 14, ROUNDS};
  const char *link = scratch_path("model.safetensors.index.json");
  must(file_write_all(scratch_path("damaged-model"), text, sizeof text - 1, &err), err);
  assert_int_equal(run_command(NULL, 0, "ln -s damaged-model %s", link), 0);
  d.ctx = (void *)scratch();
  damage_run(&d);
}

static void damaged_npz(void **state) {
  (void)state;
  struct damage d = {"npz", NULL, NULL, 0, walk_npz, NULL, 15, ROUNDS};
  damage_run_file(&d, golden("io/mask.npz"));
  d.seed = 16;
  damage_run_file(&d, golden("io/plain.npz"));
}

static void damaged_npy(void **state) {
  (void)state;
  struct damage d = {"npy", NULL, NULL, 0, walk_npy, NULL, 17, ROUNDS};
  damage_run_file(&d, golden("io/text.npy"));
}

/* Records tolerate: every line that is whole is still there, whatever happened to others. */
static void damaged_record(void **state) {
  (void)state;
  static const char lines[] =
      "{\"type\": \"start\", \"step\": 0}\n{\"step\": 1, \"loss\": 3.5}\n{\"torn\": tr";
  struct error err = {0};
  const char *path = scratch_path("record.jsonl");
  must(file_write_all(path, lines, sizeof lines - 1, &err), err);
  size_t damaged;
  json_t *read = record_read(path, &damaged, &err);
  assert_int_equal(json_array_size(read), 2);
  assert_int_equal(damaged, 1);
  json_decref(read);
  json_t *more = json_pack("{s:i}", "step", 2);
  must(record_append(path, more, &err), err);
  json_decref(more);
  read = record_read(path, &damaged, &err);
  assert_int_equal(json_array_size(read), 3);
  assert_int_equal(damaged, 1);
  json_decref(read);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(damaged_safetensors), cmocka_unit_test(damaged_gguf),
      cmocka_unit_test(damaged_json),        cmocka_unit_test(damaged_index),
      cmocka_unit_test(damaged_npz),         cmocka_unit_test(damaged_npy),
      cmocka_unit_test(damaged_record),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
