/* convert: packed directories, exports and back again, for every family; what must be refused; the
 * small files that go along. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mem.h"
#include "convert/card.h"
#include "convert/convert.h"
#include "convert/inspect.h"
#include "convert/verify.h"
#include "convert/weights.h"
#include "io/file.h"
#include "support/hybrids.h"
#include "support/support.h"

static const char *const families[] = {"models/llama", "models/mistral", "models/qwen2",
                                       "models/qwen3", "models/gemma3"};
enum { FAMILIES = 5, TILE = 8 };

static void random_masks(const struct model *model, struct mask_set *set) {
  hybrid_masks_make(set, model, TILE, 0.65, 20);
}

static struct model *open_model(const char *path) {
  struct error err = {0};
  struct model *model;
  must(model_open(&model, path, &err), err);
  return model;
}

static const float *expand(const struct model *model, int tensor) {
  struct error err = {0};
  const struct model_tensor *t = model_tensor(model, tensor);
  float *w = mem_alloc((size_t)(t->shape[0] * t->shape[1]), sizeof *w, &err);
  model_tensor_expand(model, tensor, 0, t->shape[0], w);
  return w;
}

static int tensor_named(const struct model *model, const char *name) {
  for (int i = 0; i < model_tensor_count(model); i++)
    if (!strcmp(model_tensor(model, i)->name, name)) return i;
  fail_msg("%s is missing", name);
  return -1;
}

/* Every tensor of `a`, masked and rounded to `dtype`, is the same in `b`. */
static void assert_same_weights(const struct model *a, const struct mask_set *masks,
                                enum dtype dtype, const struct model *b) {
  assert_int_equal(model_tensor_count(a), model_tensor_count(b));
  for (int i = 0; i < model_tensor_count(a); i++) {
    const struct model_tensor *t = model_tensor(a, i);
    const int64_t count = t->shape[0] * t->shape[1];
    const struct mask_matrix *m = mask_set_find(masks, t->name);
    float *own = (float *)expand(a, i), *other = (float *)expand(b, tensor_named(b, t->name));
    if (m) mask_apply(m, own, own);
    for (int64_t c = 0; c < count && dtype != DTYPE_F32; c++) {
      uint16_t bits;
      dtype_from_f32(dtype, &own[c], 1, &bits);
      dtype_to_f32(dtype, &bits, 1, &own[c]);
    }
    if (largest_difference(own, other, (size_t)count) != 0) fail_msg("%s differs", t->name);
    mem_free(own);
    mem_free(other);
  }
}

/* Negative log-likelihoods of a fixed text: nll (31). */
static void losses(const struct model *model, float *nll) {
  struct error err = {0};
  struct model_workspace *ws;
  int32_t ids[32];
  for (int i = 0; i < 32; i++) ids[i] = i * 7 % (int32_t)model_config(model)->vocab_size;
  must(model_workspace_new(&ws, model, (struct model_shape){1, 32}, false, false, &err), err);
  must(model_nll(model, ids, (struct model_shape){1, 32}, NULL, ws, nll, &err), err);
  model_workspace_free(ws);
}

static void packed_models_are_the_masked_ones(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < FAMILIES; i++) {
    struct model *model = open_model(golden(families[i]));
    struct mask_set masks;
    random_masks(model, &masks);
    const char *dense = scratch_path("dense"), *packed = scratch_path("packed");
    must(convert_pack(model, &masks, packed, DTYPE_BF16, true, &err), err);
    must(convert_to_hf(model, &masks, dense, DTYPE_BF16, true, &err), err);
    struct model *p = open_model(packed), *d = open_model(dense);
    assert_same_weights(model, &masks, DTYPE_BF16, p);
    assert_same_weights(model, &masks, DTYPE_BF16, d);
    float a[31], b[31];
    losses(p, a);
    losses(d, b);
    assert_true(largest_difference(a, b, 31) < 1e-4);
    assert_true(fabs(model_density(p) - weights_density(model, &masks)) < 1e-12);
    struct verification found;
    must(verify_model(p, model, TILE, &found, &err), err);
    assert_true(found.compared > 0);
    must(verify_model(d, model, TILE, &found, &err), err);
    must(verify_masks(&masks, model, &found, &err), err);
    model_close(p);
    model_close(d);
    mask_set_free(&masks);
    model_close(model);
  }
}

