/* Measured costs: see cost.h. No state. */
#include "learn/cost.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernel/linear.h"

enum { ROUNDS = 9, TILE = 128, COPIES_MOST = 1024 };
/* Beyond the last-level cache of most processors, and little enough to allocate. */
static const double WALK_BYTES = 192.0 * 1024 * 1024;
static const double PICOSECONDS = 1e12;
static const uint16_t BF16_ONE = 0x3f80;

/* --- one shape --- */

struct walk {
  int64_t rows, cols;
  int copies;
  struct strip_matrix *dense, *sparse; /* (copies) */
  float *x, *y;                        /* (cols), (rows) */
};

static void walk_release(struct walk *w) {
  for (int i = 0; i < w->copies; i++) {
    if (w->dense) strips_release(&w->dense[i]);
    if (w->sparse) strips_release(&w->sparse[i]);
  }
  mem_free(w->dense);
  mem_free(w->sparse);
  mem_free(w->x);
  mem_free(w->y);
}

/* The all-2:4 matrix that the sparse copies are made from: ones, kept at the first two of four. */
static enum status pack_ones(struct hybrid_matrix *h, const struct walk *w, uint8_t **memory,
                             struct error *err) {
  struct hybrid_sizes sizes;
  int64_t tiles = ((w->rows + TILE - 1) / TILE) * ((w->cols + TILE - 1) / TILE);
  *h = (struct hybrid_matrix){w->rows, w->cols, TILE, TILE, .dtype = DTYPE_BF16};
  size_t map_bytes = (size_t)(tiles + 7) / 8;
  size_t most = map_bytes + 64 + (size_t)(w->rows * (w->cols + 4)) * 2;
  *memory = mem_alloc(most, 1, err);
  if (!*memory) return STATUS_FAILED;
  h->tile_map = *memory;
  enum status status =
      hybrid_measure(w->rows, w->cols, TILE, TILE, DTYPE_BF16, h->tile_map, &sizes, err);
  if (status) return status;
  uint16_t *values = (uint16_t *)(void *)(*memory + (map_bytes + 63) / 64 * 64);
  uint8_t *codes = (uint8_t *)(values + sizes.values_count);
  for (int64_t i = 0; i < sizes.values_count; i++) values[i] = BF16_ONE;
  memset(codes, sparse_candidate_code[0] | sparse_candidate_code[0] << 4, sizes.codes_bytes);
  h->dense = h->values = values;
  h->codes = codes;
  return hybrid_index(h, err);
}

static enum status fill_copies(struct walk *w, bool sparse, struct error *err) {
  struct hybrid_matrix h = {0};
  uint8_t *packed = NULL;
  uint16_t *ones = mem_alloc((size_t)(w->rows * w->cols), sizeof *ones, err);
  enum status status = ones ? STATUS_OK : STATUS_FAILED;
  for (int64_t i = 0; ones && i < w->rows * w->cols; i++) ones[i] = BF16_ONE;
  const struct matrix_view plain = {ones, DTYPE_BF16, w->rows, w->cols};
  if (!status && sparse) status = pack_ones(&h, w, &packed, err);
  for (int i = 0; i < w->copies && !status; i++) {
    status = strips_from_dense(&w->dense[i], &plain, err);
    if (!status && sparse) status = strips_from_hybrid(&w->sparse[i], &h, err);
  }
  hybrid_release(&h);
  mem_free(packed);
  mem_free(ones);
  return status;
}

static enum status walk_init(struct walk *w, int64_t rows, int64_t cols, bool sparse,
                             struct error *err) {
  double copies = ceil(WALK_BYTES / (2.0 * (double)rows * (double)cols));
  *w = (struct walk){
      .rows = rows, .cols = cols, .copies = copies > COPIES_MOST ? COPIES_MOST : (int)copies};
  w->dense = mem_alloc((size_t)w->copies, sizeof *w->dense, err);
  w->sparse = mem_alloc((size_t)w->copies, sizeof *w->sparse, err);
  w->x = mem_alloc((size_t)cols, sizeof *w->x, err);
  w->y = mem_alloc((size_t)rows, sizeof *w->y, err);
  if (!w->dense || !w->sparse || !w->x || !w->y) return STATUS_FAILED;
  for (int64_t i = 0; i < cols; i++) w->x[i] = 1;
  return fill_copies(w, sparse, err);
}

/* Seconds of one product, from a walk over all copies. */
static double time_walk(struct walk *w, const struct strip_matrix *copies) {
  double start = clock_seconds();
  for (int i = 0; i < w->copies; i++) {
    const struct linear_weight weight = {.strips = &copies[i]};
    linear_forward(&weight, NULL, w->x, 1, PRECISION_FP32, w->y);
  }
  return (clock_seconds() - start) / w->copies;
}

