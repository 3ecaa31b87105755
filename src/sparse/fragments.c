/* Into the fragment-major form and back: see fragments.h.
 *
 * A row of the matrix meets one row of one row block in every tile of its strip, so the packer
 * takes rows one by one: the row expanded to fp32, plus its codes, give every byte that belongs to
 * it. What may surprise: the two values of a group are looked up in the expanded row at the places
 * that its code names, so the packer never sees in which form the source keeps them. */
#include "sparse/fragments.h"

#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "sparse/fragments_internal.h"

enum { CODE_PADDING = 4 };

struct source {
  const struct hybrid_matrix *tiles;  /* kinds of tiles and codes; NULL: all are dense */
  const struct quant_matrix *quant;   /* where the weights are; NULL: */
  const struct hybrid_matrix *hybrid; /* NULL: view */
  struct matrix_view view;
};

/* The row block of `row` (in its strip) within step `step` of a tile. */
static size_t block_offset(struct fragment_form form, bool sparse, int64_t step, int64_t row) {
  const size_t step_bytes = fragment_step_bytes(form, sparse);
  return (size_t)step * step_bytes +
         (size_t)(row / FRAGMENT_BLOCK_ROWS) * (step_bytes / FRAGMENT_BLOCKS);
}

/* --- one row of one step --- */

/* w (64), codes (16) */
static void put_sparse(uint8_t *block, int64_t row, const float *w, const uint8_t *codes) {
  uint8_t *values = block + FRAGMENT_META_BYTES;
  for (int64_t quarter = 0; quarter < QUARTERS; quarter++) {
    uint16_t meta = 0;
    for (int64_t g = 0; g < 4; g++) {
      const int64_t group = 4 * quarter + g;
      const uint8_t code = codes[group];
      meta |= (uint16_t)(code << (4 * g));
      uint8_t *fragment = values + group / 8 * FRAGMENT_BYTES;
      store16(fragment, fragment_index(row, group % 8 * 2),
              bf16_from_f32(w[4 * group + (code & 3)]));
      store16(fragment, fragment_index(row, group % 8 * 2 + 1),
              bf16_from_f32(w[4 * group + (code >> 2)]));
    }
    store16(block, meta_index(row, quarter), meta);
  }
}

static void get_sparse(const uint8_t *block, int64_t row, float *w) {
  const uint8_t *values = block + FRAGMENT_META_BYTES;
  memset(w, 0, FRAGMENT_STEP_COLS * sizeof *w);
  for (int64_t group = 0; group < FRAGMENT_STEP_COLS / 4; group++) {
    const unsigned code = load16(block, meta_index(row, group / 4)) >> (group % 4 * 4) & 15;
    const uint8_t *fragment = values + group / 8 * FRAGMENT_BYTES;
    for (int64_t i = 0; i < 2; i++)
      w[4 * group + (int64_t)(i ? code >> 2 : code & 3)] =
          bf16_to_f32(load16(fragment, fragment_index(row, group % 8 * 2 + i)));
  }
}

static void put_dense(uint8_t *block, int64_t row, const float *w) {
  for (int64_t c = 0; c < FRAGMENT_STEP_COLS; c++)
    store16(block + c / 16 * FRAGMENT_BYTES, fragment_index(row, c % 16), bf16_from_f32(w[c]));
}

static void get_dense(const uint8_t *block, int64_t row, float *w) {
  for (int64_t c = 0; c < FRAGMENT_STEP_COLS; c++)
    w[c] = bf16_to_f32(load16(block + c / 16 * FRAGMENT_BYTES, fragment_index(row, c % 16)));
}

/* --- the source --- */

static void source_row(const struct source *source, int64_t row, float *out) {
  const struct matrix_view *view = &source->view;
  if (source->hybrid) {
    hybrid_row(source->hybrid, row, out);
    return;
  }
  const size_t row_bytes = (size_t)view->cols * (size_t)dtype_traits(view->dtype)->block_bytes;
  dtype_to_f32(view->dtype, (const uint8_t *)view->data + (size_t)row * row_bytes, view->cols, out);
}

