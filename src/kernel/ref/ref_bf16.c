/* Reference kernels of bf16 products: see kernel/bf16_kernels.h for the contracts. */
#include "kernel/ref/ref.h"

static float at(const struct bf16_block *x, int64_t i, int64_t p) {
  int64_t chunk = i / BF16_SIDE * x->panel_step + p / BF16_STEP * BF16_CHUNK;
  return bf16_to_f32(x->a[chunk + i % BF16_SIDE * BF16_STEP + p % BF16_STEP]);
}

static float bt(const struct bf16_block *x, int64_t p, int64_t j) {
  uint32_t pair = x->b[j / BF16_SIDE * x->strip_step + p / 2 * BF16_SIDE + j % BF16_SIDE];
  return bf16_to_f32((uint16_t)(p % 2 ? pair >> 16 : pair));
}

static void block(const struct bf16_block *x) {
  for (int64_t i = 0; i < x->rows; i++)
    for (int64_t j = 0; j < x->cols; j++) {
      float sum = 0, *c = x->c + i * x->ldc + j;
      for (int64_t p = 0; p < x->k; p++) sum += at(x, i, p) * bt(x, p, j);
      *c = x->alpha * sum + (x->add ? *c : 0.0f);
    }
}

static uint16_t rounded(enum dtype dtype, const void *source, int64_t i) {
  if (dtype == DTYPE_F32) return bf16_from_f32(((const float *)source)[i]);
  uint16_t half = ((const uint16_t *)source)[i];
  return dtype == DTYPE_BF16 ? half : bf16_from_f32(f16_to_f32(half));
}

static int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static void panel_along(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        uint16_t *out) {
  for (int64_t p = 0; p < padded(k, BF16_STEP); p++)
    for (int64_t i = 0; i < BF16_SIDE; i++)
      out[p / BF16_STEP * BF16_CHUNK + i * BF16_STEP + p % BF16_STEP] =
          i < count && p < k ? rounded(dtype, source, i * ld + p) : 0;
}

static void panels_across(enum dtype dtype, const void *source, int64_t ld, int64_t count,
                          int64_t k, int64_t step, uint16_t *out) {
  for (int64_t p = 0; p < padded(k, BF16_STEP); p++)
    for (int64_t i = 0; i < padded(count, BF16_SIDE); i++)
      out[i / BF16_SIDE * step + p / BF16_STEP * BF16_CHUNK + i % BF16_SIDE * BF16_STEP +
          p % BF16_STEP] = i < count && p < k ? rounded(dtype, source, p * ld + i) : 0;
}

static void strip_along(enum dtype dtype, const void *source, int64_t ld, int64_t count, int64_t k,
                        uint32_t *out) {
  for (int64_t p = 0; p < padded(k, BF16_STEP); p += 2)
    for (int64_t j = 0; j < BF16_SIDE; j++) {
      uint32_t low = j < count && p < k ? rounded(dtype, source, j * ld + p) : 0;
      uint32_t high = j < count && p + 1 < k ? rounded(dtype, source, j * ld + p + 1) : 0;
      out[p / 2 * BF16_SIDE + j] = low | high << 16;
    }
}

static void strips_across(enum dtype dtype, const void *source, int64_t ld, int64_t count,
                          int64_t k, int64_t step, uint32_t *out) {
  for (int64_t p = 0; p < padded(k, BF16_STEP); p += 2)
    for (int64_t j = 0; j < padded(count, BF16_SIDE); j++) {
      uint32_t low = j < count && p < k ? rounded(dtype, source, p * ld + j) : 0;
      uint32_t high = j < count && p + 1 < k ? rounded(dtype, source, (p + 1) * ld + j) : 0;
      out[j / BF16_SIDE * step + p / 2 * BF16_SIDE + j % BF16_SIDE] = low | high << 16;
    }
}

static void round_row(const float *source, int64_t n, uint16_t *out) {
  for (int64_t i = 0; i < n; i++) out[i] = bf16_from_f32(source[i]);
}

void ref_fill_bf16(struct kernel_table *table) {
  table->bf16 = (struct bf16_kernels){.block = block,
                                      .panel_along = panel_along,
                                      .panels_across = panels_across,
                                      .strip_along = strip_along,
                                      .strips_across = strips_across,
                                      .round = round_row};
}
