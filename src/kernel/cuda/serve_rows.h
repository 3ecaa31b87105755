/* Kernels over the rows of a pass of decoding: embedding, norms, rotation and the cache, gates.
 * After a vocabulary. The formulas are those of kernel/ops.h; the residual stream stays fp32, what
 * products read is rounded to bf16. */
#ifndef TSR_KERNEL_CUDA_SERVE_ROWS_H
#define TSR_KERNEL_CUDA_SERVE_ROWS_H

#include "kernel/cuda/common.h"
#include "kernel/cuda/serve.h"
#include "sparse/fragment_layout.h"

/* --- embedding --- */

/* Byte of element (row, col) of a dense bf16 matrix in fragment-major form. */
DEVICE uint64_t fragment_address(uint32_t tiles_per_strip, uint64_t row, uint32_t col) {
  const uint64_t tile = row / FRAGMENT_STRIP_ROWS * tiles_per_strip + col / FRAGMENT_TILE_COLS;
  const uint32_t step = col % FRAGMENT_TILE_COLS / FRAGMENT_STEP_COLS;
  const uint32_t block = (uint32_t)(row % FRAGMENT_STRIP_ROWS) / FRAGMENT_BLOCK_ROWS;
  const uint32_t fragment = col % FRAGMENT_STEP_COLS / 16, c = col % 16, r = (uint32_t)(row % 16);
  const uint32_t lane = 4 * (r % 8) + c % 8 / 2, reg = r / 8 + 2 * (c / 8);
  return tile * FRAGMENT_DENSE_TILE_BYTES + step * FRAGMENT_DENSE_STEP_BYTES +
         block * FRAGMENT_DENSE_BLOCK_BYTES + fragment * FRAGMENT_BYTES + 16 * lane + 4 * reg +
         2 * (c % 2);
}

DEVICE void serve_embed_body(const struct serve_embed_args *a) {
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * SERVE_THREADS) {
    const uint64_t id = (uint32_t)global_load(a->ids + i / a->n);
    const uint32_t col = (uint32_t)(i % a->n);
    float x;
    if (a->tiles)
      x = bf16_widen(global_load(
          (const uint16_t *)(a->tiles + fragment_address(a->tiles_per_strip, id, col))));
    else
      x = load_element(a->table, id * a->n + col, a->type);
    global_store(a->hidden + i, a->scale * x);
  }
}
KERNEL(serve_embed, serve_embed_body, SERVE_THREADS, struct serve_embed_args)

/* --- expansion --- */

/* Two neighbours of a fragment, both of one register: columns `col`, even, and the next. */
DEVICE uint32_t fragment_pair(const uint8_t *fragment, uint32_t row, uint32_t col) {
  const uint32_t lane = 4 * (row % 8) + col % 8 / 2, reg = row / 8 + 2 * (col / 8);
  return global_load((const uint32_t *)(fragment + 16 * lane + 4 * reg));
}

/* Column 4 g + i of a row of a 2:4 block of 16 x 64, two of each four being kept: the code of the
 * group, and the two. */
DEVICE uint32_t sparse_code(const uint8_t *block, uint32_t row, uint32_t g) {
  const uint32_t meta = global_load((const uint32_t *)block + 4 * (row % 8) + g / 4);
  return meta >> (row / 8 * 16 + g % 4 * 4) & 15;
}
DEVICE uint32_t sparse_pair(const uint8_t *block, uint32_t row, uint32_t g) {
  return fragment_pair(block + FRAGMENT_META_BYTES + g / 8 * FRAGMENT_BYTES, row, g % 8 * 2);
}
DEVICE uint32_t kept_at(uint32_t code, uint32_t pair, uint32_t i) {
  return i == (code & 3) ? pair & 0xffff : i == code >> 2 ? pair >> 16 : 0;
}