/* Codes of the row's groups of four columns; those of dense tiles say nothing. */
static void hybrid_row_codes(const struct hybrid_matrix *h, int64_t row, uint8_t *codes) {
  const int64_t first = row / h->tile_rows * hybrid_tile_cols(h);
  for (int64_t t = first; t < first + hybrid_tile_cols(h); t++) {
    if (hybrid_tile_dense(h, t)) continue;
    const struct tile_box box = hybrid_tile_box(h, t);
    const int64_t groups = (box.cols + 3) / 4;
    for (int64_t g = 0; g < groups; g++)
      codes[box.col / 4 + g] = hybrid_code(h, t, row - box.row, groups, g);
  }
}

/* Whether all of the matrix's tiles that meet this one are 2:4. */
static bool tile_is_sparse(const struct hybrid_matrix *h, int64_t strip, int64_t tile) {
  if (!h) return false;
  const int64_t row = strip * FRAGMENT_STRIP_ROWS, col = tile * FRAGMENT_TILE_COLS;
  const int64_t row_end = row + FRAGMENT_STRIP_ROWS < h->rows ? row + FRAGMENT_STRIP_ROWS : h->rows;
  const int64_t col_end = col + FRAGMENT_TILE_COLS < h->cols ? col + FRAGMENT_TILE_COLS : h->cols;
  for (int64_t r = row / h->tile_rows; r * h->tile_rows < row_end; r++)
    for (int64_t c = col / h->tile_cols; c * h->tile_cols < col_end; c++)
      if (hybrid_tile_dense(h, r * hybrid_tile_cols(h) + c)) return false;
  return true;
}

/* --- packing --- */

struct pack_job {
  struct fragment_matrix *to;
  struct source source;
  float *rows;       /* (workers, padded columns) */
  int16_t *integers; /* (workers, padded columns), in place of rows for a quantized matrix */
  uint8_t *codes;    /* (workers, padded columns / 4) */
};

/* The tiles' kinds and places. */
static uint64_t lay_out_strip(struct fragment_matrix *to, const struct source *source,
                              int64_t strip, uint64_t offset) {
  const int64_t tiles = to->tiles_per_strip;
  uint16_t *columns = to->columns + strip * tiles;
  int64_t sparse = 0, placed;
  for (int64_t t = 0; t < tiles; t++)
    if (tile_is_sparse(source->tiles, strip, t)) columns[sparse++] = (uint16_t)t;
  /* The dense tiles are those that the list of 2:4 tiles jumps over. */
  placed = sparse;
  for (int64_t t = 0, next = 0; t < tiles; t++) {
    if (next < sparse && columns[next] == t)
      next++;
    else
      columns[placed++] = (uint16_t)t;
  }
  INVARIANT(placed == tiles);
  to->strip[strip] = (struct fragment_strip){offset, (uint32_t)sparse};
  return fragment_tile_offset(to, strip, tiles);
}

/* Scales and minimums of the two groups of a step; zeros past the edges, where integers are zeros
 * too. */
static void put_scales(const struct quant_matrix *q, int64_t row, int64_t col,
                       struct quant_piece *piece) {
  for (int64_t half = 0; half < 2; half++) {
    const int64_t at = col + half * FRAGMENT_GROUP_COLS;
    const bool inside = q->group && row < q->rows && at < q->cols;
    const int64_t index = inside ? row * quant_groups(q) + at / q->group : 0;
    piece->scale[half] = inside ? q->scales[index] : 0;
    piece->minimum[half] = inside && q->mins ? q->mins[index] : 0;
  }
}

