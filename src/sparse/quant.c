/* Quantized matrices as they lie in files: how large they are, where each tile lies, back to fp32.
 * Owns only the two offset tables of quant_index. What may surprise: the integers of a 2:4 tile are
 * its kept weights alone, but scales are those of all columns, so a kept weight finds its scale by
 * its column. */
#include "sparse/quant.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

enum { PIECE = 128 }; /* columns expanded at a time */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

const char *quant_type_name(enum quant_type type) { return type == QUANT_I8 ? "int8" : "int4"; }

/* Integers that a tile of `count` of them takes, what rounds it up to bytes included. */
static int64_t tile_integers(enum quant_type type, int64_t count) {
  return type == QUANT_I4 ? (count + 1) / 2 * 2 : count;
}

static size_t integer_bytes(enum quant_type type, int64_t count) {
  return (size_t)(type == QUANT_I4 ? count / 2 : count);
}

enum status quant_measure(const struct quant_matrix *q, struct quant_sizes *out,
                          struct error *err) {
  enum status status =
      sparse_check_shape("quantized matrix", q->rows, q->cols, q->tile_rows, q->tile_cols, err);
  if (status) return status;
  if (q->group < 0 || q->group > SPARSE_DIMENSION_MAX || q->group % QUANT_GROUP)
    return error_set(err, STATUS_REFUSED,
                     "a quantized matrix with a scale for %lld columns: multiples of %d are read",
                     (long long)q->group, QUANT_GROUP);
  /* Within the limits of shapes all counts fit in 63 bits, as in hybrid_measure. */
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  int64_t dense = 0, values = 0;
  *out = (struct quant_sizes){.scales = q->rows * quant_groups(q)};
  if (q->tile_map) out->map_bytes = (size_t)(tiles + 7) / 8;
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const int64_t groups = box.rows * ((box.cols + 3) / 4);
    if (quant_tile_dense(q, t)) {
      dense += tile_integers(q->type, box.rows * box.cols);
    } else {
      values += 2 * groups;
      out->codes_bytes += (size_t)(groups + 1) / 2;
    }
  }
  out->dense_bytes = integer_bytes(q->type, dense);
  out->values_bytes = integer_bytes(q->type, values);
  return STATUS_OK;
}

enum status quant_index(struct quant_matrix *q, struct error *err) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  q->tile_offset = mem_alloc((size_t)tiles, sizeof *q->tile_offset, err);
  q->code_offset = mem_alloc((size_t)tiles, sizeof *q->code_offset, err);
  if (!q->tile_offset || !q->code_offset) {
    quant_release(q);
    return STATUS_FAILED;
  }
  int64_t dense = 0, values = 0, codes = 0;
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const int64_t groups = box.rows * ((box.cols + 3) / 4);
    q->code_offset[t] = codes;
    if (quant_tile_dense(q, t)) {
      q->tile_offset[t] = dense;
      dense += tile_integers(q->type, box.rows * box.cols);
    } else {
      q->tile_offset[t] = values;
      values += 2 * groups;
      codes += (groups + 1) / 2;
    }
  }
  return STATUS_OK;
}

void quant_release(struct quant_matrix *q) {
  mem_free(q->tile_offset);
  mem_free(q->code_offset);
  q->tile_offset = q->code_offset = NULL;
}

/* --- back to fp32 --- */

/* What columns up to `end` of a row share. */
struct scaling {
  float scale, min;
  bool mins;
  int zero;
  int64_t end;
};

static struct scaling scaling_of(const struct quant_matrix *q, int64_t row, int64_t col) {
  struct scaling s = {.zero = quant_zero(q->type), .mins = q->mins != NULL, .end = q->cols};
  if (!q->group) {
    s.scale = q->row_scales[row];
    return s;
  }
  const int64_t at = row * quant_groups(q) + col / q->group;
  s.scale = f16_to_f32(q->scales[at]);
  if (q->mins) s.min = f16_to_f32(q->mins[at]);
  s.end = (col / q->group + 1) * q->group;
  return s;
}

/* In ggml's order of operations, so that what came from its blocks has its bits. */
static float weight_of(const struct scaling *s, int integer) {
  return s->mins ? s->scale * (float)integer + s->min : s->scale * (float)(integer - s->zero);
}

