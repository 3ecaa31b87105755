/* Whole matrices: rows become integers and scales, then the integers go where their tiles have
 * them. See quantize.h. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "sparse/quantize.h"
#include "tensor/block_integers.h"

enum { ALIGNMENT = 64, NIBBLE_MOST = 15 };

bool quant_form_of_blocks(enum dtype dtype, struct quant_form *out) {
  const enum block_integers_kind kind = block_integers_kind(dtype);
  *out = (struct quant_form){.type = kind == BLOCK_INTEGERS_I8 ? QUANT_I8 : QUANT_I4,
                             .group = QUANT_GROUP,
                             .mins = block_integers_mins(dtype)};
  return kind != BLOCK_INTEGERS_NONE;
}

struct making {
  const struct quant_form *form;
  const struct mask_matrix *mask;
  const struct quant_source *source;
  struct quant_matrix *q;
  uint16_t *scales, *mins;
  float *row_scales;
  uint8_t *integers; /* (rows, cols), one a byte; those of dropped weights are not looked at */
  uint8_t *dense, *values;
  float *rows; /* (threads, 3, cols): the row, what is kept of it, a group's kept weights */
  uint8_t *group_integers; /* (threads, cols) */
  _Atomic int64_t bad_row; /* the first whose weights cannot be quantized, or -1 */
};

/* --- rows --- */

/* Columns [col, col + count) of a row, which share a scale. */
static bool quantize_columns(const struct making *k, int64_t row, int64_t col, int64_t count,
                             float *room, uint8_t *kept_integers) {
  const int64_t cols = k->q->cols;
  const float *w = room, *keep = room + cols;
  float *kept = room + 2 * cols, scale, min;
  uint8_t *out = k->integers + row * cols;
  int64_t n = 0, at = 0;
  for (int64_t c = col; c < col + count; c++)
    if (!k->mask || keep[c] != 0) kept[n++] = w[c];
  if (isnan(quantize_group(k->form, true, kept, n, kept_integers, &scale, &min))) return false;
  for (int64_t c = col; c < col + count; c++)
    if (!k->mask || keep[c] != 0) out[c] = kept_integers[at++];
  if (!k->form->group) {
    k->row_scales[row] = scale;
    return true;
  }
  const int64_t g = row * quant_groups(k->q) + col / k->form->group;
  k->scales[g] = f16_from_f32(scale);
  if (k->mins) k->mins[g] = f16_from_f32(min);
  return true;
}

static void quantize_row(void *ctx, int64_t row, int worker) {
  struct making *k = ctx;
  const int64_t cols = k->q->cols, groups = quant_groups(k->q);
  const int64_t group = k->form->group ? k->form->group : cols;
  if (k->source->blocks) {
    block_integers(k->source->dtype, k->source->blocks(k->source->ctx, row), cols,
                   k->integers + row * cols, k->scales + row * groups,
                   k->mins ? k->mins + row * groups : NULL);
    return;
  }
  float *room = k->rows + (int64_t)worker * 3 * cols;
  k->source->row(k->source->ctx, row, room);
  if (k->mask) mask_row(k->mask, row, room + cols);
  for (int64_t c = 0; c < cols; c += group) {
    if (quantize_columns(k, row, c, cols - c < group ? cols - c : group, room,
                         k->group_integers + worker * cols))
      continue;
    int64_t first = atomic_load(&k->bad_row);
    while ((first < 0 || first > row) && !atomic_compare_exchange_weak(&k->bad_row, &first, row))
      continue;
    return;
  }
}

/* --- tiles --- */

static void put(enum quant_type type, uint8_t *base, int64_t index, uint8_t integer) {
  if (type == QUANT_I8)
    base[index] = integer;
  else
    base[index / 2] |= (uint8_t)(integer << index % 2 * 4);
}

static void place_dense(const struct making *k, int64_t tile, const struct tile_box *box) {
  int64_t at = k->q->tile_offset[tile];
  for (int64_t r = box->row; r < box->row + box->rows; r++)
    for (int64_t c = box->col; c < box->col + box->cols; c++)
      put(k->q->type, k->dense, at++, k->integers[r * k->q->cols + c]);
}

