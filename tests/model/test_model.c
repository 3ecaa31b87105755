/* Models beyond the golden numbers: taps, masks, packed directories, replaced weights, the list of
 * tensors, finite differences of the whole loss, and what is refused when files do not fit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "io/safetensors.h"
#include "kernel/ops.h"
#include "model/model.h"
#include "sparse/hybrid.h"
#include "sparse/packed.h"
#include "support/support.h"

enum { SEQUENCES = 2, LENGTH = 19, TOKENS = SEQUENCES * LENGTH, VOCAB = 101 };
enum { PREDICTIONS = SEQUENCES * (LENGTH - 1), TILE = 16 };

static struct error err;
static int32_t ids[TOKENS];
static const struct model_shape shape = {SEQUENCES, LENGTH};

static struct model *open_golden(const char *name) {
  struct model *model;
  char path[512];
  snprintf(path, sizeof path, "%s/%s", golden("models"), name);
  must(model_open(&model, path, &err), err);
  for (int i = 0; i < TOKENS; i++) ids[i] = (i * i * 13 + 5 * i) % VOCAB;
  return model;
}

static float *floats(int64_t count) {
  float *out = mem_alloc((size_t)count, sizeof *out, &err);
  assert_non_null(out);
  return out;
}

static int64_t site_size(const struct linear_site *site) {
  return linear_rows(&site->weight) * linear_cols(&site->weight);
}

static double loss_of(const struct model *model, const struct tap *tap, float nll[PREDICTIONS]) {
  struct model_workspace *ws;
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  must(model_nll(model, ids, shape, tap, ws, nll, &err), err);
  model_workspace_free(ws);
  double sum = 0;
  for (int i = 0; i < PREDICTIONS; i++) sum += (double)nll[i];
  return sum;
}

/* --- taps --- */

struct record {
  const struct model *model;
  int inputs, weights, gradients;
  const struct linear_weight *use;
};

static void see_input(void *ctx, const struct linear_site *site, const float *x, int64_t tokens) {
  struct record *r = ctx;
  assert_int_equal(site->index, r->inputs++);
  assert_int_equal(tokens, TOKENS);
}

static const struct linear_weight *see_weight(void *ctx, const struct linear_site *site,
                                              enum tap_pass pass) {
  struct record *r = ctx;
  int sites = model_site_count(r->model), call = r->weights++;
  assert_int_equal(pass, call < sites ? TAP_FORWARD : TAP_BACKWARD);
  assert_int_equal(site->index, call < sites ? call : 2 * sites - 1 - call);
  return NULL;
}

static void see_gradient(void *ctx, const struct linear_site *site, const float *x, const float *dy,
                         int64_t tokens) {
  struct record *r = ctx;
  assert_int_equal(site->index, model_site_count(r->model) - 1 - r->gradients++);
}

static void tap_order(void **state) {
  struct model *model = open_golden("llama");
  struct model_workspace *ws;
  struct record record = {.model = model};
  struct tap tap = {&record, see_weight, see_input, see_gradient};
  double sum;
  static float nll[PREDICTIONS];
  must(model_workspace_new(&ws, model, shape, true, false, &err), err);
  must(model_train(model, ids, shape, 1, &tap, ws, &sum, &err), err);
  int sites = model_site_count(model);
  assert_int_equal(record.inputs, sites);
  assert_int_equal(record.weights, 2 * sites);
  assert_int_equal(record.gradients, sites);
  assert_true(fabs(sum - loss_of(model, NULL, nll)) < 1e-5 * sum);
  model_workspace_free(ws);
  model_close(model);
}

/* --- masks, and the packed directory they lead to --- */

static void random_masks(const struct model *model, struct mask_set *set) {
  *set = (struct mask_set){0};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    struct mask_matrix m = {0};
    if (i == 3) continue; /* one linear stays dense */
    must(mask_matrix_init_hybrid(&m, site->name, linear_rows(&site->weight),
                                 linear_cols(&site->weight), TILE, TILE, &err),
         err);
    for (int64_t t = 0; t < mask_tile_count(&m); t++) m.tiles[t] = (uint8_t)((t * 5 + i) % 3 == 0);
    for (int64_t r = 0; r < m.rows; r++)
      for (int64_t g = 0; g < mask_group_count(&m); g++)
        mask_set_code(&m, r, g, sparse_candidate_code[(r * 3 + g + i) % SPARSE_CANDIDATES]);
    must(mask_set_add(set, &m, &err), err);
  }
}