/* Columns [col, col + count) of row `row` of tile `tile`, all counted from the matrix's corner. */
static void dense_integers(const struct quant_matrix *q, int64_t tile, const struct tile_box *box,
                           int64_t row, int64_t col, int64_t count, int16_t *out) {
  const int64_t first = q->tile_offset[tile] + (row - box->row) * box->cols - box->col;
  for (int64_t c = col; c < col + count; c++)
    out[c - col] = (int16_t)quant_integer(q->type, q->dense, first + c);
}

static void sparse_integers(const struct quant_matrix *q, int64_t tile, const struct tile_box *box,
                            int64_t row, int64_t col, int64_t count, int16_t *out) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t groups = (box->cols + 3) / 4, inner = row - box->row, end = col + count;
  for (int64_t i = 0; i < count; i++) out[i] = QUANT_DROPPED;
  for (int64_t g = (col - box->col) / 4; box->col + 4 * g < end; g++) {
    const uint8_t code = hybrid_code(&h, tile, inner, groups, g);
    const int64_t first = q->tile_offset[tile] + 2 * (inner * groups + g);
    const int64_t kept[2] = {box->col + 4 * g + (code & 3), box->col + 4 * g + (code >> 2)};
    for (int i = 0; i < 2; i++)
      if (kept[i] >= col && kept[i] < end)
        out[kept[i] - col] = (int16_t)quant_integer(q->type, q->values, first + i);
  }
}

void quant_integers(const struct quant_matrix *q, int64_t row, int64_t col, int64_t count,
                    int16_t *out) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t first = row / q->tile_rows * hybrid_tile_cols(&h), end = col + count;
  for (int64_t at = col, width; at < end; at += width, out += width) {
    const int64_t tile = first + at / q->tile_cols;
    const struct tile_box box = hybrid_tile_box(&h, tile);
    width = smaller(end, box.col + box.cols) - at;
    if (quant_tile_dense(q, tile))
      dense_integers(q, tile, &box, row, at, width, out);
    else
      sparse_integers(q, tile, &box, row, at, width, out);
  }
}

void quant_columns(const struct quant_matrix *q, int64_t row, int64_t col, int64_t count,
                   float *out) {
  int16_t integers[PIECE] = {0};
  for (int64_t at = col, end = col + count, width; at < end; at += width, out += width) {
    const struct scaling s = scaling_of(q, row, at);
    width = smaller(smaller(PIECE, end - at), s.end - at);
    quant_integers(q, row, at, width, integers);
    for (int64_t i = 0; i < width; i++)
      out[i] = integers[i] == QUANT_DROPPED ? 0 : weight_of(&s, integers[i]);
  }
}

/* --- checking --- */

static enum status check_scales(const struct quant_matrix *q, const char *name, struct error *err) {
  const int64_t groups = quant_groups(q);
  for (int64_t i = 0; i < q->rows * groups; i++) {
    const float scale = q->group ? f16_to_f32(q->scales[i]) : q->row_scales[i];
    if (!isfinite(scale) || (q->mins && !isfinite(f16_to_f32(q->mins[i]))))
      return error_set(err, STATUS_REFUSED,
                       "%s: row %lld, columns from %lld have a scale that is not finite; the file "
                       "is damaged",
                       name, (long long)(i / groups), (long long)(i % groups) * q->group);
  }
  return STATUS_OK;
}

/* The nibble behind the last one of a dense tile of an odd number of weights. */
static enum status check_padding(const struct quant_matrix *q, const char *name,
                                 struct error *err) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  for (int64_t t = 0; t < tiles && q->type == QUANT_I4; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const int64_t count = box.rows * box.cols;
    if (quant_tile_dense(q, t) && count % 2 &&
        quant_integer(q->type, q->dense, q->tile_offset[t] + count))
      return error_set(err, STATUS_REFUSED, "%s: padding of tile %lld is not zero", name,
                       (long long)t);
  }
  return STATUS_OK;
}

enum status quant_check(const struct quant_matrix *q, const char *name, struct error *err) {
  const struct hybrid_matrix h = quant_tiles(q);
  enum status status = q->tile_map ? hybrid_check(&h, name, err) : STATUS_OK;
  if (!status) status = check_padding(q, name, err);
  return status ? status : check_scales(q, name, err);
}
