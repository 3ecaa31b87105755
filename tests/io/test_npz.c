/* NumPy files: what NumPy wrote is read, what it could not mean is refused, and what we write is
 * the same bytes every time. */
#include <stdlib.h>
#include <string.h>

#include "io/npz.h"
#include "support/support.h"

static void read_named(struct npz *file, const char *name, struct npy_array *out) {
  struct error err = {0};
  size_t index = npz_find(file, name);
  assert_true(index < npz_count(file));
  assert_string_equal(npz_name(file, index), name);
  must(npz_read(file, index, out, &err), err);
}

static void reads_a_published_mask(void **state) {
  (void)state;
  struct error err = {0};
  struct npz *file;
  assert_true(npz_recognise(golden("io/mask.npz")));
  must(npz_open(&file, golden("io/mask.npz"), &err), err);
  assert_int_equal(npz_count(file), 3);
  struct npy_array a;
  read_named(file, "model.layers.0.self_attn.q_proj.weight", &a);
  assert_true(a.kind == NPY_NUMBERS && a.dtype == DTYPE_U8 && a.rank == 1 && a.shape[0] == 15);
  npy_array_free(&a);
  read_named(file, "model.layers.0.self_attn.q_proj.weight.__shape__", &a);
  assert_true(a.dtype == DTYPE_I64 && a.rank == 1 && npy_array_count(&a) == 2);
  assert_int_equal(((int64_t *)a.data)[0], 6);
  assert_int_equal(((int64_t *)a.data)[1], 20);
  npy_array_free(&a);
  read_named(file, "__meta__", &a);
  struct strbuf text = {0};
  assert_true(a.kind == NPY_UNICODE && a.rank == 0);
  must(npy_text(&a, 0, &text, &err), err);
  assert_string_equal(text.data,
                      "{\"sparsity\": 0.45, \"pattern\": \"PATCH\", \"note\": \"\\u00e9\"}");
  assert_int_equal(npy_text(&a, 1, &text, &err), STATUS_REFUSED);
  strbuf_free(&text);
  npy_array_free(&a);
  assert_int_equal(npz_find(file, "absent"), 3);
  npz_close(file);
}

static void reads_plain_arrays(void **state) {
  (void)state;
  struct error err = {0};
  struct npz *file;
  must(npz_open(&file, golden("io/plain.npz"), &err), err);
  struct npy_array a;
  read_named(file, "f4", &a);
  assert_true(a.rank == 2 && a.shape[0] == 2 && a.shape[1] == 3 && a.dtype == DTYPE_F32);
  for (int i = 0; i < 6; i++) assert_true(((float *)a.data)[i] == (float)i);
  npy_array_free(&a);
  read_named(file, "b1", &a);
  assert_true(a.dtype == DTYPE_BOOL && a.shape[0] == 20);
  npy_array_free(&a);
  read_named(file, "empty", &a);
  assert_int_equal(npy_array_count(&a), 0);
  npy_array_free(&a);
  struct strbuf text = {0};
  read_named(file, "s", &a);
  must(npy_text(&a, 0, &text, &err), err);
  must(npy_text(&a, 1, &text, &err), err);
  npy_array_free(&a);
  read_named(file, "u", &a);
  must(npy_text(&a, 1, &text, &err), err);
  npy_array_free(&a);
  assert_string_equal(text.data, "abcdelong");
  strbuf_free(&text);
  npz_close(file);
}