struct masked {
  const struct mask_set *set;
  float *memory;
  struct linear_weight weight;
};

static const struct linear_weight *masked_weight(void *ctx, const struct linear_site *site,
                                                 enum tap_pass pass) {
  struct masked *m = ctx;
  const struct mask_matrix *mask = mask_set_find(m->set, site->name);
  if (!mask) return NULL;
  for (int64_t r = 0; r < mask->rows; r++) linear_row(&site->weight, r, m->memory + r * mask->cols);
  mask_apply(mask, m->memory, m->memory);
  m->weight.dense = (struct matrix_view){m->memory, DTYPE_F32, mask->rows, mask->cols};
  return &m->weight;
}

static void masks_and_taps_agree(const char *name) {
  struct model *model = open_golden(name);
  struct mask_set set;
  static float by_tap[PREDICTIONS], by_mask[PREDICTIONS], dense[PREDICTIONS];
  random_masks(model, &set);
  struct masked masked = {.set = &set, .memory = floats(1 << 16)};
  struct tap tap = {.ctx = &masked, .weight = masked_weight};
  assert_true(model_density(model) == 1.0);
  loss_of(model, NULL, dense);
  loss_of(model, &tap, by_tap);
  must(model_apply_masks(model, &set, &err), err);
  loss_of(model, NULL, by_mask);
  assert_memory_equal(by_tap, by_mask, sizeof by_tap);
  assert_true(largest_difference(by_mask, dense, PREDICTIONS) > 0.01);
  int64_t kept = 0, all = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    const struct mask_matrix *mask = mask_set_find(&set, site->name);
    kept += mask ? mask_kept(mask) : site_size(site);
    all += site_size(site);
  }
  assert_true(model_density(model) == (double)kept / (double)all);
  mem_free(masked.memory);
  mask_set_free(&set);
  model_close(model);
}

static void masks_f32(void **state) { masks_and_taps_agree("llama"); }
static void masks_f16(void **state) { masks_and_taps_agree("mistral"); }
static void masks_bf16(void **state) { masks_and_taps_agree("qwen3"); }

static void foreign_masks(void **state) {
  struct model *model = open_golden("llama");
  struct mask_set set = {0};
  struct mask_matrix m = {0};
  must(mask_matrix_init_hybrid(&m, "model.layers.9.mlp.up_proj.weight", 64, 32, 16, 16, &err), err);
  must(mask_set_add(&set, &m, &err), err);
  assert_int_equal(model_apply_masks(model, &set, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "layers.9"));
  mask_set_free(&set);
  m = (struct mask_matrix){0};
  must(mask_matrix_init_hybrid(&m, "model.layers.1.mlp.up_proj.weight", 64, 48, 16, 16, &err), err);
  must(mask_set_add(&set, &m, &err), err);
  assert_int_equal(model_apply_masks(model, &set, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "[64, 48]"));
  mask_set_free(&set);
  model_close(model);
}

enum { SOURCES_MAX = 256 };

struct packing {
  struct tensor_source sources[SOURCES_MAX];
  size_t count;
};

static void add_source(struct packing *p, const char *name, const char *suffix, enum dtype dtype,
                       int64_t count, int64_t cols, const void *data) {
  char text[256];
  struct tensor_source *s = &p->sources[p->count++];
  assert_true(p->count <= SOURCES_MAX);
  snprintf(text, sizeof text, "%s%s", name, suffix);
  *s = (struct tensor_source){.name = strdup(text), .dtype = dtype, .rank = cols ? 2 : 1};
  s->shape[0] = count;
  s->shape[1] = cols;
  s->data = data;
}

