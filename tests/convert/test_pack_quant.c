/* convert: packed directories of integers. What is packed is what quant_make makes, tile map and
 * all; a GGUF's blocks lose nothing; exports hold the quantized values; lies are refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "convert/convert.h"
#include "convert/inspect.h"
#include "convert/verify.h"
#include "convert/weights.h"
#include "io/file.h"
#include "sparse/packed.h"
#include "support/block_gguf.h"
#include "support/damage.h"
#include "support/hybrids.h"
#include "support/support.h"
#include "support/walk.h"

enum { TILE = 8, LENGTH = 32 };
static struct error err;
static const char *const families[] = {"models/llama", "models/mistral", "models/qwen2",
                                       "models/qwen3", "models/gemma3"};
static const struct quant_form forms[] = {{QUANT_I8, 0, false},
                                          {QUANT_I8, 32, false},
                                          {QUANT_I4, 0, false},
                                          {QUANT_I4, 32, false},
                                          {QUANT_I4, 32, true}};
enum { FAMILIES = 5, FORMS = sizeof forms / sizeof *forms };

static struct model *open_model(const char *path) {
  struct model *model;
  must(model_open(&model, path, &err), err);
  return model;
}

static struct model *pack(const struct model *model, const struct mask_set *masks,
                          const struct quant_form *form, bool blocks_mins) {
  const char *out = scratch_path("packed");
  const struct pack_quant_settings settings = {*form, blocks_mins, true};
  must(convert_pack_quant(model, masks, out, &settings, &err), err);
  return open_model(out);
}

static int tensor_named(const struct model *model, const char *name) {
  for (int i = 0; i < model_tensor_count(model); i++)
    if (!strcmp(model_tensor(model, i)->name, name)) return i;
  fail_msg("%s is missing", name);
  return -1;
}

static float *expand(const struct model *model, const char *name) {
  const int index = tensor_named(model, name);
  const struct model_tensor *t = model_tensor(model, index);
  float *w = mem_alloc((size_t)(t->shape[0] * t->shape[1]), sizeof *w, &err);
  model_tensor_expand(model, index, 0, t->shape[0], w);
  return w;
}

static void losses(const struct model *model, float *nll) {
  struct model_workspace *ws;
  int32_t ids[LENGTH];
  for (int i = 0; i < LENGTH; i++) ids[i] = i * 7 % (int32_t)model_config(model)->vocab_size;
  must(model_workspace_new(&ws, model, (struct model_shape){1, LENGTH}, false, false, &err), err);
  must(model_nll(model, ids, (struct model_shape){1, LENGTH}, NULL, ws, nll, &err), err);
  model_workspace_free(ws);
}

/* Integers, scales and tiles are those of quant_make, and every way to the weights agrees. */
static void assert_as_made(const struct model *source, const struct model *packed,
                           const struct mask_set *masks, const struct quant_form *form) {
  for (int i = 0; i < model_tensor_count(source); i++) {
    const struct model_tensor *t = model_tensor(source, i);
    const int64_t rows = t->shape[0], cols = t->shape[1];
    float *own = expand(source, t->name), *other = expand(packed, t->name), *row;
    if (t->rank == 1) {
      assert_memory_equal(own, other, (size_t)rows * sizeof *own);
    } else {
      const struct quant_form used = t->site < 0 ? (struct quant_form){QUANT_I8, 32, false} : *form;
      const struct mask_matrix *mask = masks ? mask_set_find(masks, t->name) : NULL;
      struct quant_owned made;
      must(weights_quantize(&made, source, i, &used, mask, &err), err);
      row = mem_alloc((size_t)cols, sizeof *row, &err);
      for (int64_t r = 0; r < rows; r++) {
        quant_row(&made.matrix, r, row);
        assert_memory_equal(row, other + r * cols, (size_t)cols * sizeof *row);
      }
      mem_free(row);
      quant_owned_free(&made);
    }
    mem_free(own);
    mem_free(other);
  }
}