static void pack_quant_row(const struct pack_job *job, int64_t strip, int64_t row,
                           const int16_t *integers, const uint8_t *codes) {
  const struct fragment_matrix *to = job->to;
  for (int64_t i = 0; i < to->tiles_per_strip; i++) {
    const bool sparse = i < (int64_t)to->strip[strip].sparse_tiles;
    uint8_t *tile = to->tiles + fragment_tile_offset(to, strip, i);
    const int64_t col = to->columns[strip * to->tiles_per_strip + i] * FRAGMENT_TILE_COLS;
    for (int64_t step = 0; step < FRAGMENT_STEPS; step++) {
      struct quant_piece piece;
      const int64_t at = col + step * FRAGMENT_STEP_COLS;
      memcpy(piece.integers, integers + at, sizeof piece.integers);
      memcpy(piece.codes, codes + at / 4, sizeof piece.codes);
      put_scales(job->source.quant, strip * FRAGMENT_STRIP_ROWS + row, at, &piece);
      fragment_put_quant(to->form, sparse, tile + block_offset(to->form, sparse, step, row),
                         row % FRAGMENT_BLOCK_ROWS, &piece);
    }
  }
}

static void pack_row(const struct pack_job *job, int64_t strip, int64_t row, const float *w,
                     const uint8_t *codes) {
  const struct fragment_matrix *to = job->to;
  for (int64_t i = 0; i < to->tiles_per_strip; i++) {
    const bool sparse = i < (int64_t)to->strip[strip].sparse_tiles;
    uint8_t *tile = to->tiles + fragment_tile_offset(to, strip, i);
    const int64_t col = to->columns[strip * to->tiles_per_strip + i] * FRAGMENT_TILE_COLS;
    for (int64_t step = 0; step < FRAGMENT_STEPS; step++) {
      const int64_t at = col + step * FRAGMENT_STEP_COLS;
      uint8_t *block = tile + block_offset(to->form, sparse, step, row);
      if (sparse)
        put_sparse(block, row % FRAGMENT_BLOCK_ROWS, w + at, codes + at / 4);
      else
        put_dense(block, row % FRAGMENT_BLOCK_ROWS, w + at);
    }
  }
}

/* A row's weights and codes in the worker's buffers, padded. */
static void load_row(const struct pack_job *job, int64_t row, float *w, int16_t *integers,
                     uint8_t *codes) {
  const struct fragment_matrix *to = job->to;
  const int64_t width = to->tiles_per_strip * FRAGMENT_TILE_COLS;
  const struct quant_matrix *q = job->source.quant;
  memset(codes, CODE_PADDING, (size_t)width / 4);
  if (w) memset(w, 0, (size_t)width * sizeof *w);
  for (int64_t c = 0; q && c < width; c++) integers[c] = (int16_t)quant_zero(q->type);
  if (row >= to->rows) return;
  if (job->source.tiles) hybrid_row_codes(job->source.tiles, row, codes);
  if (q)
    quant_integers(q, row, 0, q->cols, integers);
  else
    source_row(&job->source, row, w);
}

static void pack_strip(void *ctx, int64_t strip, int worker) {
  const struct pack_job *job = ctx;
  const struct fragment_matrix *to = job->to;
  const int64_t width = to->tiles_per_strip * FRAGMENT_TILE_COLS;
  const bool quant = job->source.quant != NULL;
  float *w = quant ? NULL : job->rows + worker * width;
  int16_t *integers = quant ? job->integers + worker * width : NULL;
  uint8_t *codes = job->codes + worker * width / 4;
  for (int64_t row = 0; row < FRAGMENT_STRIP_ROWS; row++) {
    const int64_t at = strip * FRAGMENT_STRIP_ROWS + row;
    load_row(job, at, w, integers, codes);
    if (quant)
      pack_quant_row(job, strip, row, integers, codes);
    else
      pack_row(job, strip, row, w, codes);
  }
}

