/* The packed form of a hybrid matrix: how large it is, where each tile lies, in and out of it.
 *
 * Owns only the two offset tables of hybrid_index. What may surprise: values are copied, never
 * judged. A kept -0.0 or NaN stays what it is, an all-zero group is stored like any other, and a
 * position past the right edge takes a stored zero that nothing reads back. */
#include "sparse/hybrid.h"

#include <string.h>

#include "base/mem.h"

enum { CHUNK_GROUPS = 64 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

enum status hybrid_measure(int64_t rows, int64_t cols, int64_t tile_rows, int64_t tile_cols,
                           enum dtype dtype, const uint8_t *tile_map, struct hybrid_sizes *out,
                           struct error *err) {
  enum status status = sparse_check_shape("hybrid matrix", rows, cols, tile_rows, tile_cols, err);
  if (status) return status;
  /* Within the limits of shapes all counts fit in 63 bits: 2^24 x 2^24 elements of 8 bytes. */
  const struct hybrid_matrix h = {.rows = rows,
                                  .cols = cols,
                                  .tile_rows = tile_rows,
                                  .tile_cols = tile_cols,
                                  .tile_map = tile_map};
  const int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  *out = (struct hybrid_sizes){.map_bytes = (size_t)(tiles + 7) / 8};
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const int64_t groups = box.rows * ((box.cols + 3) / 4);
    if (hybrid_tile_dense(&h, t)) {
      out->dense_tiles++;
      out->dense_count += box.rows * box.cols;
    } else {
      out->values_count += 2 * groups;
      out->codes_bytes += (size_t)(groups + 1) / 2;
    }
  }
  if (!dtype_bytes(dtype, (uint64_t)out->dense_count, &out->dense_bytes) ||
      !dtype_bytes(dtype, (uint64_t)out->values_count, &out->values_bytes))
    return error_set(err, STATUS_REFUSED, "a hybrid matrix of %lld x %lld does not fit in memory",
                     (long long)rows, (long long)cols);
  return STATUS_OK;
}

enum status hybrid_index(struct hybrid_matrix *h, struct error *err) {
  const int64_t tiles = hybrid_tile_rows(h) * hybrid_tile_cols(h);
  h->tile_offset = mem_alloc((size_t)tiles, sizeof *h->tile_offset, err);
  h->code_offset = mem_alloc((size_t)tiles, sizeof *h->code_offset, err);
  if (!h->tile_offset || !h->code_offset) {
    hybrid_release(h);
    return STATUS_FAILED;
  }
  int64_t dense = 0, values = 0, codes = 0;
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_box box = hybrid_tile_box(h, t);
    const int64_t groups = box.rows * ((box.cols + 3) / 4);
    h->code_offset[t] = codes;
    if (hybrid_tile_dense(h, t)) {
      h->tile_offset[t] = dense;
      dense += box.rows * box.cols;
    } else {
      h->tile_offset[t] = values;
      values += 2 * groups;
      codes += (groups + 1) / 2;
    }
  }
  return STATUS_OK;
}

void hybrid_release(struct hybrid_matrix *h) {
  mem_free(h->tile_offset);
  mem_free(h->code_offset);
  h->tile_offset = h->code_offset = NULL;
}

/* --- packing --- */

/* Where the next element of each array goes. */
struct pack_cursor {
  uint8_t *dense, *values, *codes;
  size_t element_bytes;
  enum dtype dtype;
};

static void pack_dense_tile(struct pack_cursor *to, const float *w, int64_t cols,
                            struct tile_box box) {
  for (int64_t r = 0; r < box.rows; r++) {
    dtype_from_f32(to->dtype, w + (box.row + r) * cols + box.col, box.cols, to->dense);
    to->dense += (size_t)box.cols * to->element_bytes;
  }
}

/* The two stored values of one group: w (width) in the matrix, pair (2). */
static void pack_group(uint8_t code, const float *w, int64_t width, float *pair) {
  const int first = code & 3, second = code >> 2;
  pair[0] = first < width ? w[first] : 0.0f;
  pair[1] = second < width ? w[second] : 0.0f;
}

static void pack_sparse_row(struct pack_cursor *to, const struct mask_matrix *mask, const float *w,
                            int64_t row, struct tile_box box) {
  const int64_t groups = (box.cols + 3) / 4;
  float pairs[2 * CHUNK_GROUPS];
  for (int64_t g = 0; g < groups; g += CHUNK_GROUPS) {
    const int64_t count = smaller(CHUNK_GROUPS, groups - g);
    for (int64_t i = 0; i < count; i++) {
      const int64_t group = box.col / 4 + g + i;
      pack_group(mask_code(mask, row, group), w + row * mask->cols + 4 * group,
                 mask_group_width(mask, group), pairs + 2 * i);
    }
    dtype_from_f32(to->dtype, pairs, 2 * count, to->values);
    to->values += (size_t)(2 * count) * to->element_bytes;
  }
}

static void pack_codes(struct pack_cursor *to, const struct mask_matrix *mask,
                       struct tile_box box) {
  const int64_t groups = (box.cols + 3) / 4, count = box.rows * groups;
  memset(to->codes, 0, (size_t)(count + 1) / 2);
  for (int64_t i = 0; i < count; i++) {
    const uint8_t code = mask_code(mask, box.row + i / groups, box.col / 4 + i % groups);
    to->codes[i / 2] |= (uint8_t)(i % 2 ? code << 4 : code);
  }
  to->codes += (count + 1) / 2;
}

