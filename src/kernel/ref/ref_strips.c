/* Reference kernels over strips, and the plain read: see kernel/select.h for the contracts. */
#include <string.h>

#include "kernel/ref/ref.h"
#include "sparse/strips.h"

static double row_dot(const struct strip_matrix *w, int64_t row, const float *x, int64_t tokens) {
  double sum = 0;
  for (int64_t chunk = 0; chunk < w->chunks; chunk++) {
    float weight[STRIP_COLS];
    int64_t col = chunk * STRIP_COLS;
    int64_t count = w->cols - col < STRIP_COLS ? w->cols - col : STRIP_COLS;
    strips_row(w, row, col, count, weight);
    for (int64_t c = 0; c < count; c++)
      sum += (double)weight[c] * x[chunk * tokens * STRIP_COLS + c];
  }
  return sum;
}

static void strip_dot(const struct strip_matrix *w, int64_t first, int64_t count, const float *x,
                      int64_t tokens, float *y, int64_t ldy, float *sums) {
  (void)sums;
  int64_t row = first * STRIP_ROWS, end = (first + count) * STRIP_ROWS;
  if (end > w->rows) end = w->rows;
  for (int64_t r = row; r < end; r++)
    for (int64_t t = 0; t < tokens; t++)
      y[t * ldy + r - row] = (float)row_dot(w, r, x + t * STRIP_COLS, tokens);
}

static void strip_expand(const struct strip_matrix *w, int64_t strip, int64_t chunk, int64_t cols,
                         int64_t width, float *out) {
  for (int64_t r = 0; r < STRIP_ROWS; r++)
    for (int64_t c = 0; c < cols; c++) {
      float *to = out + c * width + r;
      *to = 0;
      if (strip * STRIP_ROWS + r < w->rows)
        strips_row(w, strip * STRIP_ROWS + r, chunk * STRIP_COLS + c, 1, to);
    }
}

static uint32_t sum_words(const void *data, size_t bytes, int streams) {
  uint32_t sum = 0;
  (void)streams;
  for (size_t at = 0; at < bytes; at += sizeof sum) {
    uint32_t word = 0;
    memcpy(&word, (const char *)data + at, bytes - at < sizeof word ? bytes - at : sizeof word);
    sum += word;
  }
  return sum;
}

void ref_fill_strips(struct kernel_table *table) {
  table->strip_dot = strip_dot;
  table->strip_expand = strip_expand;
  table->sum_words = sum_words;
}
