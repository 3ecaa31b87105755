/* Speed: see speed.h. */
#include "eval/speed.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"

/* --- the weights as spans of memory --- */

enum { SPANS_PER_WEIGHT = 3, PIECE_BYTES = 1 << 20, CONTEXT_TOKENS = 32, DECODE_MOST = 4096 };

struct span {
  const uint8_t *data;
  size_t bytes;
};

struct spans {
  struct span *items;
  size_t count;
  size_t bytes;
  int64_t *first_piece; /* (count + 1) pieces of PIECE_BYTES before each span */
};

static void add_span(struct spans *s, const void *data, size_t bytes) {
  s->items[s->count++] = (struct span){data, bytes};
  s->bytes += bytes;
}

static size_t elements_bytes(enum dtype dtype, int64_t count) {
  size_t bytes;
  INVARIANT(dtype_bytes(dtype, (uint64_t)count, &bytes));
  return bytes;
}

static void add_weight(struct spans *s, const struct linear_weight *w) {
  if (w->strips) {
    add_span(s, w->strips->data, w->strips->stored_bytes);
    return;
  }
  const struct hybrid_matrix *h = w->hybrid;
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

static void spans_free(struct spans *s) {
  mem_free(s->items);
  mem_free(s->first_piece);
  *s = (struct spans){0};
}

static enum status spans_of(struct spans *s, const struct model *model, struct error *err) {
  size_t most = SPANS_PER_WEIGHT * ((size_t)model_site_count(model) + 1);
  *s = (struct spans){.items = mem_alloc(most, sizeof *s->items, err)};
  s->first_piece = mem_alloc(most + 1, sizeof *s->first_piece, err);
  if (!s->items || !s->first_piece) {
    spans_free(s);
    return STATUS_FAILED;
  }
  for (int i = 0; i < model_site_count(model); i++) add_weight(s, &model_site(model, i)->weight);
  add_weight(s, model_head(model));
  for (size_t i = 0; i < s->count; i++)
    s->first_piece[i + 1] =
        s->first_piece[i] + (int64_t)((s->items[i].bytes + PIECE_BYTES - 1) / PIECE_BYTES);
  return STATUS_OK;
}

size_t speed_weight_bytes(const struct model *model) {
  struct spans spans;
  struct error err;
  if (spans_of(&spans, model, &err)) return 0;
  size_t bytes = spans.bytes;
  spans_free(&spans);
  return bytes;
}

/* --- the plain read --- */

/* Sums of 32-byte vectors: the compiler's own, so this is plain C on any machine. */
typedef uint64_t lanes __attribute__((vector_size(32), aligned(1), may_alias));

static uint64_t read_bytes(const uint8_t *data, size_t bytes) {
  lanes sum[4] = {{0}};
  size_t at = 0;
  for (; at + sizeof sum <= bytes; at += sizeof sum)
    for (int i = 0; i < 4; i++) sum[i] += *(const lanes *)(const void *)(data + at + 32 * i);
  uint64_t total = 0;
  for (int i = 0; i < 4; i++) total += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
  for (; at < bytes; at++) total += data[at];
  return total;
}

struct reading {
  const struct spans *spans;
  uint64_t sums[PARALLEL_THREADS_MAX]; /* printed, so that no read is optimized away */
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
  const struct span *span = &r->spans->items[low];
  size_t at = (size_t)(piece - r->spans->first_piece[low]) * PIECE_BYTES;
  size_t bytes = span->bytes - at < PIECE_BYTES ? span->bytes - at : PIECE_BYTES;
  r->sums[worker] += read_bytes(span->data + at, bytes);
}

static double time_read(const struct spans *spans) {
  struct reading r = {.spans = spans};
  double start_s = clock_seconds();
  parallel_for(spans->first_piece[spans->count], read_piece, &r);
  double seconds = clock_seconds() - start_s;
  uint64_t sum = 0;
  for (int i = 0; i < PARALLEL_THREADS_MAX; i++) sum += r.sums[i];
  log_debug("plain read of %zu bytes: %.4f s, sum %016llx", spans->bytes, seconds,
            (unsigned long long)sum);
  return seconds;
}

/* --- the runs --- */

struct contestant {
  const struct model *model;
  struct model_session *session;
  struct spans spans;
  float *logits;        /* (vocab_size) */
  int64_t decode_steps; /* tokens of one decode run; 0 until known */
};

static void fill_prompt(int32_t *ids, int64_t count, int64_t vocab_size) {
  for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)(i * 7919 % vocab_size);
}