DEVICE void serve_expand_body(const struct serve_expand_args *a) {
  const uint32_t groups = (a->cols + 3) / 4;
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * SERVE_THREADS) {
    const uint64_t row = i / groups;
    const uint32_t col = 4 * (uint32_t)(i % groups), r = (uint32_t)(row % 16);
    const uint32_t order = global_load(a->order + row / FRAGMENT_STRIP_ROWS * a->tiles_per_strip +
                                       col / FRAGMENT_TILE_COLS);
    const uint8_t *tile = a->tiles + (uint64_t)(order >> 1) * FRAGMENT_OFFSET_UNIT;
    const uint32_t step = col % FRAGMENT_TILE_COLS / FRAGMENT_STEP_COLS;
    const uint32_t block = (uint32_t)(row % FRAGMENT_STRIP_ROWS) / FRAGMENT_BLOCK_ROWS;
    const uint32_t c = col % FRAGMENT_STEP_COLS;
    uint32_t low, high; /* columns col and the next, then the other two */
    if (order & 1) {
      const uint8_t *at =
          tile + step * FRAGMENT_SPARSE_STEP_BYTES + block * FRAGMENT_SPARSE_BLOCK_BYTES;
      const uint32_t code = sparse_code(at, r, c / 4), pair = sparse_pair(at, r, c / 4);
      low = kept_at(code, pair, 0) | kept_at(code, pair, 1) << 16;
      high = kept_at(code, pair, 2) | kept_at(code, pair, 3) << 16;
    } else {
      const uint8_t *fragment = tile + step * FRAGMENT_DENSE_STEP_BYTES +
                                block * FRAGMENT_DENSE_BLOCK_BYTES + c / 16 * FRAGMENT_BYTES;
      low = fragment_pair(fragment, r, c % 16);
      high = fragment_pair(fragment, r, c % 16 + 2);
    }
    uint16_t *to = a->out + row * a->cols + col;
    UNROLL for (uint32_t j = 0; j < 4; j++) if (col + j < a->cols)
        global_store(to + j, (uint16_t)((j < 2 ? low : high) >> 16 * (j % 2)));
  }
}
KERNEL(serve_expand, serve_expand_body, SERVE_THREADS, struct serve_expand_args)

/* --- norms --- */

DEVICE float weight_at(const float *weight, uint32_t i, bool plus_one) {
  return global_load(weight + i) + (plus_one ? 1.0f : 0.0f);
}
DEVICE float inverse_root(double squares, uint32_t n, float eps) {
  return 1.0f / sqrtf((float)squares / (float)n + eps);
}

DEVICE void serve_norm_body(const struct serve_norm_args *a) {
  const uint64_t row = (uint64_t)block_index() * a->step;
  float *hidden = a->hidden + row * a->n;
  const uint16_t *branch = a->branch + row * a->branch_stride;
  uint16_t *out = a->out + (uint64_t)block_index() * a->out_stride;
  float squares = 0, scale = 1;
  if (a->branch_weight) {
    for (uint32_t i = thread_index(); i < a->n; i += SERVE_THREADS) {
      const float x = bf16_widen(global_load(branch + i));
      squares = fmaf(x, x, squares);
    }
    scale = inverse_root(block_sum(squares), a->n, a->eps);
    squares = 0;
  }
  for (uint32_t i = thread_index(); i < a->n; i += SERVE_THREADS) {
    float x = global_load_fresh(hidden + i);
    if (a->branch) {
      const float y = bf16_widen(global_load(branch + i));
      x += a->branch_weight ? y * scale * weight_at(a->branch_weight, i, a->plus_one) : y;
      global_store(hidden + i, x);
    }
    squares = fmaf(x, x, squares);
  }
  scale = inverse_root(block_sum(squares), a->n, a->eps);
  /* each thread reads what it has written itself */
  for (uint32_t i = thread_index(); i < a->n; i += SERVE_THREADS)
    global_store(out + i, bf16_round(global_load_fresh(hidden + i) * scale *
                                     weight_at(a->weight, i, a->plus_one)));
}
KERNEL(serve_norm, serve_norm_body, SERVE_THREADS, struct serve_norm_args)

/* --- rotation, and the cache --- */

/* f16 ends at 65504: what is larger stays finite, so that a weight of zero makes it nothing. */
DEVICE uint16_t cache_round(uint32_t type, float x) {
  if (type == ELEMENT_BF16) return bf16_round(x);
  const float most = 65504.0f;
  return f16_round(x > most ? most : x < -most ? -most : x);
}

/* The row of a position of one head: its keys (values: 0 or 1). */
DEVICE uint64_t cache_row(const struct serve_cache *c, uint32_t page, uint32_t values,
                          uint32_t head, uint32_t offset) {
  return page * c->page_elements + c->layer_elements +
         ((uint64_t)(values * c->kv_heads + head) * SERVE_PAGE + offset) * c->stride;
}

