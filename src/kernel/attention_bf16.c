/* Attention whose products round their operands to bf16: see ops.h. No state but scratch.
 *
 * The same walk over blocks as attention.c's, in the packed forms of bf16_kernels.h. At the rate of
 * bf16 tiles the exponentials and the packing are what costs: keys and values are packed once for
 * several blocks of queries, and a row of scores becomes packed probabilities in one step. Sums
 * of products, the softmax and what is accumulated are fp32. */
#include <math.h>

#include "base/parallel.h"
#include "kernel/attention.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum {
  ROWS = 64,       /* queries that meet a block of keys at once */
  ITEM_ROWS = 128, /* queries of an item */
  KEYS = 128,      /* keys of a block */
  SIDE = BF16_SIDE,
};
_Static_assert(KEYS % BF16_STEP == 0 && KEYS % KV_BLOCK == 0 && ROWS % BF16_STEP == 0,
               "blocks are whole chunks");

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* Elements of k that a packed head takes, and columns of a head in whole strips. */
static int64_t head_k(const struct attention *x) { return round_up(x->s.head_dim, BF16_STEP); }
static int64_t head_cols(const struct attention *x) { return round_up(x->s.head_dim, SIDE); }

/* --- packing ---
 * Rows (count, head_dim; ld apart) as operands: panels of A and strips of B over head_dim, strips
 * of B over the rows. */

static void panels_of(const struct attention *x, const float *rows, int64_t ld, int64_t count,
                      uint16_t *out) {
  for (int64_t i = 0; i < count; i += SIDE)
    kernel_table()->bf16.panel_along(DTYPE_F32, rows + i * ld, ld, least(SIDE, count - i),
                                     x->s.head_dim, out + i * head_k(x));
}

static void strips_of(const struct attention *x, const float *rows, int64_t ld, int64_t count,
                      uint32_t *out) {
  for (int64_t i = 0; i < count; i += SIDE)
    kernel_table()->bf16.strip_along(DTYPE_F32, rows + i * ld, ld, least(SIDE, count - i),
                                     x->s.head_dim, out + i * head_k(x) / 2);
}

/* `most_rows` is the room of a strip. */
static void strips_over_rows(const struct attention *x, const float *rows, int64_t ld,
                             int64_t count, int64_t most_rows, uint32_t *out) {
  kernel_table()->bf16.strips_across(DTYPE_F32, rows, ld, x->s.head_dim, count,
                                     SIDE * most_rows / 2, out);
}

/* c (rows, cols) = or += A B over k, from operands whose panels and strips have room for k_room. */
static void block_product(int64_t rows, int64_t cols, int64_t k, int64_t k_room, const uint16_t *a,
                          const uint32_t *b, float *c, int64_t ldc, bool add) {
  struct bf16_block block = {.rows = rows,
                             .cols = cols,
                             .k = round_up(k, BF16_STEP),
                             .a = a,
                             .panel_step = SIDE * k_room,
                             .b = b,
                             .strip_step = SIDE * k_room / 2,
                             .alpha = 1,
                             .add = add,
                             .c = c,
                             .ldc = ldc};
  kernel_table()->bf16.block(&block);
}

/* Scores (rows, KEYS) from packed queries and keys. Whole tiles are stored faster: what lies behind
 * the last row and key is not looked at. */
static void score_block(const struct attention *x, int64_t rows, int64_t keys, const uint16_t *a,
                        const uint32_t *b, float *scores) {
  block_product(round_up(rows, 2 * SIDE), round_up(keys, 2 * SIDE), head_k(x), head_k(x), a, b,
                scores, KEYS, false);
}

/* Hands out pieces of scratch, 64-byte aligned; with no base it only measures. */
struct cutter {
  float *base;
  int64_t used; /* floats */
};
static void *take(struct cutter *c, int64_t bytes) {
  void *piece = c->base ? c->base + c->used : NULL;
  c->used += round_up(bytes, 64) / (int64_t)sizeof(float);
  return piece;
}

/* --- forward --- */

struct forward {
  const struct attention *x;
  int64_t sequence, kv_head, group;
  int64_t row, rows; /* of the item */
  uint16_t *q;       /* (group) panels of ITEM_ROWS rows */
  uint32_t *k, *v;   /* strips of KEYS keys, over head_dim; of the values, over the keys */
  float *widened;    /* (KEYS, head_cols): values of an i8 cache, and a block of its keys */
  float *scores;     /* (ROWS, KEYS) */
  uint16_t *p;       /* panels of (ROWS, KEYS) probabilities */
  float *max, *sum;  /* (group, ITEM_ROWS) */
};