static enum status fragment_pack(struct fragment_matrix *out, const struct source *source,
                                 struct fragment_form form, int64_t rows, int64_t cols,
                                 struct error *err) {
  struct fragment_matrix f = {.rows = rows, .cols = cols, .form = form};
  struct pack_job job = {.to = &f, .source = *source};
  if (cols > FRAGMENT_COLS_MAX)
    return error_set(err, STATUS_REFUSED,
                     "a matrix of %lld columns has no fragment-major form: at most %d columns",
                     (long long)cols, FRAGMENT_COLS_MAX);
  f.strips = (rows + FRAGMENT_STRIP_ROWS - 1) / FRAGMENT_STRIP_ROWS;
  f.tiles_per_strip = (cols + FRAGMENT_TILE_COLS - 1) / FRAGMENT_TILE_COLS;
  const size_t width = (size_t)f.tiles_per_strip * FRAGMENT_TILE_COLS;
  const size_t workers = (size_t)parallel_threads();
  enum status status = STATUS_FAILED;
  f.strip = mem_alloc((size_t)f.strips, sizeof *f.strip, err);
  f.columns = mem_alloc((size_t)f.strips * (size_t)f.tiles_per_strip, sizeof *f.columns, err);
  if (source->quant)
    job.integers = mem_alloc(workers * width, sizeof *job.integers, err);
  else
    job.rows = mem_alloc(workers * width, sizeof *job.rows, err);
  job.codes = mem_alloc(workers * width / 4, 1, err);
  if (!f.strip || !f.columns || !job.codes || !(job.rows || job.integers)) goto out;
  for (int64_t s = 0; s < f.strips; s++) f.tile_bytes = lay_out_strip(&f, source, s, f.tile_bytes);
  f.tiles = mem_alloc(f.tile_bytes, 1, err);
  if (!f.tiles) goto out;
  parallel_for(f.strips, pack_strip, &job);
  *out = f;
  status = STATUS_OK;
out:
  mem_free(job.rows);
  mem_free(job.integers);
  mem_free(job.codes);
  if (status) fragment_release(&f);
  return status;
}

enum status fragment_pack_hybrid(struct fragment_matrix *out, const struct hybrid_matrix *h,
                                 struct error *err) {
  const struct source source = {.tiles = h, .hybrid = h};
  return fragment_pack(out, &source, (struct fragment_form){FRAGMENT_BF16, false, false}, h->rows,
                       h->cols, err);
}

enum status fragment_pack_dense(struct fragment_matrix *out, struct matrix_view w,
                                struct error *err) {
  INVARIANT(dtype_is_native(w.dtype));
  const struct source source = {.view = w};
  enum status status =
      sparse_check_shape("matrix", w.rows, w.cols, FRAGMENT_STRIP_ROWS, FRAGMENT_TILE_COLS, err);
  return status ? status
                : fragment_pack(out, &source, (struct fragment_form){FRAGMENT_BF16, false, false},
                                w.rows, w.cols, err);
}

/* Whether a 2:4 tile of the matrix lies in a tile of ours that is not 2:4 as a whole. */
static bool has_torn_tiles(const struct quant_matrix *q, const struct hybrid_matrix *tiles) {
  const int64_t across = hybrid_tile_cols(tiles), count = hybrid_tile_rows(tiles) * across;
  for (int64_t t = 0; t < count; t++) {
    if (quant_tile_dense(q, t)) continue;
    const struct tile_box box = hybrid_tile_box(tiles, t);
    const int64_t last_row = box.row + box.rows - 1, last_col = box.col + box.cols - 1;
    for (int64_t s = box.row / FRAGMENT_STRIP_ROWS; s <= last_row / FRAGMENT_STRIP_ROWS; s++)
      for (int64_t c = box.col / FRAGMENT_TILE_COLS; c <= last_col / FRAGMENT_TILE_COLS; c++)
        if (!tile_is_sparse(tiles, s, c)) return true;
  }
  return false;
}

