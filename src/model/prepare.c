/* Weights in the order in which they are decoded: matrix after matrix becomes strips, and what it
 * was before is given back at once, so that there is one copy of the weights and, while it runs,
 * a second one of a single matrix. */
#include "base/mem.h"
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

/* Makes *w strips when its elements allow it. `memory`: what owns its dense form, or NULL. */
static enum status prepare(struct model *m, struct linear_weight *w, struct strip_matrix *strips,
                           void **memory, bool round_fp32, struct error *err) {
  if (w->strips || (linear_dtype(w) == DTYPE_F32 && !round_fp32)) return STATUS_OK;
  if (w->integers || (!w->hybrid && !dtype_is_native(w->dense.dtype))) return STATUS_OK;
  enum status status = w->hybrid ? strips_from_hybrid(strips, w->hybrid, err)
                                 : strips_from_dense(strips, &w->dense, err);
  if (status) return status;
  if (w->hybrid && !(memory && *memory)) {
    give_back_hybrid(m, w->hybrid);
  } else {
    size_t bytes = 0;
    INVARIANT(dtype_bytes(w->dense.dtype, (uint64_t)(w->dense.rows * w->dense.cols), &bytes));
    give_back(m, memory, w->dense.data, bytes);
  }
  *w = (struct linear_weight){.strips = strips};
  return STATUS_OK;
}

enum status model_prepare(struct model *m, bool round_fp32, struct error *err) {
  INVARIANT(!m->headers_only);
  const int sites = model_site_count(m);
  if (!m->strips) m->strips = mem_alloc((size_t)sites + 1, sizeof *m->strips, err);
  if (!m->strips) return STATUS_FAILED;
  enum status status = STATUS_OK;
  for (int i = 0; i < sites && !status; i++)
    status = prepare(m, &m->sites[i].weight, &m->strips[i], &m->site_memory[i], round_fp32, err);
  if (!status) status = prepare(m, &m->lm_head, &m->strips[sites], NULL, round_fp32, err);
  /* where they are tied, one copy serves both */
  if (!status && m->config.tied_embeddings) m->embed = m->lm_head;
  return status;
}