static void cut_forward(struct forward *f, struct cutter *c) {
  const struct attention *x = f->x;
  int64_t k = head_k(x), cols = head_cols(x);
  f->q = take(c, f->group * ITEM_ROWS * k * 2);
  f->k = take(c, KEYS * k * 2);
  f->v = take(c, KEYS * cols * 2);
  f->widened = take(c, KEYS * cols * 4);
  f->scores = take(c, ROWS * KEYS * 4);
  f->p = take(c, ROWS * KEYS * 2);
  f->max = take(c, f->group * ITEM_ROWS * 4);
  f->sum = take(c, f->group * ITEM_ROWS * 4);
}

static void pack_cache(const struct forward *f, int64_t key, int64_t keys) {
  const struct bf16_kernels *bf16 = &kernel_table()->bf16;
  const struct kv_cache *c = f->x->cache;
  bool bytes = c->dtype == DTYPE_I8;
  enum dtype dtype = bytes ? DTYPE_F32 : c->dtype;
  for (int64_t i = 0; i < keys; i += KV_BLOCK) {
    const void *block = kv_keys(c, f->kv_head, key + i);
    if (bytes) {
      kv_key_block(c, f->kv_head, key + i, f->widened);
      block = f->widened;
    }
    bf16->strips_across(dtype, block, KV_BLOCK, KV_BLOCK, c->head_dim, 0,
                        f->k + i * head_k(f->x) / 2);
  }
  const void *values = kv_values(c, f->kv_head, key);
  if (bytes) {
    kv_value_rows(c, f->kv_head, key, keys, f->widened);
    values = f->widened;
  }
  bf16->strips_across(dtype, values, kv_stride(c), c->head_dim, keys, SIDE * KEYS / 2, f->v);
}

static void pack_keys(const struct forward *f, int64_t key, int64_t keys) {
  const struct attention *x = f->x;
  if (x->cache) {
    pack_cache(f, key, keys);
    return;
  }
  int64_t at = attention_kv_at(x, f->sequence, key, f->kv_head);
  strips_of(x, x->k + at, x->kv_step, keys, f->k);
  strips_over_rows(x, x->v + at, x->kv_step, keys, KEYS, f->v);
}

/* Scores of `rows` rows from `row` on become probabilities in panels; the rows of out that were
 * accumulated are rescaled. */
static void forward_rows(const struct forward *f, int64_t row, int64_t rows, int64_t key,
                         int64_t keys, float *max, float *sum, float *out) {
  const struct attention *x = f->x;
  for (int64_t i = 0; i < rows; i++) {
    uint16_t *p = f->p + i / SIDE * SIDE * KEYS + i % SIDE * BF16_STEP;
    int64_t low = most(attention_low(x, row + i) - key, 0);
    int64_t high = least(attention_high(x, row + i) - key, keys);
    float rescale =
        kernel_table()->bf16.softmax_row(f->scores + i * KEYS, low, high, round_up(keys, BF16_STEP),
                                         x->s.scale, x->s.softcap, &max[i], &sum[i], p);
    if (rescale != 1.0f) kernel_table()->scale(out + i * x->q_step, x->s.head_dim, rescale);
  }
}

/* One head's block of queries against the packed block of keys. */
static void forward_block(const struct forward *f, int64_t g, int64_t at, int64_t key,
                          int64_t keys) {
  const struct attention *x = f->x;
  int64_t row = f->row + at, rows = least(ROWS, f->rows - at), hd = x->s.head_dim;
  int64_t end = attention_high(x, row + rows - 1);
  if (key >= end || attention_low(x, row) >= key + keys) return;
  keys = least(keys, end - key);
  float *out = x->out + attention_q_at(x, f->sequence, row, f->kv_head * f->group + g);
  int64_t stats = g * ITEM_ROWS + at;
  score_block(x, rows, keys, f->q + stats * head_k(x), f->k, f->scores);
  forward_rows(f, row, rows, key, keys, f->max + stats, f->sum + stats, out);
  block_product(rows, hd, keys, KEYS, f->p, f->v, out, x->q_step, true);
}

static void forward_begin(const struct forward *f) {
  const struct attention *x = f->x;
  for (int64_t g = 0; g < f->group; g++) {
    int64_t at = attention_q_at(x, f->sequence, f->row, f->kv_head * f->group + g);
    panels_of(x, x->q + at, x->q_step, f->rows, f->q + g * ITEM_ROWS * head_k(x));
    for (int64_t i = 0; i < f->rows; i++) {
      memset(x->out + at + i * x->q_step, 0, (size_t)x->s.head_dim * sizeof(float));
      f->max[g * ITEM_ROWS + i] = -INFINITY;
      f->sum[g * ITEM_ROWS + i] = 0;
    }
  }
}

