/* Rows of quantized strips read back, as products mean them: see quant_strips.h. No state. */
#include <string.h>

#include "sparse/quant_strips.h"

static float f16_at(const uint8_t *line, int64_t group, int64_t lane) {
  uint16_t bits;
  memcpy(&bits, line + 2 * (group * STRIP_ROWS + lane), 2);
  return f16_to_f32(bits);
}

/* Integer `col` of a dense chunk as quant.h has it. */
static int dense_integer(enum quant_type type, const uint8_t *integers, int64_t lane, int col) {
  if (type == QUANT_I8) return integers[col / 4 * STRIP_LINE_BYTES + 4 * lane + col % 4] - 128;
  const uint8_t both = integers[col / 8 * STRIP_LINE_BYTES + 4 * lane + col % 4];
  return col % 8 < 4 ? both & 15 : both >> 4;
}

/* Kept weight `b` of a set less its zero, and where among the group's columns it stands. */
static int kept_integer(enum quant_type type, const uint8_t *group, int64_t lane, int set, int b,
                        int *col) {
  *col = 8 * set + 4 * (b / 2) + (group[4 * lane + b] >> 2 * set & 3);
  const int64_t line = 1 + (type == QUANT_I8 ? set : set / 2);
  const uint8_t byte = group[line * STRIP_LINE_BYTES + 4 * lane + b];
  if (type == QUANT_I8) return (int8_t)byte;
  return ((set % 2 ? byte >> 4 : byte & 15) ^ 8) - 8;
}

static void read_sparse(const struct quant_strips *s, const uint8_t *at, int64_t lane,
                        struct quant_chunk_row *out) {
  const int zero = s->mins ? quant_zero(s->type) : 0; /* what is stored has it taken off */
  const int64_t group_bytes = (s->type == QUANT_I8 ? 5 : 3) * STRIP_LINE_BYTES;
  for (int g = 0; g < QUANT_CHUNK_GROUPS; g++, at += group_bytes)
    for (int set = 0; set < QUANT_SETS; set++)
      for (int b = 0; b < 4; b++) {
        int col;
        const int q = kept_integer(s->type, at, lane, set, b, &col);
        out->q[g * QUANT_GROUP + col] = (int16_t)(q + zero);
        out->kept[g * QUANT_GROUP + col] = true;
      }
}

void quant_chunk_read(const struct quant_strips *s, int kind, const uint8_t *chunk, int64_t lane,
                      struct quant_chunk_row *out) {
  const int64_t scale_bytes = quant_scale_bytes(s);
  *out = (struct quant_chunk_row){.scale = {0}};
  if (kind == STRIP_EMPTY) return;
  for (int g = 0; g < QUANT_CHUNK_GROUPS; g++) {
    out->scale[g] = s->row_scales ? 1.0f : f16_at(chunk, g, lane);
    out->min[g] = s->mins ? f16_at(chunk + STRIP_LINE_BYTES, g, lane) : 0.0f;
  }
  if (kind == STRIP_SPARSE) {
    read_sparse(s, chunk + scale_bytes, lane, out);
    return;
  }
  for (int c = 0; c < QUANT_CHUNK_COLS; c++) {
    const int zero = s->mins ? 0 : quant_zero(s->type);
    out->q[c] = (int16_t)(dense_integer(s->type, chunk + scale_bytes, lane, c) - zero);
    out->kept[c] = true;
  }
  if (kind != QUANT_TWICE) return;
  const uint8_t *ones = chunk + quant_chunk_bytes(s, STRIP_DENSE);
  for (int g = 0; g < QUANT_CHUNK_GROUPS; g++) out->min[g] = f16_at(ones, g, lane);
  for (int c = 0; c < QUANT_CHUNK_COLS; c++)
    out->kept[c] = dense_integer(s->type, ones + scale_bytes, lane, c);
}

void quant_strips_row(const struct quant_strips *s, int64_t row, int64_t col, int64_t count,
                      float *out) {
  const int64_t strip = row / STRIP_ROWS, end = col + count;
  const uint8_t *at = s->data + s->offset[strip];
  const float row_scale = s->row_scales ? s->row_scales[row] : 1.0f;
  int64_t from = 0;
  for (int64_t r = s->first_run[strip]; r < s->first_run[strip + 1]; r++) {
    const int kind = s->runs[r].kind;
    for (int64_t i = 0; i < s->runs[r].chunks; i++, from += QUANT_CHUNK_COLS) {
      const uint8_t *chunk = at;
      at += quant_chunk_bytes(s, kind);
      if (from + QUANT_CHUNK_COLS <= col) continue;
      if (from >= end) return;
      struct quant_chunk_row read;
      quant_chunk_read(s, kind, chunk, row % STRIP_ROWS, &read);
      for (int c = 0; c < QUANT_CHUNK_COLS; c++) {
        const int g = c / QUANT_GROUP;
        if (from + c < col || from + c >= end) continue;
        out[from + c - col] =
            read.kept[c] ? row_scale * read.scale[g] * (float)read.q[c] + read.min[g] : 0.0f;
      }
    }
  }
}
