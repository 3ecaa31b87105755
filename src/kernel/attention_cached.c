/* Attention of a few new rows over caches of keys and values: see ops.h for the contract. No state
 * but scratch.
 *
 * Reading the cache is what costs. The unit of work is a piece of a cache, of one key head, that
 * all query heads sharing that head meet while it is in registers. Pieces begin at multiples of
 * KV_PIECE, whatever is asked, and what each gives is kept apart until all of a row are there:
 * whoever finishes the last one puts them together, in order. So bits depend neither on threads
 * nor on the company a sequence has. */
#include <math.h>
#include <stdatomic.h>

#include "base/parallel.h"
#include "kernel/attention.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  KV_PIECE = 512,
  VALUES_AHEAD_BYTES = 2048,
  FEW_ROWS = 4,         /* more rows go through the blocked products */
  SMALL_WORK = 1 << 16, /* multiply-adds below which threads do not pay */
};
_Static_assert(sizeof(atomic_int) == sizeof(float), "counters lie behind the partial results");

struct decode {
  const struct attention_shape *s;
  const struct kv_cache *caches;
  const int64_t *starts;
  const float *q;
  float *out;
  int64_t group, stride, pieces_most;
  float *partials;  /* (sequences, q_length, kv_heads, pieces_most, partial_floats) */
  atomic_int *done; /* (sequences, q_length, kv_heads): pieces that are finished */
};

/* One piece's share of a row, of `group` heads: unnormalized sums of values (group, stride), and
 * the maximum and the sum of the exponentials of each head. */
static int64_t partial_floats(int64_t group, int64_t stride) { return group * (stride + 2); }

static int64_t pieces_of(int64_t length) { return (length + KV_PIECE - 1) / KV_PIECE; }

