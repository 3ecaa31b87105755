/* Quantized strips from the neutral form and from blocks: see quant_strips.h; rows are read back in
 * quant_strips_read.c. Owns what quant_strips_release frees; keeps no state. */
#include "sparse/quant_strips.h"

#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "tensor/block_integers.h"

enum { QUADS = QUANT_CHUNK_COLS / 4, SET = QUANT_GROUP / 2 / QUANT_SETS, F16_ONE = 0x3c00 };

/* Where weights come from: a matrix in the neutral form, or blocks, a strip of which is taken apart
 * at a time. */
struct block_strip {
  uint8_t *integers;       /* (STRIP_ROWS, cols) */
  uint16_t *scales, *mins; /* (STRIP_ROWS, groups) */
};
struct source {
  const struct quant_matrix *quant;
  const struct matrix_view *blocks;
  struct block_strip *strip; /* one for each worker */
};

struct packing {
  struct source from;
  struct quant_strips *s;
  uint8_t *data;
  uint8_t *kinds; /* (strips, chunks) */
};

/* A row's part of a chunk, in the integers of quant.h. */
struct chunk_row {
  uint8_t q[QUANT_CHUNK_COLS]; /* dense */
  bool present[QUANT_CHUNK_COLS];
  uint8_t kept[QUANT_CHUNK_KEPT], codes[QUADS]; /* 2:4 */
  uint16_t scale[QUANT_CHUNK_GROUPS], min[QUANT_CHUNK_GROUPS];
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* --- which chunks are 2:4 --- */

static int kind_of(const struct quant_matrix *q, int64_t strip, int64_t chunk) {
  if (!q || !q->tile_map) return STRIP_DENSE;
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t row = strip * STRIP_ROWS, end_row = least(row + STRIP_ROWS, q->rows);
  const int64_t col = chunk * QUANT_CHUNK_COLS, end_col = least(col + QUANT_CHUNK_COLS, q->cols);
  int dense = 0, sparse = 0;
  for (int64_t r = row / q->tile_rows; r * q->tile_rows < end_row; r++)
    for (int64_t c = col / q->tile_cols; c * q->tile_cols < end_col; c++)
      if (quant_tile_dense(q, r * hybrid_tile_cols(&h) + c))
        dense++;
      else
        sparse++;
  if (!dense) return STRIP_SPARSE;
  return sparse && q->mins ? QUANT_TWICE : STRIP_DENSE;
}

/* --- the weights of a row in a chunk --- */

/* Columns [col, end) of one tile into a dense chunk that begins at column `start`. */
static void tile_dense(const struct quant_matrix *q, int64_t tile, const struct tile_box *box,
                       int64_t row, int64_t col, int64_t end, int64_t start,
                       struct chunk_row *out) {
  const int64_t inner = row - box->row;
  if (quant_tile_dense(q, tile)) {
    const int64_t first = q->tile_offset[tile] + inner * box->cols - box->col;
    for (int64_t c = col; c < end; c++) {
      out->q[c - start] = (uint8_t)quant_integer(q->type, q->dense, first + c);
      out->present[c - start] = true;
    }
    return;
  }
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t groups = (box->cols + 3) / 4;
  for (int64_t g = (col - box->col) / 4; box->col + 4 * g < end; g++) {
    const uint8_t code = hybrid_code(&h, tile, inner, groups, g);
    const int64_t first = q->tile_offset[tile] + 2 * (inner * groups + g);
    for (int i = 0; i < 2; i++) {
      const int64_t c = box->col + 4 * g + (i ? code >> 2 : code & 3);
      if (c < col || c >= end) continue;
      out->q[c - start] = (uint8_t)quant_integer(q->type, q->values, first + i);
      out->present[c - start] = true;
    }
  }
}

/* The same into a 2:4 chunk; what is kept past the matrix's edge stays zero. */
static void tile_sparse(const struct quant_matrix *q, int64_t tile, const struct tile_box *box,
                        int64_t row, int64_t col, int64_t end, int64_t start,
                        struct chunk_row *out) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t groups = (box->cols + 3) / 4, inner = row - box->row;
  for (int64_t g = (col - box->col) / 4; box->col + 4 * g < end; g++) {
    const int64_t quad = (box->col + 4 * g - start) / 4;
    const uint8_t code = hybrid_code(&h, tile, inner, groups, g);
    const int64_t first = q->tile_offset[tile] + 2 * (inner * groups + g);
    out->codes[quad] = code;
    for (int i = 0; i < 2; i++)
      if (start + 4 * quad + (i ? code >> 2 : code & 3) < q->cols)
        out->kept[2 * quad + i] = (uint8_t)quant_integer(q->type, q->values, first + i);
  }
}