static enum status prefill(struct contestant *c, int64_t length, double *seconds,
                           struct error *err) {
  int32_t *ids = mem_alloc((size_t)length, sizeof *ids, err);
  if (!ids) return STATUS_FAILED;
  fill_prompt(ids, length, model_config(c->model)->vocab_size);
  model_session_truncate(c->session, 0);
  double start_s = clock_seconds();
  enum status status = model_session_append(c->session, ids, length, c->logits, err);
  *seconds = clock_seconds() - start_s;
  mem_free(ids);
  return status;
}

/* `steps` tokens behind a short context. */
static enum status decode(struct contestant *c, int64_t steps, double *seconds, struct error *err) {
  enum status status = prefill(c, CONTEXT_TOKENS, seconds, err);
  double start_s = clock_seconds();
  for (int64_t i = 0; i < steps && !status; i++) {
    int32_t id = (int32_t)(i % model_config(c->model)->vocab_size);
    status = model_session_append(c->session, &id, 1, c->logits, err);
    if (!status && model_session_length(c->session) >= CONTEXT_TOKENS * 4)
      model_session_truncate(c->session, CONTEXT_TOKENS);
  }
  *seconds = clock_seconds() - start_s;
  return status;
}

/* As many tokens as take about `wanted_s`, at least 4. */
static enum status choose_decode_steps(struct contestant *c, double wanted_s, struct error *err) {
  double seconds;
  enum status status = decode(c, 4, &seconds, err);
  double steps = seconds > 0 ? 4 * wanted_s / seconds : DECODE_MOST;
  c->decode_steps = steps < 4 ? 4 : steps > DECODE_MOST ? DECODE_MOST : (int64_t)steps;
  return status;
}

