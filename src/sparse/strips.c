/* Strips from the neutral forms: see strips.h. Owns what strips_release frees; keeps no state. */
#include "sparse/strips.h"

#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"

/* Codes of eight groups that keep their first two positions: what zeros are given. */
enum { FIRST_TWO = 0x44444444 };

/* Where weights come from: hybrid when that is set, else dense. */
struct source {
  const struct matrix_view *dense;
  const struct hybrid_matrix *hybrid;
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Element i as 16 bits: its own, or rounded to bf16. */
static uint16_t bits_at(enum dtype dtype, const void *base, int64_t i) {
  return dtype == DTYPE_F32 ? bf16_from_f32(((const float *)base)[i]) : ((const uint16_t *)base)[i];
}

static void copy_bits(enum dtype dtype, const void *base, int64_t first, int64_t count,
                      uint16_t *out) {
  for (int64_t i = 0; i < count; i++) out[i] = bits_at(dtype, base, first + i);
}

/* --- which chunks are 2:4 --- */

static bool tiles_sparse(const struct hybrid_matrix *h, int64_t row, int64_t end_row, int64_t col,
                         int64_t end_col) {
  const int64_t per_row = hybrid_tile_cols(h);
  for (int64_t r = row / h->tile_rows; r * h->tile_rows < end_row; r++)
    for (int64_t c = col / h->tile_cols; c * h->tile_cols < end_col; c++)
      if (hybrid_tile_dense(h, r * per_row + c)) return false;
  return true;
}

static enum strip_kind kind_of(const struct source *from, int64_t strip, int64_t chunk) {
  const struct hybrid_matrix *h = from->hybrid;
  if (!h) return STRIP_DENSE;
  const int64_t row = strip * STRIP_ROWS, col = chunk * STRIP_COLS;
  const bool sparse =
      tiles_sparse(h, row, least(row + STRIP_ROWS, h->rows), col, least(col + STRIP_COLS, h->cols));
  return sparse ? STRIP_SPARSE : STRIP_DENSE;
}

/* --- the weights of a row in a chunk --- */

/* Groups [group, group + count) of a row of a 2:4 tile, both counted from its corner. */
static void tile_groups(const struct hybrid_matrix *h, int64_t tile, const struct tile_box *box,
                        int64_t row, int64_t group, int64_t count, uint16_t *pairs,
                        uint8_t *codes) {
  const int64_t groups = (box->cols + 3) / 4;
  copy_bits(h->dtype, h->values, h->tile_offset[tile] + 2 * (row * groups + group), 2 * count,
            pairs);
  for (int64_t i = 0; i < count; i++) codes[i] = hybrid_code(h, tile, row, groups, group + i);
}

static void tile_columns(const struct hybrid_matrix *h, int64_t tile, const struct tile_box *box,
                         int64_t row, int64_t col, int64_t count, uint16_t *out) {
  if (hybrid_tile_dense(h, tile)) {
    copy_bits(h->dtype, h->dense, h->tile_offset[tile] + row * box->cols + col, count, out);
    return;
  }
  uint16_t pairs[2 * STRIP_GROUPS];
  uint8_t codes[STRIP_GROUPS] = {0};
  const int64_t groups = (count + 3) / 4;
  tile_groups(h, tile, box, row, col / 4, groups, pairs, codes);
  memset(out, 0, (size_t)count * sizeof *out);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t one = 4 * g + (codes[g] & 3), two = 4 * g + (codes[g] >> 2);
    if (one < count) out[one] = pairs[2 * g];
    if (two < count) out[two] = pairs[2 * g + 1];
  }
}

/* The part of a chunk from column `col` on that lies in one tile: its tile, box and width. */
static int64_t tile_part(const struct hybrid_matrix *h, int64_t row, int64_t col, int64_t end,
                         int64_t *tile, struct tile_box *box) {
  *tile = row / h->tile_rows * hybrid_tile_cols(h) + col / h->tile_cols;
  *box = hybrid_tile_box(h, *tile);
  return least(end, box->col + box->cols) - col;
}

/* STRIP_COLS weights, zeros past the edge. */
static void dense_row(const struct source *from, int64_t row, int64_t col, int64_t end,
                      uint16_t out[STRIP_COLS]) {
  const struct hybrid_matrix *h = from->hybrid;
  memset(out, 0, STRIP_COLS * sizeof *out);
  if (!h) {
    const struct matrix_view *w = from->dense;
    copy_bits(w->dtype, w->data, row * w->cols + col, end - col, out);
    return;
  }
  struct tile_box box;
  int64_t tile;
  for (int64_t at = col, width; at < end; at += width) {
    width = tile_part(h, row, at, end, &tile, &box);
    tile_columns(h, tile, &box, row - box.row, at - box.col, width, out + (at - col));
  }
}