static void assert_same_masks(const struct model *packed, const struct mask_set *masks) {
  struct mask_set own;
  must(inspect_masks(packed, TILE, false, &own, &err), err);
  assert_int_equal(own.count, masks->count);
  for (size_t i = 0; i < masks->count; i++) {
    const struct mask_matrix *a = &masks->items[i], *b = mask_set_find(&own, a->name);
    float x[512], y[512];
    assert_non_null(b);
    assert_memory_equal(a->tiles, b->tiles, (size_t)mask_tile_count(a));
    for (int64_t r = 0; r < a->rows; r++) {
      mask_row(a, r, x);
      mask_row(b, r, y);
      assert_memory_equal(x, y, (size_t)a->cols * sizeof *x);
    }
  }
  mask_set_free(&own);
}

static void packed_integers_are_those_that_were_made(void **state) {
  (void)state;
  for (int i = 0; i < FAMILIES * FORMS; i++) {
    struct model *model = open_model(golden(families[i % FAMILIES]));
    const struct quant_form *form = &forms[i / FAMILIES];
    struct mask_set masks;
    hybrid_masks_make(&masks, model, TILE, 0.65, 20);
    const struct mask_set *given = i % 3 ? &masks : NULL;
    struct model *packed = pack(model, given, form, false);
    assert_as_made(model, packed, given, form);
    assert_true(fabs(model_density(packed) - weights_density(model, given)) < 1e-12);
    if (given) assert_same_masks(packed, &masks);
    struct verification found;
    must(verify_model(packed, model, TILE, &found, &err), err);
    assert_true(found.compared > 0);
    /* an export has the same values, and the model gives the same losses */
    must(convert_to_hf(packed, NULL, scratch_path("dense"), DTYPE_F32, true, &err), err);
    struct model *dense = open_model(scratch_path("dense"));
    float a[LENGTH], b[LENGTH];
    losses(packed, a);
    losses(dense, b);
    assert_true(largest_difference(a, b, LENGTH - 1) < 1e-4);
    must(verify_model(dense, packed, TILE, &found, &err), err);
    model_close(dense);
    model_close(packed);
    mask_set_free(&masks);
    model_close(model);
  }
}

/* Bit for bit on every kept weight, and all of it without a mask. */
static void blocks_lose_nothing(void **state) {
  static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q5_0, DTYPE_Q4_0, DTYPE_Q4_1};
  (void)state;
  for (int i = 0; i < 8; i++) {
    const char *path = scratch_path("blocks.gguf");
    struct quant_form form;
    struct model *model, *expanded;
    struct mask_set masks;
    block_gguf_write(path, types[i / 2], types[(i / 2 + 2) % 4], (uint64_t)i);
    must(model_open_headers(&model, path, &err), err);
    must(model_open(&expanded, path, &err), err);
    hybrid_masks_make(&masks, expanded, 16, 0.6, 3);
    const struct mask_set *given = i % 2 ? &masks : NULL;
    assert_true(quant_form_of_blocks(types[i / 2], &form));
    form.mins = false; /* what the blocks have is what counts */
    struct model *packed = pack(model, given, &form, true);
    if (given) must(model_apply_masks(expanded, given, &err), err);
    for (int k = 0; k < model_tensor_count(expanded); k++) {
      const struct model_tensor *t = model_tensor(expanded, k);
      float *own = expand(expanded, t->name), *other = expand(packed, t->name);
      if (memcmp(own, other, (size_t)(t->shape[0] * t->shape[1]) * sizeof *own) != 0)
        fail_msg("%s of %s differs", t->name, dtype_traits(types[i / 2])->name);
      mem_free(own);
      mem_free(other);
    }
    struct verification found;
    must(verify_model(packed, model, TILE, &found, &err), err);
    mask_set_free(&masks);
    model_close(packed);
    model_close(expanded);
    model_close(model);
  }
}

