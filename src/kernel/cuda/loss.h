/* Losses of rows of logits: a block to a row. After rows.h.
 *
 * One pass finds the maximum and the sum of exponentials, rescaling the sum where the maximum
 * grows; a second makes gradients and divergences. Nothing but the row is stored. */
#ifndef TSR_KERNEL_CUDA_LOSS_H
#define TSR_KERNEL_CUDA_LOSS_H

#include "kernel/cuda/rows.h"

struct softmax_stats {
  float max, sum; /* of exp(x - max) */
  uint32_t arg;   /* the first that is largest */
};
/* log(softmax(x)) = (x - max) - log_sum: in this order, for far logits lose all else. */
struct softmax_total {
  float max, log_sum;
};
DEVICE float log_share(float x, struct softmax_total t) { return (x - t.max) - t.log_sum; }

DEVICE struct softmax_stats join_stats(struct softmax_stats a, struct softmax_stats b) {
  const bool b_first = b.max > a.max || (b.max == a.max && b.arg < a.arg);
  const float top = b_first ? b.max : a.max;
  struct softmax_stats out;
  out.max = top;
  out.arg = b_first ? b.arg : a.arg;
  /* exp(-inf - top) is 0: a thread that saw nothing adds nothing */
  out.sum = a.sum * expf(a.max - top) + b.sum * expf(b.max - top);
  return out;
}

DEVICE struct softmax_stats shuffle_stats(struct softmax_stats s, uint32_t step) {
  struct softmax_stats other;
  other.max = float_of_bits(shuffle_xor(bits_of_float(s.max), step));
  other.sum = float_of_bits(shuffle_xor(bits_of_float(s.sum), step));
  other.arg = shuffle_xor(s.arg, step);
  return other;
}

/* Of the row, for all threads; *arg gets the first place of the maximum. Lanes of a warp that are
 * joined crosswise hold the same bits: the sum of two products is the same either way round. */
DEVICE struct softmax_total row_total(const float *x, uint32_t n, uint32_t *arg) {
  const uint32_t warp = thread_index() / 32, at = shared_base();
  struct softmax_stats s;
  s.max = -3.0e38f;
  s.sum = 0;
  s.arg = 0xffffffffu;
  for (uint32_t i = thread_index(); i < n; i += LEARN_THREADS) {
    const float v = global_load_fresh(x + i);
    if (v > s.max || s.arg == 0xffffffffu) {
      s.sum = s.arg == 0xffffffffu ? 1 : s.sum * expf(s.max - v) + 1;
      s.max = v;
      s.arg = i;
    } else {
      s.sum += expf(v - s.max);
    }
  }
  UNROLL for (uint32_t step = 16; step; step /= 2) s = join_stats(s, shuffle_stats(s, step));
  block_barrier();
  if (thread_index() % 32 == 0) {
    shared_store4(at + 12 * warp, bits_of_float(s.max));
    shared_store4(at + 12 * warp + 4, bits_of_float(s.sum));
    shared_store4(at + 12 * warp + 8, s.arg);
  }
  block_barrier();
  for (uint32_t w = 0; w < LEARN_WARPS; w++) {
    struct softmax_stats other;
    other.max = float_of_bits(shared_load4(at + 12 * w));
    other.sum = float_of_bits(shared_load4(at + 12 * w + 4));
    other.arg = shared_load4(at + 12 * w + 8);
    s = w ? join_stats(s, other) : other;
  }
  *arg = s.arg;
  struct softmax_total total;
  total.max = s.max;
  total.log_sum = logf(s.sum);
  return total;
}

DEVICE void skip_row(const struct loss_args *a, uint32_t row) {
  if (thread_index() == 0) {
    global_store(a->nll + row, 0.0f);
    if (a->kl) global_store(a->kl + row, 0.0f);
  }
  if (!a->dlogits) return;
  for (uint32_t i = thread_index(); i < a->vocab; i += LEARN_THREADS)
    global_store(a->dlogits + (uint64_t)row * a->vocab + i, 0.0f);
}

/* The gradient of row `row`, and the divergence from the teacher. */
DEVICE void second_pass(const struct loss_args *a, uint32_t row, uint32_t target,
                        struct softmax_total total, struct softmax_total teacher_total) {
  const uint64_t at = (uint64_t)row * a->vocab;
  const float hard = a->teacher ? 1 - a->weight : 1;
  float divergence = 0;
  for (uint32_t i = thread_index(); i < a->vocab; i += LEARN_THREADS) {
    const float log_q = log_share(global_load_fresh(a->logits + at + i), total);
    float wanted = i == target ? hard : 0;
    if (a->teacher) {
      const float log_p = log_share(global_load(a->teacher + at + i), teacher_total);
      const float p = expf(log_p);
      divergence += p * (log_p - log_q);
      wanted += a->weight * p;
    }
    if (a->dlogits) global_store(a->dlogits + at + i, a->scale * (expf(log_q) - wanted));
  }
  if (!a->kl) return;
  const double sum = block_sum((double)divergence);
  if (thread_index() == 0) global_store(a->kl + row, (float)sum);
}

DEVICE void loss_body(const struct loss_args *a) {
  const uint32_t row = block_index();
  const uint64_t at = (uint64_t)row * a->vocab;
  const int32_t target = a->targets ? global_load(a->targets + row) : 0;
  if (target < 0) {
    skip_row(a, row);
    return;
  }
  /* Before the barriers within row_total, behind which the gradient may overwrite it. */
  const float chosen = global_load_fresh(a->logits + at + (uint32_t)target);
  uint32_t arg, other_arg = (uint32_t)target;
  const struct softmax_total total = row_total(a->logits + at, a->vocab, &arg);
  struct softmax_total teacher_total = total;
  if (a->teacher) {
    teacher_total = row_total(a->teacher + at, a->vocab, &other_arg);
  }
  if (a->agree && thread_index() == 0) global_store(a->agree + row, (uint8_t)(other_arg == arg));
  if (a->nll && thread_index() == 0) global_store(a->nll + row, -log_share(chosen, total));
  if (a->dlogits || a->kl) second_pass(a, row, (uint32_t)target, total, teacher_total);
}
KERNEL(loss_rows, loss_body, LEARN_THREADS, struct loss_args)

#endif