size_t attention_cached_floats(const struct attention_shape *s, int64_t capacity) {
  int64_t stride = (s->head_dim + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
  int64_t rows = s->q_length < FEW_ROWS ? s->q_length : FEW_ROWS;
  int64_t units = s->sequences * rows * s->kv_heads;
  int64_t each = pieces_of(capacity) * partial_floats(s->heads / s->kv_heads, stride);
  return (size_t)(units * (each + 1));
}

/* A row's view of one key head: which positions it sees. */
struct view {
  const struct kv_cache *cache;
  int64_t kv_head, low, high;
};

static void piece(const struct decode *d, const struct view *v, int64_t first, const float *q,
                  float *partial) {
  const struct kernel_table *table = kernel_table();
  const struct kv_cache *c = v->cache;
  float *acc = partial, *max = partial + d->group * d->stride, *sum = max + d->group;
  float *scores = kernel_scratch(SCRATCH_ATTENTION, (size_t)(d->group * KV_PIECE));
  int64_t end = v->high < first + KV_PIECE ? v->high : first + KV_PIECE;
  int64_t begin = v->low > first ? v->low / KV_BLOCK * KV_BLOCK : first;
  int64_t count = end - begin, low = v->low > begin ? v->low - begin : 0;
  const float *scales = kv_scales(c, c->value_scales, v->kv_head, begin);
  table->kv_scores(c->dtype, kv_keys(c, v->kv_head, begin),
                   kv_scales(c, c->key_scales, v->kv_head, begin),
                   (count + KV_BLOCK - 1) / KV_BLOCK, c->head_dim, q, d->group, scores, KV_PIECE);
  const char *values = kv_values(c, v->kv_head, begin);
  /* their stream begins now, and not when the softmax is done */
  for (int64_t i = 0; i < VALUES_AHEAD_BYTES; i += 64) __builtin_prefetch(values + i);
  memset(acc, 0, (size_t)(d->group * d->stride) * sizeof *acc);
  for (int64_t g = 0; g < d->group; g++) {
    float *row = scores + g * KV_PIECE;
    max[g] = -INFINITY;
    sum[g] = 0;
    table->attention_row(row, low, count, count, d->s->scale, d->s->softcap, &max[g], &sum[g]);
    for (int64_t j = 0; scales && j < count; j++) row[j] *= scales[j];
  }
  table->kv_mix(c->dtype, values, count, d->stride, scores, KV_PIECE, d->group, acc);
}

/* out (head_dim) of one head from its pieces, in order. */
static void join(const struct decode *d, const float *partials, int64_t pieces, int64_t g,
                 float *out) {
  int64_t step = partial_floats(d->group, d->stride), n = d->s->head_dim;
  const float *maxima = partials + d->group * d->stride + g, *sums = maxima + d->group;
  float top = -INFINITY, total = 0;
  for (int64_t i = 0; i < pieces; i++) top = fmaxf(top, maxima[i * step]);
  memset(out, 0, (size_t)n * sizeof *out);
  for (int64_t i = 0; i < pieces; i++) {
    float factor = expf(maxima[i * step] - top);
    const float *acc = partials + i * step + g * d->stride;
    total += factor * sums[i * step];
    for (int64_t j = 0; j < n; j++) out[j] += factor * acc[j];
  }
  kernel_table()->scale(out, n, 1.0f / total);
}

static void decode_item(void *ctx, int64_t item, int worker) {
  const struct decode *d = ctx;
  (void)worker;
  int64_t unit = item / d->pieces_most, mine = item % d->pieces_most;
  int64_t row = unit / d->s->kv_heads, sequence = row / d->s->q_length;
  struct view v = {.cache = &d->caches[sequence], .kv_head = unit % d->s->kv_heads};
  v.high = d->starts[sequence] + row % d->s->q_length + 1;
  if (d->s->window > 0 && v.high > d->s->window) v.low = v.high - d->s->window;
  int64_t from = v.low / KV_PIECE, pieces = pieces_of(v.high) - from;
  if (mine >= pieces) return;
  int64_t at = (row * d->s->heads + v.kv_head * d->group) * d->s->head_dim;
  int64_t step = partial_floats(d->group, d->stride);
  float *partials = d->partials + unit * d->pieces_most * step;
  piece(d, &v, (from + mine) * KV_PIECE, d->q + at, partials + mine * step);
  if (atomic_fetch_add(&d->done[unit], 1) + 1 < pieces) return;
  for (int64_t g = 0; g < d->group; g++)
    join(d, partials, pieces, g, d->out + at + g * d->s->head_dim);
}

static void decode_rows(struct decode *d) {
  const struct attention_shape *s = d->s;
  int64_t units = s->sequences * s->q_length * s->kv_heads, longest = 0, work = 0;
  int64_t rows = s->q_length * s->heads * s->head_dim; /* multiply-adds for a position, halved */
  for (int64_t i = 0; i < s->sequences; i++) {
    int64_t length = d->starts[i] + s->q_length;
    if (length > longest) longest = length;
    work += (s->window > 0 && s->window < length ? s->window : length) * rows;
  }
  d->pieces_most = pieces_of(longest);
  /* a window that begins inside a piece touches one more than it fills */
  if (s->window > 0 && pieces_of(s->window) + 1 < d->pieces_most)
    d->pieces_most = pieces_of(s->window) + 1;
  d->done = (atomic_int *)(void *)(d->partials +
                                   units * d->pieces_most * partial_floats(d->group, d->stride));
  for (int64_t i = 0; i < units; i++) atomic_init(&d->done[i], 0);
  int64_t items = units * d->pieces_most;
  if (work >= SMALL_WORK)
    parallel_for(items, decode_item, d);
  else
    for (int64_t i = 0; i < items; i++) decode_item(d, i, 0);
}

void attention_cached(const struct attention_shape *shape, const struct kv_cache *caches,
                      const int64_t *starts, const float *q, float *out, float *partials) {
  if (shape->q_length <= FEW_ROWS) {
    struct decode d = {.s = shape,
                       .caches = caches,
                       .starts = starts,
                       .q = q,
                       .out = out,
                       .group = shape->heads / shape->kv_heads,
                       .stride = kv_stride(caches),
                       .partials = partials};
    decode_rows(&d);
    return;
  }
  for (int64_t i = 0; i < shape->sequences; i++) {
    struct attention_shape one = *shape;
    one.sequences = 1;
    one.q_start = starts[i];
    one.kv_length = starts[i] + shape->q_length;
    struct attention x = attention_make(&one);
    x.cache = &caches[i];
    x.q = q + i * shape->q_length * x.q_step;
    x.out = out + i * shape->q_length * x.q_step;
    attention_run_forward(&x);
  }
}
