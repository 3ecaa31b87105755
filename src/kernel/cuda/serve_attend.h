/* Attention over pages: which rows an item has and what they see, then the kernels. After a
 * vocabulary. */
#ifndef TSR_KERNEL_CUDA_SERVE_ATTEND_H
#define TSR_KERNEL_CUDA_SERVE_ATTEND_H

#include "kernel/cuda/serve_rows.h"

#define ATTEND_LEAST (-3.0e38f) /* below every score: finite, so that differences are numbers */

/* A block's share: see serve_attend_args. */
struct attend_item {
  uint32_t index, piece, kv_head, slot;
  uint32_t row, head;           /* its first row of the pass and its first query head */
  uint32_t rows;                /* query rows: tokens times item_heads */
  uint32_t low, high;           /* positions that any of them sees */
  uint32_t first_piece, pieces; /* that these take */
};
/* Query row r of an item; high is 0 where there is none. */
struct attend_row {
  uint32_t row, head, low, high;
};

DEVICE uint32_t window_start(const struct serve_attend_args *a, uint32_t end) {
  return a->window && end > a->window ? end - a->window : 0;
}

DEVICE struct attend_item attend_item(const struct serve_attend_args *a) {
  const uint32_t kv = a->cache.kv_heads;
  struct attend_item i;
  i.piece = block_index() % a->pieces;
  i.index = block_index() / a->pieces;
  i.kv_head = i.index % kv;
  i.head = i.kv_head * (a->heads / kv) + i.index / kv % a->head_items * a->item_heads;
  i.row = i.index / kv / a->head_items * a->item_tokens;
  const uint32_t left = a->rows - i.row, tokens = left < a->item_tokens ? left : a->item_tokens;
  i.rows = tokens * a->item_heads;
  i.slot = global_load(a->slots + i.row);
  i.low = window_start(a, global_load(a->positions + i.row) + 1);
  i.high = global_load(a->positions + i.row + tokens - 1) + 1;
  i.first_piece = i.low / a->piece;
  i.pieces = (i.high + a->piece - 1) / a->piece - i.first_piece;
  return i;
}

DEVICE struct attend_row attend_row(const struct serve_attend_args *a, const struct attend_item *i,
                                    uint32_t r) {
  const uint32_t group = a->heads / a->cache.kv_heads;
  struct attend_row row = {i->row + r / a->item_heads, i->head + r % a->item_heads, 0, 0};
  if (r >= i->rows || row.head >= (i->kv_head + 1) * group) return row;
  row.high = global_load(a->positions + row.row) + 1;
  row.low = window_start(a, row.high);
  return row;
}

DEVICE void attend_store(const struct serve_attend_args *a, const struct attend_row *row,
                         uint32_t column, float value) {
  if (row->high && column < a->head_dim)
    global_store(a->out + (uint64_t)row->row * a->out_stride + row->head * a->head_dim + column,
                 bf16_round(value));
}

/* Element e of eight. */
DEVICE float cached(uint32_t type, const struct words4 *row, uint32_t e) {
  const uint32_t pair = row->w[e / 2];
  const uint16_t half = (uint16_t)(e % 2 ? pair >> 16 : pair);
  return type == ELEMENT_BF16 ? bf16_widen(half) : f16_widen(half);
}

#define LANES 4
#define ROWS 1
#include "kernel/cuda/serve_attend_body.h"
#define LANES 4
#define ROWS 8
#include "kernel/cuda/serve_attend_body.h"
#define LANES 8
#define ROWS 1
#include "kernel/cuda/serve_attend_body.h"
#define LANES 8
#define ROWS 8
#include "kernel/cuda/serve_attend_body.h"
#define LANES 16
#define ROWS 1
#include "kernel/cuda/serve_attend_body.h"
#define LANES 16
#define ROWS 8
#include "kernel/cuda/serve_attend_body.h"
#define LANES 32
#define ROWS 1
#include "kernel/cuda/serve_attend_body.h"
#define LANES 32
#define ROWS 2
#include "kernel/cuda/serve_attend_body.h"

#endif