static void row_of_quant(const struct quant_matrix *q, int kind, int64_t row, int64_t col,
                         struct chunk_row *out) {
  const struct hybrid_matrix h = quant_tiles(q);
  const int64_t end = least(col + QUANT_CHUNK_COLS, q->cols);
  for (int64_t at = col, next; at < end; at = next) {
    const int64_t tile = row / q->tile_rows * hybrid_tile_cols(&h) + at / q->tile_cols;
    const struct tile_box box = hybrid_tile_box(&h, tile);
    next = least(end, box.col + box.cols);
    if (kind == STRIP_SPARSE)
      tile_sparse(q, tile, &box, row, at, next, col, out);
    else
      tile_dense(q, tile, &box, row, at, next, col, out);
  }
  for (int g = 0; g < QUANT_CHUNK_GROUPS && q->group; g++) {
    const int64_t first = col + (int64_t)g * QUANT_GROUP;
    if (first >= q->cols) break;
    const int64_t at = row * quant_groups(q) + first / q->group;
    out->scale[g] = q->scales[at];
    if (q->mins) out->min[g] = q->mins[at];
  }
}

static void row_of_blocks(const struct block_strip *b, int64_t cols, int64_t lane, int64_t col,
                          struct chunk_row *out) {
  const int64_t groups = cols / QUANT_GROUP, group = lane * groups + col / QUANT_GROUP;
  const int64_t count = least(QUANT_CHUNK_COLS, cols - col);
  memcpy(out->q, b->integers + lane * cols + col, (size_t)count);
  for (int64_t i = 0; i < count; i++) out->present[i] = true;
  for (int64_t g = 0; g < count / QUANT_GROUP; g++) {
    out->scale[g] = b->scales[group + g];
    out->min[g] = b->mins[group + g];
  }
}

static void take_strip_apart(const struct packing *p, int64_t strip, struct block_strip *out) {
  const struct matrix_view *w = p->from.blocks;
  const struct dtype_traits *t = dtype_traits(w->dtype);
  const int64_t row_bytes = w->cols / t->block_length * t->block_bytes;
  const int64_t groups = w->cols / QUANT_GROUP;
  for (int64_t lane = 0, row = strip * STRIP_ROWS; lane < STRIP_ROWS && row < w->rows;
       lane++, row++)
    block_integers(w->dtype, (const char *)w->data + row * row_bytes, w->cols,
                   out->integers + lane * w->cols, out->scales + lane * groups,
                   out->mins + lane * groups);
}

/* --- packing --- */

static void put_lane(uint8_t *line, int64_t lane, const uint8_t bytes[4]) {
  memcpy(line + 4 * lane, bytes, 4);
}

static void put_scales(const struct quant_strips *s, int64_t lane, const uint16_t *scale,
                       const uint16_t *min, uint8_t *at) {
  for (int g = 0; g < QUANT_CHUNK_GROUPS && !s->row_scales; g++) {
    const int64_t place = 2 * (g * STRIP_ROWS + lane);
    memcpy(at + place, &scale[g], 2);
    if (s->mins) memcpy(at + STRIP_LINE_BYTES + place, &min[g], 2);
  }
}

static void put_dense(enum quant_type type, int64_t lane, const uint8_t *q, uint8_t *at) {
  if (type == QUANT_I8) {
    for (int p = 0; p < QUANT_CHUNK_COLS / 4; p++, at += STRIP_LINE_BYTES)
      for (int b = 0; b < 4; b++) at[4 * lane + b] = q[4 * p + b] ^ 0x80;
    return;
  }
  for (int p = 0; p < QUANT_CHUNK_COLS / 8; p++, at += STRIP_LINE_BYTES)
    for (int b = 0; b < 4; b++) at[4 * lane + b] = (uint8_t)(q[8 * p + b] | q[8 * p + 4 + b] << 4);
}

/* One group of 32 columns: eight codes, sixteen kept weights. Returns what is behind its lines. */
static uint8_t *put_sparse(enum quant_type type, int64_t lane, const uint8_t *codes,
                           const uint8_t *kept, uint8_t *at) {
  uint8_t word[4] = {0};
  for (int set = 0; set < QUANT_SETS; set++)
    for (int b = 0; b < 4; b++) {
      const uint8_t code = codes[2 * set + b / 2];
      word[b] |= (uint8_t)((b % 2 ? code >> 2 : code & 3) << 2 * set);
    }
  put_lane(at, lane, word);
  at += STRIP_LINE_BYTES;
  if (type == QUANT_I8) {
    for (int set = 0; set < QUANT_SETS; set++, at += STRIP_LINE_BYTES)
      put_lane(at, lane, kept + SET * set);
    return at;
  }
  for (int set = 0; set < QUANT_SETS; set += 2, at += STRIP_LINE_BYTES)
    for (int b = 0; b < 4; b++)
      at[4 * lane + b] =
          (uint8_t)((kept[SET * set + b] ^ 8) | (kept[SET * (set + 1) + b] ^ 8) << 4);
  return at;
}