static void ggufs_come_back(void **state) {
  (void)state;
  struct error err = {0};
  for (int i = 0; i < FAMILIES; i++) {
    if (strstr(families[i], "gemma3")) continue; /* its windows are not llama.cpp's: see below */
    struct model *model = open_model(golden(families[i]));
    struct mask_set masks;
    random_masks(model, &masks);
    const char *path = scratch_path("back.gguf");
    must(convert_to_gguf(model, &masks, path, DTYPE_F32, true, &err), err);
    struct model *back = open_model(path);
    assert_same_weights(model, &masks, DTYPE_F32, back);
    float a[31], b[31];
    must(model_apply_masks(model, &masks, &err), err);
    losses(model, a);
    losses(back, b);
    /* these GGUF files know no windows, and 32 tokens are past that of a tiny model */
    if (!model_config(model)->sliding_window) assert_true(largest_difference(a, b, 31) < 1e-5);
    model_close(back);
    mask_set_free(&masks);
    model_close(model);
  }
}

/* From a GGUF to a directory and to a GGUF again. */
static void ggufs_are_sources_too(void **state) {
  (void)state;
  struct error err = {0};
  static const char *const names[] = {"models/llama.gguf", "models/qwen2.gguf",
                                      "models/gemma3.gguf"};
  for (int i = 0; i < 3; i++) {
    struct model *model = open_model(golden(names[i]));
    const struct mask_set none = {0};
    const char *directory = scratch_path("from_gguf"), *file = scratch_path("from_gguf.gguf");
    must(convert_to_hf(model, NULL, directory, DTYPE_F32, true, &err), err);
    struct model *d = open_model(directory);
    assert_same_weights(model, &none, DTYPE_F32, d);
    float a[31], b[31];
    losses(model, a);
    losses(d, b);
    assert_true(largest_difference(a, b, 31) < 1e-5);
    /* the tiny gemma has a pattern of windows that only its own keys can tell */
    must(convert_to_gguf(i == 2 ? model : d, NULL, file, DTYPE_F32, true, &err), err);
    struct model *g = open_model(file);
    assert_same_weights(d, &none, DTYPE_F32, g);
    losses(g, b);
    assert_true(largest_difference(a, b, 31) < 1e-5);
    model_close(g);
    model_close(d);
    model_close(model);
  }
}

static void zeros_stay_zeros_in_q8_0(void **state) {
  (void)state;
  struct error err = {0};
  struct model *model = open_model(golden("models/llama"));
  struct mask_set masks;
  random_masks(model, &masks);
  const char *path = scratch_path("quantized.gguf");
  must(convert_to_gguf(model, &masks, path, DTYPE_Q8_0, true, &err), err);
  struct model *back = open_model(path);
  for (size_t i = 0; i < masks.count; i++) {
    const struct mask_matrix *m = &masks.items[i];
    float *w = (float *)expand(back, tensor_named(back, m->name)), row[512];
    for (int64_t r = 0; r < m->rows; r++) {
      mask_row(m, r, row);
      for (int64_t c = 0; c < m->cols; c++)
        if (row[c] == 0) assert_true(w[r * m->cols + c] == 0);
    }
    mem_free(w);
  }
  struct verification found;
  must(verify_model(back, model, TILE, &found, &err), err);
  model_close(back);
  mask_set_free(&masks);
  model_close(model);
}

static void masks_go_out_and_come_back(void **state) {
  (void)state;
  struct error err = {0};
  struct model *model = open_model(golden("models/llama"));
  struct mask_set masks, back;
  random_masks(model, &masks);
  const char *packed = scratch_path("for_npz"), *path = scratch_path("out.npz");
  must(convert_pack(model, &masks, packed, DTYPE_F32, true, &err), err);
  struct model *p = open_model(packed);
  struct mask_set own;
  must(inspect_masks(p, TILE, false, &own, &err), err);
  must(convert_to_mask_npz(p, &own, path, true, &err), err);
  must(mask_load(&back, path, &err), err);
  assert_int_equal(back.count, masks.count);
  for (size_t i = 0; i < masks.count; i++)
    assert_int_equal(mask_kept(&back.items[i]),
                     mask_kept(mask_set_find(&masks, back.items[i].name)));
  assert_int_equal(convert_to_mask_npz(p, &own, path, false, &err), STATUS_REFUSED);
  mask_set_free(&own);
  mask_set_free(&back);
  /* and from a dense checkpoint's zeros */
  const char *zeros = scratch_path("zeros");
  must(convert_to_hf(model, &masks, zeros, DTYPE_F32, true, &err), err);
  struct model *z = open_model(zeros);
  must(inspect_masks(z, TILE, false, &own, &err), err);
  assert_true(fabs(weights_density(z, &own) - weights_density(model, &masks)) < 1e-12);
  must(convert_pack(z, &own, packed, DTYPE_F32, true, &err), err);
  struct model *again = open_model(packed);
  assert_same_weights(model, &masks, DTYPE_F32, again);
  model_close(again);
  model_close(z);
  mask_set_free(&own);
  assert_int_equal(inspect_masks(model, TILE, false, &own, &err), STATUS_REFUSED);
  mask_set_free(&masks);
  model_close(p);
  model_close(model);
}

