/* What host and device agree on for the kernels of learning and evaluation: their arguments, and
 * how they are launched. Read by C on the host, by CUDA's compiler, and by the emulator of the
 * tests.
 *
 * A block has LEARN_THREADS threads. Kernels over elements or rows take any number of blocks and
 * walk on by the whole grid; where the number of blocks is part of the meaning, it is said. */
#ifndef TSR_KERNEL_CUDA_LEARN_H
#define TSR_KERNEL_CUDA_LEARN_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel/sparsegpt.h"

enum { LEARN_THREADS = 256, LEARN_WARPS = LEARN_THREADS / 32 };
/* Element types of what a kernel reads or writes. */
enum element { ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16 };

/* --- rows.h --- */

struct embed_args {
  const void *table;  /* (vocabulary, n) of `type` */
  const int32_t *ids; /* (tokens) */
  float *hidden;      /* (tokens, n) */
  uint64_t count;     /* tokens * n */
  uint32_t n, type, blocks;
  float scale;
};

/* A warp to a row. Forward: y, inverse (or NULL) from x. Backward: y = or += dx from dy, x and
 * inverse. */
struct rmsnorm_args {
  const float *x, *weight, *dy;
  float *y, *inverse;
  uint32_t rows, n, blocks;
  bool plus_one, accumulate;
  float eps;
};

struct rope_args {
  float *x;               /* (rows, heads, 2 * half) */
  const float *cos, *sin; /* (length, half) */
  uint64_t pairs;         /* rows * heads * half */
  uint32_t length, heads, half, blocks;
  float sign; /* of sin */
};

/* Over n elements: which of the pointers are used depends on the kernel. */
struct element_args {
  const float *a, *b, *c;
  float *out, *out2;
  uint64_t n;
  uint32_t blocks, period; /* of a bias */
  bool gelu;
  float cap;
};

struct convert_args {
  const void *from; /* of `type` */
  void *to;         /* of `to_type`: f32 or bf16 */
  uint64_t n;
  uint32_t type, to_type, blocks;
};

/* --- loss.h: a block to a row --- */

struct loss_args {
  const float *logits, *teacher; /* (rows, vocab); teacher NULL: cross-entropy alone */
  const int32_t *targets;        /* (rows), or NULL: divergence alone */
  float *nll, *kl;               /* (rows) */
  uint8_t *agree; /* (rows) or NULL: whether the likeliest is the teacher's, or the target */
  float *dlogits; /* (rows, vocab), may be logits; or NULL */
  uint32_t rows, vocab;
  float weight, scale;
};

/* --- mask.h --- */

/* A block takes up to MASK_STRIP_ROWS rows of one tile: strip s of tile column c is block
 * s * tile_columns + c. Sums of a tile's strips, and of all blocks, are added in order by the block
 * that comes last; counters (tiles + 1) are zero between launches. */
enum { MASK_STRIP_ROWS = 32 };
struct mask_args {
  const void *logits;     /* (rows, row_blocks, 5, 16), bf16 where it is compact; or NULL: */
  const uint8_t *codes;   /* (rows, code_stride) */
  const float *tile_soft; /* (tile rows, tile_columns) or NULL */
  const void *w;          /* (rows, cols) of `type` */
  const float *dw;        /* (rows, cols); backward */
  uint32_t type, rows, cols, groups, row_blocks, code_stride;
  uint32_t tile_rows, tile_groups, tile_columns, strips_per_tile, blocks;
  float slope, inverse_tau;
  bool noise, accumulate, out_is_bf16, compact;
  uint32_t key[2], tensor, draw, pass; /* pass: of what rounds compact gradients */
  double decay;                        /* over the root of *decay_squares where that is not NULL */
  const double *decay_squares;
  void *dlogits;   /* like logits; backward, learned sources */
  double *dtile;   /* (tile rows, tile_columns); backward, where there is tile_soft */
  void *out;       /* (rows, cols), or NULL in backward */
  double *squares; /* sample */
  double *parts;   /* (blocks) */
  uint32_t *counters;
};

struct mask_update_args {
  const void *gradient; /* (rows, row_blocks, 5, 16), f32, or bf16 where it is compact */
  void *logits;         /* the same */
  float *first;         /* the same, f32 */
  float *second;        /* (rows, row_blocks, 6, 16) */
  uint8_t *codes;       /* (rows, code_stride) or NULL */
  unsigned long long *flips;
  uint32_t rows, cols, groups, row_blocks, code_stride, blocks;
  bool compact;
  float keep, rate, beta1, beta2, gradient_scale, epsilon, second_scale, most;
  double *squares, *parts; /* of gradients: 1, (blocks) */
  uint32_t *counters;      /* (1), zero between launches */
};

/* AdamW on compact storage (kernel/mask_compact.h, compact.h). Of `update`, first, second and
 * second_scale are not used. */
struct mask_compact_args {
  struct mask_update_args update;
  uint8_t *first, *second, *first_scale, *second_scale; /* as in struct mask_compact */
  uint32_t key[2], tensor, step;
  float root_scale;
};