/* Positions past the right edge take zero bits. */
static void place_sparse(const struct making *k, int64_t tile, const struct tile_box *box) {
  int64_t at = k->q->tile_offset[tile];
  for (int64_t r = box->row; r < box->row + box->rows; r++)
    for (int64_t c = box->col; c < box->col + box->cols; c += 4) {
      const uint8_t code = mask_code(k->mask, r, c / 4);
      const int64_t kept[2] = {c + (code & 3), c + (code >> 2)};
      for (int i = 0; i < 2; i++)
        put(k->q->type, k->values, at++,
            kept[i] < k->q->cols ? k->integers[r * k->q->cols + kept[i]] : 0);
    }
}

static void place_tile(void *ctx, int64_t tile, int worker) {
  const struct making *k = ctx;
  const struct hybrid_matrix h = quant_tiles(k->q);
  const struct tile_box box = hybrid_tile_box(&h, tile);
  (void)worker;
  if (quant_tile_dense(k->q, tile))
    place_dense(k, tile, &box);
  else
    place_sparse(k, tile, &box);
}

/* --- the matrix --- */

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* One allocation for all arrays; the tile map is there already and moves into it. */
static enum status allocate(struct quant_owned *out, struct making *k, struct error *err) {
  struct quant_matrix *q = &out->matrix;
  enum status status = quant_measure(q, &out->sizes, err);
  if (status) return status;
  const struct quant_sizes *s = &out->sizes;
  const size_t count = (size_t)s->scales, scale_bytes = count * (k->form->group ? 2 : 4);
  const size_t mins_bytes = k->form->mins ? 2 * count : 0;
  const size_t bytes = aligned(scale_bytes) + aligned(mins_bytes) + aligned(s->dense_bytes) +
                       aligned(s->values_bytes) + aligned(s->codes_bytes) + aligned(s->map_bytes);
  uint8_t *at = out->memory = mem_alloc(bytes, 1, err);
  if (!at) return STATUS_FAILED;
  if (k->form->group)
    q->scales = k->scales = (uint16_t *)(void *)at;
  else
    q->row_scales = k->row_scales = (float *)(void *)at;
  at += aligned(scale_bytes);
  if (k->form->mins) q->mins = k->mins = (uint16_t *)(void *)at;
  at += aligned(mins_bytes);
  q->dense = k->dense = at;
  at += aligned(s->dense_bytes);
  q->values = k->values = at;
  at += aligned(s->values_bytes);
  q->codes = at;
  uint8_t *map = at + aligned(s->codes_bytes);
  if (k->mask) {
    hybrid_pack(k->mask, NULL, DTYPE_BF16, map, NULL, NULL, at);
    q->tile_map = map;
  }
  return quant_index(q, err);
}

static enum status make(struct quant_owned *out, struct making *k, const char *name,
                        struct error *err) {
  struct quant_matrix *q = &out->matrix;
  const size_t threads = (size_t)parallel_threads(), cols = (size_t)q->cols;
  enum status status = allocate(out, k, err);
  if (status) return status;
  k->integers = mem_alloc((size_t)q->rows, cols, err);
  k->rows = mem_alloc(threads * 3, cols * sizeof *k->rows, err);
  k->group_integers = mem_alloc(threads, cols, err);
  if (!k->integers || !k->rows || !k->group_integers) return STATUS_FAILED;
  parallel_for(q->rows, quantize_row, k);
  const int64_t bad = atomic_load(&k->bad_row);
  if (bad >= 0)
    return error_set(err, STATUS_REFUSED,
                     "%s: row %lld cannot be quantized: a weight is not finite, or too large for "
                     "a scale",
                     name, (long long)bad);
  const struct hybrid_matrix h = quant_tiles(q);
  parallel_for(hybrid_tile_rows(&h) * hybrid_tile_cols(&h), place_tile, k);
  return quant_check(q, name, err); /* scales that were taken over may be anything */
}