static void forward_end(const struct forward *f) {
  const struct attention *x = f->x;
  for (int64_t g = 0; g < f->group; g++)
    for (int64_t i = 0; i < f->rows; i++) {
      int64_t head = f->kv_head * f->group + g, at = g * ITEM_ROWS + i;
      kernel_table()->scale(x->out + attention_q_at(x, f->sequence, f->row + i, head),
                            x->s.head_dim, 1.0f / f->sum[at]);
      if (x->lse)
        x->lse[attention_lse_at(x, f->sequence, f->row + i, head)] = f->max[at] + logf(f->sum[at]);
    }
}

static void forward_item(void *ctx, int64_t item, int worker) {
  const struct attention *x = ctx;
  (void)worker;
  int64_t blocks = (x->s.q_length + ITEM_ROWS - 1) / ITEM_ROWS;
  struct forward f = {.x = x, .group = x->s.heads / x->s.kv_heads};
  /* the last blocks see most keys: they go first, so that threads end together */
  f.row = (blocks - 1 - item % blocks) * ITEM_ROWS;
  f.rows = least(ITEM_ROWS, x->s.q_length - f.row);
  f.kv_head = item / blocks % x->s.kv_heads;
  f.sequence = item / blocks / x->s.kv_heads;
  struct cutter c = {0};
  cut_forward(&f, &c);
  c = (struct cutter){.base = kernel_scratch(SCRATCH_ATTENTION, (size_t)c.used)};
  cut_forward(&f, &c);
  forward_begin(&f);
  int64_t end = attention_high(x, f.row + f.rows - 1);
  for (int64_t key = attention_low(x, f.row) / KEYS * KEYS; key < end; key += KEYS) {
    int64_t keys = least(KEYS, end - key);
    pack_keys(&f, key, keys);
    for (int64_t g = 0; g < f.group; g++)
      for (int64_t at = 0; at < f.rows; at += ROWS) forward_block(&f, g, at, key, keys);
  }
  forward_end(&f);
}

void attention_bf16_forward(const struct attention *x) {
  int64_t blocks = (x->s.q_length + ITEM_ROWS - 1) / ITEM_ROWS;
  parallel_for(x->s.sequences * x->s.kv_heads * blocks, forward_item, (void *)x);
}

/* --- backward --- */

struct backward {
  const struct attention *x;
  int64_t sequence, kv_head, length;
  /* of all keys of the head: strips over head_dim, and the keys' strips over positions, KEYS at a
   * time: some 3 * 2 bytes for each element of k */
  uint32_t *k, *v, *k_over;
  /* of a block of queries, and of its gradients */
  uint16_t *q, *dout;
  uint32_t *q_over, *dout_over;
  float delta[ROWS];
  float *scores, *dscores; /* (ROWS, KEYS) */
  uint16_t *ds;            /* panels of dscores (ROWS, KEYS) */
  uint16_t *p_t, *ds_t;    /* panels of the transposes (KEYS, ROWS) */
};

static void cut_backward(struct backward *b, struct cutter *c) {
  int64_t k = head_k(b->x), cols = head_cols(b->x), length = round_up(b->length, KEYS);
  b->k = take(c, length * k * 2);
  b->v = take(c, length * k * 2);
  b->k_over = take(c, length * cols * 2);
  b->q = take(c, ROWS * k * 2);
  b->dout = take(c, ROWS * k * 2);
  b->q_over = take(c, ROWS * cols * 2);
  b->dout_over = take(c, ROWS * cols * 2);
  b->scores = take(c, ROWS * KEYS * 4);
  b->dscores = take(c, ROWS * KEYS * 4);
  b->ds = take(c, ROWS * KEYS * 2);
  b->p_t = take(c, ROWS * KEYS * 2);
  b->ds_t = take(c, ROWS * KEYS * 2);
}

static void pack_head(const struct backward *b) {
  const struct attention *x = b->x;
  int64_t at = attention_kv_at(x, b->sequence, 0, b->kv_head);
  strips_of(x, x->k + at, x->kv_step, b->length, b->k);
  strips_of(x, x->v + at, x->kv_step, b->length, b->v);
  for (int64_t key = 0; key < b->length; key += KEYS)
    strips_over_rows(x, x->k + at + key * x->kv_step, x->kv_step, least(KEYS, b->length - key),
                     KEYS, b->k_over + key * head_cols(x) / 2);
  for (int64_t i = 0; i < b->length; i++) {
    memset(x->dk + at + i * x->kv_step, 0, (size_t)x->s.head_dim * sizeof(float));
    memset(x->dv + at + i * x->kv_step, 0, (size_t)x->s.head_dim * sizeof(float));
  }
}