static enum status run_case(struct contestant *c, const struct speed_case *which,
                            double *tokens_per_s, struct error *err) {
  double seconds = 0;
  bool decoding = which->phase == SPEED_DECODE;
  int64_t tokens = decoding ? c->decode_steps : which->batch;
  enum status status = interrupt_check(err);
  if (!status)
    status = decoding ? decode(c, tokens, &seconds, err) : prefill(c, tokens, &seconds, err);
  *tokens_per_s = seconds > 0 ? (double)tokens / seconds : 0;
  return status;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double speed_median(double *values, int count) {
  INVARIANT(count > 0);
  qsort(values, (size_t)count, sizeof *values, ascending);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* One measuring: contestants, and what each round gave. */
struct bench {
  struct contestant *contestants;
  int model_count;
  const struct speed_settings *settings;
  double *rates; /* (models, cases, rounds) tokens a second */
  double *reads; /* (models, rounds) bytes a second */
};

static double *rates_of(const struct bench *b, int model, int which) {
  return b->rates + ((int64_t)model * b->settings->case_count + which) * b->settings->rounds;
}

static int64_t longest(const struct speed_settings *s) {
  int64_t most = CONTEXT_TOKENS * 4 + 1;
  for (int i = 0; i < s->case_count; i++)
    if (s->cases[i].phase == SPEED_PREFILL && s->cases[i].batch > most) most = s->cases[i].batch;
  return most;
}

static enum status bench_init(struct bench *b, const struct model *const *models,
                              struct error *err) {
  const struct speed_settings *s = b->settings;
  size_t count = (size_t)b->model_count, rounds = (size_t)s->rounds;
  b->contestants = mem_alloc(count, sizeof *b->contestants, err);
  b->rates = mem_alloc(count * (size_t)s->case_count * rounds, sizeof *b->rates, err);
  b->reads = mem_alloc(count * rounds, sizeof *b->reads, err);
  enum status status = b->contestants && b->rates && b->reads ? STATUS_OK : STATUS_FAILED;
  for (int i = 0; i < b->model_count && !status; i++) {
    struct contestant *c = &b->contestants[i];
    c->model = models[i];
    c->logits = mem_alloc((size_t)model_config(c->model)->vocab_size, sizeof(float), err);
    status = c->logits ? spans_of(&c->spans, c->model, err) : STATUS_FAILED;
    if (!status) status = model_session_new(&c->session, c->model, longest(s), err);
  }
  return status;
}

static void bench_release(struct bench *b) {
  for (int i = 0; b->contestants && i < b->model_count; i++) {
    mem_free(b->contestants[i].logits);
    spans_free(&b->contestants[i].spans);
    model_session_free(b->contestants[i].session);
  }
  mem_free(b->contestants);
  mem_free(b->rates);
  mem_free(b->reads);
}

/* All models through all cases once; round -1 warms up caches and pages and is not kept. */
static enum status run_round(struct bench *b, int round, struct progress *progress,
                             struct error *err) {
  const struct speed_settings *s = b->settings;
  enum status status = STATUS_OK;
  for (int which = 0; which < s->case_count && !status; which++)
    for (int i = 0; i < b->model_count && !status; i++) {
      struct contestant *c = &b->contestants[i];
      double rate = 0, seconds = time_read(&c->spans);
      if (!c->decode_steps) status = choose_decode_steps(c, s->decode_s, err);
      if (!status) status = run_case(c, &s->cases[which], &rate, err);
      progress_add(progress, 1);
      if (round < 0) continue;
      rates_of(b, i, which)[round] = rate;
      b->reads[(int64_t)i * s->rounds + round] = (double)c->spans.bytes / seconds;
    }
  return status;
}

static void take_medians(struct bench *b, struct speed_figure *figures, double *read_bytes_per_s) {
  const struct speed_settings *s = b->settings;
  for (int i = 0; i < b->model_count; i++) {
    double bytes = (double)b->contestants[i].spans.bytes;
    read_bytes_per_s[i] = speed_median(b->reads + (int64_t)i * s->rounds, s->rounds);
    for (int which = 0; which < s->case_count; which++) {
      bool decoding = s->cases[which].phase == SPEED_DECODE;
      struct speed_figure *f = &figures[i * s->case_count + which];
      f->tokens_per_s = speed_median(rates_of(b, i, which), s->rounds);
      /* a pass over the weights serves the whole batch or prompt */
      f->bytes_per_token = bytes / (double)(decoding ? 1 : s->cases[which].batch);
      f->read_share = f->tokens_per_s * f->bytes_per_token / read_bytes_per_s[i];
    }
  }
}

enum status speed_measure(const struct model *const *models, int model_count,
                          const struct speed_settings *settings, struct speed_figure *figures,
                          double *read_bytes_per_s, struct error *err) {
  INVARIANT(model_count > 0 && settings->rounds > 0 && settings->case_count > 0);
  for (int i = 0; i < settings->case_count; i++)
    if (settings->cases[i].batch < 1 ||
        (settings->cases[i].phase == SPEED_DECODE && settings->cases[i].batch != 1))
      return error_set(err, STATUS_USAGE, "a batch of %lld cannot be decoded; 1 can",
                       (long long)settings->cases[i].batch);
  struct bench b = {.model_count = model_count, .settings = settings};
  struct progress progress;
  enum status status = bench_init(&b, models, err);
  progress_begin(&progress, "bench", "runs",
                 (double)((settings->rounds + 1) * settings->case_count * model_count));
  for (int round = -1; round < settings->rounds && !status; round++)
    status = run_round(&b, round, &progress, err);
  progress_end(&progress);
  if (!status) take_medians(&b, figures, read_bytes_per_s);
  bench_release(&b);
  return status;
}