enum status quant_make(struct quant_owned *out, const struct quant_form *form,
                       const struct mask_matrix *mask, int64_t rows, int64_t cols,
                       const struct quant_source *source, const char *name, struct error *err) {
  struct making k = {
      .form = form, .mask = mask, .source = source, .q = &out->matrix, .bad_row = -1};
  uint8_t *map = NULL;
  INVARIANT(!mask || (mask->kind == MASK_HYBRID && mask->rows == rows && mask->cols == cols));
  INVARIANT(!form->mins || (form->type == QUANT_I4 && form->group));
  *out = (struct quant_owned){
      .matrix = {.rows = rows, .cols = cols, .type = form->type, .group = form->group}};
  quant_whole_tile(rows, cols, &out->matrix.tile_rows, &out->matrix.tile_cols);
  enum status status = STATUS_OK;
  if (mask) {
    out->matrix.tile_rows = mask->tile_rows;
    out->matrix.tile_cols = mask->tile_cols;
    map = mem_alloc((size_t)(mask_tile_count(mask) + 7) / 8, 1, err);
    if (!map) return STATUS_FAILED;
    hybrid_pack(mask, NULL, DTYPE_BF16, map, NULL, NULL, NULL);
    out->matrix.tile_map = map; /* for measuring; allocate puts another in its place */
  }
  status = make(out, &k, name, err);
  mem_free(map);
  mem_free(k.integers);
  mem_free(k.rows);
  mem_free(k.group_integers);
  if (status) quant_owned_free(out);
  return status;
}

/* --- without a mask --- */

struct filling {
  const struct quant_matrix *from;
  struct making *to;
  int16_t *rows; /* (threads, cols) */
};

static uint8_t integer_of_zero(const struct quant_matrix *q, int64_t row, int64_t col) {
  if (!q->mins) return (uint8_t)quant_zero(q->type);
  const int64_t at = row * quant_groups(q) + col / q->group;
  const float scale = f16_to_f32(q->scales[at]), min = f16_to_f32(q->mins[at]);
  const float q0 = scale != 0 ? -min / scale : 0;
  return (uint8_t)(q0 > 0 ? q0 < NIBBLE_MOST ? q0 + 0.5f : NIBBLE_MOST : 0);
}

static void fill_row(void *ctx, int64_t row, int worker) {
  const struct filling *f = ctx;
  const int64_t cols = f->from->cols;
  int16_t *integers = f->rows + worker * cols;
  quant_integers(f->from, row, 0, cols, integers);
  for (int64_t c = 0; c < cols; c++)
    f->to->integers[row * cols + c] =
        integers[c] == QUANT_DROPPED ? integer_of_zero(f->from, row, c) : (uint8_t)integers[c];
}

enum status quant_make_dense(struct quant_owned *out, const struct quant_matrix *from,
                             struct error *err) {
  const struct quant_form form = {from->type, from->group, from->mins != NULL};
  struct making k = {.form = &form, .q = &out->matrix};
  struct filling f = {from, &k, NULL};
  *out = (struct quant_owned){
      .matrix = {.rows = from->rows, .cols = from->cols, .type = from->type, .group = from->group}};
  quant_whole_tile(from->rows, from->cols, &out->matrix.tile_rows, &out->matrix.tile_cols);
  enum status status = allocate(out, &k, err);
  if (!status) {
    const size_t scales = (size_t)out->sizes.scales;
    k.integers = mem_alloc((size_t)from->rows, (size_t)from->cols, err);
    f.rows = mem_alloc((size_t)parallel_threads(), (size_t)from->cols * sizeof *f.rows, err);
    if (!k.integers || !f.rows) status = STATUS_FAILED;
    if (k.scales) memcpy(k.scales, from->scales, scales * sizeof *k.scales);
    if (k.mins) memcpy(k.mins, from->mins, scales * sizeof *k.mins);
    if (k.row_scales) memcpy(k.row_scales, from->row_scales, scales * sizeof *k.row_scales);
  }
  if (!status) {
    parallel_for(from->rows, fill_row, &f);
    const struct hybrid_matrix h = quant_tiles(&out->matrix);
    parallel_for(hybrid_tile_rows(&h) * hybrid_tile_cols(&h), place_tile, &k);
  }
  mem_free(k.integers);
  mem_free(f.rows);
  if (status) quant_owned_free(out);
  return status;
}

void quant_owned_free(struct quant_owned *q) {
  quant_release(&q->matrix);
  mem_free(q->memory);
  *q = (struct quant_owned){0};
}
