/* Structure from bits. Owns nothing; the tile in question is walked group by group. */
#include "sparse/detect.h"

#include <stdio.h>

#include "sparse/hybrid.h"

/* The kept positions of a group as a nibble of bits, position 0 lowest. */
static unsigned group_bits(const struct mask_matrix *bits, int64_t row, int64_t group) {
  const uint8_t byte = bits->bits[row * mask_bit_stride(bits) + group / 2];
  return group % 2 ? byte >> 4 : byte & 15;
}

struct tile_facts {
  int64_t nonzero, area;
  bool pairs;       /* no group has more than two */
  bool exact_pairs; /* every group has two, or its width where that is less */
};

static struct tile_facts look_at_tile(const struct mask_matrix *bits, struct tile_box box) {
  struct tile_facts facts = {.area = box.rows * box.cols, .pairs = true, .exact_pairs = true};
  for (int64_t r = box.row; r < box.row + box.rows; r++)
    for (int64_t c = box.col; c < box.col + box.cols; c += 4) {
      const int count = __builtin_popcount(group_bits(bits, r, c / 4));
      const int64_t width = mask_group_width(bits, c / 4);
      facts.nonzero += count;
      facts.pairs &= count <= 2;
      facts.exact_pairs &= count == (width < 2 ? width : 2);
    }
  return facts;
}

static bool is_sparse(const struct tile_facts *facts) {
  return facts->pairs && facts->nonzero < facts->area;
}

static struct hybrid_matrix tiling(const struct mask_matrix *bits, int64_t tile_rows,
                                   int64_t tile_cols) {
  return (struct hybrid_matrix){
      .rows = bits->rows, .cols = bits->cols, .tile_rows = tile_rows, .tile_cols = tile_cols};
}

/* The most positions that any group of `of` columns has. */
static int most_in_groups(const struct mask_matrix *bits, int of) {
  int most = 0;
  for (int64_t r = 0; r < bits->rows; r++)
    for (int64_t c = 0; c < bits->cols; c += of) {
      int count = 0;
      for (int64_t i = c; i < c + of && i < bits->cols; i++) count += mask_bit(bits, r, i);
      if (count > most) most = count;
    }
  return most;
}

static void detect_n_m(const struct mask_matrix *bits, struct detection *out) {
  static const int lengths[] = {2, 4, 8, 16, 32};
  out->pattern = ZEROS_UNSTRUCTURED;
  for (int i = 0; i < 5; i++) {
    const int most = most_in_groups(bits, lengths[i]);
    if (most == 0 || most > lengths[i] / 2) continue;
    out->pattern = ZEROS_N_M;
    out->keep = most;
    out->of = lengths[i];
    return;
  }
}

void detect_zeros(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                  struct detection *out) {
  const struct hybrid_matrix h = tiling(bits, tile_rows, tile_cols);
  const int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  const struct mask_matrix shape = {.rows = bits->rows,
                                    .cols = bits->cols,
                                    .tile_rows = tile_rows,
                                    .tile_cols = tile_cols,
                                    .keep = 2,
                                    .of = 4};
  *out = (struct detection){0};
  for (int64_t t = 0; t < tiles; t++) {
    const struct tile_facts facts = look_at_tile(bits, hybrid_tile_box(&h, t));
    const bool sparse = is_sparse(&facts);
    out->nonzero += facts.nonzero;
    out->tiles_sparse += sparse;
    out->tiles_dense += !sparse;
    out->kept += sparse ? mask_tile_kept_sparse(&shape, t) : facts.area;
  }
  if (out->tiles_sparse) {
    out->pattern = out->tiles_dense ? ZEROS_HYBRID : ZEROS_2_4;
    return;
  }
  const int64_t area = bits->rows * bits->cols;
  out->kept = area;
  if (20 * (area - out->nonzero) < area) return;
  detect_n_m(bits, out);
  out->kept = out->nonzero;
}

const char *zero_pattern_name(const struct detection *d, char text[16]) {
  static const char *const names[] = {"dense", "2:4", "hybrid", "", "unstructured"};
  if (d->pattern == ZEROS_N_M)
    snprintf(text, 16, "%d:%d", d->keep, d->of);
  else
    snprintf(text, 16, "%s", names[d->pattern]);
  return text;
}

/* Code of a group that keeps these positions (at most two), and the leftmost others where there are
 * fewer than two. A group of one column gets 1100, whose second position does not exist. */
static uint8_t code_of(unsigned group) {
  for (unsigned bit = 1; __builtin_popcount(group) < 2; bit <<= 1) group |= bit;
  const unsigned rest = group & (group - 1);
  return (uint8_t)(__builtin_ctz(group) | __builtin_ctz(rest) << 2);
}

static void fill_codes(const struct mask_matrix *bits, struct tile_box box,
                       struct mask_matrix *out) {
  for (int64_t r = box.row; r < box.row + box.rows; r++)
    for (int64_t g = box.col / 4; 4 * g < box.col + box.cols; g++)
      mask_set_code(out, r, g, code_of(group_bits(bits, r, g)));
}

enum status detect_hybrid(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                          struct mask_matrix *out, bool *fits, struct error *err) {
  const struct hybrid_matrix h = tiling(bits, tile_rows, tile_cols);
  enum status status =
      mask_matrix_init_hybrid(out, bits->name, bits->rows, bits->cols, tile_rows, tile_cols, err);
  if (status) return status;
  *fits = true;
  for (int64_t t = 0; t < mask_tile_count(out) && *fits; t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const struct tile_facts facts = look_at_tile(bits, box);
    out->tiles[t] = facts.nonzero == facts.area;
    *fits = out->tiles[t] || facts.exact_pairs;
    if (*fits && !out->tiles[t]) fill_codes(bits, box, out);
  }
  if (!*fits) mask_matrix_free(out);
  return STATUS_OK;
}

enum status detect_tiles(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                         struct mask_matrix *out, struct error *err) {
  const struct hybrid_matrix h = tiling(bits, tile_rows, tile_cols);
  enum status status =
      mask_matrix_init_hybrid(out, bits->name, bits->rows, bits->cols, tile_rows, tile_cols, err);
  if (status) return status;
  for (int64_t t = 0; t < mask_tile_count(out); t++) {
    const struct tile_box box = hybrid_tile_box(&h, t);
    const struct tile_facts facts = look_at_tile(bits, box);
    out->tiles[t] = !is_sparse(&facts);
    if (!out->tiles[t]) fill_codes(bits, box, out);
  }
  return STATUS_OK;
}
