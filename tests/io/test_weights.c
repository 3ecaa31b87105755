/* Weight files: what Python's packages wrote is read, what we write is read again, and each lie a
 * header can tell is refused by a sentence of its own. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/gguf.h"
#include "io/safetensors_set.h"
#include "support/support.h"

static void assert_ramp(const struct stored_tensor *t, enum dtype dtype, float tolerance) {
  float out[64];
  assert_non_null(t);
  assert_true(t->dtype == dtype && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 32);
  assert_true(stored_tensor_is_aligned(t));
  dtype_to_f32(dtype, t->data, 64, out);
  for (int i = 0; i < 64; i++)
    assert_true(out[i] - (float)i <= tolerance && (float)i - out[i] <= tolerance);
}

/* ---- GGUF ---- */

static bool is_text(struct gguf_string s, const char *expected) {
  return s.length == strlen(expected) && !memcmp(s.data, expected, s.length);
}

static void reads_what_the_gguf_package_wrote(void **state) {
  (void)state;
  struct error err = {0};
  struct gguf *file;
  assert_true(gguf_recognise(golden("io/small.gguf")));
  assert_false(gguf_recognise(golden("io/mask.npz")));
  must(gguf_open(&file, golden("io/small.gguf"), &err), err);
  int64_t integer;
  double real;
  bool flag;
  struct gguf_string text;
  assert_true(gguf_get_int(file, "small.i8", &integer) && integer == -3);
  assert_true(gguf_get_real(file, "small.i8", &real) && real == -3);
  assert_false(gguf_get_int(file, "small.u64", &integer)); /* beyond int64 */
  assert_true(gguf_get_real(file, "small.u64", &real) && real == 18446744073709551616.0);
  assert_true(gguf_get_real(file, "small.f64", &real) && real == 0.1);
  assert_false(gguf_get_int(file, "small.f64", &integer));
  assert_true(gguf_get_bool(file, "small.flag", &flag) && flag);
  assert_false(gguf_get_bool(file, "small.i8", &flag));
  assert_true(gguf_get_string(file, "small.text", &text) && is_text(text,
                                                                    "gr\xc3\xbc\xc3\x9f"
                                                                    "e"));
  assert_false(gguf_get_string(file, "absent", &text));
  const struct gguf_value *words = gguf_find(file, "small.words");
  assert_int_equal(words->count, 3);
  assert_true(is_text(gguf_array_string(words, 2), "\xe2\x96\x81the"));
  assert_true(is_text(gguf_array_string(words, 1), ""));
  assert_int_equal(gguf_array_int(gguf_find(file, "small.numbers"), 1), -2);
  assert_true(gguf_array_real(gguf_find(file, "small.reals"), 1) == -1.5);
  assert_ramp(gguf_tensor_find(file, "f32.weight"), DTYPE_F32, 0);
  assert_ramp(gguf_tensor_find(file, "f16.weight"), DTYPE_F16, 0);
  assert_ramp(gguf_tensor_find(file, "q8_0.weight"), DTYPE_Q8_0, 0.25f);
  const struct stored_tensor *t;
  assert_int_equal(gguf_tensor_get(file, "iq4_xs.weight", &t, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "IQ4_XS"));
  assert_int_equal(gguf_tensor_get(file, "absent", &t, &err), STATUS_REFUSED);
  gguf_close(file);
}

