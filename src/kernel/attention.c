/* Causal attention, block by block: see ops.h for the contract. No state but scratch.
 *
 * Forward: an item is a block of queries of all heads that share one key head. It walks over the
 * visible keys in blocks, keeps the running maximum and sum of each row's softmax, and rescales
 * what it has accumulated whenever the maximum grows (Milakov & Gimelshein 2018; Dao et al. 2022).
 * Backward: an item is one key head of one sequence, since dk and dv sum over its queries; within
 * it blocks run in a fixed order, so the bits do not depend on threads. The probabilities are made
 * again from lse. */
#include <math.h>

#include "base/parallel.h"
#include "kernel/attention.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { QUERY_BLOCK = 48, KEY_BLOCK = 96 };
_Static_assert(KEY_BLOCK % KV_BLOCK == 0, "keys are packed by whole blocks of a cache");

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* --- blocks --- */

/* Packs rows (count, n; leading dimension ld) as B of a product over n: (panels, n, tile_cols). */
static void pack_over_columns(const float *rows, int64_t ld, int64_t count, int64_t n, float *out) {
  const struct kernel_table *table = kernel_table();
  for (int64_t i = 0; i < count; i += table->tile_cols)
    table->pack_transposed(rows + i * ld, ld, least(count - i, table->tile_cols), n,
                           table->tile_cols, out + i * n);
}

/* Packs the same rows as B of a product over `count`: (panels, count, tile_cols). */
static void pack_over_rows(const float *rows, int64_t ld, int64_t count, int64_t n, float *out) {
  const struct kernel_table *table = kernel_table();
  for (int64_t j = 0; j < n; j += table->tile_cols)
    table->pack_copied(rows + j, ld, least(n - j, table->tile_cols), count, table->tile_cols,
                       out + j * count);
}

/* c (m, n) = or += A (m, k) times packed panels. */
static void block_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t row_step,
                          int64_t k_step, const float *panels, float *c, int64_t ldc, bool add) {
  const struct kernel_table *table = kernel_table();
  for (int64_t j = 0; j < n; j += table->tile_cols)
    for (int64_t i = 0; i < m; i += table->tile_rows)
      table->tile(k, a + i * row_step, row_step, k_step, panels + j * k, 1.0f, c + i * ldc + j, ldc,
                  (int)least(m - i, table->tile_rows), (int)least(n - j, table->tile_cols), add);
}

/* --- forward --- */

struct forward_scratch {
  float *k_panels, *v_panels; /* packed blocks */
  float *v_rows;              /* (KEY_BLOCK, stride): values of a cache, widened */
  float *scores;              /* (QUERY_BLOCK, KEY_BLOCK) */
  float *max, *sum;           /* (group, QUERY_BLOCK) */
};

static struct forward_scratch forward_scratch_make(const struct attention *x, int64_t group) {
  int64_t width = kernel_table()->tile_cols;
  int64_t k_size = round_up(KEY_BLOCK, most(width, KV_BLOCK)) * x->s.head_dim;
  int64_t v_size = round_up(x->s.head_dim, width) * KEY_BLOCK;
  int64_t rows = x->cache ? KEY_BLOCK * kv_stride(x->cache) : 0;
  float *at = kernel_scratch(SCRATCH_ATTENTION, (size_t)(k_size + v_size + QUERY_BLOCK * KEY_BLOCK +
                                                         2 * group * QUERY_BLOCK + rows));
  struct forward_scratch f = {.k_panels = at, .v_panels = at + k_size};
  f.scores = f.v_panels + v_size;
  f.max = f.scores + QUERY_BLOCK * KEY_BLOCK;
  f.sum = f.max + group * QUERY_BLOCK;
  f.v_rows = f.sum + group * QUERY_BLOCK;
  return f;
}

/* Softmax of one block of scores, row by row; rescales the rows of out accumulated so far. */
static void forward_rows(const struct attention *x, const struct forward_scratch *f, int64_t row,
                         int64_t rows, int64_t key, int64_t keys, float *max, float *sum,
                         float *out) {
  const struct kernel_table *table = kernel_table();
  for (int64_t i = 0; i < rows; i++) {
    float *scores = f->scores + i * KEY_BLOCK;
    int64_t low = most(attention_low(x, row + i) - key, 0);
    int64_t high = least(attention_high(x, row + i) - key, keys);
    if (low >= high) {
      memset(scores, 0, (size_t)keys * sizeof(float));
      continue;
    }
    float rescale =
        table->attention_row(scores, low, high, keys, x->s.scale, x->s.softcap, &max[i], &sum[i]);
    if (rescale != 1.0f) table->scale(out + i * x->q_step, x->s.head_dim, rescale);
  }
}

static void forward_finish(const struct attention *x, int64_t sequence, int64_t head, int64_t row,
                           int64_t rows, const float *max, const float *sum) {
  for (int64_t i = 0; i < rows; i++) {
    float *out = x->out + attention_q_at(x, sequence, row + i, head);
    kernel_table()->scale(out, x->s.head_dim, 1.0f / sum[i]);
    if (x->lse) x->lse[attention_lse_at(x, sequence, row + i, head)] = max[i] + logf(sum[i]);
  }
}

