/* Looking at models. A scan holds one bit per weight of one linear, and a few rows of it. */
#include "convert/inspect.h"

#include <stdio.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"

/* --- one linear --- */

static int tensor_of(const struct model *model, int site) {
  for (int i = 0; i < model_tensor_count(model); i++)
    if (model_tensor(model, i)->site == site) return i;
  INVARIANT(!"a site without a tensor");
  return -1;
}

struct nonzero_job {
  const struct model *model;
  int tensor;
  struct mask_matrix *bits;
  float *rows; /* (threads, cols) */
};

static void mark_row(void *ctx, int64_t row, int worker) {
  const struct nonzero_job *job = ctx;
  float *w = job->rows + worker * job->bits->cols;
  model_tensor_expand(job->model, job->tensor, row, 1, w);
  for (int64_t c = 0; c < job->bits->cols; c++)
    if (w[c] != 0) mask_set_bit(job->bits, row, c, true);
}

enum status inspect_nonzero(const struct model *model, int site, struct mask_matrix *out,
                            struct error *err) {
  const struct linear_site *s = model_site(model, site);
  enum status status =
      mask_matrix_init_bits(out, s->name, linear_rows(&s->weight), linear_cols(&s->weight), err);
  if (status) return status;
  struct nonzero_job job = {model, tensor_of(model, site), out, NULL};
  job.rows = mem_alloc((size_t)parallel_threads(), (size_t)out->cols * sizeof *job.rows, err);
  if (!job.rows) {
    mask_matrix_free(out);
    return STATUS_FAILED;
  }
  parallel_for(out->rows, mark_row, &job);
  mem_free(job.rows);
  return STATUS_OK;
}

/* What the tile map of a packed linear says. */
static void read_packed(const struct hybrid_matrix *h, struct inspected_linear *out) {
  const struct mask_matrix shape = {.rows = h->rows,
                                    .cols = h->cols,
                                    .tile_rows = h->tile_rows,
                                    .tile_cols = h->tile_cols,
                                    .keep = 2,
                                    .of = 4};
  out->tiles_dense = out->tiles_sparse = out->kept = 0;
  for (int64_t t = 0; t < mask_tile_count(&shape); t++) {
    const bool dense = hybrid_tile_dense(h, t);
    out->tiles_dense += dense;
    out->tiles_sparse += !dense;
    out->kept += dense ? mask_tile_area(&shape, t) : mask_tile_kept_sparse(&shape, t);
  }
  const char *pattern = !out->tiles_sparse ? "dense" : out->tiles_dense ? "hybrid" : "2:4";
  snprintf(out->pattern, sizeof out->pattern, "%s", pattern);
}

/* A quantized linear without a mask has no tiles, but is known to be dense. */
static void read_integers(const struct quant_matrix *q, struct inspected_linear *out) {
  const struct hybrid_matrix tiles = quant_tiles(q);
  if (q->tile_map) {
    read_packed(&tiles, out);
    return;
  }
  strcpy(out->pattern, "dense");
  out->kept = q->rows * q->cols;
}

static enum status scan_linear(const struct model *model, int site, int64_t tile,
                               struct inspected_linear *out, struct error *err) {
  struct mask_matrix bits;
  struct detection found;
  enum status status = inspect_nonzero(model, site, &bits, err);
  if (status) return status;
  detect_zeros(&bits, tile, tile, &found);
  mask_matrix_free(&bits);
  out->nonzero = found.nonzero;
  const struct linear_weight *w = &model_site(model, site)->weight;
  if (w->hybrid || w->integers) return STATUS_OK; /* its tile map is known */
  const bool tiled = found.pattern == ZEROS_2_4 || found.pattern == ZEROS_HYBRID;
  zero_pattern_name(&found, out->pattern);
  out->kept = found.kept;
  out->tiles_dense = tiled || found.pattern == ZEROS_NONE ? found.tiles_dense : -1;
  out->tiles_sparse = tiled || found.pattern == ZEROS_NONE ? found.tiles_sparse : -1;
  return STATUS_OK;
}

/* --- the model --- */