/* Dense again, by integers: the weights of forms without minimums stay. */
static void unpacking_keeps_the_integers(void **state) {
  (void)state;
  for (int f = 0; f < FORMS; f++) {
    struct model *model = open_model(golden("models/llama"));
    struct mask_set masks;
    hybrid_masks_make(&masks, model, TILE, 0.65, 20);
    struct model *packed = pack(model, &masks, &forms[f], false);
    struct model *dense = open_model(scratch_path("packed"));
    must(model_unpack(dense, &err), err);
    for (int i = 0; i < model_site_count(model); i++) {
      const struct linear_site *site = model_site(dense, i);
      float *own = expand(packed, site->name), *other = expand(dense, site->name);
      const int64_t count = linear_rows(&site->weight) * linear_cols(&site->weight);
      assert_false(linear_is_hybrid(&site->weight));
      assert_int_equal(linear_dtype(&site->weight), linear_dtype(&model_site(packed, i)->weight));
      for (int64_t k = 0; k < count; k++)
        assert_true(own[k] == other[k] || (forms[f].mins && own[k] == 0));
      mem_free(own);
      mem_free(other);
    }
    mask_set_free(&masks);
    model_close(dense);
    model_close(packed);
    model_close(model);
  }
}

static void verify_finds_other_integers(void **state) {
  (void)state;
  struct verification found;
  struct model *model = open_model(golden("models/llama")), *other;
  struct model *packed = pack(model, NULL, &forms[3], false);
  other = open_model(golden("models/mistral"));
  assert_int_equal(verify_model(packed, other, TILE, &found, &err), STATUS_REFUSED);
  model_close(packed);
  char *weights = path_join(scratch_path("packed"), "model.safetensors");
  FILE *file = fopen(weights, "r+b"); /* a nibble of the last matrix, the head */
  assert_int_equal(fseek(file, -1, SEEK_END), 0);
  const int byte = fgetc(file);
  assert_int_equal(fseek(file, -1, SEEK_END), 0);
  fputc(byte ^ 1, file);
  fclose(file);
  packed = open_model(scratch_path("packed"));
  assert_int_equal(verify_model(packed, model, TILE, &found, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "row"));
  model_close(packed);
  free(weights);
  model_close(other);
  model_close(model);
}

static void masks_are_for_dense_integers(void **state) {
  (void)state;
  struct model *model = open_model(golden("models/llama"));
  struct mask_set masks;
  hybrid_masks_make(&masks, model, TILE, 0.65, 20);
  struct model *packed = pack(model, NULL, &forms[4], false);
  struct model *masked = open_model(scratch_path("packed"));
  must(model_apply_masks(masked, &masks, &err), err);
  const char *name = masks.items[0].name;
  float *own = expand(packed, name), *other = expand(masked, name);
  mask_apply(&masks.items[0], own, own);
  assert_memory_equal(own, other,
                      (size_t)(masks.items[0].rows * masks.items[0].cols) * sizeof *own);
  mem_free(own);
  mem_free(other);
  model_close(masked);
  model_close(packed);
  packed = pack(model, &masks, &forms[4], false);
  assert_int_equal(model_apply_masks(packed, &masks, &err), STATUS_REFUSED);
  const struct pack_quant_settings settings = {forms[1], true, true};
  assert_int_equal(convert_pack_quant(packed, &masks, scratch_path("twice"), &settings, &err),
                   STATUS_REFUSED);
  model_close(packed);
  mask_set_free(&masks);
  model_close(model);
}

/* --- lies and damage --- */

struct view {
  struct stored_tensor t[PACKED_QUANT_PARTS];
  const struct stored_tensor *parts[PACKED_QUANT_PARTS];
  int64_t layout[PACKED_QUANT_LAYOUT_COUNT];
};

static void view_of(struct view *v, const struct quant_owned *q) {
  const struct quant_matrix *m = &q->matrix;
  const struct quant_sizes *s = &q->sizes;
  const int64_t layout[] = {
      m->rows, m->cols, m->tile_rows, m->tile_cols, m->type == QUANT_I8 ? 8 : 4, m->group};
  memcpy(v->layout, layout, sizeof layout);
  const enum dtype integers = m->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  const struct stored_tensor all[] = {
      {"l", DTYPE_I64, 1, {6}, (uint8_t *)v->layout, sizeof v->layout},
      {"d", integers, 1, {1}, m->dense, s->dense_bytes},
      {"v", integers, 1, {1}, m->values, s->values_bytes},
      {"m", DTYPE_U8, 1, {1}, m->tile_map, s->map_bytes},
      {"c", DTYPE_U8, 1, {1}, m->codes, s->codes_bytes},
      {"s", DTYPE_F16, 1, {1}, (const uint8_t *)m->scales, 2 * (size_t)s->scales},
      {"i", DTYPE_F16, 1, {1}, (const uint8_t *)m->mins, 2 * (size_t)s->scales}};
  for (int i = 0; i < PACKED_QUANT_PARTS; i++) {
    v->t[i] = all[i];
    v->parts[i] = &v->t[i];
  }
}