static void add_packed(struct packing *p, const struct mask_matrix *mask, const float *w) {
  struct hybrid_sizes size;
  int64_t tiles = mask_tile_count(mask);
  uint8_t *map = (uint8_t *)floats(tiles);
  for (int64_t t = 0; t < tiles; t++) map[t / 8] |= (uint8_t)(mask->tiles[t] << (t % 8));
  must(hybrid_measure(mask->rows, mask->cols, TILE, TILE, DTYPE_F32, map, &size, &err), err);
  float *dense = floats(size.dense_count + 1), *values = floats(size.values_count + 1);
  uint8_t *codes = (uint8_t *)floats((int64_t)size.codes_bytes);
  int64_t *layout = (int64_t *)floats(8);
  hybrid_pack(mask, w, DTYPE_F32, map, dense, values, codes);
  memcpy(layout, (int64_t[]){mask->rows, mask->cols, TILE, TILE}, 4 * sizeof *layout);
  add_source(p, mask->name, ".layout", DTYPE_I64, 4, 0, layout);
  add_source(p, mask->name, ".dense", DTYPE_F32, size.dense_count, 0, dense);
  add_source(p, mask->name, ".values", DTYPE_F32, size.values_count, 0, values);
  add_source(p, mask->name, ".codes", DTYPE_U8, (int64_t)size.codes_bytes, 0, codes);
  add_source(p, mask->name, ".tile_map", DTYPE_U8, (int64_t)size.map_bytes, 0, map);
}

/* An ordinary directory, but for the linears that have masks. */
static const char *write_packed(const struct model *model, const struct mask_set *set) {
  static struct packing p;
  p.count = 0;
  for (int i = 0; i < model_tensor_count(model); i++) {
    const struct model_tensor *t = model_tensor(model, i);
    float *w = floats(t->shape[0] * t->shape[1]);
    const struct mask_matrix *mask = mask_set_find(set, t->name);
    model_tensor_expand(model, i, 0, t->shape[0], w);
    if (mask) {
      add_packed(&p, mask, w);
      mem_free(w);
    } else {
      add_source(&p, t->name, "", DTYPE_F32, t->shape[0], t->rank == 2 ? t->shape[1] : 0, w);
    }
  }
  /* wide elements before narrow ones keeps them aligned */
  static struct tensor_source sorted[SOURCES_MAX];
  size_t count = 0;
  for (int width = 8; width >= 1; width /= 2)
    for (size_t i = 0; i < p.count; i++)
      if (dtype_traits(p.sources[i].dtype)->block_bytes == width) sorted[count++] = p.sources[i];
  const char *folder = scratch_path("packed");
  mkdir(folder, 0700);
  must(safetensors_write(scratch_path("packed/model.safetensors"), sorted, count, NULL, &err), err);
  json_t *json = model_config_to_json(model_config(model), "float32");
  json_object_set_new(json, "sparsity_config",
                      json_pack("{s:s,s:i}", "format", PACKED_FORMAT, "version", PACKED_VERSION));
  must(json_write_file(scratch_path("packed/config.json"), json, &err), err);
  json_decref(json);
  for (size_t i = 0; i < p.count; i++) {
    mem_free((void *)(uintptr_t)p.sources[i].data);
    free((char *)(uintptr_t)p.sources[i].name);
  }
  return folder;
}

/* Packed and masked-dense models are the same model, also for the backward pass. */
static void packed_directory(void **state) {
  struct model *model = open_golden("llama"), *packed, *headers;
  struct mask_set set;
  static float by_mask[PREDICTIONS], by_pack[PREDICTIONS];
  random_masks(model, &set);
  const char *folder = write_packed(model, &set);
  must(model_apply_masks(model, &set, &err), err);
  must(model_open(&packed, folder, &err), err);
  must(model_open_headers(&headers, folder, &err), err);
  assert_true(model_density(packed) == model_density(model));
  assert_true(model_density(headers) == model_density(model));
  assert_int_equal(model_parameters(packed), model_parameters(model));
  loss_of(model, NULL, by_mask);
  loss_of(packed, NULL, by_pack);
  assert_true(relative_error(by_pack, by_mask, PREDICTIONS) < 2e-6);
  struct model_workspace *ws;
  double sum, want;
  must(model_workspace_new(&ws, packed, shape, true, false, &err), err);
  must(model_train(packed, ids, shape, 1, NULL, ws, &sum, &err), err);
  model_workspace_free(ws);
  must(model_workspace_new(&ws, model, shape, true, false, &err), err);
  must(model_train(model, ids, shape, 1, NULL, ws, &want, &err), err);
  model_workspace_free(ws);
  assert_true(fabs(sum - want) < 2e-6 * want);
  for (int i = 0; i < model_site_count(model); i++) {
    int64_t size = site_size(model_site(model, i));
    float *a = floats(size), *b = floats(size);
    model_site_expand(model, i, a);
    model_site_expand(packed, i, b);
    assert_memory_equal(a, b, (size_t)size * sizeof *a);
    model_site_expand(headers, i, b);
    assert_memory_equal(a, b, (size_t)size * sizeof *a);
    mem_free(a);
    mem_free(b);
  }
  assert_int_equal(model_apply_masks(packed, &set, &err), STATUS_REFUSED);
  mask_set_free(&set);
  model_close(model);
  model_close(packed);
  model_close(headers);
}

