/* Weights in the order in which they are decoded: matrix after matrix becomes strips, and what it
 * was before is given back at once, so that there is one copy of the weights and, while it runs,
 * a second one of a single matrix. */
#include "base/mem.h"
#include "base/parallel.h"
#include "io/file.h"
#include "model/internal.h"

/* Frees or unmaps a matrix's old form. What is mapped stays readable: its pages come back from the
 * file if anybody asks. */
static void give_back(struct model *m, void **site_memory, const void *data, size_t bytes) {
  if (site_memory && *site_memory) {
    mem_free(*site_memory);
    *site_memory = NULL;
    return;
  }
  for (size_t i = 0; i < m->owned_count; i++)
    if (m->owned[i] == data) {
      mem_free(m->owned[i]);
      m->owned[i] = NULL;
      return;
    }
  file_map_forget(data, bytes);
}

static void give_back_hybrid(struct model *m, const struct hybrid_matrix *h) {
  struct hybrid_sizes sizes;
  INVARIANT(!hybrid_measure(h->rows, h->cols, h->tile_rows, h->tile_cols, h->dtype, h->tile_map,
                            &sizes, NULL));
  give_back(m, NULL, h->dense, sizes.dense_bytes);
  give_back(m, NULL, h->values, sizes.values_bytes);
  give_back(m, NULL, h->codes, sizes.codes_bytes);
}

static void give_back_integers(struct model *m, void **site_memory, const struct quant_matrix *q) {
  struct quant_sizes sizes;
  if (site_memory && *site_memory) {
    give_back(m, site_memory, NULL, 0);
    return;
  }
  INVARIANT(!quant_measure(q, &sizes, NULL));
  const size_t scale_bytes = (size_t)sizes.scales * (q->group ? 2 : 4);
  give_back(m, NULL, q->dense, sizes.dense_bytes);
  if (q->tile_map) give_back(m, NULL, q->values, sizes.values_bytes);
  if (q->tile_map) give_back(m, NULL, q->codes, sizes.codes_bytes);
  give_back(m, NULL, q->group ? (const void *)q->scales : q->row_scales, scale_bytes);
  if (q->mins) give_back(m, NULL, q->mins, scale_bytes);
}

struct row_expansion {
  const struct linear_weight *weight;
  float *out; /* (rows, cols) */
};

static void expand_row(void *ctx, int64_t row, int worker) {
  const struct row_expansion *x = ctx;
  (void)worker;
  linear_row(x->weight, row, x->out + row * linear_cols(x->weight));
}

/* Where the new form of a weight goes, and what owns its dense form, or NULL. */
struct place {
  struct strip_matrix *strips;
  struct quant_strips *quant;
  void **memory;
};

static void give_back_dense(struct model *m, const struct linear_weight *w, void **memory) {
  size_t bytes = 0;
  INVARIANT(dtype_bytes(w->dense.dtype, (uint64_t)(w->dense.rows * w->dense.cols), &bytes));
  give_back(m, memory, w->dense.data, bytes);
}

static enum status prepare_integers(struct model *m, struct linear_weight *w, struct place to,
                                    struct error *err) {
  enum status status = w->integers ? quant_strips_from_quant(to.quant, w->integers, err)
                                   : quant_strips_from_blocks(to.quant, &w->dense, err);
  if (status) return status;
  if (w->integers)
    give_back_integers(m, to.memory, w->integers);
  else
    give_back_dense(m, w, to.memory);
  *w = (struct linear_weight){.quant = to.quant};
  return STATUS_OK;
}

/* Block types that have no integers of their own scale for 32 columns: rounded to bf16. */
static enum status prepare_other_blocks(struct model *m, struct linear_weight *w, struct place to,
                                        struct error *err) {
  const int64_t rows = w->dense.rows, cols = w->dense.cols;
  float *expanded = mem_alloc((size_t)rows, (size_t)cols * sizeof *expanded, err);
  if (!expanded) return STATUS_FAILED;
  struct row_expansion x = {w, expanded};
  parallel_for(rows, expand_row, &x);
  const struct matrix_view view = {expanded, DTYPE_F32, rows, cols};
  enum status status = strips_from_dense(to.strips, &view, err);
  mem_free(expanded);
  if (status) return status;
  give_back_dense(m, w, to.memory);
  *w = (struct linear_weight){.strips = to.strips};
  return STATUS_OK;
}

static enum status prepare(struct model *m, struct linear_weight *w, struct place to,
                           bool round_fp32, struct error *err) {
  if (w->strips || w->quant || (linear_dtype(w) == DTYPE_F32 && !round_fp32)) return STATUS_OK;
  const bool blocks = !w->integers && !w->hybrid && !dtype_is_native(w->dense.dtype);
  if (w->integers || (blocks && quant_strips_takes(w->dense.dtype)))
    return prepare_integers(m, w, to, err);
  if (blocks) return prepare_other_blocks(m, w, to, err);
  enum status status = w->hybrid ? strips_from_hybrid(to.strips, w->hybrid, err)
                                 : strips_from_dense(to.strips, &w->dense, err);
  if (status) return status;
  if (w->hybrid && !(to.memory && *to.memory))
    give_back_hybrid(m, w->hybrid);
  else
    give_back_dense(m, w, to.memory);
  *w = (struct linear_weight){.strips = to.strips};
  return STATUS_OK;
}

enum status model_prepare(struct model *m, bool round_fp32, struct error *err) {
  INVARIANT(!m->headers_only);
  const int sites = model_site_count(m);
  if (!m->strips) m->strips = mem_alloc((size_t)sites + 1, sizeof *m->strips, err);
  if (!m->quant_strips)
    m->quant_strips = mem_alloc((size_t)sites + 1, sizeof *m->quant_strips, err);
  if (!m->strips || !m->quant_strips) return STATUS_FAILED;
  enum status status = STATUS_OK;
  for (int i = 0; i <= sites && !status; i++) {
    const bool head = i == sites;
    struct place to = {&m->strips[i], &m->quant_strips[i], head ? NULL : &m->site_memory[i]};
    status = prepare(m, head ? &m->lm_head : &m->sites[i].weight, to, round_fp32, err);
  }
  /* where they are tied, one copy serves both */
  if (!status && m->config.tied_embeddings) m->embed = m->lm_head;
  return status;
}
