/* One matrix's mask: its memory, and what follows from its tiles and codes.
 *
 * Owns nothing but the arrays of the matrices that it is handed. What may surprise: ragged edges.
 * The last tile of a row or column may be smaller, and the last group of a row narrower than four;
 * such a group keeps min(2, width) positions, and everything here counts only positions that
 * exist. */
#include "sparse/mask.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

const uint8_t sparse_candidate_code[SPARSE_CANDIDATES] = {0x4, 0x8, 0xC, 0x9, 0xD, 0xE};
const float sparse_candidate_table[SPARSE_CANDIDATES][4] = {
    {1, 1, 0, 0}, {1, 0, 1, 0}, {1, 0, 0, 1}, {0, 1, 1, 0}, {0, 1, 0, 1}, {0, 0, 1, 1}};

int sparse_code_candidate(uint8_t nibble) {
  for (int i = 0; i < SPARSE_CANDIDATES; i++)
    if (sparse_candidate_code[i] == nibble) return i;
  return -1;
}

bool sparse_code_fits(uint8_t nibble, int64_t width) {
  if (sparse_code_candidate(nibble) < 0) return false;
  return width == 1 ? nibble == sparse_candidate_code[0] : nibble >> 2 < width;
}

enum status sparse_check_shape(const char *name, int64_t rows, int64_t cols, int64_t tile_rows,
                               int64_t tile_cols, struct error *err) {
  if (rows < 1 || cols < 1 || rows > SPARSE_DIMENSION_MAX || cols > SPARSE_DIMENSION_MAX)
    return error_set(err, STATUS_REFUSED,
                     "%s: shape %lld x %lld is outside 1 to %d; the file is damaged", name,
                     (long long)rows, (long long)cols, SPARSE_DIMENSION_MAX);
  if (tile_rows < 1 || tile_cols < 4 || tile_cols % 4 || tile_rows > SPARSE_TILE_MAX ||
      tile_cols > SPARSE_TILE_MAX)
    return error_set(err, STATUS_REFUSED,
                     "%s: tile %lld x %lld is not usable; both sides must be 1 to %d and the "
                     "columns a multiple of 4",
                     name, (long long)tile_rows, (long long)tile_cols, SPARSE_TILE_MAX);
  return STATUS_OK;
}

enum status sparse_check_pattern(const char *name, int64_t keep, int64_t of, int64_t tile_cols,
                                 struct error *err) {
  if (of < 2 || of > SPARSE_GROUP_MAX || keep < 1 || keep >= of || (keep == 2 && of == 4))
    return error_set(err, STATUS_REFUSED,
                     "%s: a tiled mask of %lld:%lld is not usable; n:m is other than 2:4, with n < "
                     "m <= %d",
                     name, (long long)keep, (long long)of, SPARSE_GROUP_MAX);
  if (tile_cols % of)
    return error_set(err, STATUS_REFUSED,
                     "%s: tiles of %lld columns do not hold whole groups of %lld", name,
                     (long long)tile_cols, (long long)of);
  return STATUS_OK;
}

static enum status init_common(struct mask_matrix *m, const char *name, enum mask_kind kind,
                               int64_t rows, int64_t cols, struct error *err) {
  *m = (struct mask_matrix){.kind = kind, .rows = rows, .cols = cols};
  m->name = mem_strdup(name, err);
  return m->name ? STATUS_OK : STATUS_FAILED;
}

enum status mask_matrix_init_hybrid(struct mask_matrix *m, const char *name, int64_t rows,
                                    int64_t cols, int64_t tile_rows, int64_t tile_cols,
                                    struct error *err) {
  *m = (struct mask_matrix){0};
  enum status status = sparse_check_shape(name, rows, cols, tile_rows, tile_cols, err);
  if (status) return status;
  status = init_common(m, name, MASK_HYBRID, rows, cols, err);
  if (status) return status;
  m->tile_rows = tile_rows;
  m->tile_cols = tile_cols;
  m->keep = 2;
  m->of = 4;
  m->tiles = mem_alloc((size_t)mask_tile_count(m), 1, err);
  m->codes = mem_alloc((size_t)rows, (size_t)mask_code_stride(m), err);
  if (!m->tiles || !m->codes) {
    mask_matrix_free(m);
    return STATUS_FAILED;
  }
  const int64_t groups = mask_group_count(m), stride = mask_code_stride(m);
  memset(m->codes, 0x44, (size_t)(rows * stride));
  if (groups % 2)
    for (int64_t r = 0; r < rows; r++) m->codes[r * stride + stride - 1] = 0x04;
  return STATUS_OK;
}