static void refuses_by_name(void **state) {
  (void)state;
  static const char *const cases[][2] = {{"io/big_endian.npy", "big-endian"},
                                         {"io/fortran.npy", "Fortran"},
                                         {"io/object.npy", "Python objects"},
                                         {"io/complex.npy", "not read"},
                                         {"io/record.npy", "structures"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct error err = {0};
    struct npy_array a;
    char *data;
    size_t bytes;
    must(file_read(golden(cases[i][0]), 1 << 16, &data, &bytes, &err), err);
    assert_int_equal(npy_parse((uint8_t *)data, bytes, "x", &a, &err), STATUS_REFUSED);
    assert_non_null(strstr(err.text, cases[i][1]));
    free(data);
  }
}

static enum status fill_ramp(void *ctx, void *out, struct error *err) {
  for (int i = 0; i < 300; i++) ((uint16_t *)out)[i] = (uint16_t)(i * *(int *)ctx);
  return STATUS_OK;
}

static enum status fill_nothing(void *ctx, void *out, struct error *err) {
  return error_set(err, STATUS_REFUSED, "the mask is not at hand");
}

static void writes_the_same_bytes_and_reads_them_back(void **state) {
  (void)state;
  struct error err = {0};
  uint8_t bits[5] = {1, 2, 3, 4, 5};
  int64_t shape[2] = {2, 20};
  int factor = 7;
  struct npz_source sources[] = {
      {.name = "a.weight", .dtype = DTYPE_U8, .rank = 1, .shape = {5}, .data = bits},
      {.name = "a.weight.__shape__", .dtype = DTYPE_I64, .rank = 1, .shape = {2}, .data = shape},
      {.name = "ramp",
       .dtype = DTYPE_U16,
       .rank = 2,
       .shape = {3, 100},
       .fill = fill_ramp,
       .ctx = &factor},
      {.name = "nothing", .text = ""},
      {.name = "__meta__", .text = "{\"sparsity\": 0.45, \"by\": \"t\xc3\xa9ss\"}"},
  };
  char *first, *second;
  size_t first_bytes, second_bytes;
  must(npz_write(scratch_path("a.npz"), sources, 5, &err), err);
  must(npz_write(scratch_path("b.npz"), sources, 5, &err), err);
  must(file_read(scratch_path("a.npz"), 1 << 20, &first, &first_bytes, &err), err);
  must(file_read(scratch_path("b.npz"), 1 << 20, &second, &second_bytes, &err), err);
  assert_int_equal(first_bytes, second_bytes);
  assert_memory_equal(first, second, first_bytes);
  free(first);
  free(second);

  struct npz *file;
  struct npy_array a;
  struct strbuf text = {0};
  must(npz_open(&file, scratch_path("a.npz"), &err), err);
  assert_int_equal(npz_count(file), 5);
  assert_string_equal(npz_name(file, 2), "ramp");
  read_named(file, "a.weight", &a);
  assert_memory_equal(a.data, bits, 5);
  npy_array_free(&a);
  read_named(file, "ramp", &a);
  assert_true(a.shape[1] == 100 && ((uint16_t *)a.data)[299] == 299 * 7);
  npy_array_free(&a);
  read_named(file, "nothing", &a);
  must(npy_text(&a, 0, &text, &err), err);
  npy_array_free(&a);
  read_named(file, "__meta__", &a);
  must(npy_text(&a, 0, &text, &err), err);
  npy_array_free(&a);
  assert_string_equal(text.data, sources[4].text);
  strbuf_free(&text);
  npz_close(file);
}

static void failed_writes_leave_nothing(void **state) {
  (void)state;
  struct error err = {0};
  char listing[256];
  struct npz_source sources[] = {
      {.name = "n", .dtype = DTYPE_U8, .rank = 1, .shape = {5}, .fill = fill_nothing}};
  assert_int_equal(npz_write(scratch_path("never.npz"), sources, 1, &err), STATUS_REFUSED);
  assert_string_equal(err.text, "the mask is not at hand");
  sources[0].dtype = DTYPE_BF16;
  assert_int_equal(npz_write(scratch_path("never.npz"), sources, 1, &err), STATUS_USAGE);
  run_command(listing, sizeof listing, "ls -A %s | grep -c never", scratch());
  assert_string_equal(listing, "0\n");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_a_published_mask),
      cmocka_unit_test(reads_plain_arrays),
      cmocka_unit_test(refuses_by_name),
      cmocka_unit_test(writes_the_same_bytes_and_reads_them_back),
      cmocka_unit_test(failed_writes_leave_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