static void gguf_values_survive_a_copy(void **state) {
  (void)state;
  struct error err = {0};
  struct gguf *from, *to;
  must(gguf_open(&from, golden("io/small.gguf"), &err), err);
  struct gguf_builder *b = gguf_builder_new();
  for (size_t i = 0; i < gguf_value_count(from); i++) gguf_set_copy(b, gguf_value_at(from, i));
  gguf_set_u32(b, "llama.block_count", 7); /* replaces */
  gguf_set_string(b, "late", "x", 1);
  float ramp[64];
  uint16_t brain[64];
  for (int i = 0; i < 64; i++) ramp[i] = (float)i;
  dtype_from_f32(DTYPE_BF16, ramp, 64, brain);
  struct tensor_source tensors[] = {
      {.name = "odd", .dtype = DTYPE_F16, .rank = 1, .shape = {5}, .data = brain},
      {.name = "a", .dtype = DTYPE_F32, .rank = 2, .shape = {2, 32}, .data = ramp},
      {.name = "b", .dtype = DTYPE_BF16, .rank = 2, .shape = {2, 32}, .data = brain}};
  must(gguf_write(b, scratch_path("copy.gguf"), tensors, 3, &err), err);
  must(gguf_open(&to, scratch_path("copy.gguf"), &err), err);
  int64_t blocks;
  assert_true(gguf_get_int(to, "llama.block_count", &blocks) && blocks == 7);
  assert_null(gguf_find(to, "general.alignment"));
  assert_non_null(gguf_find(from, "general.alignment"));
  assert_int_equal(gguf_value_count(to), gguf_value_count(from));
  for (size_t i = 0; i < gguf_value_count(from); i++) {
    const struct gguf_value *a = gguf_value_at(from, i);
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)a->key.length, a->key.data);
    const struct gguf_value *v = gguf_find(to, key);
    if (!strcmp(key, "general.alignment") || !strcmp(key, "llama.block_count")) continue;
    assert_true(v && v->type == a->type && v->count == a->count);
    if (a->type == GGUF_ARRAY && a->element_type == GGUF_STRING)
      for (uint64_t j = 0; j < a->count; j++) {
        struct gguf_string x = gguf_array_string(a, j), y = gguf_array_string(v, j);
        assert_true(x.length == y.length && !memcmp(x.data, y.data, x.length));
      }
  }
  assert_ramp(gguf_tensor_find(to, "a"), DTYPE_F32, 0);
  assert_ramp(gguf_tensor_find(to, "b"), DTYPE_BF16, 0);
  tensors[2].name = "a";
  assert_int_equal(gguf_write(b, scratch_path("twice.gguf"), tensors, 3, &err), STATUS_USAGE);
  tensors[2] = (struct tensor_source){
      .name = "q", .dtype = DTYPE_Q8_0, .rank = 2, .shape = {2, 16}, .data = ramp};
  assert_int_equal(gguf_write(b, scratch_path("block.gguf"), tensors, 3, &err), STATUS_USAGE);
  assert_false(file_exists(scratch_path("block.gguf")));
  gguf_builder_free(b);
  gguf_close(from);
  gguf_close(to);
}

/* ---- safetensors ---- */

/* Opens a file made of a header text and `bytes` bytes of data. */
static enum status open_lie(const char *header, size_t bytes, struct error *err) {
  struct strbuf file = {0};
  uint64_t length = strlen(header);
  strbuf_append(&file, (const char *)&length, 8);
  strbuf_puts(&file, header);
  for (size_t i = 0; i < bytes; i++) strbuf_putc(&file, 1);
  must(file_write_all(scratch_path("lie.safetensors"), file.data, file.length, err), *err);
  strbuf_free(&file);
  struct safetensors *opened;
  enum status status = safetensors_open(&opened, scratch_path("lie.safetensors"), err);
  safetensors_close(opened);
  return status;
}