static void pack_plain(const struct attention *x, const struct forward_scratch *f, int64_t at,
                       int64_t keys) {
  pack_over_columns(x->k + at, x->kv_step, keys, x->s.head_dim, f->k_panels);
  pack_over_rows(x->v + at, x->kv_step, keys, x->s.head_dim, f->v_panels);
}

static void pack_cached(const struct attention *x, const struct forward_scratch *f, int64_t kv_head,
                        int64_t key, int64_t keys) {
  kv_key_panels(x->cache, kv_head, key, keys, kernel_table()->tile_cols, f->k_panels);
  kv_value_rows(x->cache, kv_head, key, keys, f->v_rows);
  pack_over_rows(f->v_rows, kv_stride(x->cache), keys, x->s.head_dim, f->v_panels);
}

static void forward_item(void *ctx, int64_t item, int worker) {
  const struct attention *x = ctx;
  (void)worker;
  int64_t blocks = (x->s.q_length + QUERY_BLOCK - 1) / QUERY_BLOCK,
          group = x->s.heads / x->s.kv_heads;
  /* the last blocks see most keys: they go first, so that threads end together */
  int64_t row = (blocks - 1 - item % blocks) * QUERY_BLOCK;
  int64_t kv_head = item / blocks % x->s.kv_heads, sequence = item / blocks / x->s.kv_heads;
  int64_t rows = least(QUERY_BLOCK, x->s.q_length - row), hd = x->s.head_dim;
  struct forward_scratch f = forward_scratch_make(x, group);
  for (int64_t i = 0; i < group * QUERY_BLOCK; i++) {
    f.max[i] = -INFINITY;
    f.sum[i] = 0;
  }
  int64_t first = attention_low(x, row) / KEY_BLOCK * KEY_BLOCK,
          end = attention_high(x, row + rows - 1);
  for (int64_t key = first; key < end; key += KEY_BLOCK) {
    int64_t keys = least(KEY_BLOCK, end - key);
    if (x->cache)
      pack_cached(x, &f, kv_head, key, keys);
    else
      pack_plain(x, &f, attention_kv_at(x, sequence, key, kv_head), keys);
    for (int64_t g = 0; g < group; g++) {
      int64_t q = attention_q_at(x, sequence, row, kv_head * group + g);
      block_product(rows, keys, hd, x->q + q, x->q_step, 1, f.k_panels, f.scores, KEY_BLOCK, false);
      if (key == first)
        for (int64_t i = 0; i < rows; i++)
          memset(x->out + q + i * x->q_step, 0, (size_t)hd * sizeof(float));
      forward_rows(x, &f, row, rows, key, keys, f.max + g * QUERY_BLOCK, f.sum + g * QUERY_BLOCK,
                   x->out + q);
      block_product(rows, hd, keys, f.scores, KEY_BLOCK, 1, f.v_panels, x->out + q, x->q_step,
                    true);
    }
  }
  for (int64_t g = 0; g < group; g++)
    forward_finish(x, sequence, kv_head * group + g, row, rows, f.max + g * QUERY_BLOCK,
                   f.sum + g * QUERY_BLOCK);
}

void attention_run_forward(const struct attention *x) {
  if (x->s.precision == PRECISION_BF16) {
    attention_bf16_forward(x);
    return;
  }
  int64_t blocks = (x->s.q_length + QUERY_BLOCK - 1) / QUERY_BLOCK;
  parallel_for(x->s.sequences * x->s.kv_heads * blocks, forward_item, (void *)x);
}

void attention_forward(const struct attention_shape *shape, const float *q, const float *k,
                       const float *v, float *out, float *lse) {
  struct attention x = attention_make(shape);
  x.q = q;
  x.k = k;
  x.v = v;
  x.out = out;
  x.lse = lse;
  attention_run_forward(&x);
}

/* --- backward --- */

struct backward_scratch {
  float *k_columns, *v_columns, *k_rows; /* packed blocks of keys and values */
  float *q_rows, *dout_rows;             /* packed blocks of queries and of dout */
  float *scores, *dscores;               /* (QUERY_BLOCK, KEY_BLOCK) */
};

static struct backward_scratch backward_scratch_make(const struct attention *x) {
  int64_t width = kernel_table()->tile_cols, hd = x->s.head_dim;
  int64_t columns = round_up(KEY_BLOCK, width) * hd, rows = KEY_BLOCK * round_up(hd, width);
  float *at = kernel_scratch(SCRATCH_ATTENTION,
                             (size_t)(2 * columns + 3 * rows + 2 * QUERY_BLOCK * KEY_BLOCK));
  struct backward_scratch b = {.k_columns = at, .v_columns = at + columns};
  b.k_rows = b.v_columns + columns;
  b.q_rows = b.k_rows + rows;
  b.dout_rows = b.q_rows + rows;
  b.scores = b.dout_rows + rows;
  b.dscores = b.scores + QUERY_BLOCK * KEY_BLOCK;
  return b;
}