static void refused(struct view *v) {
  struct quant_matrix m;
  assert_int_equal(packed_quant_view(&m, "w", v->parts, &err), STATUS_REFUSED);
}

static void views_refuse_lies(void **state) {
  (void)state;
  struct model *model = open_model(golden("models/llama"));
  struct mask_set masks;
  struct quant_owned q;
  struct quant_matrix m;
  struct view v;
  hybrid_masks_make(&masks, model, TILE, 0.65, 20);
  const int tensor = tensor_named(model, masks.items[0].name);
  must(weights_quantize(&q, model, tensor, &forms[4], &masks.items[0], &err), err);
  view_of(&v, &q);
  must(packed_quant_view(&m, "w", v.parts, &err), err);
  quant_release(&m);
  for (int i = 0; i < PACKED_QUANT_PARTS; i++) {
    v.t[i].size_bytes += 2;
    refused(&v);
    v.t[i].size_bytes -= 2;
    const enum dtype dtype = v.t[i].dtype;
    v.t[i].dtype = DTYPE_I32;
    refused(&v);
    v.t[i].dtype = dtype;
    v.parts[i] = NULL;
    if (i != PACKED_LAYOUT && i != PACKED_MINS) refused(&v);
    v.parts[i] = &v.t[i];
  }
  static const int64_t lies[][2] = {{0, 0},  {1, -1}, {2, 0}, {3, 6}, {4, 3},
                                    {4, 16}, {4, 8},  {5, 0}, {5, 1}, {5, -32}};
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    const int64_t old = v.layout[lies[i][0]];
    v.layout[lies[i][0]] = lies[i][1];
    refused(&v);
    v.layout[lies[i][0]] = old;
  }
  quant_owned_free(&q);
  mask_set_free(&masks);
  model_close(model);
}

static void damaged_files(void **state) {
  (void)state;
  for (int f = 0; f < FORMS; f++) {
    struct model *model = open_model(golden("models/llama"));
    struct mask_set masks;
    hybrid_masks_make(&masks, model, TILE, 0.65, 20);
    model_close(pack(model, f % 2 ? NULL : &masks, &forms[f], false));
    char *weights = path_join(scratch_path("packed"), "model.safetensors");
    struct damage d = {.name = "packed", .open = walk_packed, .seed = (uint64_t)f, .rounds = 400};
    damage_run_file(&d, weights);
    free(weights);
    mask_set_free(&masks);
    model_close(model);
  }
}

/* Files of version 2 as they were first written (llama of the golden models under a mask). */
static void older_files_stay_readable(void **state) {
  (void)state;
  must(walk_packed(NULL, golden("packed_int4.safetensors"), &err), err);
  must(walk_packed(NULL, golden("packed_int8.safetensors"), &err), err);
}

static void other_versions_are_refused(void **state) {
  (void)state;
  struct model *model = open_model(golden("models/llama"));
  model_close(pack(model, NULL, &forms[1], false));
  model_close(model);
  char *path = path_join(scratch_path("packed"), "config.json");
  json_t *config = json_read_file(path, 1 << 20, &err);
  json_object_set_new(json_object_get(config, "sparsity_config"), "version", json_integer(3));
  must(json_write_file(path, config, &err), err);
  assert_int_equal(model_open(&model, scratch_path("packed"), &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "version 3"));
  json_decref(config);
  free(path);
}

int main(void) {
  log_set_level(LOG_ERROR); /* the tiny models have no tokenizers, which is said each time */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(packed_integers_are_those_that_were_made),
      cmocka_unit_test(blocks_lose_nothing),
      cmocka_unit_test(unpacking_keeps_the_integers),
      cmocka_unit_test(verify_finds_other_integers),
      cmocka_unit_test(masks_are_for_dense_integers),
      cmocka_unit_test(views_refuse_lies),
      cmocka_unit_test(damaged_files),
      cmocka_unit_test(older_files_stay_readable),
      cmocka_unit_test(other_versions_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