void hybrid_pack(const struct mask_matrix *mask, const float *w, enum dtype dtype,
                 uint8_t *tile_map, void *dense, void *values, uint8_t *codes) {
  INVARIANT(mask->kind == MASK_HYBRID && dtype_is_native(dtype));
  const struct hybrid_matrix h = {.rows = mask->rows,
                                  .cols = mask->cols,
                                  .tile_rows = mask->tile_rows,
                                  .tile_cols = mask->tile_cols};
  const int64_t tiles = mask_tile_count(mask);
  struct pack_cursor to = {dense, values, codes, (size_t)dtype_traits(dtype)->block_bytes, dtype};
  if (tile_map) memset(tile_map, 0, (size_t)(tiles + 7) / 8);
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    if (mask->tiles[t]) {
      if (tile_map) tile_map[t / 8] |= (uint8_t)(1u << (t % 8));
      if (dense) pack_dense_tile(&to, w, mask->cols, box);
      continue;
    }
    for (int64_t r = 0; r < box.rows && values; r++)
      pack_sparse_row(&to, mask, w, box.row + r, box);
    if (codes) pack_codes(&to, mask, box);
  }
}

/* --- and back --- */

static void expand_sparse_row(const struct hybrid_matrix *h, int64_t tile, int64_t row,
                              int64_t cols, float *out) {
  const int64_t groups = (cols + 3) / 4;
  const size_t element_bytes = (size_t)dtype_traits(h->dtype)->block_bytes;
  const uint8_t *values = (const uint8_t *)h->values +
                          (size_t)(h->tile_offset[tile] + 2 * row * groups) * element_bytes;
  float pairs[2 * CHUNK_GROUPS];
  memset(out, 0, (size_t)cols * sizeof *out);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t i = g % CHUNK_GROUPS;
    if (i == 0)
      dtype_to_f32(h->dtype, values + (size_t)(2 * g) * element_bytes,
                   2 * smaller(CHUNK_GROUPS, groups - g), pairs);
    const uint8_t code = hybrid_code(h, tile, row, groups, g);
    const int64_t first = 4 * g + (code & 3), second = 4 * g + (code >> 2);
    if (first < cols) out[first] = pairs[2 * i];
    if (second < cols) out[second] = pairs[2 * i + 1];
  }
}

void hybrid_row(const struct hybrid_matrix *h, int64_t row, float *out) {
  const int64_t per_row = hybrid_tile_cols(h), first = row / h->tile_rows * per_row;
  const size_t element_bytes = (size_t)dtype_traits(h->dtype)->block_bytes;
  for (int64_t t = first; t < first + per_row; t++) {
    const struct tile_box box = hybrid_tile_box(h, t);
    const int64_t inner = row - box.row;
    if (hybrid_tile_dense(h, t))
      dtype_to_f32(h->dtype,
                   (const uint8_t *)h->dense +
                       (size_t)(h->tile_offset[t] + inner * box.cols) * element_bytes,
                   box.cols, out + box.col);
    else
      expand_sparse_row(h, t, inner, box.cols, out + box.col);
  }
}

enum status hybrid_mask(const struct hybrid_matrix *h, const char *name, struct mask_matrix *out,
                        struct error *err) {
  enum status status =
      mask_matrix_init_hybrid(out, name, h->rows, h->cols, h->tile_rows, h->tile_cols, err);
  if (status) return status;
  const int64_t tiles = mask_tile_count(out);
  for (int64_t t = 0; t < tiles; t++) {
    out->tiles[t] = hybrid_tile_dense(h, t);
    if (out->tiles[t]) continue;
    const struct tile_box box = hybrid_tile_box(h, t);
    const int64_t groups = (box.cols + 3) / 4;
    for (int64_t r = 0; r < box.rows; r++)
      for (int64_t g = 0; g < groups; g++)
        mask_set_code(out, box.row + r, box.col / 4 + g, hybrid_code(h, t, r, groups, g));
  }
  return STATUS_OK;
}

/* --- checking --- */

static enum status check_tile(const struct hybrid_matrix *h, const char *name, int64_t tile,
                              struct error *err) {
  const struct tile_box box = hybrid_tile_box(h, tile);
  const int64_t groups = (box.cols + 3) / 4, count = box.rows * groups;
  for (int64_t i = 0; i < count; i++) {
    const int64_t r = i / groups, g = i % groups;
    const uint8_t code = hybrid_code(h, tile, r, groups, g);
    if (!sparse_code_fits(code, smaller(4, box.cols - 4 * g)))
      return error_set(err, STATUS_REFUSED,
                       "%s: row %lld, columns from %lld: %u is no 2:4 code; the file is damaged",
                       name, (long long)box.row + r, (long long)box.col + 4 * g, code);
  }
  if (count % 2 && h->codes[h->code_offset[tile] + count / 2] >> 4)
    return error_set(err, STATUS_REFUSED, "%s: padding of tile %lld is not zero", name,
                     (long long)tile);
  return STATUS_OK;
}

enum status hybrid_check(const struct hybrid_matrix *h, const char *name, struct error *err) {
  const int64_t tiles = hybrid_tile_rows(h) * hybrid_tile_cols(h);
  if (tiles % 8 && h->tile_map[tiles / 8] >> (tiles % 8))
    return error_set(err, STATUS_REFUSED, "%s: padding of the tile map is not zero", name);
  for (int64_t t = 0; t < tiles; t++) {
    if (hybrid_tile_dense(h, t)) continue;
    enum status status = check_tile(h, name, t, err);
    if (status) return status;
  }
  return STATUS_OK;
}