/* --- tensors --- */

/* Reading headers only gives the same numbers as a loaded model, GGUF's order and Gemma's norms
 * included. */
static void tensors_agree(const char *gguf, const char *directory, double limit) {
  struct model *a = open_golden(gguf), *b = open_golden(directory), *headers;
  char path[512];
  snprintf(path, sizeof path, "%s/%s", golden("models"), gguf);
  must(model_open_headers(&headers, path, &err), err);
  assert_int_equal(model_tensor_count(a), model_tensor_count(b));
  for (int i = 0; i < model_tensor_count(a); i++) {
    const struct model_tensor *t = model_tensor(a, i), *u = model_tensor(b, i);
    int64_t size = t->shape[0] * t->shape[1];
    float *x = floats(size), *y = floats(size), *z = floats(size);
    assert_string_equal(t->name, u->name);
    assert_memory_equal(t->shape, u->shape, sizeof t->shape);
    model_tensor_expand(a, i, 0, t->shape[0], x);
    model_tensor_expand(b, i, 0, t->shape[0], y);
    for (int64_t r = 0; r < t->shape[0]; r++)
      model_tensor_expand(headers, i, r, 1, z + r * t->shape[1]);
    assert_memory_equal(x, z, (size_t)size * sizeof *x);
    if (!(relative_error(x, y, (size_t)size) < limit)) fail_msg("%s of %s differs", t->name, gguf);
    mem_free(x);
    mem_free(y);
    mem_free(z);
  }
  model_close(a);
  model_close(b);
  model_close(headers);
}

static void tensors_of_gguf(void **state) {
  tensors_agree("llama.gguf", "llama", 0.01);
  tensors_agree("gemma3.gguf", "gemma3", 0.01);
}

static void parameters(void **state) {
  const char *path = shared_data("models/stories260K");
  if (!path) skip();
  struct model *model;
  must(model_open(&model, path, &err), err);
  assert_int_equal(model_parameters(model), 260032);
  assert_string_equal(model_family_name(model_config(model)), "llama");
  model_close(model);
}

/* --- finite differences of the whole loss --- */

struct direction {
  const struct model *model;
  int site;
  const float *d;
  double slope;
  float *dw;
};

static void along(void *ctx, const struct linear_site *site, const float *x, const float *dy,
                  int64_t tokens) {
  struct direction *d = ctx;
  if (site->index != d->site) return;
  linear_backward_weight(dy, x, tokens, linear_rows(&site->weight), linear_cols(&site->weight),
                         PRECISION_FP32, d->dw, false);
  for (int64_t i = 0; i < site_size(site); i++) d->slope += (double)d->dw[i] * d->d[i];
}

static double loss_at(struct model *model, int site, const float *base, const float *d,
                      float step) {
  static float nll[PREDICTIONS];
  int64_t size = site_size(model_site(model, site));
  float *w = floats(size);
  for (int64_t i = 0; i < size; i++) w[i] = base[i] + step * d[i];
  model_site_replace(model, site, w);
  return loss_of(model, NULL, nll);
}

