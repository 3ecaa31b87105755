/* Products with strips: the activations in the order of the chunks, the strips dealt out to the
 * threads. See product.h. No state but scratch.
 *
 * Tiles take batches from TILES_FROM tokens on; for fewer, plain multiply-adds keep up with memory
 * and start faster. */
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/scratch.h"
#include "kernel/select.h"
#include "kernel/strip_batch.h"

enum {
  ITEMS_PER_THREAD = 8,
  ITEM_BYTES_LEAST = 48 << 10,
  TILES_FROM = 9,
  TILE_ROWS = 16,
  EXACT_PARTS = 3
};

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
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
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
 * thread its share. How pairs of strips are dealt out changes no sum. */
static int64_t strips_per_item(const struct strip_matrix *w) {
  const int64_t bytes = (int64_t)w->stored_bytes / w->strips + 1;
  int64_t count = w->strips / (ITEMS_PER_THREAD * parallel_threads());
  if (count * bytes < ITEM_BYTES_LEAST) count = ITEM_BYTES_LEAST / bytes;
  return count < 2 ? 2 : count + count % 2;
}

static void product_by_lanes(const struct strip_matrix *w, const float *x, int64_t tokens,
                             float *y) {
  struct strip_job j = {w, tokens, strips_per_item(w), order_activations(w, x, tokens), y};
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_item, &j);
}

/* --- by tiles --- */

struct tile_job {
  struct strip_batch batch;
  const float *x;
  int64_t per_item;
  float *y;
};

static void make_parts(void *ctx, int64_t chunk, int worker) {
  const struct tile_job *j = ctx;
  (void)worker;
  kernel_table()->strip_parts(&j->batch, j->x, chunk);
}

static void run_tiles(void *ctx, int64_t item, int worker) {
  const struct tile_job *j = ctx;
  const struct strip_matrix *w = j->batch.w;
  const int64_t first = item * j->per_item, left = w->strips - first;
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT,
                               (size_t)(STRIP_BATCH_STRIPS * j->batch.padded_rows * STRIP_ROWS));
  kernel_table()->strip_batch(&j->batch, first, left < j->per_item ? left : j->per_item,
                              j->y + first * STRIP_ROWS, w->rows, sums);
}

static void product_by_tiles(const struct strip_matrix *w, const float *x, int64_t tokens,
                             int parts, float *y) {
  struct tile_job j = {{.w = w, .tokens = tokens, .parts = parts}, x, strips_per_item(w), y};
  if (j.per_item > STRIP_BATCH_STRIPS) j.per_item = STRIP_BATCH_STRIPS;
  j.per_item += j.per_item % 2; /* they are taken in pairs */
  j.batch.padded_rows = (parts * tokens + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  j.batch.x =
      kernel_scratch(SCRATCH_LINEAR, (size_t)(w->chunks * j.batch.padded_rows * STRIP_COLS / 2));
  parallel_for(w->chunks, make_parts, &j);
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_tiles, &j);
}

void strips_product(const struct strip_matrix *w, const float *x, int64_t tokens,
                    enum precision precision, float *y) {
  if (kernel_table()->strip_batch && w->dtype == DTYPE_BF16 && tokens >= TILES_FROM)
    product_by_tiles(w, x, tokens, precision == PRECISION_BF16 ? 1 : EXACT_PARTS, y);
  else
    product_by_lanes(w, x, tokens, y);
}