static void safetensors_lies_are_refused(void **state) {
  (void)state;
#define TENSOR(type, shape, offsets) \
  "{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
  static const struct {
    const char *header;
    size_t bytes;
    const char *expected; /* NULL: opens */
  } cases[] = {
      {"{}", 0, NULL},
      {"{\"a\":" TENSOR("F32", "[2]", "[0,8]") "}", 8, NULL},
      {"{\"a\":" TENSOR("F32", "[2]", "[0,8]") "}", 7, "cut short"},
      {"{\"a\":" TENSOR("F32", "[2]", "[0,8]") "}", 9, "belong to no tensor"},
      {"{\"a\":" TENSOR("F32", "[3]", "[0,8]") "}", 8, "does not fit"},
      {"{\"a\":" TENSOR("F32", "[2]", "[8,0]") "}", 8, "data_offsets"},
      {"{\"a\":" TENSOR("F32", "[2]", "[0,8,9]") "}", 8, "data_offsets"},
      {"{\"a\":" TENSOR("F32", "[-2]", "[0,8]") "}", 8, "impossible shape"},
      {"{\"a\":" TENSOR("F32", "[4294967296,4294967296]", "[0,8]") "}", 8, "impossible shape"},
      {"{\"a\":" TENSOR("F32", "[0,9223372036854775807]", "[0,0]") "}", 0, "impossible shape"},
      {"{\"a\":" TENSOR("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]") "}", 8, "dimensions"},
      {"{\"a\":" TENSOR("F4", "[2]", "[0,8]") "}", 8, "\"F4\""},
      {"{\"a\":" TENSOR("F32", "[2]", "[0,18446744073709551615]") "}", 8, "data_offsets"},
      {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"b\":" TENSOR("F32", "[1]", "[2,6]") "}", 6,
       "overlaps"},
      {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"b\":" TENSOR("F32", "[1]", "[6,10]") "}", 10,
       "gap"},
      {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"a\":" TENSOR("F32", "[1]", "[4,8]") "}", 8,
       "duplicate"},
      {"{\"__metadata__\":{\"k\":1}}", 0, "not a string"},
      {"{\"__metadata__\":[]}", 0, "not an object"},
      {"{\"a\":1}", 0, "type"},
      {"{\"a\":", 0, "JSON"},
      {"[1,2]", 0, "not a safetensors file"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct error err = {0};
    enum status status = open_lie(cases[i].header, cases[i].bytes, &err);
    if (status != (cases[i].expected ? STATUS_REFUSED : STATUS_OK) ||
        (cases[i].expected && !strstr(err.text, cases[i].expected)))
      fail_msg("%s: status %d, \"%s\"", cases[i].header, (int)status, err.text);
  }
}

static enum status produce_ramp(void *ctx, struct file_writer *out, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < 64 && status == STATUS_OK; i++) {
    float x = (float)i;
    status = file_writer_put(out, &x, sizeof x, err);
  }
  return status;
}

static void safetensors_round_trip(void **state) {
  (void)state;
  struct error err = {0};
  uint8_t codes[3] = {7, 8, 9};
  struct tensor_source tensors[] = {
      {.name = "made", .dtype = DTYPE_F32, .rank = 2, .shape = {2, 32}, .produce = produce_ramp},
      {.name = "codes \"\xc3\xa9\"", .dtype = DTYPE_U8, .rank = 1, .shape = {3}, .data = codes}};
  json_t *metadata = json_pack("{s:s, s:s}", "z", "1", "a", "2");
  must(safetensors_write(scratch_path("a.safetensors"), tensors, 2, metadata, &err), err);
  must(safetensors_write(scratch_path("b.safetensors"), tensors, 2, metadata, &err), err);
  json_decref(metadata);
  struct file_map a, b;
  must(file_map_open(&a, scratch_path("a.safetensors"), &err), err);
  must(file_map_open(&b, scratch_path("b.safetensors"), &err), err);
  assert_int_equal(a.size_bytes, b.size_bytes);
  assert_memory_equal(a.data, b.data, a.size_bytes);
  assert_int_equal((a.size_bytes - 64 * 4 - 3) % 64, 0);
  file_map_close(&a);
  file_map_close(&b);

  struct safetensors *file;
  must(safetensors_open(&file, scratch_path("a.safetensors"), &err), err);
  assert_int_equal(safetensors_size(file), 2);
  assert_ramp(safetensors_find(file, "made"), DTYPE_F32, 0);
  assert_memory_equal(safetensors_find(file, "codes \"\xc3\xa9\"")->data, codes, 3);
  assert_null(safetensors_find(file, "mad"));
  assert_string_equal(safetensors_metadata(file, "z"), "1");
  assert_null(safetensors_metadata(file, "y"));
  safetensors_close(file);

  tensors[1].name = "made";
  assert_int_equal(safetensors_write(scratch_path("c"), tensors, 2, NULL, &err), STATUS_USAGE);
  tensors[1].name = "q";
  tensors[1].dtype = DTYPE_Q8_0;
  assert_int_equal(safetensors_write(scratch_path("c"), tensors, 2, NULL, &err), STATUS_USAGE);
  assert_false(file_exists(scratch_path("c")));
}