static void check_slope(struct model *model, int site) {
  int64_t size = site_size(model_site(model, site));
  float *base = floats(size), *d = floats(size), *dw = floats(size);
  struct direction along_d = {.model = model, .site = site, .d = d, .dw = dw};
  struct tap tap = {.ctx = &along_d, .gradient = along};
  struct model_workspace *ws;
  double sum;
  const float step = 2e-3f;
  model_site_expand(model, site, base);
  fill_normal(d, (size_t)size, (uint64_t)site + 1, 1);
  must(model_workspace_new(&ws, model, shape, true, true, &err), err);
  must(model_train(model, ids, shape, 0.5, &tap, ws, &sum, &err), err);
  double up = loss_at(model, site, base, d, step), down = loss_at(model, site, base, d, -step);
  double measured = 0.5 * (up - down) / (2 * (double)step);
  if (fabs(measured - along_d.slope) > 0.01 * fabs(measured) + 0.02)
    fail_msg("slope along %s: %g measured, %g computed", model_site(model, site)->name, measured,
             along_d.slope);
  loss_at(model, site, base, d, 0);
  model_workspace_free(ws);
  mem_free(base);
  mem_free(d);
  mem_free(dw);
}

static void finite_differences(void **state) {
  static const char *const names[] = {"llama", "gemma3"};
  for (int i = 0; i < 2; i++) {
    struct model *model = open_golden(names[i]);
    for (int site = 0; site < model_site_count(model); site++) check_slope(model, site);
    model_close(model);
  }
}

/* --- distillation --- */

/* A tap that moves one site's weight along d, with the slope along it as `along` has it. */
struct moved {
  struct direction direction; /* first: it is the context of `along`, too */
  struct linear_weight weight;
  float *base;
};

static const struct linear_weight *moved_weight(void *ctx, const struct linear_site *site,
                                                enum tap_pass pass) {
  struct moved *m = ctx;
  return site->index == m->direction.site ? &m->weight : NULL;
}

static double distilled_at(struct moved *m, const struct model_objective *o, float step,
                           struct model_losses *sums) {
  const struct linear_site *site = model_site(m->direction.model, m->direction.site);
  const struct tap tap = {.ctx = m, .weight = moved_weight, .gradient = along};
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  float *w = floats(rows * cols);
  struct model_workspace *ws;
  for (int64_t i = 0; i < rows * cols; i++) w[i] = m->base[i] + step * m->direction.d[i];
  m->weight.dense = (struct matrix_view){w, DTYPE_F32, rows, cols};
  m->direction.slope = 0;
  const bool checkpoint = m->direction.site % 2 == 0;
  must(model_workspace_new(&ws, m->direction.model, shape, true, checkpoint, &err), err);
  must(model_workspace_distill(ws, o->match > 0, &err), err);
  must(model_distill(m->direction.model, ids, shape, 0.5, o, &tap, ws, sums, &err), err);
  model_workspace_free(ws);
  mem_free(w);
  const double weight = o->distill.weight;
  return 0.5 * ((1 - o->match) * ((1 - weight) * sums->nll + weight * sums->kl) +
                o->match * sums->distance);
}

/* The divergence over the predictions, from whole logits of the two. */
static double divergence_of(struct moved *m) {
  const struct model *model = m->direction.model;
  const struct tap tap = {.ctx = m, .weight = moved_weight};
  const int64_t hidden = model_config(model)->hidden_size;
  float *normed = floats(TOKENS * hidden),
        *logits[2] = {floats(TOKENS * VOCAB), floats(TOKENS * VOCAB)};
  static float kl[TOKENS];
  struct model_workspace *ws;
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  for (int masked = 0; masked < 2; masked++) {
    must(model_forward(model, ids, shape, masked ? &tap : NULL, ws, normed, &err), err);
    model_logits(model, normed, TOKENS, PRECISION_FP32, logits[masked]);
  }
  softmax_kl(logits[0], logits[1], TOKENS, VOCAB, kl, NULL);
  double sum = 0;
  for (int i = 0; i < TOKENS; i++) sum += i % LENGTH == LENGTH - 1 ? 0 : kl[i];
  model_workspace_free(ws);
  mem_free(normed);
  mem_free(logits[0]);
  mem_free(logits[1]);
  return sum;
}

/* The slope along `d` by the tap's gradients and by differences. */
static void check_objective(struct moved *m, const struct model_objective *o) {
  const float step = 2e-3f, away = 0.05f;
  const char *name = model_site(m->direction.model, m->direction.site)->name;
  struct model_losses sums;
  const double up = distilled_at(m, o, away + step, &sums);
  const double down = distilled_at(m, o, away - step, &sums);
  const double measured = (up - down) / (2 * (double)step);
  distilled_at(m, o, away, &sums);
  const double computed = m->direction.slope;
  if (fabs(measured - computed) > 0.01 * fabs(measured) + 0.02)
    fail_msg("slope along %s, %s at %g, match %g: %g measured, %g computed", name,
             distill_kind_name[o->distill.kind], o->distill.weight, o->match, measured, computed);
}