enum status fragment_pack_quant(struct fragment_matrix *out, const struct quant_matrix *q,
                                struct error *err) {
  const struct hybrid_matrix tiles = quant_tiles(q);
  const struct source source = {.tiles = q->tile_map ? &tiles : NULL, .quant = q};
  const struct fragment_form form = {q->type == QUANT_I8 ? FRAGMENT_I8 : FRAGMENT_I4, q->group > 0,
                                     q->mins != NULL};
  if (q->group % FRAGMENT_GROUP_COLS)
    return error_set(err, STATUS_REFUSED,
                     "a scale for %lld columns has no fragment-major form: multiples of %d have",
                     (long long)q->group, FRAGMENT_GROUP_COLS);
  if (q->mins && source.tiles && has_torn_tiles(q, &tiles))
    return error_set(err, STATUS_REFUSED,
                     "integers with minimums under tiles of %lld x %lld have no fragment-major "
                     "form: pack the model with tiles of 128 x 128",
                     (long long)q->tile_rows, (long long)q->tile_cols);
  struct fragment_matrix f = {0};
  enum status status = fragment_pack(&f, &source, form, q->rows, q->cols, err);
  if (status) return status;
  if (!q->group) {
    f.row_scales = mem_alloc((size_t)f.strips * FRAGMENT_STRIP_ROWS, sizeof *f.row_scales, err);
    if (!f.row_scales) {
      fragment_release(&f);
      return STATUS_FAILED;
    }
    memcpy(f.row_scales, q->row_scales, (size_t)q->rows * sizeof *f.row_scales);
  }
  *out = f;
  return STATUS_OK;
}

void fragment_release(struct fragment_matrix *f) {
  mem_free(f->strip);
  mem_free(f->columns);
  mem_free(f->tiles);
  mem_free(f->row_scales);
  *f = (struct fragment_matrix){0};
}

/* --- and back --- */

static void get_quant(const struct fragment_matrix *f, bool sparse, const uint8_t *block,
                      int64_t row, float *w) {
  struct quant_piece piece;
  fragment_get_quant(f->form, sparse, block, row % FRAGMENT_BLOCK_ROWS, &piece);
  const int zero = f->form.mins || f->form.kind == FRAGMENT_I8 ? 0 : 8;
  for (int64_t c = 0; c < FRAGMENT_STEP_COLS; c++) {
    float scale = f->row_scales ? f->row_scales[row] : 0, minimum = 0;
    if (f->form.scales) dtype_to_f32(DTYPE_F16, &piece.scale[c / FRAGMENT_GROUP_COLS], 1, &scale);
    if (f->form.mins) dtype_to_f32(DTYPE_F16, &piece.minimum[c / FRAGMENT_GROUP_COLS], 1, &minimum);
    const int16_t q = piece.integers[c];
    w[c] = q == QUANT_DROPPED ? 0 : scale * (float)(q - zero) + minimum;
  }
}

void fragment_row(const struct fragment_matrix *f, int64_t row, float *out) {
  const int64_t strip = row / FRAGMENT_STRIP_ROWS, inner = row % FRAGMENT_STRIP_ROWS;
  for (int64_t i = 0; i < f->tiles_per_strip; i++) {
    const bool sparse = i < (int64_t)f->strip[strip].sparse_tiles;
    const uint8_t *tile = f->tiles + fragment_tile_offset(f, strip, i);
    for (int64_t step = 0; step < FRAGMENT_STEPS; step++) {
      const int64_t at = f->columns[strip * f->tiles_per_strip + i] * FRAGMENT_TILE_COLS +
                         step * FRAGMENT_STEP_COLS;
      if (at >= f->cols) break;
      const uint8_t *block = tile + block_offset(f->form, sparse, step, inner);
      float w[FRAGMENT_STEP_COLS];
      if (f->form.kind != FRAGMENT_BF16)
        get_quant(f, sparse, block, row, w);
      else if (sparse)
        get_sparse(block, inner % FRAGMENT_BLOCK_ROWS, w);
      else
        get_dense(block, inner % FRAGMENT_BLOCK_ROWS, w);
      const int64_t count = f->cols - at < FRAGMENT_STEP_COLS ? f->cols - at : FRAGMENT_STEP_COLS;
      memcpy(out + at, w, (size_t)count * sizeof *out);
    }
  }
}
