/* What host and device agree on for the kernels of decoding, beside the products: their arguments
 * and how they are launched. Read by C on the host, by CUDA's compiler, and by the emulator of the
 * tests.
 *
 * A pass has rows: one new token of each text of a step, or some tokens of one text that is being
 * read. What changes from step to step, ids, positions, slots and page tables, lies in arrays on
 * the card, so that a step that was recorded can be run again with others.
 *
 * Keys and values lie in pages of SERVE_PAGE positions. A page has them for all layers:
 * (layers, 2, kv_heads, SERVE_PAGE, stride), keys first; stride is head_dim in whole 16 bytes, and
 * what lies behind head_dim is zero. Which page holds positions 16 i .. of a slot says
 * pages[slot * page_most + i]. */
#ifndef TSR_KERNEL_CUDA_SERVE_H
#define TSR_KERNEL_CUDA_SERVE_H

#include "kernel/cuda/learn.h"

enum { SERVE_THREADS = LEARN_THREADS, SERVE_PAGE = 16 };

/* Rows of a table: plain and row-major in `type`, or, where `tiles` is not NULL, dense bf16 in
 * fragment-major form. */
struct serve_embed_args {
  const void *table;
  const uint8_t *tiles;
  const int32_t *ids; /* (rows) */
  float *hidden;      /* (rows, n) */
  uint64_t count;     /* rows * n */
  uint32_t n, type, tiles_per_strip, blocks;
  float scale;
};

/* A block to a row, block i to row i * step and its output to row i: hidden += branch, through a
 * norm of its own where branch_weight is given; then out = norm(hidden). */
struct serve_norm_args {
  float *hidden;              /* (rows, n) */
  const uint16_t *branch;     /* bf16 (rows, branch_stride), or NULL */
  const float *branch_weight; /* (n) or NULL */
  const float *weight;        /* (n) */
  uint16_t *out;              /* bf16 (rows, out_stride) */
  uint32_t n, branch_stride, out_stride, step;
  bool plus_one;
  float eps;
};

/* Where keys and values are. */
struct serve_cache {
  uint16_t *memory;      /* pages */
  const uint32_t *pages; /* (slots, page_most) */
  uint32_t page_most;    /* of a slot */
  uint32_t type;         /* ELEMENT_BF16 or ELEMENT_F16 */
  uint32_t stride;       /* of a position's row of one head, in elements */
  uint32_t kv_heads;
  uint64_t page_elements;
  uint64_t layer_elements; /* from a page's start to this layer's keys */
};

/* A warp to a row's head: q is normed and rotated to fp32, k too and stored, v stored. */
struct serve_rotate_args {
  const uint16_t *qkv; /* bf16 (rows, qkv_stride), heads at these columns: */
  uint32_t q_at, k_at, v_at, qkv_stride;
  float *q; /* (rows, heads, head_dim) */
  struct serve_cache cache;
  const float *q_norm, *k_norm;      /* (head_dim) or NULL */
  const float *cos, *sin;            /* (positions, head_dim / 2) */
  const uint32_t *positions, *slots; /* (rows) */
  uint32_t rows, heads, head_dim, blocks;
  bool plus_one;
  float eps;
};

struct serve_glu_args {
  const uint16_t *gate, *up; /* bf16 (rows, in_stride) */
  uint16_t *out;             /* bf16 (rows, out_stride) */
  uint64_t count;            /* rows * n */
  uint32_t n, in_stride, out_stride, blocks;
  bool gelu;
};

/* Attention of rows over pages. A block takes `piece` positions of one key head, and meets them
 * with an item: up to as many query rows as the kernel has, which share the head: `item_tokens`
 * rows of the pass (of one text where there are several) times `item_heads` of the query heads.
 * Block index = ((token item * head items + head item) * kv_heads + key head) * pieces + piece;
 * blocks past a row's last piece end at once. Pieces begin at multiples of their length, so that
 * bits do not depend on what else is in the pass. The block of an item that comes last joins the
 * pieces in order. */
enum { SERVE_PIECE = 256, SERVE_WHOLE_ROWS = 64 };
enum { ATTEND_THREADS = 128, ATTEND_WARPS = ATTEND_THREADS / 32 };
struct serve_attend_args {
  const float *q; /* (rows, heads, head_dim) */
  struct serve_cache cache;
  const uint32_t *positions, *slots; /* (rows) */
  uint16_t *out;                     /* bf16 (rows, out_stride) */
  float *partials;                   /* (items, pieces, attend_partial_floats) */
  uint32_t *counters;                /* (items), zero between launches */
  uint32_t rows, heads, head_dim, out_stride;
  uint32_t item_tokens, item_heads, head_items, piece, pieces, window;
  float scale, softcap;
};
/* Of each row its values' sum, as wide as the kernel's lanes, its maximum and its sum. */
static inline uint32_t attend_partial_floats(uint32_t lanes, uint32_t rows) {
  return rows * (8 * lanes + 2);
}
static inline uint32_t attend_shared_bytes(uint32_t lanes, uint32_t rows) {
  return 4 * ATTEND_WARPS * attend_partial_floats(lanes, rows);
}
/* K(lanes that share a position's row, 8 elements each; rows of an item) */
#define ATTEND_KERNELS(K) \
  K(4, 1)                 \
  K(4, 8)                 \
  K(8, 1)                 \
  K(8, 8)                 \
  K(16, 1)                \
  K(16, 8)                \
  K(32, 1)                \
  K(32, 2)

/* out (rows, cols) bf16 = a bf16 matrix in fragment-major form, zeros and all: a thread to four
 * columns. `order`: fragment_order. */
struct serve_expand_args {
  const uint8_t *tiles;
  const uint32_t *order;
  uint16_t *out;
  uint64_t count; /* rows * groups of four columns */
  uint32_t cols, tiles_per_strip, blocks;
};

/* --- sampling: a block to a row --- */

/* How a row's token is drawn: kernel-side twin of generate/sampler.h. */
struct serve_draw {
  double uniform;     /* in [0, 1): the draw */
  double temperature; /* 0: the likeliest */
  double top_p, min_p;
  float penalty;  /* 1: off */
  uint32_t top_k; /* 0: all */
  uint32_t slot;  /* whose tokens were seen */
  uint32_t unused;
};
struct serve_sample_args {
  float *logits;                  /* (rows, vocab); the penalty changes them */
  const struct serve_draw *draws; /* (rows) */
  uint8_t *seen;                  /* (slots, vocab) */
  unsigned long long *mass;       /* (rows, vocab): scratch */
  int32_t *ids;                   /* (rows): the tokens, -1 where logits are no numbers */
  uint32_t vocab;
};

/* Every kernel: K(name, type of its arguments); attend_LxR beside them. */
#define SERVE_KERNELS(K)                    \
  K(serve_embed, struct serve_embed_args)   \
  K(serve_norm, struct serve_norm_args)     \
  K(serve_rotate, struct serve_rotate_args) \
  K(serve_glu, struct serve_glu_args)       \
  K(serve_expand, struct serve_expand_args) \
  K(serve_sample, struct serve_sample_args)

enum serve_kernel {
#define SERVE_ENUM(name, type) SERVE_##name,
  SERVE_KERNELS(SERVE_ENUM)
#undef SERVE_ENUM
#define SERVE_ENUM(lanes, rows) SERVE_attend_##lanes##x##rows,
      ATTEND_KERNELS(SERVE_ENUM)
#undef SERVE_ENUM
          SERVE_KERNEL_COUNT
};

#endif