static void check_distilled(struct model *model, int site, double weight) {
  const int64_t size = site_size(model_site(model, site));
  const float away = 0.05f;
  float *d = floats(size);
  struct moved m = {.direction = {.model = model, .site = site, .d = d, .dw = floats(size)},
                    .base = floats(size)};
  const struct model_objective forward = {{.weight = weight}, 0};
  struct model_losses sums;
  model_site_expand(model, site, m.base);
  fill_normal(d, (size_t)size, (uint64_t)site + 1, 1);
  check_objective(&m, &forward);
  distilled_at(&m, &forward, away, &sums);
  float *w = floats(size);
  for (int64_t i = 0; i < size; i++) w[i] = m.base[i] + away * d[i];
  m.weight.dense.data = w;
  const double divergence = divergence_of(&m);
  assert_true(divergence > 1e-3);
  assert_true(fabs(sums.kl - divergence) < 1e-4 * divergence + 1e-5);
  mem_free(w);
  mem_free(d);
  mem_free(m.base);
  mem_free(m.direction.dw);
}

/* gemma3 caps its logits, and both halves of the loss see capped ones. */
static void distillation(void **state) {
  static const char *const names[] = {"llama", "gemma3"};
  for (int i = 0; i < 2; i++) {
    struct model *model = open_golden(names[i]);
    for (int site = 0; site < model_site_count(model); site += 3)
      check_distilled(model, site, site % 2 ? 1 : 0.4);
    model_close(model);
  }
}

/* The other kinds, and matched states, which see a weight in every block behind its own: alone and
 * beside the text and the teacher, with memory for every block and with checkpoints. */
static void other_objectives(void **state) {
  static const char *const names[] = {"llama", "gemma3"};
  static const struct model_objective objectives[] = {
      {{DISTILL_REVERSE, 0, 1}, 0},   {{DISTILL_REVERSE, 0, 0.4}, 0},
      {{DISTILL_TOP, 4, 1}, 0},       {{DISTILL_TOP, 4, 0.4}, 0.3},
      {{DISTILL_FORWARD, 0, 0}, 1},   {{DISTILL_FORWARD, 0, 0}, 0.6},
      {{DISTILL_REVERSE, 0, 1}, 0.5},
  };
  enum { OBJECTIVES = sizeof objectives / sizeof *objectives };
  for (int i = 0; i < 2; i++) {
    struct model *model = open_golden(names[i]);
    for (int site = 0; site < model_site_count(model); site++) {
      const int64_t size = site_size(model_site(model, site));
      float *d = floats(size);
      struct moved m = {.direction = {.model = model, .site = site, .d = d, .dw = floats(size)},
                        .base = floats(size)};
      model_site_expand(model, site, m.base);
      fill_normal(d, (size_t)size, (uint64_t)site + 1, 1);
      check_objective(&m, &objectives[site % OBJECTIVES]);
      check_objective(&m, &objectives[(site + 3 + i) % OBJECTIVES]);
      mem_free(d);
      mem_free(m.base);
      mem_free(m.direction.dw);
    }
    model_close(model);
  }
}

/* A model whose weight was moved, taught by the one that it was, has the bits of the tap that moves
 * it. Another model's shape is refused. */
