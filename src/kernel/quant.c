/* Products with quantized strips: the activations rounded in the order of the chunks, the strips
 * dealt out to the threads. See product.h. No state but scratch. */
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/quant_x.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { ITEMS_PER_THREAD = 8, ITEM_BYTES_LEAST = 48 << 10, ROUND_SERIAL = 1 << 13 };

struct quant_job {
  const struct quant_strips *w;
  int64_t tokens, per_item;
  const float *from; /* (tokens, cols) */
  struct quant_x *x; /* (chunks, tokens) */
  float *y;          /* (tokens, rows) */
};

static void round_chunk(void *ctx, int64_t chunk, int worker) {
  const struct quant_job *j = ctx;
  const int64_t col = chunk * QUANT_CHUNK_COLS, left = j->w->cols - col;
  (void)worker;
  kernel_table()->quant.round(j->from + col, j->w->cols,
                              left < QUANT_CHUNK_COLS ? left : QUANT_CHUNK_COLS, j->tokens,
                              j->x + chunk * j->tokens);
}

static void run_item(void *ctx, int64_t item, int worker) {
  const struct quant_job *j = ctx;
  const int64_t first = item * j->per_item, left = j->w->strips - first;
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(j->tokens * STRIP_ROWS));
  kernel_table()->quant.dot(j->w, first, left < j->per_item ? left : j->per_item, j->x, j->tokens,
                            j->y + first * STRIP_ROWS, j->w->rows, sums);
}

/* Enough strips for a stretch of memory that is worth reading in one go, few enough to leave every
 * thread its share. How strips are dealt out changes no sum. */
static int64_t strips_per_item(const struct quant_strips *w) {
  const int64_t bytes = (int64_t)w->stored_bytes / w->strips + 1;
  int64_t count = w->strips / (ITEMS_PER_THREAD * parallel_threads());
  if (count * bytes < ITEM_BYTES_LEAST) count = ITEM_BYTES_LEAST / bytes;
  return count < 1 ? 1 : count;
}

void quant_product(const struct quant_strips *w, const float *x, int64_t tokens, float *y) {
  struct quant_job j = {w, tokens, strips_per_item(w), x, NULL, y};
  j.x = kernel_scratch(SCRATCH_LINEAR,
                       (size_t)(w->chunks * tokens) * (sizeof(struct quant_x) / sizeof(float)));
  if (w->cols * tokens <= ROUND_SERIAL)
    for (int64_t c = 0; c < w->chunks; c++) round_chunk(&j, c, 0);
  else
    parallel_for(w->chunks, round_chunk, &j);
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_item, &j);
}
