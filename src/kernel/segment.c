/* Pieces of a stored row as fp32, whatever the matrix is stored as: what packing reads. */
#include "base/error.h"
#include "kernel/product.h"
#include "kernel/select.h"

enum { GROUP = 4, BLOCK_MOST = 256 };

static const void *element(const void *base, enum dtype dtype, int64_t index) {
  return (const char *)base + index * (dtype == DTYPE_F32 ? 4 : 2);
}

/* Columns [col, col + count) of row `row` of a 2:4 tile, both counted from its corner. */
static void sparse_segment(const struct hybrid_matrix *h, int64_t tile, const struct tile_box *box,
                           int64_t row, int64_t col, int64_t count, float *out) {
  int64_t groups = (box->cols + GROUP - 1) / GROUP;
  int64_t first = row * groups + col / GROUP;
  const void *values = element(h->values, h->dtype, h->tile_offset[tile] + 2 * first);
  const uint8_t *codes = h->codes + h->code_offset[tile];
  int64_t lead = col % GROUP;
  if (lead) { /* the segment begins inside a group */
    float group[GROUP];
    int64_t width = lead + count < GROUP ? lead + count : GROUP;
    kernel_table()->expand_groups(h->dtype, values, codes, first, width, group);
    memcpy(out, group + lead, (size_t)(width - lead) * sizeof(float));
    out += width - lead;
    count -= width - lead;
    values = element(values, h->dtype, 2);
    first++;
  }
  if (count) kernel_table()->expand_groups(h->dtype, values, codes, first, count, out);
}

static void hybrid_segment(const struct hybrid_matrix *h, int64_t row, int64_t col, int64_t count,
                           float *out) {
  while (count > 0) {
    int64_t tile = row / h->tile_rows * hybrid_tile_cols(h) + col / h->tile_cols;
    struct tile_box box = hybrid_tile_box(h, tile);
    int64_t inner = col - box.col, length = box.cols - inner;
    if (length > count) length = count;
    if (hybrid_tile_dense(h, tile)) {
      int64_t index = h->tile_offset[tile] + (row - box.row) * box.cols + inner;
      kernel_table()->widen(h->dtype, element(h->dense, h->dtype, index), length, out);
    } else {
      sparse_segment(h, tile, &box, row - box.row, inner, length, out);
    }
    col += length;
    count -= length;
    out += length;
  }
}

/* Whole blocks around the columns are expanded; those at the ends on the side. */
static void block_segment(const struct gemm_operand *plain, int64_t row, int64_t col, int64_t count,
                          float *out) {
  const struct dtype_traits *t = dtype_traits(plain->dtype);
  const int64_t length = t->block_length, end = col + count;
  const uint8_t *blocks =
      (const uint8_t *)plain->data + row * (plain->ld / length) * (int64_t)t->block_bytes;
  float block[BLOCK_MOST];
  INVARIANT(length <= BLOCK_MOST);
  for (int64_t at = col; at < end;) {
    const int64_t inner = at % length, left = length - inner < end - at ? length - inner : end - at;
    const uint8_t *from = blocks + at / length * t->block_bytes;
    if (left == length) {
      dtype_to_f32(plain->dtype, from, length, out);
    } else {
      dtype_to_f32(plain->dtype, from, length, block);
      memcpy(out, block + inner, (size_t)left * sizeof *out);
    }
    at += left;
    out += left;
  }
}

const float *operand_segment(const struct product_operand *op, int64_t row, int64_t col,
                             int64_t count, float *buffer) {
  if (op->quant) {
    quant_strips_row(op->quant, row, col, count, buffer);
    return buffer;
  }
  if (op->strips) {
    strips_row(op->strips, row, col, count, buffer);
    return buffer;
  }
  if (op->hybrid) {
    hybrid_segment(op->hybrid, row, col, count, buffer);
    return buffer;
  }
  if (op->integers) {
    quant_columns(op->integers, row, col, count, buffer);
    return buffer;
  }
  const struct gemm_operand *plain = &op->plain;
  if (!dtype_is_native(plain->dtype)) {
    block_segment(plain, row, col, count, buffer);
    return buffer;
  }
  const void *source = element(plain->data, plain->dtype, row * plain->ld + col);
  if (plain->dtype == DTYPE_F32) return source;
  kernel_table()->widen(plain->dtype, source, count, buffer);
  return buffer;
}

bool operand_panel(const struct product_operand *op, int64_t first, int64_t count, int64_t width,
                   int64_t k0, int64_t k, float *out) {
  const int64_t chunk = op->quant ? QUANT_CHUNK_COLS : STRIP_COLS;
  if (!op->strips && !op->quant) return false;
  if (first % STRIP_ROWS || width % STRIP_ROWS || k0 % chunk) return false;
  for (int64_t r = 0; r < width; r += STRIP_ROWS)
    if (r < count && op->quant)
      kernel_table()->quant.expand(op->quant, (first + r) / STRIP_ROWS, k0 / chunk, k, width,
                                   out + r);
    else if (r < count)
      kernel_table()->strip_expand(op->strips, (first + r) / STRIP_ROWS, k0 / chunk, k, width,
                                   out + r);
    else
      for (int64_t i = 0; i < k; i++) memset(out + i * width + r, 0, STRIP_ROWS * sizeof(float));
  return true;
}