static void distillation_from_another_model(void **state) {
  enum { SITE = 5 };
  struct model *student = open_golden("llama"), *teacher = open_golden("llama"),
               *stranger = open_golden("gemma3");
  const int64_t size = site_size(model_site(student, SITE));
  float *d = floats(size), *moved = mem_alloc((size_t)size, sizeof *moved, &err);
  struct moved m = {.direction = {.model = teacher, .site = SITE, .d = d, .dw = floats(size)},
                    .base = floats(size)};
  const struct model_objective taught = {{.weight = 0.6}, 0.3};
  struct model_losses by_tap, by_model;
  struct model_workspace *ws;
  model_site_expand(student, SITE, m.base);
  fill_normal(d, (size_t)size, 7, 1);
  distilled_at(&m, &taught, 0.05f, &by_tap);
  for (int64_t i = 0; i < size; i++) moved[i] = m.base[i] + 0.05f * d[i];
  model_site_replace(student, SITE, moved);
  must(model_workspace_new(&ws, student, shape, true, true, &err), err);
  must(model_workspace_distill(ws, true, &err), err);
  must(model_distill(student, ids, shape, 0.5, &taught, NULL, ws, &by_model, &err), err);
  assert_true(fabs(by_model.kl) < 1e-4 && by_tap.kl > 1e-3); /* its own teacher so far */
  assert_true(by_model.distance == 0 && by_tap.distance > 1e-3);
  assert_int_equal(model_workspace_teacher(ws, stranger, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "cannot teach"));
  must(model_workspace_teacher(ws, teacher, &err), err);
  must(model_distill(student, ids, shape, 0.5, &taught, NULL, ws, &by_model, &err), err);
  assert_true(by_model.kl == by_tap.kl && by_model.nll == by_tap.nll);
  assert_true(by_model.distance == by_tap.distance);
  model_workspace_free(ws);
  mem_free(d);
  mem_free(m.base);
  mem_free(m.direction.dw);
  model_close(student);
  model_close(teacher);
  model_close(stranger);
}

/* --- other ways of storing the same model --- */

/* Multimodal wrappers: another prefix, a nested configuration, and a tower we do not look at. */
static const char *write_wrapper(const struct model *model, const char *prefix) {
  static struct packing p;
  p.count = 0;
  for (int i = 0; i < model_tensor_count(model); i++) {
    const struct model_tensor *t = model_tensor(model, i);
    float *w = floats(t->shape[0] * t->shape[1]);
    char name[256];
    model_tensor_expand(model, i, 0, t->shape[0], w);
    snprintf(name, sizeof name, "%s%s", prefix, t->name + strlen("model."));
    add_source(&p, name, "", DTYPE_F32, t->shape[0], t->rank == 2 ? t->shape[1] : 0, w);
  }
  add_source(&p, "vision_tower.patch.weight", "", DTYPE_F32, 4, 0, floats(4));
  const char *folder = scratch_path("wrapper");
  mkdir(folder, 0700);
  must(safetensors_write(scratch_path("wrapper/model.safetensors"), p.sources, p.count, NULL, &err),
       err);
  json_t *json = json_pack("{s:s,s:o}", "model_type", "gemma3", "text_config",
                           model_config_to_json(model_config(model), "float32"));
  must(json_write_file(scratch_path("wrapper/config.json"), json, &err), err);
  json_decref(json);
  for (size_t i = 0; i < p.count; i++) {
    mem_free((void *)(uintptr_t)p.sources[i].data);
    free((char *)(uintptr_t)p.sources[i].name);
  }
  return folder;
}

static void wrappers(void **state) {
  static const char *const prefixes[] = {"language_model.model.", "model.language_model."};
  static float want[PREDICTIONS], have[PREDICTIONS];
  struct model *model = open_golden("gemma3"), *wrapped;
  loss_of(model, NULL, want);
  for (int i = 0; i < 2; i++) {
    must(model_open(&wrapped, write_wrapper(model, prefixes[i]), &err), err);
    loss_of(wrapped, NULL, have);
    assert_memory_equal(want, have, sizeof want);
    model_close(wrapped);
  }
  model_close(model);
}

/* A header of odd length puts every 2-byte weight at an odd address: they are copied. */
static void misaligned(void **state) {
  char *data, text[512], path[512];
  size_t bytes;
  uint64_t header;
  static float want[PREDICTIONS], have[PREDICTIONS];
  struct model *model = open_golden("mistral"), *odd;
  loss_of(model, NULL, want);
  snprintf(path, sizeof path, "%s/mistral/model.safetensors", golden("models"));
  must(file_read(path, 1 << 24, &data, &bytes, &err), err);
  memcpy(&header, data, sizeof header);
  header += 1;
  const char *folder = scratch_path("odd");
  run_command(text, sizeof text, "cp -r %s/mistral %s", golden("models"), folder);
  FILE *file = fopen(scratch_path("odd/model.safetensors"), "wb");
  assert_non_null(file);
  fwrite(&header, 1, sizeof header, file);
  fwrite(data + 8, 1, header - 1, file);
  fputc(' ', file);
  fwrite(data + 8 + header - 1, 1, bytes - 8 - (header - 1), file);
  fclose(file);
  free(data);
  must(model_open(&odd, folder, &err), err);
  loss_of(odd, NULL, have);
  assert_memory_equal(want, have, sizeof want);
  model_close(odd);
  model_close(model);
}

