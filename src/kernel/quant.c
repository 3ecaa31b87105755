/* Products with quantized strips: the activations rounded in the order of the chunks, the strips
 * dealt out to the threads. See product.h. No state but scratch.
 *
 * Tiles take batches from TILES_FROM tokens on, and prompts that may be rounded to bf16 as long as
 * making their B tiles costs less than packing all of W: up to some two hundred tokens. Without
 * tiles a prompt in fp32 goes through lanes whatever its length: integers multiply faster than
 * floats, and nothing is expanded. It is cut into blocks of tokens whose activations stay in the
 * second-level cache while the strips pass. */
#include "base/error.h"
#include "base/parallel.h"
#include "kernel/product.h"
#include "kernel/quant_x.h"
#include "kernel/scratch.h"
#include "kernel/select.h"
#include "kernel/strip_deal.h"

enum {
  ITEMS_PER_THREAD = 8, /* of tiles */
  ITEM_BYTES_LEAST = 48 << 10,
  ROUND_SERIAL = 1 << 13,
  TILES_FROM = 12,
  TILE_ROWS = 16,
  LANE_TOKENS = 64,
  TILE_TOKENS = 192,
  BLOCK_TOKENS = 128
};

/* --- by lanes --- */

struct quant_job {
  const struct quant_output *outputs;
  int64_t cols, tokens;
  struct strip_deal deal;
  const float *from; /* (tokens, cols) */
  struct quant_x *x; /* (chunks, tokens) */
};

static void round_chunk(void *ctx, int64_t chunk, int worker) {
  const struct quant_job *j = ctx;
  const int64_t col = chunk * QUANT_CHUNK_COLS, left = j->cols - col;
  (void)worker;
  kernel_table()->quant.round(j->from + col, j->cols,
                              left < QUANT_CHUNK_COLS ? left : QUANT_CHUNK_COLS, j->tokens,
                              j->x + chunk * j->tokens);
}

static void lanes_part(const void *job, int matrix, int64_t first, int64_t count) {
  const struct quant_job *j = job;
  const struct quant_output *out = &j->outputs[matrix];
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
  kernel_table()->quant.dot(out->w, first, count, j->x, j->tokens, out->y + first * STRIP_ROWS,
                            out->w->rows, sums);
}

static void run_lanes(void *ctx, int64_t item, int worker) {
  const struct quant_job *j = ctx;
  (void)worker;
  strip_deal_item(&j->deal, item, lanes_part, j);
}

static void multiply_by_lanes(const struct quant_output *outputs, int count, const float *x,
                              int64_t tokens) {
  const struct quant_strips *w = outputs[0].w;
  int64_t strips[LINEAR_MANY_MOST];
  for (int i = 0; i < count; i++) strips[i] = outputs[i].w->strips;
  struct quant_job j = {outputs, w->cols, tokens, strip_deal_make(strips, count), x, NULL};
  j.x = kernel_scratch(SCRATCH_LINEAR,
                       (size_t)(w->chunks * tokens) * (sizeof(struct quant_x) / sizeof(float)));
  if (w->cols * tokens <= ROUND_SERIAL)
    for (int64_t c = 0; c < w->chunks; c++) round_chunk(&j, c, 0);
  else
    parallel_for(w->chunks, round_chunk, &j);
  parallel_for(j.deal.items, run_lanes, &j);
}

/* --- by tiles --- */

/* Enough strips for a stretch of memory that is worth reading in one go, few enough to leave every
 * thread its share. How strips are dealt out changes no sum. */
static int64_t strips_per_item(const struct quant_strips *w) {
  const int64_t bytes = (int64_t)w->stored_bytes / w->strips + 1;
  int64_t count = w->strips / (ITEMS_PER_THREAD * parallel_threads());
  if (count * bytes < ITEM_BYTES_LEAST) count = ITEM_BYTES_LEAST / bytes;
  return count < 1 ? 1 : count;
}

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
  const bool tiles = kernel_table()->quant.batch_dot != NULL;
  if (precision == PRECISION_BF16) return tiles ? TILE_TOKENS : LANE_TOKENS;
  return tiles ? LANE_TOKENS : INT64_MAX;
}

/* Block after block, whatever the number of threads. */
static void prompt_by_lanes(const struct quant_output *outputs, int count, const float *x,
                            int64_t tokens) {
  struct quant_output at[LINEAR_MANY_MOST];
  for (int64_t token = 0; token < tokens; token += BLOCK_TOKENS) {
    const int64_t left = tokens - token;
    for (int i = 0; i < count; i++)
      at[i] = (struct quant_output){outputs[i].w, outputs[i].y + token * outputs[i].w->rows};
    multiply_by_lanes(at, count, x + token * outputs[0].w->cols,
                      left < BLOCK_TOKENS ? left : BLOCK_TOKENS);
  }
}

void quant_products(const struct quant_output *outputs, int count, const float *x, int64_t tokens) {
  INVARIANT(count >= 1 && count <= LINEAR_MANY_MOST);
  if (!kernel_table()->quant.batch_dot || tokens < TILES_FROM) {
    prompt_by_lanes(outputs, count, x, tokens);
    return;
  }
  for (int i = 0; i < count; i++) product_by_tiles(outputs[i].w, x, tokens, outputs[i].y);
}
