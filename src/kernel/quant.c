/* Products with quantized strips: the activations rounded in the order of the chunks, the strips
 * dealt out to the threads. See product.h. No state but scratch.
 *
 * Tiles take batches from TILES_FROM tokens on, and prompts that may be rounded to bf16 as long as
 * making their B tiles costs less than packing all of W: up to some two hundred tokens. */
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/quant_x.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  ITEMS_PER_THREAD = 8,
  ITEM_BYTES_LEAST = 48 << 10,
  ROUND_SERIAL = 1 << 13,
  TILES_FROM = 12,
  TILE_ROWS = 16,
  LANE_TOKENS = 64,
  TILE_TOKENS = 192
};

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
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
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

/* --- by tiles --- */

struct tile_job {
  struct quant_batch batch;
  const float *x;
  int64_t per_item;
  float *y;
};

static void round_tiles(void *ctx, int64_t chunk, int worker) {
  const struct tile_job *j = ctx;
  (void)worker;
  kernel_table()->quant.batch_round(&j->batch, j->x, chunk);
}

static void run_tiles(void *ctx, int64_t item, int worker) {
  const struct tile_job *j = ctx;
  const struct quant_strips *w = j->batch.w;
  const int64_t first = item * j->per_item, left = w->strips - first;
  (void)worker;
  float *sums = kernel_scratch(SCRATCH_SEGMENT,
                               (size_t)(QUANT_BATCH_STRIPS * j->batch.padded_rows * STRIP_ROWS));
  kernel_table()->quant.batch_dot(&j->batch, first, left < j->per_item ? left : j->per_item,
                                  j->y + first * STRIP_ROWS, w->rows, sums);
}

static void product_by_tiles(const struct quant_strips *w, const float *x, int64_t tokens,
                             float *y) {
  struct tile_job j = {{.w = w, .tokens = tokens}, x, strips_per_item(w), y};
  if (j.per_item > QUANT_BATCH_STRIPS) j.per_item = QUANT_BATCH_STRIPS;
  j.per_item += j.per_item % 2; /* they are taken in pairs */
  j.batch.padded_rows = (tokens + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  j.batch.x = kernel_scratch(SCRATCH_LINEAR,
                             (size_t)(w->chunks * j.batch.padded_rows * QUANT_CHUNK_COLS / 2));
  parallel_for(w->chunks, round_tiles, &j);
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_tiles, &j);
}

int64_t quant_tokens_most(enum precision precision) {
  return precision == PRECISION_BF16 && kernel_table()->quant.batch_dot ? TILE_TOKENS : LANE_TOKENS;
}

void quant_product(const struct quant_strips *w, const float *x, int64_t tokens, float *y) {
  if (kernel_table()->quant.batch_dot && tokens >= TILES_FROM) {
    product_by_tiles(w, x, tokens, y);
    return;
  }
  struct quant_job j = {w, tokens, strips_per_item(w), x, NULL, y};
  j.x = kernel_scratch(SCRATCH_LINEAR,
                       (size_t)(w->chunks * tokens) * (sizeof(struct quant_x) / sizeof(float)));
  if (w->cols * tokens <= ROUND_SERIAL)
    for (int64_t c = 0; c < w->chunks; c++) round_chunk(&j, c, 0);
  else
    parallel_for(w->chunks, round_chunk, &j);
  parallel_for((w->strips + j.per_item - 1) / j.per_item, run_item, &j);
}