/* Two kept weights for each group and the word of codes. */
static uint32_t sparse_row(const struct hybrid_matrix *h, int64_t row, int64_t col, int64_t end,
                           uint16_t pairs[2 * STRIP_GROUPS]) {
  uint8_t codes[STRIP_GROUPS];
  uint32_t word = FIRST_TWO;
  struct tile_box box;
  int64_t tile;
  memset(pairs, 0, 2 * STRIP_GROUPS * sizeof *pairs);
  for (int64_t at = col, width; at < end; at += width) {
    width = tile_part(h, row, at, end, &tile, &box);
    const int64_t group = (at - col) / 4, count = (width + 3) / 4;
    tile_groups(h, tile, &box, row - box.row, (at - box.col) / 4, count, pairs + 2 * group,
                codes + group);
    for (int64_t i = group; i < group + count; i++)
      word = (word & ~(15u << 4 * i)) | (uint32_t)codes[i] << 4 * i;
  }
  return word;
}

/* --- packing --- */

struct packing {
  struct source from;
  struct strip_matrix *s;
  uint8_t *data;
  uint8_t *kinds; /* (strips, chunks) */
};

/* Lane r of `lines` lines of sixteen u32. */
static void put_lane(uint8_t *at, int64_t lane, const void *words, int64_t lines) {
  for (int64_t i = 0; i < lines; i++)
    memcpy(at + i * STRIP_LINE_BYTES + 4 * lane, (const char *)words + 4 * i, 4);
}

static bool pack_chunk(const struct packing *p, enum strip_kind kind, int64_t strip, int64_t chunk,
                       uint8_t *at) {
  const struct strip_matrix *s = p->s;
  const int64_t col = chunk * STRIP_COLS, end = least(col + STRIP_COLS, s->cols);
  uint16_t weights[STRIP_COLS] = {0}, any = 0;
  for (int64_t lane = 0; lane < STRIP_ROWS; lane++) {
    const int64_t row = strip * STRIP_ROWS + lane;
    if (row == s->rows) memset(weights, 0, sizeof weights);
    if (kind == STRIP_DENSE) {
      if (row < s->rows) dense_row(&p->from, row, col, end, weights);
      put_lane(at, lane, weights, STRIP_PAIRS);
    } else {
      uint32_t codes = FIRST_TWO;
      if (row < s->rows) codes = sparse_row(p->from.hybrid, row, col, end, weights);
      put_lane(at, lane, &codes, 1);
      put_lane(at + STRIP_LINE_BYTES, lane, weights, STRIP_GROUPS);
    }
    for (int i = 0; i < STRIP_COLS; i++) any |= weights[i];
  }
  return any;
}

/* Chunks without a weight are overwritten by the next: what they leave free lies behind the strip,
 * in pages that nobody touches. */
static void pack_strip(void *ctx, int64_t strip, int worker) {
  const struct packing *p = ctx;
  uint8_t *at = p->data + p->s->offset[strip];
  (void)worker;
  for (int64_t c = 0; c < p->s->chunks; c++) {
    uint8_t *kind = &p->kinds[strip * p->s->chunks + c];
    if (!pack_chunk(p, *kind, strip, c, at) && p->from.hybrid) *kind = STRIP_EMPTY;
    at += strip_kind_bytes(*kind);
  }
}

/* Offsets for strips without empty chunks; returns the bytes of all. */
static size_t place_strips(struct packing *p) {
  struct strip_matrix *s = p->s;
  int64_t bytes = 0;
  for (int64_t strip = 0; strip < s->strips; strip++) {
    s->offset[strip] = bytes;
    for (int64_t c = 0; c < s->chunks; c++) {
      enum strip_kind kind = kind_of(&p->from, strip, c);
      p->kinds[strip * s->chunks + c] = (uint8_t)kind;
      bytes += strip_kind_bytes(kind);
    }
  }
  return (size_t)bytes;
}

