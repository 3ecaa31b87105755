/* Two matrices as one, and the order by columns: what kernels want of the form beyond its bytes. */
#include <string.h>

#include "base/mem.h"
#include "sparse/fragments.h"

/* The strips of `from`, behind those that `to` has already. */
static void append(struct fragment_matrix *to, const struct fragment_matrix *from) {
  const size_t strips = (size_t)from->strips, tiles = strips * (size_t)from->tiles_per_strip;
  for (size_t s = 0; s < strips; s++) {
    to->strip[to->strips + (int64_t)s] = from->strip[s];
    to->strip[to->strips + (int64_t)s].offset += to->tile_bytes;
  }
  memcpy(to->columns + to->strips * to->tiles_per_strip, from->columns,
         tiles * sizeof *to->columns);
  memcpy(to->tiles + to->tile_bytes, from->tiles, from->tile_bytes);
  if (to->row_scales && from->row_scales)
    memcpy(to->row_scales + to->strips * FRAGMENT_STRIP_ROWS, from->row_scales,
           strips * FRAGMENT_STRIP_ROWS * sizeof *to->row_scales);
  to->rows = to->strips * FRAGMENT_STRIP_ROWS + from->rows;
  to->strips += from->strips;
  to->tile_bytes += from->tile_bytes;
}

enum status fragment_join(struct fragment_matrix *out, const struct fragment_matrix *first,
                          const struct fragment_matrix *second, struct error *err) {
  const size_t strips = (size_t)(first->strips + second->strips);
  struct fragment_matrix f = {
      .cols = first->cols, .tiles_per_strip = first->tiles_per_strip, .form = first->form};
  INVARIANT(first->cols == second->cols);
  INVARIANT(first->form.kind == second->form.kind && first->form.scales == second->form.scales &&
            first->form.mins == second->form.mins);
  f.strip = mem_alloc(strips, sizeof *f.strip, err);
  f.columns = mem_alloc(strips * (size_t)f.tiles_per_strip, sizeof *f.columns, err);
  f.tiles = mem_alloc(first->tile_bytes + second->tile_bytes, 1, err);
  if (first->row_scales)
    f.row_scales = mem_alloc(strips * FRAGMENT_STRIP_ROWS, sizeof *f.row_scales, err);
  if (!f.strip || !f.columns || !f.tiles || (first->row_scales && !f.row_scales)) {
    fragment_release(&f);
    return STATUS_FAILED;
  }
  append(&f, first);
  append(&f, second);
  *out = f;
  return STATUS_OK;
}

enum status fragment_order(const struct fragment_matrix *f, uint32_t *out, struct error *err) {
  if (f->tile_bytes / FRAGMENT_OFFSET_UNIT > INT32_MAX)
    return error_set(err, STATUS_REFUSED, "a matrix of %zu bytes has no order by columns",
                     f->tile_bytes);
  for (int64_t row = 0; row < fragment_order_strips(f); row++) {
    const int64_t s = row < f->strips ? row : f->strips - 1;
    for (int64_t i = 0; i < f->tiles_per_strip; i++) {
      const int64_t column = f->columns[s * f->tiles_per_strip + i];
      const uint64_t unit = fragment_tile_offset(f, s, i) / FRAGMENT_OFFSET_UNIT;
      out[row * f->tiles_per_strip + column] =
          (uint32_t)(unit << 1) | (i < (int64_t)f->strip[s].sparse_tiles);
    }
  }
  return STATUS_OK;
}