/* The first `keep` of every group. */
static void keep_first(struct mask_matrix *m) {
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t c = 0; c < m->cols; c++) mask_set_bit(m, r, c, c % m->of < m->keep);
}

enum status mask_matrix_init_tiled(struct mask_matrix *m, const char *name, int64_t rows,
                                   int64_t cols, int64_t tile_rows, int64_t tile_cols, int keep,
                                   int of, struct error *err) {
  *m = (struct mask_matrix){0};
  enum status status = sparse_check_shape(name, rows, cols, tile_rows, tile_cols, err);
  if (!status) status = sparse_check_pattern(name, keep, of, tile_cols, err);
  if (!status) status = init_common(m, name, MASK_TILED, rows, cols, err);
  if (status) return status;
  m->tile_rows = tile_rows;
  m->tile_cols = tile_cols;
  m->keep = keep;
  m->of = of;
  m->tiles = mem_alloc((size_t)mask_tile_count(m), 1, err);
  m->bits = mem_alloc((size_t)rows, (size_t)mask_bit_stride(m), err);
  if (!m->tiles || !m->bits) {
    mask_matrix_free(m);
    return STATUS_FAILED;
  }
  keep_first(m);
  return STATUS_OK;
}

enum status mask_matrix_init_bits(struct mask_matrix *m, const char *name, int64_t rows,
                                  int64_t cols, struct error *err) {
  *m = (struct mask_matrix){0};
  enum status status = sparse_check_shape(name, rows, cols, 1, 4, err);
  if (status) return status;
  status = init_common(m, name, MASK_BITS, rows, cols, err);
  if (status) return status;
  m->bits = mem_alloc((size_t)rows, (size_t)mask_bit_stride(m), err);
  if (!m->bits) mask_matrix_free(m);
  return m->bits ? STATUS_OK : STATUS_FAILED;
}

enum status mask_matrix_add_scores(struct mask_matrix *m, struct error *err) {
  INVARIANT(mask_has_tiles(m));
  if (m->tile_scores) return STATUS_OK;
  m->tile_scores = mem_alloc((size_t)mask_tile_count(m), sizeof(float), err);
  return m->tile_scores ? STATUS_OK : STATUS_FAILED;
}

enum status mask_matrix_copy(struct mask_matrix *to, const struct mask_matrix *from,
                             struct error *err) {
  enum status status;
  if (from->kind == MASK_BITS) {
    status = mask_matrix_init_bits(to, from->name, from->rows, from->cols, err);
    if (status) return status;
    memcpy(to->bits, from->bits, (size_t)(from->rows * mask_bit_stride(from)));
    return STATUS_OK;
  }
  const bool hybrid = from->kind == MASK_HYBRID;
  status = hybrid ? mask_matrix_init_hybrid(to, from->name, from->rows, from->cols, from->tile_rows,
                                            from->tile_cols, err)
                  : mask_matrix_init_tiled(to, from->name, from->rows, from->cols, from->tile_rows,
                                           from->tile_cols, from->keep, from->of, err);
  if (status) return status;
  if (from->tile_scores) {
    status = mask_matrix_add_scores(to, err);
    if (status) {
      mask_matrix_free(to);
      return status;
    }
    memcpy(to->tile_scores, from->tile_scores, (size_t)mask_tile_count(from) * sizeof(float));
  }
  memcpy(to->tiles, from->tiles, (size_t)mask_tile_count(from));
  mask_copy_groups(to, from);
  return STATUS_OK;
}

void mask_copy_groups(struct mask_matrix *to, const struct mask_matrix *from) {
  INVARIANT(to->kind == from->kind && to->rows == from->rows && to->cols == from->cols);
  memcpy(mask_groups(to), mask_groups(from), mask_groups_bytes(from));
}

void mask_matrix_free(struct mask_matrix *m) {
  free(m->name);
  mem_free(m->tiles);
  mem_free(m->codes);
  mem_free(m->bits);
  mem_free(m->tile_scores);
  *m = (struct mask_matrix){0};
}

/* The four positions of a code as floats, cut to the columns that exist: out (width). */
static void expand_code(uint8_t code, int64_t width, float *out) {
  for (int64_t i = 0; i < width; i++) out[i] = i == (code & 3) || i == code >> 2;
}

