/* A model in another backend's memory: see model_place. What is on the host stays shared: names,
 * configuration, masks' counts, and the weights themselves, for those who read them there. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/card.h"

void *place(struct placing *p, const void *from, size_t bytes) {
  struct model *m = p->to;
  void *memory = NULL;
  if (!from || p->status != STATUS_OK) return NULL;
  p->status = mem_grow((void **)&m->owned, &m->owned_capacity, m->owned_count + 1, sizeof *m->owned,
                       p->err);
  if (p->status == STATUS_OK) p->status = m->backend->alloc(bytes, &memory, p->err);
  if (p->status != STATUS_OK) return NULL;
  m->owned[m->owned_count++] = memory;
  p->status = m->backend->upload(memory, from, bytes, p->err);
  return memory;
}

static const float *place_floats(struct placing *p, const float *from, int64_t count) {
  return place(p, from, (size_t)count * sizeof *from);
}

/* A packed or prepared weight becomes dense in its own element type, integers in fp32, zeros and
 * all. */
static void place_expanded(struct placing *p, struct linear_weight *w) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  const enum dtype dtype = dtype_is_native(linear_dtype(w)) ? linear_dtype(w) : DTYPE_F32;
  const size_t size = dtype == DTYPE_F32 ? 4 : 2;
  float *row = mem_alloc((size_t)cols, sizeof *row, p->err);
  uint8_t *dense = mem_alloc((size_t)(rows * cols), size, p->err);
  if (!row || !dense) p->status = STATUS_FAILED;
  for (int64_t r = 0; p->status == STATUS_OK && r < rows; r++) {
    linear_row(w, r, row);
    dtype_from_f32(dtype, row, cols, dense + (size_t)(r * cols) * size);
  }
  *w = (struct linear_weight){.dense = {NULL, dtype, rows, cols}};
  w->dense.data = place(p, dense, (size_t)(rows * cols) * size);
  mem_free(row);
  mem_free(dense);
}

static void place_weight(struct placing *p, struct linear_weight *w) {
  if (p->status != STATUS_OK) return;
  if (w->hybrid || w->strips || w->quant || w->integers) {
    place_expanded(p, w);
    return;
  }
  const size_t size = w->dense.dtype == DTYPE_F32 ? 4 : 2;
  w->dense.data = place(p, w->dense.data, (size_t)(w->dense.rows * w->dense.cols) * size);
}

static void place_block(struct placing *p, const struct block_norms *from, struct block_norms *to) {
  const struct model_config *c = &p->to->config;
  to->before_attention = place_floats(p, from->before_attention, c->hidden_size);
  to->after_attention = place_floats(p, from->after_attention, c->hidden_size);
  to->before_mlp = place_floats(p, from->before_mlp, c->hidden_size);
  to->after_mlp = place_floats(p, from->after_mlp, c->hidden_size);
  to->q = place_floats(p, from->q, c->head_dim);
  to->k = place_floats(p, from->k, c->head_dim);
}

static void place_norms(struct placing *p, const struct model *host) {
  struct model *m = p->to;
  m->final_norm = place_floats(p, host->final_norm, m->config.hidden_size);
  for (int i = 0; i < m->config.layers; i++) place_block(p, &host->blocks[i], &m->blocks[i]);
}

static void place_all(struct placing *p, const struct model *host) {
  struct model *m = p->to;
  place_weight(p, &m->embed);
  if (m->config.tied_embeddings)
    m->lm_head = m->embed;
  else
    place_weight(p, &m->lm_head);
  place_norms(p, host);
  for (int i = 0; i < model_site_count(m); i++) {
    struct linear_site *site = &m->sites[i];
    *site = host->sites[i];
    site->bias = place_floats(p, site->bias, linear_rows(&site->weight));
    place_weight(p, &site->weight);
  }
}

/* A model in the backend's memory without its weights. */
static enum status begin(struct model **out, const struct model *host,
                         const struct backend *backend, struct error *err) {
  INVARIANT(!host->headers_only && !host->host);
  struct model *m = mem_alloc(1, sizeof *m, err);
  if (!m) return STATUS_FAILED;
  *m = *host;
  m->backend = backend;
  m->host = host;
  m->owned = NULL;
  m->owned_count = m->owned_capacity = 0;
  m->blocks = mem_alloc((size_t)m->config.layers, sizeof *m->blocks, err);
  m->sites = mem_alloc((size_t)model_site_count(m), sizeof *m->sites, err);
  *out = m;
  return m->blocks && m->sites ? STATUS_OK : STATUS_FAILED;
}

static enum status end(struct placing *p, struct model **out) {
  struct model *m = p->to;
  if (p->status == STATUS_OK) p->status = m->backend->wait(p->err);
  if (p->status == STATUS_OK)
    *out = m;
  else
    model_give_back(m);
  return p->status;
}

enum status model_place(struct model **out, const struct model *host, const struct backend *backend,
                        struct error *err) {
  struct placing p = {.err = err};
  p.status = begin(&p.to, host, backend, err);
  if (!p.to) return p.status;
  if (p.status == STATUS_OK) place_all(&p, host);
  return end(&p, out);
}

enum status model_place_to_run(struct model **out, const struct model *host,
                               const struct backend *backend, bool choose, struct error *err) {
  struct placing p = {.err = err};
  if (!backend->serve)
    return error_set(err, STATUS_REFUSED, "decoding on %s is not supported", backend->name);
  p.status = begin(&p.to, host, backend, err);
  if (!p.to) return p.status;
  if (p.status == STATUS_OK) place_norms(&p, host);
  if (p.status == STATUS_OK) {
    memcpy(p.to->sites, host->sites, (size_t)model_site_count(host) * sizeof *host->sites);
    p.status = card_new(&p, host, choose);
  }
  return end(&p, out);
}

void model_give_back(struct model *m) {
  card_free(m->card, m->backend);
  for (size_t i = 0; i < m->owned_count; i++) m->backend->free(m->owned[i]);
  free(m->owned);
  mem_free(m->blocks);
  mem_free(m->sites);
  mem_free(m);
}
