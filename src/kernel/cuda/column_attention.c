/* The CUDA column's attention: on the tensor cores for products in bf16, else on the lanes. */
#include "base/error.h"
#include "kernel/cuda/column_internal.h"

static struct attention_args arguments(const struct attention_shape *s, const float *q,
                                       const float *k, const float *v) {
  INVARIANT(s->q_start == 0 && s->q_length == s->kv_length && s->head_dim <= ATTENTION_HEAD_MAX);
  return (struct attention_args){.q = q,
                                 .k = k,
                                 .v = v,
                                 .sequences = (uint32_t)s->sequences,
                                 .length = (uint32_t)s->q_length,
                                 .heads = (uint32_t)s->heads,
                                 .kv_heads = (uint32_t)s->kv_heads,
                                 .head_dim = (uint32_t)s->head_dim,
                                 .window = (uint32_t)s->window,
                                 .stride = attention_stride((uint32_t)s->head_dim),
                                 .scale = s->scale,
                                 .softcap = s->softcap};
}

/* As many warps as the card's shared memory has room for: fewer for wide heads on small cards. */
static void launch(enum learn_kernel kernel, struct attention_args *args, uint32_t heads,
                   bool backward) {
  args->warps = LEARN_WARPS;
  while (args->warps > 1 && attention_shared_bytes(args->head_dim, args->warps, backward) >
                                cuda_column.runtime->block_shared_bytes)
    args->warps /= 2;
  const uint32_t rows = args->warps * ATTENTION_ROWS;
  args->row_blocks = (args->length + rows - 1) / rows;
  column_launch(kernel, args->sequences * heads * args->row_blocks, 32 * args->warps,
                attention_shared_bytes(args->head_dim, args->warps, backward), args);
}

/* --- on the tensor cores --- */

struct mma_kernel {
  enum learn_kernel kernel;
  struct attention_form form;
};
#define MMA_KERNEL(name, body, width, groups, tile, columns) \
  {LEARN_##name, {width, groups, tile, columns}},
static const struct mma_kernel mma_forward[] = {ATTENTION_MMA_FORWARD(MMA_KERNEL)};
static const struct mma_kernel mma_back_q[] = {ATTENTION_MMA_BACK_Q(MMA_KERNEL)};
static const struct mma_kernel mma_back_kv[] = {ATTENTION_MMA_BACK_KV(MMA_KERNEL)};

/* Starts the kernel of these for rows of `width`, with `owned` matrices whose rows a block keeps.
 */
static void launch_mma(const struct mma_kernel *kernels, uint32_t width, uint32_t owned,
                       struct attention_mma_args *args) {
  while (kernels->form.width != width) kernels++;
  const struct attention_form *f = &kernels->form;
  const bool by_keys = kernels->kernel >= LEARN_attention_mma_back_kv_64;
  const uint32_t heads = by_keys ? args->a.kv_heads * (width / f->columns) : args->a.heads;
  args->a.row_blocks = (args->a.length + form_rows(f) - 1) / form_rows(f);
  column_launch(kernels->kernel, args->a.sequences * heads * args->a.row_blocks,
                ATTENTION_MMA_THREADS, form_shared_bytes(f, owned, by_keys), args);
}

/* Rounds what the products read to bf16 rows of the kernels' width, in the room of products'
 * operands. dout NULL: forward. False after a failure. */
static bool narrow(struct attention_mma_args *args, const float *q, const float *k, const float *v,
                   const float *dout) {
  const struct attention_args *a = &args->a;
  const uint32_t width = attention_width(a->head_dim);
  const uint64_t tokens = (uint64_t)a->sequences * a->length;
  const uint64_t q_rows = tokens * a->heads, kv_rows = tokens * a->kv_heads;
  const uint64_t rows = 2 * kv_rows + (dout ? 2 : 1) * q_rows;
  uint16_t *room = column_scratch(COLUMN_OPERAND_A, rows * width * sizeof *room);
  if (!room) return false;
  struct attention_narrow_args n = {.from = {q, k, v, dout},
                                    .rows = {q_rows, kv_rows, kv_rows, q_rows},
                                    .tensors = dout ? 4 : 3,
                                    .head_dim = a->head_dim,
                                    .width = width,
                                    .blocks = column_blocks(rows * (width / 8), LEARN_THREADS)};
  for (uint32_t t = 0; t < n.tensors; t++) {
    n.to[t] = room;
    room += n.rows[t] * width;
  }
  column_launch(LEARN_attention_narrow, n.blocks, LEARN_THREADS, 0, &n);
  args->q = n.to[0];
  args->k = n.to[1];
  args->v = n.to[2];
  args->dout = n.to[3];
  return true;
}

/* --- both --- */

void column_attention_forward(const struct attention_shape *shape, const float *q, const float *k,
                              const float *v, float *out, float *lse) {
  struct attention_args args = arguments(shape, q, k, v);
  args.out = out;
  args.lse = lse;
  if (shape->precision == PRECISION_FP32) {
    launch(LEARN_attention_rows, &args, args.heads, false);
    return;
  }
  struct attention_mma_args mma = {.a = args};
  if (narrow(&mma, q, k, v, NULL)) launch_mma(mma_forward, attention_width(args.head_dim), 1, &mma);
}

void column_attention_backward(const struct attention_shape *shape, const float *q, const float *k,
                               const float *v, const float *out, const float *lse,
                               const float *dout, float *dq, float *dk, float *dv) {
  struct attention_args args = arguments(shape, q, k, v);
  const uint64_t rows = (uint64_t)args.sequences * args.length * args.heads;
  args.dout = dout;
  args.out_in = out;
  args.lse_in = lse;
  args.dq = dq;
  args.dk = dk;
  args.dv = dv;
  if (!(args.delta = column_scratch(COLUMN_DELTA, rows * sizeof *args.delta))) return;
  args.row_blocks = column_blocks(rows, LEARN_WARPS);
  column_launch(LEARN_attention_delta, args.row_blocks, LEARN_THREADS, 0, &args);
  if (shape->precision == PRECISION_FP32) {
    launch(LEARN_attention_back_q, &args, args.heads, true);
    launch(LEARN_attention_back_kv, &args, args.kv_heads, true);
    return;
  }
  struct attention_mma_args mma = {.a = args};
  if (!narrow(&mma, q, k, v, dout)) return;
  launch_mma(mma_back_q, attention_width(args.head_dim), 2, &mma);
  launch_mma(mma_back_kv, attention_width(args.head_dim), 2, &mma);
}
