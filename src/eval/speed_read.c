/* The plain read: see speed_read.h. */
#include "eval/speed_read.h"

#include <math.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/select.h"

enum { SPANS_PER_WEIGHT = 5, PIECE_BYTES = 1 << 20 };

static void add_span(struct weight_spans *s, const void *data, size_t bytes) {
  s->items[s->count++] = (struct weight_span){data, bytes};
  s->bytes += bytes;
}

static size_t elements_bytes(enum dtype dtype, int64_t count) {
  size_t bytes;
  INVARIANT(dtype_bytes(dtype, (uint64_t)count, &bytes));
  return bytes;
}

static void add_integers(struct weight_spans *s, const struct quant_matrix *q) {
  struct quant_sizes sizes;
  INVARIANT(!quant_measure(q, &sizes, NULL));
  const size_t scale_bytes = (size_t)sizes.scales * (q->group ? 2 : 4);
  add_span(s, q->dense, sizes.dense_bytes);
  add_span(s, q->values, sizes.values_bytes);
  add_span(s, q->codes, sizes.codes_bytes);
  add_span(s, q->group ? (const void *)q->scales : q->row_scales, scale_bytes);
  add_span(s, q->mins, q->mins ? scale_bytes : 0);
}

static void add_weight(struct weight_spans *s, const struct linear_weight *w) {
  if (w->strips) {
    add_span(s, w->strips->data, w->strips->stored_bytes);
    return;
  }
  if (w->quant) {
    add_span(s, w->quant->data, w->quant->stored_bytes);
    return;
  }
  const struct hybrid_matrix *h = w->hybrid;
  if (w->integers) {
    add_integers(s, w->integers);
    return;
  }
  if (!h) {
    add_span(s, w->dense.data, elements_bytes(w->dense.dtype, w->dense.rows * w->dense.cols));
    return;
  }
  struct hybrid_sizes sizes;
  INVARIANT(!hybrid_measure(h->rows, h->cols, h->tile_rows, h->tile_cols, h->dtype, h->tile_map,
                            &sizes, NULL));
  add_span(s, h->dense, sizes.dense_bytes);
  add_span(s, h->values, sizes.values_bytes);
  add_span(s, h->codes, sizes.codes_bytes);
}

void weight_spans_free(struct weight_spans *s) {
  mem_free(s->items);
  mem_free(s->first_piece);
  *s = (struct weight_spans){0};
}

enum status weight_spans_init(struct weight_spans *s, const struct model *model,
                              struct error *err) {
  size_t most = SPANS_PER_WEIGHT * ((size_t)model_site_count(model) + 1);
  *s = (struct weight_spans){.items = mem_alloc(most, sizeof *s->items, err)};
  s->first_piece = mem_alloc(most + 1, sizeof *s->first_piece, err);
  if (!s->items || !s->first_piece) {
    weight_spans_free(s);
    return STATUS_FAILED;
  }
  for (int i = 0; i < model_site_count(model); i++) add_weight(s, &model_site(model, i)->weight);
  add_weight(s, model_head(model));
  weight_spans_cut(s);
  return STATUS_OK;
}

void weight_spans_cut(struct weight_spans *s) {
  for (size_t i = 0; i < s->count; i++)
    s->first_piece[i + 1] =
        s->first_piece[i] + (int64_t)((s->items[i].bytes + PIECE_BYTES - 1) / PIECE_BYTES);
}

/* --- the plain read --- */

struct reading {
  const struct weight_spans *spans;
  int streams;
  uint32_t sums[PARALLEL_THREADS_MAX]; /* printed, so that no read is optimized away */
};

static void read_piece(void *ctx, int64_t piece, int worker) {
  struct reading *r = ctx;
  size_t low = 0, high = r->spans->count - 1;
  while (low < high) { /* the last span whose first piece is not behind this one */
    size_t middle = (low + high + 1) / 2;
    if (r->spans->first_piece[middle] <= piece)
      low = middle;
    else
      high = middle - 1;
  }
  const struct weight_span *span = &r->spans->items[low];
  size_t at = (size_t)(piece - r->spans->first_piece[low]) * PIECE_BYTES;
  size_t bytes = span->bytes - at < PIECE_BYTES ? span->bytes - at : PIECE_BYTES;
  r->sums[worker] += kernel_table()->sum_words(span->data + at, bytes, r->streams);
}

static double time_read(const struct weight_spans *spans, int streams) {
  struct reading r = {.spans = spans, .streams = streams};
  double start_s = clock_seconds();
  parallel_for(spans->first_piece[spans->count], read_piece, &r);
  double seconds = clock_seconds() - start_s;
  uint32_t sum = 0;
  for (int i = 0; i < PARALLEL_THREADS_MAX; i++) sum += r.sums[i];
  log_debug("plain read of %zu bytes in %d streams: %.4f s, sum %08x", spans->bytes, streams,
            seconds, sum);
  return seconds;
}

double weight_spans_time_read(const struct weight_spans *spans) {
  double best_s = INFINITY;
  for (int streams = 1; streams <= 4; streams *= 2)
    best_s = fmin(best_s, time_read(spans, streams));
  return best_s;
}