/* The fastest of some walks: whatever else the machine does only adds to what a product takes. */
static enum status measure_shape(struct cost_shape *shape, bool sparse, struct error *err) {
  struct walk walk;
  double dense_s = INFINITY, sparse_s = INFINITY;
  enum status status = walk_init(&walk, shape->rows, shape->cols, sparse, err);
  for (int round = 0; round < ROUNDS && !status; round++) {
    dense_s = fmin(dense_s, time_walk(&walk, walk.dense));
    if (sparse) sparse_s = fmin(sparse_s, time_walk(&walk, walk.sparse));
  }
  walk_release(&walk);
  if (status) return status;
  shape->dense_ps = llround(dense_s * PICOSECONDS);
  shape->sparse_ps = sparse ? llround(sparse_s * PICOSECONDS) : 0;
  return STATUS_OK;
}

/* --- the table --- */

const struct cost_shape *cost_of_shape(const struct cost_table *table, int64_t rows, int64_t cols) {
  for (int i = 0; i < table->count; i++)
    if (table->shapes[i].rows == rows && table->shapes[i].cols == cols) return &table->shapes[i];
  return NULL;
}

static const struct cost_shape *cost_of_site(const struct cost_table *table,
                                             const struct model *model, int site) {
  const struct linear_weight *w = &model_site(model, site)->weight;
  return cost_of_shape(table, linear_rows(w), linear_cols(w));
}

enum status cost_measure(struct cost_table *out, const struct model *model, struct error *err) {
  *out = (struct cost_table){0};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    struct cost_shape shape = {.rows = linear_rows(w), .cols = linear_cols(w)};
    if (cost_of_shape(out, shape.rows, shape.cols)) continue;
    if (out->count == COST_SHAPES_MAX)
      return error_set(err, STATUS_REFUSED, "%s has matrices of more than %d shapes",
                       model_path(model), COST_SHAPES_MAX);
    enum status status = measure_shape(&shape, true, err);
    if (status) return status;
    log_debug("%lld x %lld: dense %.2f us, 2:4 %.2f us", (long long)shape.rows,
              (long long)shape.cols, (double)shape.dense_ps / 1e6, (double)shape.sparse_ps / 1e6);
    out->shapes[out->count++] = shape;
  }
  const struct linear_weight *head = model_head(model);
  struct cost_shape shape = {.rows = linear_rows(head), .cols = linear_cols(head)};
  enum status status = measure_shape(&shape, false, err);
  out->head_ps = shape.dense_ps;
  return status;
}

double cost_saved_per_weight(const struct cost_shape *shape) {
  int64_t saved = shape->dense_ps - shape->sparse_ps;
  return saved > 0 ? (double)saved / ((double)shape->rows * (double)shape->cols / 2) : 0;
}

int64_t cost_dense_ps(const struct cost_table *table, const struct model *model) {
  int64_t sum = table->head_ps;
  for (int i = 0; i < model_site_count(model); i++) sum += cost_of_site(table, model, i)->dense_ps;
  return sum;
}

int64_t cost_sparse_ps(const struct cost_table *table, const struct model *model,
                       const bool *skip) {
  int64_t sum = table->head_ps;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct cost_shape *s = cost_of_site(table, model, i);
    sum += skip[i] || s->sparse_ps > s->dense_ps ? s->dense_ps : s->sparse_ps;
  }
  return sum;
}

/* --- as JSON --- */

json_t *cost_to_json(const struct cost_table *table) {
  json_t *shapes = json_array();
  for (int i = 0; i < table->count; i++) {
    const struct cost_shape *s = &table->shapes[i];
    json_array_append_new(
        shapes,
        json_pack("{s:I, s:I, s:I, s:I}", "rows", (json_int_t)s->rows, "cols", (json_int_t)s->cols,
                  "dense_ps", (json_int_t)s->dense_ps, "sparse_ps", (json_int_t)s->sparse_ps));
  }
  json_t *out = json_pack("{s:o, s:I}", "shapes", shapes, "head_ps", (json_int_t)table->head_ps);
  INVARIANT(out);
  return out;
}

static bool read_ps(const json_t *object, const char *key, int64_t *out) {
  return json_get_int(object, key, out, NULL) && *out > 0 && *out < (int64_t)1 << 50;
}

enum status cost_from_json(struct cost_table *out, const json_t *json, const struct model *model,
                           const char *what, struct error *err) {
  const json_t *shapes = json_object_get(json, "shapes"), *item;
  size_t index;
  *out = (struct cost_table){0};
  bool good = json_array_size(shapes) <= COST_SHAPES_MAX && read_ps(json, "head_ps", &out->head_ps);
  json_array_foreach(shapes, index, item) {
    if (!good) break;
    struct cost_shape *s = &out->shapes[out->count++];
    good = json_get_int(item, "rows", &s->rows, NULL) &&
           json_get_int(item, "cols", &s->cols, NULL) && read_ps(item, "dense_ps", &s->dense_ps) &&
           read_ps(item, "sparse_ps", &s->sparse_ps);
  }
  for (int i = 0; i < model_site_count(model) && good; i++)
    good = cost_of_site(out, model, i) != NULL;
  if (good) return STATUS_OK;
  return error_set(err, STATUS_REFUSED, "%s holds no table of costs for this model", what);
}