/* --- weights that are no numbers --- */

static void nan_weights(void **state) {
  struct model *model = open_golden("qwen2");
  const struct linear_site *site = model_site(model, 8);
  float *w = floats(site_size(site));
  static float nll[PREDICTIONS], logits[VOCAB];
  struct model_workspace *ws;
  struct model_session *session;
  assert_null(model_nonfinite_tensor(model));
  model_site_expand(model, 8, w);
  w[5] = NAN;
  model_site_replace(model, 8, w);
  assert_string_equal(model_nonfinite_tensor(model), site->name);
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  assert_int_equal(model_nll(model, ids, shape, NULL, ws, nll, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, site->name));
  must(model_session_new(&session, model, 9, &err), err);
  assert_int_equal(model_session_append(session, ids, 3, logits, &err), STATUS_REFUSED);
  model_session_free(session);
  model_workspace_free(ws);
  model_close(model);
}

/* --- files that do not fit --- */

/* A copy of the golden llama's directory whose config.json has `key` set to `value`. */
static const char *directory_with(const char *key, json_t *value) {
  char command[1024], text[512];
  const char *folder = scratch_path("changed");
  assert_int_equal(run_command(text, sizeof text, "rm -rf %s && cp -r %s %s", folder,
                               golden("models/llama"), folder),
                   0);
  json_t *json = json_read_file(scratch_path("changed/config.json"), 1 << 20, &err);
  assert_non_null(json);
  json_object_set_new(json, key, value);
  snprintf(command, sizeof command, "%s/config.json", folder);
  must(json_write_file(command, json, &err), err);
  json_decref(json);
  return folder;
}

static void refused(const char *path, const char *name) {
  struct model *model = NULL;
  err = (struct error){0};
  assert_int_equal(model_open(&model, path, &err), STATUS_REFUSED);
  if (!strstr(err.text, name)) fail_msg("\"%s\" does not name \"%s\"", err.text, name);
}

static void misfits(void **state) {
  refused(directory_with("num_hidden_layers", json_integer(3)), "model.layers.2.");
  refused(directory_with("num_hidden_layers", json_integer(1)), "model.layers.1.");
  refused(directory_with("mlp_bias", json_false()), "bias");
  refused(directory_with("vocab_size", json_integer(102)), "embed_tokens");
  refused(directory_with("intermediate_size", json_integer(128)), "gate_proj");
  refused(directory_with("num_key_value_heads", json_integer(4)), "k_proj");
  refused(directory_with("sparsity_config", json_pack("{s:s}", "format", "other")), "other");
  refused(scratch_path("nowhere"), "nowhere");
  refused(golden("models/llama/config.json"), "config.json");
  char text[256];
  run_command(text, sizeof text, "rm %s", scratch_path("changed/model.safetensors"));
  refused(scratch_path("changed"), "safetensors");
}

static void missing_shard(void **state) {
  char text[256];
  const char *folder = scratch_path("sharded");
  run_command(text, sizeof text, "cp -r %s %s && rm %s/model-00002*", golden("models/qwen3"),
              folder, folder);
  refused(folder, "model-00002-of-00002.safetensors");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tap_order),          cmocka_unit_test(masks_f32),
      cmocka_unit_test(masks_f16),          cmocka_unit_test(masks_bf16),
      cmocka_unit_test(foreign_masks),      cmocka_unit_test(packed_directory),
      cmocka_unit_test(tensors_of_gguf),    cmocka_unit_test(parameters),
      cmocka_unit_test(finite_differences), cmocka_unit_test(distillation),
      cmocka_unit_test(other_objectives),   cmocka_unit_test(distillation_from_another_model),
      cmocka_unit_test(wrappers),           cmocka_unit_test(misaligned),
      cmocka_unit_test(nan_weights),        cmocka_unit_test(misfits),
      cmocka_unit_test(missing_shard),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
