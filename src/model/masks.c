/* Masks on the weights of a model, and the density that results. */
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/internal.h"

static struct linear_site *site_named(struct model *m, const char *name) {
  for (int i = 0; i < model_site_count(m); i++)
    if (!strcmp(m->sites[i].name, name)) return &m->sites[i];
  return NULL;
}

static enum status check_mask(struct model *m, const struct mask_matrix *mask, struct error *err) {
  const struct linear_site *site = site_named(m, mask->name);
  if (!site)
    return error_set(err, STATUS_REFUSED,
                     "the mask is for \"%s\", which %s has no prunable weight of that name for: it "
                     "was made for another model",
                     mask->name, m->store.path);
  if (linear_is_hybrid(&site->weight))
    return error_set(err, STATUS_REFUSED,
                     "\"%s\" of %s is packed already; masks apply to the dense model", mask->name,
                     m->store.path);
  const int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
  if (mask->rows != rows || mask->cols != cols)
    return error_set(err, STATUS_REFUSED,
                     "the mask of \"%s\" is [%lld, %lld], the weight in %s [%lld, %lld]: it was "
                     "made for another model",
                     mask->name, (long long)mask->rows, (long long)mask->cols, m->store.path,
                     (long long)rows, (long long)cols);
  return STATUS_OK;
}

struct masking {
  const struct mask_matrix *mask;
  const uint8_t *from;
  uint8_t *to;
  size_t element_bytes;
  float *rows; /* (threads, cols) */
};

/* Dropped weights become +0, whatever they were; kept ones stay bit for bit. */
static void mask_item(void *ctx, int64_t row, int worker) {
  const struct masking *k = ctx;
  int64_t cols = k->mask->cols;
  size_t size = k->element_bytes, at = (size_t)(row * cols) * size;
  float *keep = k->rows + worker * cols;
  mask_row(k->mask, row, keep);
  for (int64_t c = 0; c < cols; c++, at += size) {
    if (keep[c] == 0)
      memset(k->to + at, 0, size);
    else if (k->to != k->from)
      memcpy(k->to + at, k->from + at, size);
  }
}

static enum status apply(struct model *m, const struct mask_matrix *mask, struct error *err) {
  struct linear_site *site = site_named(m, mask->name);
  struct matrix_view *w = &site->weight.dense;
  const bool plain = !site->weight.integers && dtype_is_native(w->dtype);
  enum status status = plain ? STATUS_OK : site_expand(m, site->index, err);
  if (status) return status;
  struct masking k = {
      .mask = mask, .from = w->data, .element_bytes = w->dtype == DTYPE_F32 ? 4 : 2};
  if (!m->site_memory[site->index])
    m->site_memory[site->index] =
        mem_alloc((size_t)w->rows, (size_t)w->cols * k.element_bytes, err);
  k.to = m->site_memory[site->index];
  k.rows = mem_alloc((size_t)parallel_threads(), (size_t)w->cols * sizeof *k.rows, err);
  bool had_memory = k.to && k.rows;
  if (had_memory) {
    parallel_for(w->rows, mask_item, &k);
    w->data = k.to;
    m->kept[site->index] = mask_kept(mask);
  }
  mem_free(k.rows);
  return had_memory ? STATUS_OK : STATUS_FAILED;
}

enum status model_apply_masks(struct model *m, const struct mask_set *masks, struct error *err) {
  INVARIANT(!m->headers_only && !m->strips);
  enum status status = STATUS_OK;
  for (size_t i = 0; i < masks->count && status == STATUS_OK; i++)
    status = check_mask(m, &masks->items[i], err);
  for (size_t i = 0; i < masks->count && status == STATUS_OK; i++)
    status = apply(m, &masks->items[i], err);
  return status;
}

int64_t model_prunable_weights(const struct model *m) {
  int64_t total = 0;
  for (int i = 0; i < model_site_count(m); i++)
    total += linear_rows(&m->sites[i].weight) * linear_cols(&m->sites[i].weight);
  return total;
}

double model_density(const struct model *m) {
  int64_t kept = 0;
  for (int i = 0; i < model_site_count(m); i++) kept += m->kept[i];
  return (double)kept / (double)model_prunable_weights(m);
}
