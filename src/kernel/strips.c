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

/* How the strips of some matrices are dealt out: their pairs are counted through, three quarters of
 * them are in long items, which are read from memory in one go, and the rest in short ones, so that
 * all threads end at about the same time. No sum depends on which pairs are an item. */
struct deal {
  int64_t pairs, of_long, longs, of_short; /* pairs in an item, long items */
};

static int64_t pairs_of(const struct strip_matrix *w) { return (w->strips + 1) / 2; }

static struct deal deal_of(int64_t pairs) {
  const int64_t threads = parallel_threads();
  const int64_t of_long = 3 * pairs / (4 * LONG_PER_THREAD * threads);
  const int64_t of_short = pairs / (SHORT_PER_THREAD * threads);
  return (struct deal){pairs, of_long, of_long ? LONG_PER_THREAD * threads : 0,
                       of_short ? of_short : 1};
}

static int64_t deal_items(const struct deal *d) {
  const int64_t left = d->pairs - d->longs * d->of_long;
  return d->longs + (left + d->of_short - 1) / d->of_short;
}

/* The pairs [*first, return value) of an item. */
static int64_t deal_item(const struct deal *d, int64_t item, int64_t *first) {
  const int64_t size = item < d->longs ? d->of_long : d->of_short, before = d->longs * d->of_long;
  *first = item < d->longs ? item * size : before + (item - d->longs) * size;
  return *first + size < d->pairs ? *first + size : d->pairs;
}

struct strip_job {
  const struct strip_output *outputs;
  int count;
  int64_t tokens;
  struct deal deal;
  const float *x;           /* what the caller gave */
  const float *ordered;     /* by lanes: (chunks, tokens, STRIP_COLS) */
  struct strip_batch batch; /* by tiles; w is that of the first output */
};

/* Runs `part` on the strips [first, first + count) of each matrix that has a share in an item. */
static void for_each_part(const struct strip_job *j, int64_t item,
                          void (*part)(const struct strip_job *, const struct strip_output *,
                                       int64_t first, int64_t count)) {
  int64_t pair, end = deal_item(&j->deal, item, &pair), before = 0;
  for (int i = 0; i < j->count && pair < end; i++) {
    const struct strip_matrix *w = j->outputs[i].w;
    const int64_t stop = before + pairs_of(w) < end ? before + pairs_of(w) : end;
    if (pair < stop) {
      const int64_t first = 2 * (pair - before), last = 2 * (stop - before);
      part(j, &j->outputs[i], first, (last < w->strips ? last : w->strips) - first);
      pair = stop;
    }
    before += pairs_of(w);
  }
}

/* --- by lanes --- */

static void lanes_part(const struct strip_job *j, const struct strip_output *out, int64_t first,
                       int64_t count) {
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(2 * j->tokens * STRIP_ROWS));
  kernel_table()->strip_dot(out->w, first, count, j->ordered, j->tokens,
                            out->y + first * STRIP_ROWS, out->w->rows, sums);
}

static void run_lanes(void *ctx, int64_t item, int worker) {
  (void)worker;
  for_each_part(ctx, item, lanes_part);
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

static void tiles_part(const struct strip_job *j, const struct strip_output *out, int64_t first,
                       int64_t count) {
  struct strip_batch batch = j->batch;
  const int64_t most = STRIP_BATCH_STRIPS;
  float *sums = kernel_scratch(SCRATCH_SEGMENT, (size_t)(most * batch.padded_rows * STRIP_ROWS));
  batch.w = out->w;
  for (; count > 0; first += most, count -= most)
    kernel_table()->strip_batch(&batch, first, count < most ? count : most,
                                out->y + first * STRIP_ROWS, out->w->rows, sums);
}

static void run_tiles(void *ctx, int64_t item, int worker) {
  (void)worker;
  for_each_part(ctx, item, tiles_part);
}

static void multiply_by_tiles(struct strip_job *j, int parts) {
  const struct strip_matrix *w = j->outputs[0].w;
  const int64_t used = parts * j->tokens;
  const int64_t rows = used <= TILE_ROWS ? used : (used + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  j->batch = (struct strip_batch){.w = w, .tokens = j->tokens, .parts = parts, .padded_rows = rows};
  j->batch.x = kernel_scratch(SCRATCH_LINEAR, (size_t)(w->chunks * rows * STRIP_COLS / 2));
  parallel_for((w->chunks + PARTS_CHUNKS - 1) / PARTS_CHUNKS, make_parts, j);
  parallel_for(deal_items(&j->deal), run_tiles, j);
}

void strips_products(const struct strip_output *outputs, int count, const float *x, int64_t tokens,
                     enum precision precision) {
  bool tiles = kernel_table()->strip_batch && tokens >= TILES_FROM;
  int64_t pairs = 0;
  for (int i = 0; i < count; i++) {
    pairs += pairs_of(outputs[i].w);
    tiles = tiles && outputs[i].w->dtype == DTYPE_BF16;
  }
  struct strip_job j = {outputs, count, tokens, deal_of(pairs), x, NULL, {0}};
  if (tiles) {
    multiply_by_tiles(&j, precision == PRECISION_BF16 ? 1 : EXACT_PARTS);
    return;
  }
  j.ordered = order_activations(outputs[0].w, x, tokens);
  parallel_for(deal_items(&j.deal), run_lanes, &j);
}