/* ---- sharded ---- */

static void reads_a_sharded_directory(void **state) {
  (void)state;
  struct error err = {0};
  struct safetensors_set *set;
  must(safetensors_set_open(&set, golden("io/sharded"), &err), err);
  assert_int_equal(safetensors_set_size(set), 3);
  assert_int_equal(safetensors_set_shards(set), 2);
  assert_string_equal(safetensors_metadata(safetensors_set_shard(set, 1), "format"), "pt");
  assert_ramp(safetensors_set_find(set, "a.weight"), DTYPE_F32, 0);
  assert_ramp(safetensors_set_find(set, "b.weight"), DTYPE_BF16, 0);
  assert_int_equal(safetensors_set_find(set, "a.bias")->shape[0], 3);
  assert_null(safetensors_set_find(set, "c.weight"));
  safetensors_set_close(set);
}

/* Copies the golden directory, changes something with a shell command, and opens the copy. */
static enum status open_changed(const char *name, const char *change, struct error *err) {
  const char *folder = scratch_path(name);
  assert_int_equal(run_command(NULL, 0, "cp -r %s %s && cd %s && %s", golden("io/sharded"), folder,
                               folder, change),
                   0);
  struct safetensors_set *set;
  enum status status = safetensors_set_open(&set, folder, err);
  safetensors_set_close(set);
  return status;
}

static void sharded_lies_are_refused(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"rm model-00002*", "1 of 2 shards are missing, the first is model-00002-of-00002"},
      {"sed -i s/a.bias/c.bias/ *.json", "\"c.bias\""},
      {"sed -i s,model-00002,../x,g *.json", "no file name beside"},
      {"cp model-00001* model-00002-of-00002.safetensors", "b.weight"},
      {"sed -i s/weight_map/other/ *.json", "weight_map"},
      {"truncate -s 100 model-00001*", "ends inside its header"},
      {"rm *.json", "holds neither"},
      {"rm *.json; touch pytorch_model.bin", "pytorch_model.bin"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char name[32];
    struct error err = {0};
    snprintf(name, sizeof name, "changed-%zu", i);
    if (open_changed(name, cases[i][0], &err) != STATUS_REFUSED || !strstr(err.text, cases[i][1]))
      fail_msg("after \"%s\": \"%s\"", cases[i][0], err.text);
  }
}

/* ---- size ---- */

/* A model of 8 GiB (a sparse file) opens at once and without reading its data. */
static void only_headers_are_read(void **state) {
  (void)state;
  struct error err = {0};
  const char *path = scratch_path("large.safetensors");
  static const char header[] =
      "{\"w\":{\"dtype\":\"F32\",\"shape\":[32768,65536],\"data_offsets\":[0,8589934592]}}";
  uint64_t length = sizeof header - 1;
  int fd = open(path, O_RDWR | O_CREAT, 0666);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, &length, 8), 8);
  assert_int_equal(write(fd, header, length), (ssize_t)length);
  if (ftruncate(fd, (off_t)(8 + length + (UINT64_C(1) << 33)))) {
    printf("skip: no room for a sparse file of 8 GiB\n");
    close(fd);
    skip();
  }
  close(fd);
  size_t before = mem_peak_bytes();
  struct safetensors *file;
  must(safetensors_open(&file, path, &err), err);
  assert_int_equal(safetensors_at(file, 0)->shape[1], 65536);
  assert_true(mem_peak_bytes() - before < 4 << 20);
  safetensors_close(file);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_what_the_gguf_package_wrote),
      cmocka_unit_test(gguf_values_survive_a_copy),
      cmocka_unit_test(safetensors_lies_are_refused),
      cmocka_unit_test(safetensors_round_trip),
      cmocka_unit_test(reads_a_sharded_directory),
      cmocka_unit_test(sharded_lies_are_refused),
      cmocka_unit_test(only_headers_are_read),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
