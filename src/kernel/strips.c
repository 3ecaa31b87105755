/* Products with strips: the activations in the order of the chunks, the strips dealt out to the
 * threads. See product.h. No state but scratch. */
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { ITEMS_PER_THREAD = 8, ITEM_BYTES_LEAST = 48 << 10 };

struct strip_job {
  const struct strip_matrix *w;
  int64_t tokens, per_item;
  const float *x; /* (chunks, tokens, STRIP_COLS) */
  float *y;       /* (tokens, rows) */
};

static void run_item(void *ctx, int64_t item, int worker) {
  const struct strip_job *j = ctx;
  const int64_t first = item * j->per_item, left = j->w->strips - first;
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(j->tokens * STRIP_ROWS));
  kernel_table()->strip_dot(j->w, first, left < j->per_item ? left : j->per_item, j->x, j->tokens,
                            j->y + first * STRIP_ROWS, j->w->rows, sums);
}

/* x (tokens, cols) as (chunks, tokens, STRIP_COLS), zeros behind the last column. */
static const float *order_activations(const struct strip_matrix *w, const float *x,
                                      int64_t tokens) {
  float *out = kernel_scratch(SCRATCH_LINEAR, (size_t)(w->chunks * tokens * STRIP_COLS)), *to = out;
  for (int64_t chunk = 0; chunk < w->chunks; chunk++) {
    const int64_t col = chunk * STRIP_COLS;
    const int64_t count = w->cols - col < STRIP_COLS ? w->cols - col : STRIP_COLS;
    for (int64_t t = 0; t < tokens; t++, to += STRIP_COLS) {
      memcpy(to, x + t * w->cols + col, (size_t)count * sizeof(float));
      memset(to + count, 0, (size_t)(STRIP_COLS - count) * sizeof(float));
    }
  }
  return out;
}

/* Enough strips for a stretch of memory that is worth reading in one go, few enough to leave every
 * thread its share. How strips are dealt out changes no sum. */
static int64_t strips_per_item(const struct strip_matrix *w) {
  const int64_t bytes = (int64_t)w->stored_bytes / w->strips + 1;
  int64_t count = w->strips / (ITEMS_PER_THREAD * parallel_threads());
  if (count * bytes < ITEM_BYTES_LEAST) count = ITEM_BYTES_LEAST / bytes;
  return count < 1 ? 1 : count;
}

void strips_product(const struct strip_matrix *w, const float *x, int64_t tokens, float *y) {
  struct strip_job j = {w, tokens, strips_per_item(w), order_activations(w, x, tokens), y};
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_item, &j);
}