/* Whether a mask with bits keeps an entry. */
static bool kept_bit(const struct mask_matrix *m, int64_t row, int64_t col) {
  return mask_bit(m, row, col) || (m->kind == MASK_TILED && mask_tile_dense(m, row, col));
}

static void hybrid_mask_row(const struct mask_matrix *m, int64_t row, float *out) {
  const uint8_t *tiles = m->tiles + row / m->tile_rows * mask_tile_col_count(m);
  const int64_t groups = mask_group_count(m), tile_groups = m->tile_cols / 4;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t width = mask_group_width(m, g);
    if (tiles[g / tile_groups])
      for (int64_t i = 0; i < width; i++) out[4 * g + i] = 1;
    else
      expand_code(mask_code(m, row, g), width, out + 4 * g);
  }
}

void mask_row(const struct mask_matrix *m, int64_t row, float *out) {
  if (m->kind == MASK_HYBRID)
    hybrid_mask_row(m, row, out);
  else
    for (int64_t c = 0; c < m->cols; c++) out[c] = kept_bit(m, row, c);
}

static void apply_group(uint8_t code, int64_t width, const float *w, float *out) {
  for (int64_t i = 0; i < width; i++) out[i] = i == (code & 3) || i == code >> 2 ? w[i] : 0.0f;
}

void mask_apply(const struct mask_matrix *m, const float *w, float *out) {
  for (int64_t r = 0; r < m->rows; r++, w += m->cols, out += m->cols) {
    if (m->kind != MASK_HYBRID) {
      for (int64_t c = 0; c < m->cols; c++) out[c] = kept_bit(m, r, c) ? w[c] : 0.0f;
      continue;
    }
    for (int64_t c = 0; c < m->cols; c += 4) {
      const int64_t width = mask_group_width(m, c / 4);
      if (mask_tile_dense(m, r, c))
        memmove(out + c, w + c, (size_t)width * sizeof(float));
      else
        apply_group(mask_code(m, r, c / 4), width, w + c, out + c);
    }
  }
}

enum status mask_check_groups(const struct mask_matrix *m, int keep, int of, struct error *err) {
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t c = 0; c < m->cols; c += of) {
      const int64_t end = c + of < m->cols ? c + of : m->cols;
      const int64_t wanted = end - c < keep ? end - c : keep;
      int64_t count = 0;
      for (int64_t i = c; i < end; i++) count += mask_bit(m, r, i);
      if (count != wanted)
        return error_set(
            err, STATUS_REFUSED, "%s: row %lld, columns from %lld keep %lld where %d:%d keeps %lld",
            m->name, (long long)r, (long long)c, (long long)count, keep, of, (long long)wanted);
    }
  return STATUS_OK;
}

struct extent {
  int64_t rows, cols;
};
static struct extent tile_extent(const struct mask_matrix *m, int64_t tile) {
  const int64_t per_row = mask_tile_col_count(m);
  const int64_t rows = m->rows - tile / per_row * m->tile_rows;
  const int64_t cols = m->cols - tile % per_row * m->tile_cols;
  return (struct extent){rows < m->tile_rows ? rows : m->tile_rows,
                         cols < m->tile_cols ? cols : m->tile_cols};
}

int64_t mask_tile_area(const struct mask_matrix *m, int64_t tile) {
  const struct extent e = tile_extent(m, tile);
  return e.rows * e.cols;
}

int64_t mask_tile_kept_sparse(const struct mask_matrix *m, int64_t tile) {
  const struct extent e = tile_extent(m, tile);
  const int64_t rest = e.cols % m->of;
  return e.rows * (e.cols / m->of * m->keep + (rest < m->keep ? rest : m->keep));
}

int64_t mask_kept(const struct mask_matrix *m) {
  int64_t kept = 0;
  if (m->kind == MASK_BITS) {
    const int64_t bytes = m->rows * mask_bit_stride(m);
    for (int64_t i = 0; i < bytes; i++) kept += __builtin_popcount(m->bits[i]);
    return kept;
  }
  const int64_t tiles = mask_tile_count(m);
  for (int64_t t = 0; t < tiles; t++)
    kept += m->tiles[t] ? mask_tile_area(m, t) : mask_tile_kept_sparse(m, t);
  return kept;
}