struct mask_keep_args {
  const void *w;
  const uint8_t *codes, *tiles; /* tiles (tile rows, tile_columns) */
  float *out;
  uint64_t count; /* rows * groups */
  uint32_t type, rows, cols, groups, code_stride, tile_rows, tile_groups, tile_columns, blocks;
};

/* --- attention.h --- */

/* A block owns `owners` rows, each warp ATTENTION_ROWS of them, and walks over the others in tiles
 * of 32. Forward and dq: owners are queries of one head; block index = (sequence * heads + head) *
 * row blocks + row block, the last rows first. dk and dv: owners are keys of one key head. */
enum { ATTENTION_ROWS = 4, ATTENTION_TILE = 32, ATTENTION_HEAD_MAX = 256 };
struct attention_args {
  const float *q, *k, *v, *dout; /* (sequences, length, heads or kv_heads, head_dim) */
  float *out, *lse;              /* forward; lse (sequences, heads, length) or NULL */
  const float *out_in, *lse_in;  /* backward */
  float *delta;                  /* (sequences, heads, length): sum of dout * out */
  float *dq, *dk, *dv;
  uint32_t sequences, length, heads, kv_heads, head_dim, row_blocks, warps, window;
  uint32_t stride; /* attention_stride(head_dim) */
  float scale, softcap;
};
/* Floats of shared memory a row of a tile takes: a multiple of 4 that is 4 mod 8, so that eight
 * rows' 16-byte pieces lie in different banks. */
static inline uint32_t attention_stride(uint32_t head_dim) {
  const uint32_t quads = (head_dim + 3) / 4;
  return 4 * (quads | 1);
}
/* A tile of two matrices, and one or two rows for each owner. */
static inline uint32_t attention_shared_bytes(uint32_t head_dim, uint32_t warps, bool backward) {
  const uint32_t rows = 2 * ATTENTION_TILE + (backward ? 2 : 1) * warps * ATTENTION_ROWS;
  return 4 * rows * attention_stride(head_dim);
}

/* --- attention_mma.h: the same on the tensor cores, for operands in bf16 --- */

/* How a kernel divides its work among the four warps of a block. All but `columns` are multiples of
 * 16, that of 8. */
struct attention_form {
  uint32_t width;   /* of a row, head_dim rounded up */
  uint32_t groups;  /* of 16 rows that a warp owns */
  uint32_t tile;    /* rows that pass by at a time */
  uint32_t columns; /* of the sums that a block makes; width / columns blocks own the same rows */
};
enum { ATTENTION_MMA_WARPS = 4, ATTENTION_MMA_THREADS = 32 * ATTENTION_MMA_WARPS };
#define form_rows(f) (16 * ATTENTION_MMA_WARPS * (f)->groups)
#define form_row_bytes(f) (2 * (f)->width)
/* Owned rows of one or two matrices, two stages of tiles of two, and for a tile of queries two
 * floats a row. */
#define form_shared_bytes(f, owned, sums)                                         \
  ((owned)*form_rows(f) * form_row_bytes(f) + 4 * (f)->tile * form_row_bytes(f) + \
   ((sums) ? 16 * (f)->tile : 0))

struct attention_mma_args {
  struct attention_args a;          /* its q, k, v, dout, stride and warps are not read */
  const uint16_t *q, *k, *v, *dout; /* bf16 (sequences, length, heads or kv_heads, width) */
};
enum { ATTENTION_NARROW_MAX = 4 };
struct attention_narrow_args {
  const float *from[ATTENTION_NARROW_MAX]; /* (rows, head_dim) */
  uint16_t *to[ATTENTION_NARROW_MAX];      /* (rows, width) */
  uint64_t rows[ATTENTION_NARROW_MAX];
  uint32_t tensors, head_dim, width, blocks;
};

/* A(kernel, body, width, groups, tile, columns), by width: what registers (sums of groups * columns
 * / 2 floats a lane, twice in back_kv) and 99 KiB of shared memory hold. */
#define ATTENTION_MMA_FORWARD(A)                            \
  A(attention_mma_64, attention_mma_rows, 64, 2, 64, 64)    \
  A(attention_mma_96, attention_mma_rows, 96, 2, 32, 96)    \
  A(attention_mma_128, attention_mma_rows, 128, 2, 32, 128) \
  A(attention_mma_256, attention_mma_rows, 256, 1, 32, 256)
#define ATTENTION_MMA_BACK_Q(A)                                      \
  A(attention_mma_back_q_64, attention_mma_back_q, 64, 2, 32, 64)    \
  A(attention_mma_back_q_96, attention_mma_back_q, 96, 1, 32, 96)    \
  A(attention_mma_back_q_128, attention_mma_back_q, 128, 1, 32, 128) \
  A(attention_mma_back_q_256, attention_mma_back_q, 256, 1, 16, 256)