static enum status inspect_linear(const struct model *model, int site, bool scan, int64_t tile,
                                  struct inspected_linear *out, struct error *err) {
  const struct linear_site *s = model_site(model, site);
  *out = (struct inspected_linear){.name = s->name,
                                   .rows = linear_rows(&s->weight),
                                   .cols = linear_cols(&s->weight),
                                   .tiles_dense = -1,
                                   .tiles_sparse = -1,
                                   .kept = -1,
                                   .nonzero = -1};
  if (s->weight.hybrid) read_packed(s->weight.hybrid, out);
  if (s->weight.integers) read_integers(s->weight.integers, out);
  return scan ? scan_linear(model, site, tile, out, err) : STATUS_OK;
}

/* Linears of a packed model that are not packed were left dense. */
static void settle_dense(struct inspection *out) {
  bool packed = false;
  for (int i = 0; i < out->count; i++) packed |= out->linears[i].kept >= 0;
  for (int i = 0; i < out->count && packed; i++) {
    struct inspected_linear *l = &out->linears[i];
    if (l->kept >= 0) continue;
    strcpy(l->pattern, "dense");
    l->kept = l->rows * l->cols;
  }
}

static void sum_up(struct inspection *out) {
  for (int i = 0; i < out->count; i++) {
    const struct inspected_linear *l = &out->linears[i];
    out->linear_parameters += l->rows * l->cols;
    out->kept = out->kept < 0 || l->kept < 0 ? -1 : out->kept + l->kept;
    out->nonzero = out->nonzero < 0 || l->nonzero < 0 ? -1 : out->nonzero + l->nonzero;
  }
}

enum status inspect_model(struct inspection *out, const struct model *model, bool scan,
                          int64_t tile, struct error *err) {
  struct progress progress = {0};
  enum status status = STATUS_OK;
  *out =
      (struct inspection){.count = model_site_count(model), .parameters = model_parameters(model)};
  out->linears = mem_alloc((size_t)out->count, sizeof *out->linears, err);
  if (!out->linears) return STATUS_FAILED;
  if (scan) progress_begin(&progress, "scanning", "linears", out->count);
  for (int i = 0; i < out->count && !status; i++) {
    status = interrupt_check(err);
    if (!status) status = inspect_linear(model, i, scan, tile, &out->linears[i], err);
    if (scan) progress_add(&progress, 1);
  }
  if (scan) progress_end(&progress);
  if (status) {
    inspection_free(out);
    return status;
  }
  settle_dense(out);
  sum_up(out);
  return STATUS_OK;
}

void inspection_free(struct inspection *i) {
  mem_free(i->linears);
  *i = (struct inspection){0};
}

/* --- masks from weights --- */

static bool has_sparse_tile(const struct mask_matrix *m) {
  for (int64_t t = 0; t < mask_tile_count(m); t++)
    if (!m->tiles[t]) return true;
  return false;
}

static enum status site_mask(const struct model *model, int site, int64_t tile,
                             struct mask_matrix *out, struct error *err) {
  const struct linear_site *s = model_site(model, site);
  struct mask_matrix bits;
  enum status status;
  const struct hybrid_matrix *h = s->weight.hybrid;
  const struct hybrid_matrix tiles =
      s->weight.integers ? quant_tiles(s->weight.integers) : (struct hybrid_matrix){0};
  if (tiles.tile_map) h = &tiles;
  if (h) {
    status = hybrid_check(h, s->name, err);
    return status ? status : hybrid_mask(h, s->name, out, err);
  }
  status = inspect_nonzero(model, site, &bits, err);
  if (status) return status;
  status = detect_tiles(&bits, tile, tile, out, err);
  mask_matrix_free(&bits);
  return status;
}

enum status inspect_masks(const struct model *model, int64_t tile, bool may_be_none,
                          struct mask_set *out, struct error *err) {
  enum status status = STATUS_OK;
  *out = (struct mask_set){0};
  for (int i = 0; i < model_site_count(model) && !status; i++) {
    struct mask_matrix m = {0};
    status = interrupt_check(err);
    if (!status) status = site_mask(model, i, tile, &m, err);
    const bool packed = linear_is_hybrid(&model_site(model, i)->weight);
    const bool keep = packed || (!status && has_sparse_tile(&m));
    if (!status && keep) status = mask_set_add(out, &m, err);
    mask_matrix_free(&m);
  }
  if (!status && !out->count && !may_be_none)
    status = error_set(err, STATUS_REFUSED,
                       "no linear of %s has a 2:4 tile of %lld x %lld; give --mask, or another "
                       "--tile",
                       model_path(model), (long long)tile, (long long)tile);
  if (status) mask_set_free(out);
  return status;
}
