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
  LONG_PER_THREAD = 2,
  SHORT_PER_THREAD = 32,
  TILES_FROM = 5,
  TILE_ROWS = 16,
  EXACT_PARTS = 3,
  PARTS_CHUNKS = 8 /* that an item makes */
};

/* How the strips of a matrix are dealt out: three quarters of them in long items, which are read
 * from memory in one go, then short ones, so that all threads end at about the same time. Items
 * begin at even strips; no sum depends on them. */
struct deal {
  int64_t strips, of_long, longs, of_short; /* strips in an item, items */
};

static struct deal deal_of(int64_t strips) {
  const int64_t pairs = (strips + 1) / 2, threads = parallel_threads();
  const int64_t of_long = 3 * pairs / (4 * LONG_PER_THREAD * threads);
  const int64_t of_short = pairs / (SHORT_PER_THREAD * threads);
  return (struct deal){strips, 2 * of_long, of_long ? LONG_PER_THREAD * threads : 0,
                       of_short ? 2 * of_short : 2};
}

static int64_t deal_items(const struct deal *d) {
  const int64_t left = d->strips - d->longs * d->of_long;
  return d->longs + (left + d->of_short - 1) / d->of_short;
}

static int64_t deal_item(const struct deal *d, int64_t item, int64_t *count) {
  const bool is_long = item < d->longs;
  const int64_t size = is_long ? d->of_long : d->of_short;
  const int64_t first =
      is_long ? item * size : d->longs * d->of_long + (item - d->longs) * d->of_short;
  *count = d->strips - first < size ? d->strips - first : size;
  return first;
}

struct strip_job {
  const struct strip_matrix *w;
  int64_t tokens;
  struct deal deal;
  const float *x; /* (chunks, tokens, STRIP_COLS) */
  float *y;       /* (tokens, rows) */
};

static void run_item(void *ctx, int64_t item, int worker) {
  const struct strip_job *j = ctx;
  int64_t count, first = deal_item(&j->deal, item, &count);
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
  kernel_table()->strip_dot(j->w, first, count, j->x, j->tokens, j->y + first * STRIP_ROWS,
                            j->w->rows, sums);
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

static void product_by_lanes(const struct strip_matrix *w, const float *x, int64_t tokens,
                             float *y) {
  struct strip_job j = {w, tokens, deal_of(w->strips), order_activations(w, x, tokens), y};
  parallel_for(deal_items(&j.deal), run_item, &j);
}

/* --- by tiles --- */

struct tile_job {
  struct strip_batch batch;
  const float *x;
  struct deal deal;
  float *y;
};

static void make_parts(void *ctx, int64_t item, int worker) {
  const struct tile_job *j = ctx;
  (void)worker;
  for (int64_t i = 0, chunk = item * PARTS_CHUNKS; i < PARTS_CHUNKS && chunk < j->batch.w->chunks;
       i++, chunk++)
    kernel_table()->strip_parts(&j->batch, j->x, chunk);
}

static void run_tiles(void *ctx, int64_t item, int worker) {
  const struct tile_job *j = ctx;
  const struct strip_matrix *w = j->batch.w;
  int64_t count, first = deal_item(&j->deal, item, &count), most = STRIP_BATCH_STRIPS;
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT,
                               (size_t)(STRIP_BATCH_STRIPS * j->batch.padded_rows * STRIP_ROWS));
  for (; count > 0; first += most, count -= most)
    kernel_table()->strip_batch(&j->batch, first, count < most ? count : most,
                                j->y + first * STRIP_ROWS, w->rows, sums);
}

static void product_by_tiles(const struct strip_matrix *w, const float *x, int64_t tokens,
                             int parts, float *y) {
  struct tile_job j = {{.w = w, .tokens = tokens, .parts = parts}, x, deal_of(w->strips), y};
  const int64_t rows = parts * tokens;
  j.batch.padded_rows = rows <= TILE_ROWS ? rows : (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  j.batch.x =
      kernel_scratch(SCRATCH_LINEAR, (size_t)(w->chunks * j.batch.padded_rows * STRIP_COLS / 2));
  parallel_for((w->chunks + PARTS_CHUNKS - 1) / PARTS_CHUNKS, make_parts, &j);
  parallel_for(deal_items(&j.deal), run_tiles, &j);
}

void strips_product(const struct strip_matrix *w, const float *x, int64_t tokens,
                    enum precision precision, float *y) {
  if (kernel_table()->strip_batch && w->dtype == DTYPE_BF16 && tokens >= TILES_FROM)
    product_by_tiles(w, x, tokens, precision == PRECISION_BF16 ? 1 : EXACT_PARTS, y);
  else
    product_by_lanes(w, x, tokens, y);
}