#define ATTENTION_MMA_BACK_KV(A)                                       \
  A(attention_mma_back_kv_64, attention_mma_back_kv, 64, 2, 16, 64)    \
  A(attention_mma_back_kv_96, attention_mma_back_kv, 96, 1, 32, 96)    \
  A(attention_mma_back_kv_128, attention_mma_back_kv, 128, 1, 32, 128) \
  A(attention_mma_back_kv_256, attention_mma_back_kv, 256, 1, 16, 128)
#define ATTENTION_MMA_KERNELS(A) \
  ATTENTION_MMA_FORWARD(A) ATTENTION_MMA_BACK_Q(A) ATTENTION_MMA_BACK_KV(A)
/* The kernels' width for heads of head_dim columns. */
static inline uint32_t attention_width(uint32_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

/* --- prune.h --- */

struct matrix_copy_args {
  const float *from;
  float *to;
  uint64_t count, cols, from_stride, to_stride; /* count: rows * cols */
  uint32_t blocks;
};
struct matrix_reverse_args {
  float *matrix;
  uint64_t count;
  uint32_t blocks;
};
struct hessian_args {
  const float *products; /* (n, n) */
  float *out;            /* (n, n), reversed */
  double scale, added;
  uint32_t n, blocks;
};
/* One block of threads factors and inverts one block on the diagonal. */
enum { CHOLESKY_BLOCK = 64, CHOLESKY_SHARED_BYTES = 8 * CHOLESKY_BLOCK * (CHOLESKY_BLOCK + 1) };
struct cholesky_args {
  float *matrix;    /* (size, size) of rows `stride` apart */
  float *inverse;   /* (CHOLESKY_BLOCK, CHOLESKY_BLOCK) */
  uint32_t *failed; /* 1 where a pivot is not positive */
  uint64_t stride;
  uint32_t size;
};
struct cholesky_settle_args {
  float *matrix;        /* (n, n) */
  const float *inverse; /* of the rows begin .. begin + size */
  uint64_t n, begin, size;
  uint32_t blocks;
};
/* struct sparsegpt_walk; for the scores, `errors` is where they go. */
struct walk_args {
  float *w, *cost, *errors;
  const float *u;
  uint32_t *chosen;
  const uint8_t *tiles;
  uint32_t rows, cols, begin, width, keep, of, tile_rows, tile_cols, tile_columns, blocks;
};

/* Every kernel: K(name, type of its arguments). */
#define LEARN_KERNELS(K)                                  \
  K(embed_rows, struct embed_args)                        \
  K(rmsnorm_rows, struct rmsnorm_args)                    \
  K(rmsnorm_back, struct rmsnorm_args)                    \
  K(rope_pairs, struct rope_args)                         \
  K(glu_elements, struct element_args)                    \
  K(glu_back, struct element_args)                        \
  K(add_elements, struct element_args)                    \
  K(add_bias, struct element_args)                        \
  K(softcap_elements, struct element_args)                \
  K(softcap_back, struct element_args)                    \
  K(convert_elements, struct convert_args)                \
  K(loss_rows, struct loss_args)                          \
  K(mask_sample_tiles, struct mask_args)                  \
  K(mask_back_tiles, struct mask_args)                    \
  K(mask_squares, struct mask_update_args)                \
  K(mask_adamw, struct mask_update_args)                  \
  K(mask_compact, struct mask_compact_args)               \
  K(mask_choose, struct mask_update_args)                 \
  K(mask_keep_hard, struct mask_keep_args)                \
  K(matrix_copy, struct matrix_copy_args)                 \
  K(matrix_reverse, struct matrix_reverse_args)           \
  K(hessian_reverse, struct hessian_args)                 \
  K(cholesky_diagonal, struct cholesky_args)              \
  K(cholesky_settle, struct cholesky_settle_args)         \
  K(sparsegpt_walk_rows, struct walk_args)                \
  K(sparsegpt_scores, struct walk_args)                   \
  K(attention_rows, struct attention_args)                \
  K(attention_delta, struct attention_args)               \
  K(attention_back_q, struct attention_args)              \
  K(attention_back_kv, struct attention_args)             \
  K(attention_narrow, struct attention_narrow_args)       \
  K(attention_mma_64, struct attention_mma_args)          \
  K(attention_mma_96, struct attention_mma_args)          \
  K(attention_mma_128, struct attention_mma_args)         \
  K(attention_mma_256, struct attention_mma_args)         \
  K(attention_mma_back_q_64, struct attention_mma_args)   \
  K(attention_mma_back_q_96, struct attention_mma_args)   \
  K(attention_mma_back_q_128, struct attention_mma_args)  \
  K(attention_mma_back_q_256, struct attention_mma_args)  \
  K(attention_mma_back_kv_64, struct attention_mma_args)  \
  K(attention_mma_back_kv_96, struct attention_mma_args)  \
  K(attention_mma_back_kv_128, struct attention_mma_args) \
  K(attention_mma_back_kv_256, struct attention_mma_args)

enum learn_kernel {
#define LEARN_ENUM(name, type) LEARN_##name,
  LEARN_KERNELS(LEARN_ENUM)
#undef LEARN_ENUM
      LEARN_KERNEL_COUNT
};

#endif