static bool group_is_zero(const struct quant_strips *s, const uint8_t *q, int64_t count,
                          uint16_t scale, uint16_t min) {
  if (s->mins) return !(scale & 0x7fff) && !(min & 0x7fff);
  for (int64_t i = 0; i < count; i++)
    if (q[i] != quant_zero(s->type)) return false;
  return true;
}

/* Whether the row has a weight that is not zero. */
static bool put_row(const struct quant_strips *s, int kind, int64_t lane,
                    const struct chunk_row *row, uint8_t *at) {
  bool zero = true;
  put_scales(s, lane, row->scale, row->min, at);
  const int64_t bytes = quant_chunk_bytes(s, STRIP_DENSE), scale_bytes = quant_scale_bytes(s);
  const uint8_t *integers = kind == STRIP_SPARSE ? row->kept : row->q;
  const int64_t per_group = kind == STRIP_SPARSE ? QUANT_GROUP / 2 : QUANT_GROUP;
  for (int g = 0; g < QUANT_CHUNK_GROUPS; g++)
    zero =
        zero && group_is_zero(s, integers + g * per_group, per_group, row->scale[g], row->min[g]);
  if (kind == STRIP_SPARSE) {
    uint8_t *to = at + scale_bytes;
    for (int g = 0; g < QUANT_CHUNK_GROUPS; g++)
      to = put_sparse(s->type, lane, row->codes + g * QUADS / QUANT_CHUNK_GROUPS,
                      row->kept + g * per_group, to);
    return !zero;
  }
  put_dense(s->type, lane, row->q, at + scale_bytes);
  if (kind == QUANT_TWICE) {
    static const uint16_t no_min[QUANT_CHUNK_GROUPS] = {0};
    uint8_t ones[QUANT_CHUNK_COLS];
    for (int i = 0; i < QUANT_CHUNK_COLS; i++) ones[i] = row->present[i];
    put_scales(s, lane, row->min, no_min, at + bytes);
    put_scales(s, lane, row->scale, no_min, at);
    put_dense(s->type, lane, ones, at + bytes + scale_bytes);
  }
  return !zero;
}

/* Dropped weights of a dense chunk that is stored twice are zeros by their missing one. */
static struct chunk_row empty_row(const struct quant_strips *s, int kind) {
  struct chunk_row row = {.scale = {0}};
  memset(row.q, kind == QUANT_TWICE ? 0 : quant_zero(s->type), sizeof row.q);
  memset(row.kept, quant_zero(s->type), sizeof row.kept);
  memset(row.codes, sparse_candidate_code[0], sizeof row.codes);
  return row;
}

static bool pack_chunk(const struct packing *p, int kind, int64_t strip, int64_t chunk, int worker,
                       uint8_t *at) {
  const struct quant_strips *s = p->s;
  const int64_t col = chunk * QUANT_CHUNK_COLS;
  bool any = false;
  for (int64_t lane = 0; lane < STRIP_ROWS; lane++) {
    const int64_t row = strip * STRIP_ROWS + lane;
    struct chunk_row weights = empty_row(s, kind);
    if (row < s->rows && p->from.quant)
      row_of_quant(p->from.quant, kind, row, col, &weights);
    else if (row < s->rows)
      row_of_blocks(&p->from.strip[worker], s->cols, lane, col, &weights);
    any |= put_row(s, kind, lane, &weights, at);
  }
  return any;
}

/* Chunks without a weight are overwritten by the next: what they leave free lies behind the strip,
 * in pages that nobody touches. */
static void pack_strip(void *ctx, int64_t strip, int worker) {
  const struct packing *p = ctx;
  uint8_t *at = p->data + p->s->offset[strip];
  if (p->from.blocks) take_strip_apart(p, strip, &p->from.strip[worker]);
  for (int64_t c = 0; c < p->s->chunks; c++) {
    uint8_t *kind = &p->kinds[strip * p->s->chunks + c];
    if (!pack_chunk(p, *kind, strip, c, worker, at) && p->s->sparse) *kind = STRIP_EMPTY;
    at += quant_chunk_bytes(p->s, *kind);
  }
}