static void what_does_not_fit_is_refused(void **state) {
  (void)state;
  struct error err = {0};
  struct model *model = open_model(golden("models/llama"));
  const struct linear_site *site = model_site(model, 0);
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  const char *out = scratch_path("refused");
  struct mask_set masks = {0};
  struct mask_matrix m;
  must(mask_matrix_init_bits(&m, site->name, rows, cols, &err), err);
  must(mask_set_add(&masks, &m, &err), err);
  assert_int_equal(convert_pack(model, &masks, out, DTYPE_BF16, false, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, site->name));
  mask_set_free(&masks);
  must(mask_matrix_init_hybrid(&m, site->name, rows, cols + 4, 8, 8, &err), err);
  must(mask_set_add(&masks, &m, &err), err);
  assert_int_equal(convert_pack(model, &masks, out, DTYPE_BF16, false, &err), STATUS_REFUSED);
  assert_int_equal(convert_to_hf(model, &masks, out, DTYPE_BF16, false, &err), STATUS_REFUSED);
  mask_set_free(&masks);
  must(mask_matrix_init_hybrid(&m, "model.layers.99.mlp.up_proj.weight", 8, 8, 8, 8, &err), err);
  must(mask_set_add(&masks, &m, &err), err);
  assert_int_equal(convert_to_gguf(model, &masks, out, DTYPE_F16, false, &err), STATUS_REFUSED);
  mask_set_free(&masks);
  assert_false(file_exists(out));
  must(convert_to_hf(model, NULL, out, DTYPE_BF16, false, &err), err);
  assert_int_equal(convert_to_hf(model, NULL, out, DTYPE_BF16, false, &err), STATUS_REFUSED);
  must(convert_to_hf(model, NULL, out, DTYPE_BF16, true, &err), err);
  model_close(model);
  model = open_model(golden("models/gemma3"));
  assert_int_equal(convert_to_gguf(model, NULL, scratch_path("g"), DTYPE_F16, true, &err),
                   STATUS_REFUSED);
  assert_non_null(strstr(err.text, "llama.cpp"));
  model_close(model);
}

/* Changes one byte of a file at `at` from its end. */
static void damage(const char *path, long at) {
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, -at, SEEK_END), 0);
  const int byte = fgetc(file);
  assert_int_equal(fseek(file, -at, SEEK_END), 0);
  fputc(byte ^ 1, file);
  fclose(file);
}

static void verify_finds_what_is_wrong(void **state) {
  (void)state;
  struct error err = {0};
  struct verification found;
  struct model *model = open_model(golden("models/llama")), *changed;
  struct mask_set masks;
  random_masks(model, &masks);
  const char *packed = scratch_path("to_damage");
  char *weights = path_join(packed, "model.safetensors");
  must(convert_pack(model, &masks, packed, DTYPE_BF16, true, &err), err);
  damage(weights, 1); /* the last of the codes: another code, or none */
  must(model_open_headers(&changed, packed, &err), err);
  assert_int_equal(verify_model(changed, model, TILE, &found, &err), STATUS_REFUSED);
  model_close(changed);
  must(convert_to_hf(model, &masks, packed, DTYPE_F32, true, &err), err);
  damage(weights, 100); /* a mantissa bit of the final norm */
  must(model_open_headers(&changed, packed, &err), err);
  must(verify_model(changed, NULL, TILE, &found, &err), err);
  assert_int_equal(verify_model(changed, model, TILE, &found, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "row"));
  model_close(changed);
  must(mask_set_meta(&masks, "density", "0.5", &err), err);
  assert_int_equal(verify_masks(&masks, model, &found, &err), STATUS_REFUSED);
  mask_set_free(&masks);
  free(weights);
  model_close(model);
}

