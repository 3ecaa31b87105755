/* Packed linears back to dense matrices, for measuring one against the other, and integers to fp32
 * for what needs plain weights. */
#include "base/mem.h"
#include "base/parallel.h"
#include "model/internal.h"
#include "sparse/quantize.h"

struct unpacking {
  const struct hybrid_matrix *from;
  uint8_t *to; /* (rows, cols) of from->dtype */
  size_t element_bytes;
  float *rows; /* (threads, cols) */
};

static void unpack_item(void *ctx, int64_t row, int worker) {
  const struct unpacking *u = ctx;
  float *expanded = u->rows + worker * u->from->cols;
  hybrid_row(u->from, row, expanded);
  dtype_from_f32(u->from->dtype, expanded, u->from->cols,
                 u->to + (size_t)(row * u->from->cols) * u->element_bytes);
}

static enum status unpack(struct model *m, struct linear_site *site, struct error *err) {
  const struct hybrid_matrix *h = site->weight.hybrid;
  struct unpacking u = {.from = h, .element_bytes = h->dtype == DTYPE_F32 ? 4 : 2};
  u.to = mem_alloc((size_t)h->rows, (size_t)h->cols * u.element_bytes, err);
  u.rows = mem_alloc((size_t)parallel_threads(), (size_t)h->cols * sizeof *u.rows, err);
  if (!u.to || !u.rows) {
    mem_free(u.to);
    mem_free(u.rows);
    return STATUS_FAILED;
  }
  parallel_for(h->rows, unpack_item, &u);
  mem_free(u.rows);
  m->site_memory[site->index] = u.to;
  site->weight = (struct linear_weight){.dense = {u.to, h->dtype, h->rows, h->cols}};
  return STATUS_OK;
}

/* A dense matrix of the same integers and scales, which the site's memory owns. */
static enum status unpack_integers(struct model *m, struct linear_site *site, struct error *err) {
  struct quant_owned dense;
  enum status status = quant_make_dense(&dense, site->weight.integers, err);
  if (status) return status;
  quant_release(&m->quants[site->index]);
  m->quants[site->index] = dense.matrix;
  m->site_memory[site->index] = dense.memory;
  return STATUS_OK;
}

enum status site_expand(struct model *m, int index, struct error *err) {
  struct linear_site *site = &m->sites[index];
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  float *w = mem_alloc((size_t)rows, (size_t)cols * sizeof *w, err);
  if (!w) return STATUS_FAILED;
  model_site_expand(m, index, w);
  model_site_replace(m, index, w);
  return STATUS_OK;
}

enum status model_unpack(struct model *m, struct error *err) {
  INVARIANT(!m->headers_only && !m->strips);
  enum status status = STATUS_OK;
  for (int i = 0; i < model_site_count(m) && !status; i++) {
    struct linear_site *site = &m->sites[i];
    if (site->weight.hybrid) status = unpack(m, site, err);
    if (site->weight.integers && site->weight.integers->tile_map)
      status = unpack_integers(m, site, err);
  }
  return status;
}