static void pack_queries(struct backward *b, int64_t q, int64_t rows) {
  const struct attention *x = b->x;
  panels_of(x, x->q + q, x->q_step, rows, b->q);
  panels_of(x, x->dout + q, x->q_step, rows, b->dout);
  strips_over_rows(x, x->q + q, x->q_step, rows, ROWS, b->q_over);
  strips_over_rows(x, x->dout + q, x->q_step, rows, ROWS, b->dout_over);
  for (int64_t i = 0; i < rows; i++) {
    int64_t at = q + i * x->q_step;
    b->delta[i] = kernel_table()->dot(x->dout + at, x->out_in + at, x->s.head_dim);
  }
}

/* Probabilities and gradients of the scores, then all four packed. */
static void backward_rows(const struct backward *b, int64_t head, int64_t row, int64_t rows,
                          int64_t key, int64_t keys) {
  const struct attention *x = b->x;
  const struct bf16_kernels *bf16 = &kernel_table()->bf16;
  for (int64_t i = 0; i < rows; i++) {
    int64_t low = most(attention_low(x, row + i) - key, 0);
    int64_t high = least(attention_high(x, row + i) - key, keys);
    if (low >= high) low = high = 0;
    kernel_table()->attention_row_backward(
        b->scores + i * KEYS, b->dscores + i * KEYS, low, high, keys, x->s.scale, x->s.softcap,
        x->lse_in[attention_lse_at(x, b->sequence, row + i, head)], b->delta[i]);
  }
  for (int64_t i = 0; i < rows; i += SIDE)
    bf16->panel_along(DTYPE_F32, b->dscores + i * KEYS, KEYS, least(SIDE, rows - i), keys,
                      b->ds + i * KEYS);
  bf16->panels_across(DTYPE_F32, b->scores, KEYS, keys, rows, SIDE * ROWS, b->p_t);
  bf16->panels_across(DTYPE_F32, b->dscores, KEYS, keys, rows, SIDE * ROWS, b->ds_t);
}

/* A block of queries meets a block of keys. */
static void backward_block(const struct backward *b, int64_t head, int64_t row, int64_t rows,
                           int64_t key, int64_t keys, bool first) {
  const struct attention *x = b->x;
  int64_t hd = x->s.head_dim, q = attention_q_at(x, b->sequence, row, head);
  int64_t kv = attention_kv_at(x, b->sequence, key, b->kv_head);
  score_block(x, rows, keys, b->q, b->k + key * head_k(x) / 2, b->scores);
  score_block(x, rows, keys, b->dout, b->v + key * head_k(x) / 2, b->dscores);
  backward_rows(b, head, row, rows, key, keys);
  block_product(rows, hd, keys, KEYS, b->ds, b->k_over + key * head_cols(x) / 2, x->dq + q,
                x->q_step, !first);
  block_product(keys, hd, rows, ROWS, b->p_t, b->dout_over, x->dv + kv, x->kv_step, true);
  block_product(keys, hd, rows, ROWS, b->ds_t, b->q_over, x->dk + kv, x->kv_step, true);
}

static void backward_queries(struct backward *b, int64_t head, int64_t row) {
  const struct attention *x = b->x;
  int64_t rows = least(ROWS, b->length - row), end = attention_high(x, row + rows - 1);
  int64_t from = attention_low(x, row) / KEYS * KEYS;
  pack_queries(b, attention_q_at(x, b->sequence, row, head), rows);
  for (int64_t key = from; key < end; key += KEYS)
    backward_block(b, head, row, rows, key, least(KEYS, end - key), key == from);
}

static void backward_item(void *ctx, int64_t item, int worker) {
  const struct attention *x = ctx;
  (void)worker;
  int64_t group = x->s.heads / x->s.kv_heads;
  struct backward b = {.x = x,
                       .sequence = item / x->s.kv_heads,
                       .kv_head = item % x->s.kv_heads,
                       .length = x->s.kv_length};
  struct cutter c = {0};
  cut_backward(&b, &c);
  c = (struct cutter){.base = kernel_scratch(SCRATCH_ATTENTION, (size_t)c.used)};
  cut_backward(&b, &c);
  pack_head(&b);
  for (int64_t g = 0; g < group; g++)
    for (int64_t row = 0; row < b.length; row += ROWS)
      backward_queries(&b, b.kv_head * group + g, row);
}

void attention_bf16_backward(const struct attention *x) {
  parallel_for(x->s.sequences * x->s.kv_heads, backward_item, (void *)x);
}