static void inspection_sees_tiles(void **state) {
  (void)state;
  struct error err = {0};
  struct model *model = open_model(golden("models/qwen3")), *opened;
  struct mask_set masks;
  struct inspection found;
  random_masks(model, &masks);
  const double density = weights_density(model, &masks);
  const char *path = scratch_path("inspected");
  must(convert_pack(model, &masks, path, DTYPE_BF16, true, &err), err);
  must(model_open_headers(&opened, path, &err), err);
  must(inspect_model(&found, opened, false, 128, &err), err);
  assert_true(fabs((double)found.kept / (double)found.linear_parameters - density) < 1e-12);
  assert_string_equal(found.linears[0].pattern, "dense"); /* has no mask */
  assert_int_equal(found.nonzero, -1);
  inspection_free(&found);
  model_close(opened);
  must(convert_to_hf(model, &masks, path, DTYPE_F32, true, &err), err);
  must(model_open_headers(&opened, path, &err), err);
  must(inspect_model(&found, opened, false, TILE, &err), err);
  assert_int_equal(found.kept, -1);
  inspection_free(&found);
  must(inspect_model(&found, opened, true, TILE, &err), err);
  assert_true(fabs((double)found.kept / (double)found.linear_parameters - density) < 1e-12);
  for (size_t i = 0; i < masks.count; i++) {
    int64_t dense = 0;
    for (int64_t t = 0; t < mask_tile_count(&masks.items[i]); t++) dense += masks.items[i].tiles[t];
    for (int j = 0; j < found.count; j++)
      if (!strcmp(found.linears[j].name, masks.items[i].name))
        assert_int_equal(found.linears[j].tiles_dense, dense);
  }
  inspection_free(&found);
  model_close(opened);
  mask_set_free(&masks);
  model_close(model);
}

static void write_text(const char *directory, const char *name, const char *text) {
  struct error err = {0};
  char *path = path_join(directory, name);
  must(file_write_all(path, text, strlen(text), &err), err);
  free(path);
}

static void cards_are_carried_along(void **state) {
  (void)state;
  struct error err = {0};
  struct model_card card;
  const char *source = scratch_path("licensed"), *gguf = scratch_path("licensed.gguf"),
             *back = scratch_path("licensed_back");
  struct model *model = open_model(golden("models/llama"));
  must(convert_to_hf(model, NULL, source, DTYPE_F32, true, &err), err);
  model_close(model);
  write_text(source, "README.md",
             "---\nlicense: other\nlicense_name: \"some terms\"\nbase_model:\n  - owner/one\n- "
             "owner/two\nlanguage:\n- en\n---\n# Hello\nlicense: not this\n");
  write_text(source, "LICENSE.txt", "the terms\n");
  model = open_model(source);
  must(convert_to_gguf(model, NULL, gguf, DTYPE_F16, true, &err), err);
  must(convert_to_hf(model, NULL, back, DTYPE_F16, true, &err), err);
  model_close(model);
  char *text, *path = path_join(back, "LICENSE.txt");
  size_t bytes;
  must(file_read(path, 100, &text, &bytes, &err), err);
  assert_string_equal(text, "the terms\n");
  free(text);
  free(path);
  for (int i = 0; i < 2; i++) {
    if (i == 0) {
      must(card_from_directory(&card, back, &err), err);
    } else {
      struct gguf *file;
      must(gguf_open(&file, gguf, &err), err);
      card_from_gguf(&card, file);
      gguf_close(file);
    }
    assert_string_equal(card.license, "other");
    assert_string_equal(card.license_name, "some terms");
    assert_string_equal(card.license_link, "");
    assert_int_equal(card.base_count, 2);
    assert_string_equal(card.bases[0], "owner/one");
    assert_string_equal(card.bases[1], "owner/two");
  }
}

int main(void) {
  log_set_level(LOG_ERROR); /* the tiny models have no tokenizers, which is said each time */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(packed_models_are_the_masked_ones),
      cmocka_unit_test(ggufs_come_back),
      cmocka_unit_test(ggufs_are_sources_too),
      cmocka_unit_test(zeros_stay_zeros_in_q8_0),
      cmocka_unit_test(masks_go_out_and_come_back),
      cmocka_unit_test(what_does_not_fit_is_refused),
      cmocka_unit_test(verify_finds_what_is_wrong),
      cmocka_unit_test(inspection_sees_tiles),
      cmocka_unit_test(cards_are_carried_along),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