/* Where a block of queries meets a block of keys. */
struct meeting {
  int64_t sequence, head, kv_head;
  int64_t row, rows, key, keys;
  bool first_of_keys; /* dk and dv of these keys are still unset */
};

static void backward_rows(const struct attention *x, const struct backward_scratch *b,
                          const struct meeting *at) {
  const struct kernel_table *table = kernel_table();
  for (int64_t i = 0; i < at->rows; i++) {
    int64_t q = attention_q_at(x, at->sequence, at->row + i, at->head);
    int64_t low = most(attention_low(x, at->row + i) - at->key, 0);
    int64_t high = least(attention_high(x, at->row + i) - at->key, at->keys);
    if (low >= high) low = high = 0;
    float delta = table->dot(x->dout + q, x->out_in + q, x->s.head_dim);
    table->attention_row_backward(
        b->scores + i * KEY_BLOCK, b->dscores + i * KEY_BLOCK, low, high, at->keys, x->s.scale,
        x->s.softcap, x->lse_in[attention_lse_at(x, at->sequence, at->row + i, at->head)], delta);
  }
}

static void backward_meeting(const struct attention *x, const struct backward_scratch *b,
                             const struct meeting *at) {
  int64_t hd = x->s.head_dim, q = attention_q_at(x, at->sequence, at->row, at->head);
  int64_t kv = attention_kv_at(x, at->sequence, at->key, at->kv_head);
  bool first_of_rows = at->key == attention_low(x, at->row) / KEY_BLOCK * KEY_BLOCK;
  block_product(at->rows, at->keys, hd, x->q + q, x->q_step, 1, b->k_columns, b->scores, KEY_BLOCK,
                false);
  block_product(at->rows, at->keys, hd, x->dout + q, x->q_step, 1, b->v_columns, b->dscores,
                KEY_BLOCK, false);
  backward_rows(x, b, at);
  block_product(at->rows, hd, at->keys, b->dscores, KEY_BLOCK, 1, b->k_rows, x->dq + q, x->q_step,
                !first_of_rows);
  pack_over_rows(x->dout + q, x->q_step, at->rows, hd, b->dout_rows);
  block_product(at->keys, hd, at->rows, b->scores, 1, KEY_BLOCK, b->dout_rows, x->dv + kv,
                x->kv_step, !at->first_of_keys);
  pack_over_rows(x->q + q, x->q_step, at->rows, hd, b->q_rows);
  block_product(at->keys, hd, at->rows, b->dscores, 1, KEY_BLOCK, b->q_rows, x->dk + kv, x->kv_step,
                !at->first_of_keys);
}

static void backward_item(void *ctx, int64_t item, int worker) {
  const struct attention *x = ctx;
  (void)worker;
  int64_t group = x->s.heads / x->s.kv_heads, hd = x->s.head_dim;
  struct meeting at = {.sequence = item / x->s.kv_heads, .kv_head = item % x->s.kv_heads};
  struct backward_scratch b = backward_scratch_make(x);
  for (at.key = 0; at.key < x->s.kv_length; at.key += KEY_BLOCK) {
    at.keys = least(KEY_BLOCK, x->s.kv_length - at.key);
    int64_t kv = attention_kv_at(x, at.sequence, at.key, at.kv_head);
    pack_over_columns(x->k + kv, x->kv_step, at.keys, hd, b.k_columns);
    pack_over_columns(x->v + kv, x->kv_step, at.keys, hd, b.v_columns);
    pack_over_rows(x->k + kv, x->kv_step, at.keys, hd, b.k_rows);
    at.first_of_keys = true;
    for (int64_t g = 0; g < group; g++) {
      at.head = at.kv_head * group + g;
      for (at.row = at.key / QUERY_BLOCK * QUERY_BLOCK; at.row < x->s.q_length;
           at.row += QUERY_BLOCK) {
        if (attention_low(x, at.row) >= at.key + at.keys) break;
        at.rows = least(QUERY_BLOCK, x->s.q_length - at.row);
        backward_meeting(x, &b, &at);
        at.first_of_keys = false;
      }
    }
  }
}

void attention_backward(const struct attention_shape *shape, const float *q, const float *k,
                        const float *v, const float *out, const float *lse, const float *dout,
                        float *dq, float *dk, float *dv) {
  struct attention x = attention_make(shape);
  x.q = q;
  x.k = k;
  x.v = v;
  x.out_in = out;
  x.lse_in = lse;
  x.dout = dout;
  x.dq = dq;
  x.dk = dk;
  x.dv = dv;
  if (shape->precision == PRECISION_BF16)
    attention_bf16_backward(&x);
  else
    parallel_for(shape->sequences * shape->kv_heads, backward_item, &x);
}