/* Columns lane + 32 j, j < 4, of the two halves of a head, normed where there is a weight. */
DEVICE void load_head(const struct serve_rotate_args *a, const uint16_t *x, const float *norm,
                      float low[4], float high[4]) {
  const uint32_t lane = thread_index() % 32, half = a->head_dim / 2;
  float squares = 0;
  UNROLL for (uint32_t j = 0; j < 4; j++) {
    const uint32_t i = lane + 32 * j;
    low[j] = i < half ? bf16_widen(global_load(x + i)) : 0;
    high[j] = i < half ? bf16_widen(global_load(x + half + i)) : 0;
    squares = fmaf(low[j], low[j], fmaf(high[j], high[j], squares));
  }
  if (!norm) return;
  const float scale = inverse_root(warp_sum(squares), a->head_dim, a->eps);
  UNROLL for (uint32_t j = 0; j < 4; j++) {
    const uint32_t i = lane + 32 * j;
    if (i >= half) continue;
    low[j] *= scale * weight_at(norm, i, a->plus_one);
    high[j] *= scale * weight_at(norm, half + i, a->plus_one);
  }
}

DEVICE void turn(const struct serve_rotate_args *a, uint32_t position, float low[4],
                 float high[4]) {
  const uint32_t half = a->head_dim / 2;
  UNROLL for (uint32_t j = 0; j < 4; j++) {
    const uint32_t i = thread_index() % 32 + 32 * j;
    if (i >= half) continue;
    const uint64_t angle = (uint64_t)position * half + i;
    const float c = global_load(a->cos + angle), s = global_load(a->sin + angle);
    const float x = low[j], y = high[j];
    low[j] = x * c - y * s;
    high[j] = y * c + x * s;
  }
}

DEVICE void put_cached(const struct serve_rotate_args *a, uint32_t row, uint32_t values,
                       uint32_t head, const float low[4], const float high[4]) {
  const struct serve_cache *c = &a->cache;
  const uint32_t position = global_load(a->positions + row), slot = global_load(a->slots + row);
  const uint32_t page =
      global_load(c->pages + (uint64_t)slot * c->page_most + position / SERVE_PAGE);
  uint16_t *to = c->memory + cache_row(c, page, values, head, position % SERVE_PAGE);
  const uint32_t half = a->head_dim / 2;
  UNROLL for (uint32_t j = 0; j < 4; j++) {
    const uint32_t i = thread_index() % 32 + 32 * j;
    if (i >= half) continue;
    global_store(to + i, cache_round(c->type, low[j]));
    global_store(to + half + i, cache_round(c->type, high[j]));
  }
}

DEVICE void serve_rotate_body(const struct serve_rotate_args *a) {
  const uint32_t kv = a->cache.kv_heads, each = a->heads + 2 * kv, half = a->head_dim / 2;
  const uint32_t warps = SERVE_THREADS / 32;
  for (uint32_t i = block_index() * warps + thread_index() / 32; i < a->rows * each;
       i += a->blocks * warps) {
    const uint32_t row = i / each, head = i % each;
    const uint16_t *from = a->qkv + (uint64_t)row * a->qkv_stride;
    const uint32_t position = global_load(a->positions + row);
    float low[4], high[4];
    if (head < a->heads) {
      load_head(a, from + a->q_at + head * a->head_dim, a->q_norm, low, high);
      turn(a, position, low, high);
      float *to = a->q + ((uint64_t)row * a->heads + head) * a->head_dim;
      UNROLL for (uint32_t j = 0; j < 4; j++) {
        const uint32_t at = thread_index() % 32 + 32 * j;
        if (at >= half) continue;
        global_store(to + at, low[j]);
        global_store(to + half + at, high[j]);
      }
    } else if (head < a->heads + kv) {
      const uint32_t k = head - a->heads;
      load_head(a, from + a->k_at + k * a->head_dim, a->k_norm, low, high);
      turn(a, position, low, high);
      put_cached(a, row, 0, k, low, high);
    } else {
      const uint32_t v = head - a->heads - kv;
      load_head(a, from + a->v_at + v * a->head_dim, 0, low, high);
      put_cached(a, row, 1, v, low, high);
    }
  }
}
KERNEL(serve_rotate, serve_rotate_body, SERVE_THREADS, struct serve_rotate_args)

/* --- gates --- */

DEVICE void serve_glu_body(const struct serve_glu_args *a) {
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * SERVE_THREADS) {
    const uint64_t row = i / a->n, col = i % a->n, from = row * a->in_stride + col;
    float slope;
    const float gate = activation(a->gelu, bf16_widen(global_load(a->gate + from)), &slope);
    global_store(a->out + row * a->out_stride + col,
                 bf16_round(gate * bf16_widen(global_load(a->up + from))));
  }
}
KERNEL(serve_glu, serve_glu_body, SERVE_THREADS, struct serve_glu_args)

#endif
