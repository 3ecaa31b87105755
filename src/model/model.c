/* Opening and closing a model, and what can be asked of it without running it. */
#include "model/model.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/internal.h"
#include "sparse/packed.h"

static enum status read_config(struct model *m, struct error *err) {
  if (m->store.gguf) return model_config_from_gguf(&m->config, m->store.gguf, m->store.path, err);
  char *path = path_join(m->store.path, "config.json");
  bool packed;
  enum status status = packed_config_check(m->store.json, path, &packed, err);
  if (status == STATUS_OK) status = model_config_from_json(&m->config, m->store.json, path, err);
  free(path);
  return status;
}

static enum status open_model(struct model **out, const char *path, bool headers_only,
                              bool keep_blocks, struct error *err) {
  struct model *m = mem_alloc(1, sizeof *m, err);
  if (!m) return STATUS_FAILED;
  m->backend = backend_cpu();
  m->headers_only = headers_only;
  m->keep_blocks = keep_blocks;
  enum status status = store_open(&m->store, path, err);
  if (status == STATUS_OK) status = read_config(m, err);
  if (status == STATUS_OK) status = model_load(m, err);
  if (status == STATUS_OK)
    *out = m;
  else
    model_close(m);
  return status;
}

enum status model_open(struct model **out, const char *path, struct error *err) {
  return open_model(out, path, false, false, err);
}

enum status model_open_to_run(struct model **out, const char *path, struct error *err) {
  return open_model(out, path, false, true, err);
}

enum status model_open_headers(struct model **out, const char *path, struct error *err) {
  return open_model(out, path, true, true, err);
}

void model_close(struct model *m) {
  if (!m) return;
  if (m->host) {
    model_give_back(m);
    return;
  }
  for (int i = 0; m->sites && m->hybrids && i < model_site_count(m); i++)
    hybrid_release(&m->hybrids[i]);
  for (int i = 0; m->quants && i < model_site_count(m) + 2; i++) quant_release(&m->quants[i]);
  for (int i = 0; m->strips && i <= model_site_count(m); i++) strips_release(&m->strips[i]);
  for (int i = 0; m->quant_strips && i <= model_site_count(m); i++)
    quant_strips_release(&m->quant_strips[i]);
  for (int i = 0; m->site_memory && i < model_site_count(m); i++) mem_free(m->site_memory[i]);
  for (size_t i = 0; i < m->owned_count; i++) mem_free(m->owned[i]);
  free(m->owned);
  free(m->tensors);
  free(m->origins);
  mem_free(m->blocks);
  mem_free(m->sites);
  mem_free(m->hybrids);
  mem_free(m->quants);
  mem_free(m->strips);
  mem_free(m->quant_strips);
  mem_free(m->site_memory);
  mem_free(m->kept);
  store_close(&m->store);
  mem_free(m);
}

const struct backend *model_backend(const struct model *m) { return m->backend; }
const struct model_config *model_config(const struct model *m) { return &m->config; }
const char *model_path(const struct model *m) { return m->store.path; }
const struct gguf *model_gguf(const struct model *m) { return m->store.gguf; }
const json_t *model_json(const struct model *m) { return m->store.json; }
int model_site_count(const struct model *m) { return m->config.layers * SITE_ROLES; }
int model_tensor_count(const struct model *m) { return (int)m->tensor_count; }

const struct linear_site *model_site(const struct model *m, int index) {
  INVARIANT(index >= 0 && index < model_site_count(m));
  return &m->sites[index];
}

const struct model_tensor *model_tensor(const struct model *m, int index) {
  INVARIANT(index >= 0 && (size_t)index < m->tensor_count);
  return &m->tensors[index];
}

const struct linear_weight *model_head(const struct model *m) { return &m->lm_head; }

int64_t model_parameters(const struct model *m) {
  int64_t sum = 0;
  for (size_t i = 0; i < m->tensor_count; i++)
    sum += m->tensors[i].shape[0] * m->tensors[i].shape[1];
  return sum;
}

