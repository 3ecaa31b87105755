/* The CUDA column's attention. */
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

void column_attention_forward(const struct attention_shape *shape, const float *q, const float *k,
                              const float *v, float *out, float *lse) {
  struct attention_args args = arguments(shape, q, k, v);
  args.out = out;
  args.lse = lse;
  launch(LEARN_attention_rows, &args, args.heads, false);
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
  launch(LEARN_attention_back_q, &args, args.heads, true);
  launch(LEARN_attention_back_kv, &args, args.kv_heads, true);
}
