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
#include "kernel/strip_deal.h"

enum {
  TILES_FROM = 5,
  TILE_ROWS = 16,
  EXACT_PARTS = 3,
  PARTS_CHUNKS = 8 /* that an item makes */
};

struct strip_job {
  const struct strip_output *outputs;
  int64_t tokens;
  struct strip_deal deal;
  const float *x;           /* what the caller gave */
  const float *ordered;     /* by lanes: (chunks, tokens, STRIP_COLS) */
  struct strip_batch batch; /* by tiles; w is that of the first output */
};

/* --- by lanes --- */

static void lanes_part(const void *job, int matrix, int64_t first, int64_t count) {
  const struct strip_job *j = job;
  const struct strip_output *out = &j->outputs[matrix];
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
  kernel_table()->strip_dot(out->w, first, count, j->ordered, j->tokens,
                            out->y + first * STRIP_ROWS, out->w->rows, sums);
}

static void run_lanes(void *ctx, int64_t item, int worker) {
  const struct strip_job *j = ctx;
  (void)worker;
  strip_deal_item(&j->deal, item, lanes_part, j);
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

/* --- by tiles --- */

static void make_parts(void *ctx, int64_t item, int worker) {
  const struct strip_job *j = ctx;
  (void)worker;
  for (int64_t i = 0, chunk = item * PARTS_CHUNKS; i < PARTS_CHUNKS && chunk < j->batch.w->chunks;
       i++, chunk++)
    kernel_table()->strip_parts(&j->batch, j->x, chunk);
}

static void tiles_part(const void *job, int matrix, int64_t first, int64_t count) {
  const struct strip_job *j = job;
  const struct strip_output *out = &j->outputs[matrix];
  struct strip_batch batch = j->batch;
  const int64_t most = STRIP_BATCH_STRIPS;
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(most * batch.padded_rows * STRIP_ROWS));
  batch.w = out->w;
  for (; count > 0; first += most, count -= most)
    kernel_table()->strip_batch(&batch, first, count < most ? count : most,
                                out->y + first * STRIP_ROWS, out->w->rows, sums);
}

static void run_tiles(void *ctx, int64_t item, int worker) {
  const struct strip_job *j = ctx;
  (void)worker;
  strip_deal_item(&j->deal, item, tiles_part, j);
}

static void multiply_by_tiles(struct strip_job *j, int parts) {
  const struct strip_matrix *w = j->outputs[0].w;
  const int64_t used = parts * j->tokens;
  const int64_t rows = used <= TILE_ROWS ? used : (used + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  j->batch = (struct strip_batch){.w = w, .tokens = j->tokens, .parts = parts, .padded_rows = rows};
  j->batch.x = kernel_scratch(SCRATCH_LINEAR, (size_t)(w->chunks * rows * STRIP_COLS / 2));
  parallel_for((w->chunks + PARTS_CHUNKS - 1) / PARTS_CHUNKS, make_parts, j);
  parallel_for(j->deal.items, run_tiles, j);
}

void strips_products(const struct strip_output *outputs, int count, const float *x, int64_t tokens,
                     enum precision precision) {
  bool tiles = kernel_table()->strip_batch && tokens >= TILES_FROM;
  int64_t strips[LINEAR_MANY_MOST];
  for (int i = 0; i < count; i++) {
    strips[i] = outputs[i].w->strips;
    tiles = tiles && outputs[i].w->dtype == DTYPE_BF16;
  }
  struct strip_job j = {outputs, tokens, strip_deal_make(strips, count), x, NULL, {0}};
  if (tiles) {
    multiply_by_tiles(&j, precision == PRECISION_BF16 ? 1 : EXACT_PARTS);
    return;
  }
  j.ordered = order_activations(outputs[0].w, x, tokens);
  parallel_for(j.deal.items, run_lanes, &j);
}