void model_tensor_expand(const struct model *m, int index, int64_t first, int64_t rows,
                         float *out) {
  if (m->host) m = m->host;
  const struct model_tensor *t = model_tensor(m, index);
  bool loaded = t->site >= 0 && (!m->headers_only || m->sites[t->site].weight.hybrid);
  if (!loaded) {
    origin_rows(&m->origins[index], t->shape[1], first, rows, out);
    return;
  }
  for (int64_t r = 0; r < rows; r++)
    linear_row(&m->sites[t->site].weight, first + r, out + r * t->shape[1]);
}

const void *model_tensor_blocks(const struct model *m, int index, int64_t row) {
  return origin_stored_row(&m->origins[index], model_tensor(m, index)->shape[1], row);
}

struct site_expansion {
  const struct model *model;
  int tensor;
  int64_t cols;
  float *out;
};

static void expand_row(void *ctx, int64_t row, int worker) {
  const struct site_expansion *e = ctx;
  model_tensor_expand(e->model, e->tensor, row, 1, e->out + row * e->cols);
}

void model_site_expand(const struct model *m, int site, float *out) {
  for (int i = 0; i < model_tensor_count(m); i++) {
    if (m->tensors[i].site != site) continue;
    struct site_expansion e = {m, i, m->tensors[i].shape[1], out};
    parallel_for(m->tensors[i].shape[0], expand_row, &e);
    return;
  }
  INVARIANT(!"a site without a tensor");
}

static bool all_finite(const float *x, int64_t n) {
  float sum = 0; /* of zeros, unless one of them is no number */
  for (int64_t i = 0; i < n; i++) sum += x[i] * 0.0f;
  return sum == 0;
}

struct finite_check {
  const struct model *model;
  int tensor;
  int64_t cols;
  float *rows; /* (threads, cols) */
  atomic_bool bad;
};

static void check_row(void *ctx, int64_t row, int worker) {
  struct finite_check *f = ctx;
  float *room = f->rows + worker * f->cols;
  model_tensor_expand(f->model, f->tensor, row, 1, room);
  if (!all_finite(room, f->cols)) atomic_store(&f->bad, true);
}

const char *model_nonfinite_tensor(const struct model *m) {
  for (int i = 0; i < model_tensor_count(m); i++) {
    struct finite_check f = {.model = m, .tensor = i, .cols = m->tensors[i].shape[1]};
    f.rows = mem_alloc((size_t)parallel_threads(), (size_t)f.cols * sizeof *f.rows, NULL);
    if (!f.rows) return NULL;
    parallel_for(m->tensors[i].shape[0], check_row, &f);
    mem_free(f.rows);
    if (atomic_load(&f.bad)) return m->tensors[i].name;
  }
  return NULL;
}

enum status model_check_finite(const struct model *m, const float *values, int64_t n,
                               const char *what, struct error *err) {
  if (all_finite(values, n)) return STATUS_OK;
  const char *name = model_nonfinite_tensor(m);
  if (name)
    return error_set(err, STATUS_REFUSED,
                     "%s: %s not finite, because tensor \"%s\" holds NaN or infinite values; the "
                     "file is damaged or was written by a training that diverged",
                     m->store.path, what, name);
  return error_set(err, STATUS_REFUSED,
                   "%s: %s not finite, though all weights are: activations overflow fp32",
                   m->store.path, what);
}

void model_site_replace(struct model *m, int index, float *weight) {
  struct linear_site *site = &m->sites[index];
  INVARIANT(!m->headers_only && !m->strips);
  int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  mem_free(m->site_memory[index]);
  m->site_memory[index] = weight;
  site->weight = (struct linear_weight){0};
  site->weight.dense = (struct matrix_view){weight, DTYPE_F32, rows, cols};
}