int64_t strips_find_runs(const uint8_t *kinds, int64_t strips, int64_t chunks, int64_t *first_run,
                         struct strip_run *runs) {
  int64_t count = 0;
  for (int64_t strip = 0; strip < strips; strip++, kinds += chunks) {
    first_run[strip] = count;
    for (int64_t c = 0, end; c < chunks; c = end) {
      for (end = c + 1; end < chunks && kinds[end] == kinds[c];) end++;
      if (runs) runs[count] = (struct strip_run){kinds[c] & 3, (uint32_t)(end - c)};
      count++;
    }
  }
  first_run[strips] = count;
  return count;
}

static enum status pack(struct strip_matrix *out, struct packing *p, struct error *err) {
  struct strip_matrix *s = p->s = out;
  s->strips = (s->rows + STRIP_ROWS - 1) / STRIP_ROWS;
  s->chunks = (s->cols + STRIP_COLS - 1) / STRIP_COLS;
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
    s->stored_bytes += (size_t)strip_kind_bytes(p->kinds[i]);
  return STATUS_OK;
}

static enum status make(struct strip_matrix *out, struct source from, int64_t rows, int64_t cols,
                        enum dtype dtype, struct error *err) {
  INVARIANT(dtype_is_native(dtype));
  struct packing p = {.from = from};
  *out = (struct strip_matrix){.rows = rows,
                               .cols = cols,
                               .dtype = dtype == DTYPE_F32 ? DTYPE_BF16 : dtype,
                               .sparse = from.hybrid != NULL};
  enum status status = pack(out, &p, err);
  mem_free(p.kinds);
  if (status) strips_release(out);
  return status;
}

enum status strips_from_dense(struct strip_matrix *out, const struct matrix_view *w,
                              struct error *err) {
  return make(out, (struct source){.dense = w}, w->rows, w->cols, w->dtype, err);
}

enum status strips_from_hybrid(struct strip_matrix *out, const struct hybrid_matrix *h,
                               struct error *err) {
  return make(out, (struct source){.hybrid = h}, h->rows, h->cols, h->dtype, err);
}

void strips_release(struct strip_matrix *s) {
  mem_free((void *)s->data);
  mem_free(s->offset);
  mem_free(s->first_run);
  mem_free(s->runs);
  *s = (struct strip_matrix){0};
}

/* --- reading rows back --- */

static float widen(enum dtype dtype, uint32_t bits) {
  return dtype == DTYPE_BF16 ? bf16_to_f32((uint16_t)bits) : f16_to_f32((uint16_t)bits);
}

/* A row's weights in one chunk: out (STRIP_COLS). */
static void chunk_row(enum dtype dtype, enum strip_kind kind, const uint8_t *at, int64_t lane,
                      float out[STRIP_COLS]) {
  const uint32_t *lanes = (const uint32_t *)(const void *)at + lane;
  if (kind == STRIP_DENSE) {
    for (int i = 0; i < STRIP_PAIRS; i++) {
      const uint32_t pair = lanes[(ptrdiff_t)i * STRIP_ROWS];
      out[2 * i] = widen(dtype, pair & 0xffff);
      out[2 * i + 1] = widen(dtype, pair >> 16);
    }
    return;
  }
  memset(out, 0, STRIP_COLS * sizeof *out);
  for (int g = 0; g < STRIP_GROUPS && kind == STRIP_SPARSE; g++) {
    const uint32_t code = lanes[0] >> 4 * g & 15, pair = lanes[(ptrdiff_t)(1 + g) * STRIP_ROWS];
    out[4 * g + (int)(code & 3)] = widen(dtype, pair & 0xffff);
    out[4 * g + (int)(code >> 2)] = widen(dtype, pair >> 16);
  }
}

void strips_row(const struct strip_matrix *s, int64_t row, int64_t col, int64_t count, float *out) {
  const int64_t strip = row / STRIP_ROWS, end = col + count;
  const uint8_t *at = s->data + s->offset[strip];
  int64_t chunk = 0;
  for (int64_t r = s->first_run[strip]; r < s->first_run[strip + 1]; r++) {
    const enum strip_kind kind = s->runs[r].kind;
    for (int64_t i = 0; i < s->runs[r].chunks; i++, chunk++, at += strip_kind_bytes(kind)) {
      const int64_t from = chunk * STRIP_COLS;
      if (from + STRIP_COLS <= col) continue;
      if (from >= end) return;
      float all[STRIP_COLS];
      chunk_row(s->dtype, kind, at, row % STRIP_ROWS, all);
      const int64_t first = from > col ? from : col, last = least(from + STRIP_COLS, end);
      memcpy(out + (first - col), all + (first - from), (size_t)(last - first) * sizeof *out);
    }
  }
}
