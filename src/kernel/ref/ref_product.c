/* Reference kernels of the products: see kernel/select.h for the contracts. */
#include "base/error.h"
#include "kernel/ref/ref.h"

enum { ROWS = 4, COLS = 8 };

static void tile(int64_t k, const float *a, int64_t row_step, int64_t k_step, const float *b,
                 float alpha, float *c, int64_t ldc, int rows, int cols, bool add) {
  float sum[ROWS][COLS] = {{0}};
  for (int64_t p = 0; p < k; p++)
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < COLS; j++) sum[i][j] += a[i * row_step + p * k_step] * b[p * COLS + j];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < cols; j++)
      c[i * ldc + j] = alpha * sum[i][j] + (add ? c[i * ldc + j] : 0.0f);
}

static void pack_transposed(const float *source, int64_t ld, int64_t count, int64_t k,
                            int64_t width, float *out) {
  for (int64_t p = 0; p < k; p++)
    for (int64_t i = 0; i < width; i++) out[p * width + i] = i < count ? source[i * ld + p] : 0.0f;
}

static float element(enum dtype dtype, const void *source, int64_t i) {
  if (dtype == DTYPE_F32) return ((const float *)source)[i];
  uint16_t half = ((const uint16_t *)source)[i];
  return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static void pack_copied(const float *source, int64_t ld, int64_t count, int64_t k, int64_t width,
                        float *out) {
  for (int64_t p = 0; p < k; p++, source += ld, out += width) {
    memcpy(out, source, (size_t)count * sizeof(float));
    memset(out + count, 0, (size_t)(width - count) * sizeof(float));
  }
}

static void widen(enum dtype dtype, const void *source, int64_t count, float *out) {
  for (int64_t i = 0; i < count; i++) out[i] = element(dtype, source, i);
}

static void dot_rows(enum dtype dtype, const void *w, int64_t ld, int64_t rows, int64_t cols,
                     const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t t = 0; t < tokens; t++) {
      double sum = 0;
      for (int64_t c = 0; c < cols; c++)
        sum += (double)element(dtype, w, r * ld + c) * x[t * ldx + c];
      y[t * ldy + r] = (float)sum;
    }
}

static uint8_t nibble_at(const uint8_t *codes, int64_t i) {
  return i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

/* Row `inner` of a tile times x (one token, from the tile's first column on). */
static double hybrid_tile_dot(const struct hybrid_matrix *h, int64_t tile_index, int64_t inner,
                              const float *x) {
  struct tile_box box = hybrid_tile_box(h, tile_index);
  int64_t offset = h->tile_offset[tile_index];
  double sum = 0;
  if (hybrid_tile_dense(h, tile_index)) {
    for (int64_t c = 0; c < box.cols; c++)
      sum += (double)element(h->dtype, h->dense, offset + inner * box.cols + c) * x[c];
    return sum;
  }
  int64_t groups = (box.cols + 3) / 4;
  for (int64_t g = 0; g < groups; g++) {
    uint8_t code = hybrid_code(h, tile_index, inner, groups, g);
    int64_t at = offset + 2 * (inner * groups + g);
    sum += (double)element(h->dtype, h->values, at) * x[4 * g + (code & 3)];
    sum += (double)element(h->dtype, h->values, at + 1) * x[4 * g + (code >> 2)];
  }
  return sum;
}

static void hybrid_dot_rows(const struct hybrid_matrix *h, int64_t first, int64_t count,
                            const float *x, int64_t ldx, int64_t tokens, float *y, int64_t ldy,
                            float *sums) {
  (void)sums;
  int64_t per_row = hybrid_tile_cols(h), tile_row = first / h->tile_rows;
  for (int64_t r = 0; r < count; r++)
    for (int64_t t = 0; t < tokens; t++) {
      double sum = 0;
      for (int64_t c = 0; c < per_row; c++)
        sum += hybrid_tile_dot(h, tile_row * per_row + c, first + r - tile_row * h->tile_rows,
                               x + t * ldx + c * h->tile_cols);
      y[t * ldy + r] = (float)sum;
    }
}

static void expand_groups(enum dtype dtype, const void *values, const uint8_t *codes,
                          int64_t nibble, int64_t count, float *out) {
  memset(out, 0, (size_t)count * sizeof(float));
  for (int64_t g = 0; 4 * g < count; g++) {
    uint8_t code = nibble_at(codes, nibble + g);
    int64_t first = 4 * g + (code & 3), second = 4 * g + (code >> 2);
    if (first < count) out[first] = element(dtype, values, 2 * g);
    if (second < count) out[second] = element(dtype, values, 2 * g + 1);
  }
}

void ref_fill_product(struct kernel_table *table) {
  table->tile_rows = ROWS;
  table->tile_cols = COLS;
  table->tile = tile;
  table->pack_transposed = pack_transposed;
  table->pack_copied = pack_copied;
  table->widen = widen;
  table->dot_rows = dot_rows;
  table->hybrid_dot_rows = hybrid_dot_rows;
  table->expand_groups = expand_groups;
}