/* Offsets for strips without empty chunks; returns the bytes of all. */
static size_t place_strips(struct packing *p) {
  struct quant_strips *s = p->s;
  int64_t bytes = 0;
  for (int64_t strip = 0; strip < s->strips; strip++) {
    s->offset[strip] = bytes;
    for (int64_t c = 0; c < s->chunks; c++) {
      const int kind = kind_of(p->from.quant, strip, c);
      p->kinds[strip * s->chunks + c] = (uint8_t)kind;
      bytes += quant_chunk_bytes(s, kind);
    }
  }
  return (size_t)bytes;
}

static enum status pack(struct packing *p, struct error *err) {
  struct quant_strips *s = p->s;
  p->kinds = mem_alloc((size_t)s->strips, (size_t)s->chunks, err);
  s->offset = mem_alloc((size_t)s->strips, sizeof *s->offset, err);
  s->first_run = mem_alloc((size_t)s->strips + 1, sizeof *s->first_run, err);
  if (!p->kinds || !s->offset || !s->first_run) return STATUS_FAILED;
  s->data = p->data = mem_alloc(place_strips(p), 1, err);
  if (!p->data) return STATUS_FAILED;
  parallel_for(s->strips, pack_strip, p);
  const int64_t runs = strips_find_runs(p->kinds, s->strips, s->chunks, s->first_run, NULL);
  s->runs = mem_alloc((size_t)runs, sizeof *s->runs, err);
  if (!s->runs) return STATUS_FAILED;
  strips_find_runs(p->kinds, s->strips, s->chunks, s->first_run, s->runs);
  for (int64_t i = 0; i < s->strips * s->chunks; i++)
    s->stored_bytes += (size_t)quant_chunk_bytes(s, p->kinds[i]);
  return STATUS_OK;
}

static void measure(struct quant_strips *s) {
  s->strips = (s->rows + STRIP_ROWS - 1) / STRIP_ROWS;
  s->chunks = (s->cols + QUANT_CHUNK_COLS - 1) / QUANT_CHUNK_COLS;
}

enum status quant_strips_from_quant(struct quant_strips *out, const struct quant_matrix *q,
                                    struct error *err) {
  struct packing p = {.from = {.quant = q}, .s = out};
  enum status status = STATUS_OK;
  *out = (struct quant_strips){.rows = q->rows,
                               .cols = q->cols,
                               .type = q->type,
                               .sparse = q->tile_map != NULL,
                               .mins = q->mins != NULL};
  measure(out);
  if (!q->group) {
    float *scales = mem_alloc((size_t)(out->strips * STRIP_ROWS), sizeof *scales, err);
    if (scales) memcpy(scales, q->row_scales, (size_t)q->rows * sizeof *scales);
    if (!scales) status = STATUS_FAILED;
    out->row_scales = scales;
  }
  if (!status) status = pack(&p, err);
  mem_free(p.kinds);
  if (status) quant_strips_release(out);
  return status;
}

bool quant_strips_takes(enum dtype dtype) {
  return block_integers_kind(dtype) != BLOCK_INTEGERS_NONE;
}

enum status quant_strips_from_blocks(struct quant_strips *out, const struct matrix_view *w,
                                     struct error *err) {
  INVARIANT(quant_strips_takes(w->dtype) && w->cols % dtype_traits(w->dtype)->block_length == 0);
  const size_t threads = (size_t)parallel_threads(), cols = (size_t)w->cols;
  const size_t groups = cols / QUANT_GROUP;
  struct block_strip *strips = mem_alloc(threads, sizeof *strips, err);
  uint8_t *integers = mem_alloc(threads * STRIP_ROWS, cols, err);
  uint16_t *scales = mem_alloc(threads * STRIP_ROWS * 2, groups * sizeof *scales, err);
  struct packing p = {.from = {.blocks = w, .strip = strips}, .s = out};
  enum status status = strips && integers && scales ? STATUS_OK : STATUS_FAILED;
  *out = (struct quant_strips){
      .rows = w->rows, .cols = w->cols, .mins = block_integers_mins(w->dtype)};
  out->type = block_integers_kind(w->dtype) == BLOCK_INTEGERS_I8 ? QUANT_I8 : QUANT_I4;
  measure(out);
  for (size_t i = 0; i < threads && !status; i++) {
    uint16_t *mine = scales + i * STRIP_ROWS * 2 * groups;
    strips[i] =
        (struct block_strip){integers + i * STRIP_ROWS * cols, mine, mine + STRIP_ROWS * groups};
  }
  if (!status) status = pack(&p, err);
  mem_free(p.kinds), mem_free(strips), mem_free(integers), mem_free(scales);
  if (status) quant_strips_release(out);
  return status;
}

void quant_strips_release(struct quant_strips *s) {
  mem_free((void *)s->row_scales);
  mem_free((void *)s->data);
  mem_free(s->offset);
  mem_free(s->first_run);
  mem_free(s->runs);
  *s = (struct quant_strips){0};
}
