/* Kernels over rows and elements: the formulas are those of kernel/ops.h. After a vocabulary.
 *
 * Sums of a row are taken by one warp: each lane every 32nd element, then a butterfly, so that all
 * lanes hold the same bits. */
#ifndef TSR_KERNEL_CUDA_ROWS_H
#define TSR_KERNEL_CUDA_ROWS_H

#include "kernel/cuda/learn.h"

/* --- sums --- */

DEVICE float warp_sum(float x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) x +=
      float_of_bits(shuffle_xor(bits_of_float(x), step));
  return x;
}
DEVICE float warp_max(float x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const float other = float_of_bits(shuffle_xor(bits_of_float(x), step));
    x = other > x ? other : x;
  }
  return x;
}
DEVICE double warp_sum_double(double x) {
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const uint64_t bits = bits_of_double(x);
    const uint32_t low = shuffle_xor((uint32_t)bits, step);
    const uint32_t high = shuffle_xor((uint32_t)(bits >> 32), step);
    x += double_of_bits((uint64_t)high << 32 | low);
  }
  return x;
}
/* The sum over the block, for all its threads. Uses the first 64 bytes of shared memory, which
 * nobody may be using; barriers on both sides. */
DEVICE double block_sum(double x) {
  const uint32_t at = shared_base();
  x = warp_sum_double(x);
  block_barrier();
  if (thread_index() % 32 == 0) {
    const uint64_t bits = bits_of_double(x);
    shared_store4(at + thread_index() / 32 * 8, (uint32_t)bits);
    shared_store4(at + thread_index() / 32 * 8 + 4, (uint32_t)(bits >> 32));
  }
  block_barrier();
  double sum = 0;
  for (uint32_t w = 0; w < LEARN_WARPS; w++) {
    const uint32_t low = shared_load4(at + 8 * w), high = shared_load4(at + 8 * w + 4);
    sum += double_of_bits((uint64_t)high << 32 | low);
  }
  return sum;
}

/* For the last block of `expected` that calls this with the counter: true, for all its threads, and
 * what the others wrote before is visible. The counter is left at zero. Uses shared memory as
 * block_sum. */
DEVICE bool last_to_arrive(uint32_t *counter, uint32_t expected) {
  const uint32_t at = shared_base();
  memory_fence();
  block_barrier();
  if (thread_index() == 0) {
    const uint32_t last = global_add(counter, 1) + 1 == expected;
    if (last) global_store(counter, 0);
    shared_store4(at, last);
  }
  block_barrier();
  const bool last = shared_load4(at);
  memory_fence();
  block_barrier();
  return last;
}

/* parts[0] + parts[1] + ..., the same order for every count: for the last block. */
DEVICE double sum_parts(const double *parts, uint32_t count) {
  double sum = 0;
  for (uint32_t i = thread_index(); i < count; i += LEARN_THREADS)
    sum += global_load_fresh(parts + i);
  return block_sum(sum);
}

DEVICE uint64_t first_element(void) {
  return (uint64_t)block_index() * LEARN_THREADS + thread_index();
}

/* --- elements --- */

DEVICE float load_element(const void *from, uint64_t i, uint32_t type) {
  if (type == ELEMENT_F32) return global_load((const float *)from + i);
  const uint16_t half = global_load((const uint16_t *)from + i);
  return type == ELEMENT_BF16 ? bf16_widen(half) : f16_widen(half);
}

DEVICE void convert_body(const struct convert_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const float x = load_element(a->from, i, a->type);
    if (a->to_type == ELEMENT_BF16)
      global_store((uint16_t *)a->to + i, bf16_round(x));
    else
      global_store((float *)a->to + i, x);
  }
}
KERNEL(convert_elements, convert_body, LEARN_THREADS, struct convert_args)

DEVICE void embed_body(const struct embed_args *a) {
  for (uint64_t i = first_element(); i < a->count; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint64_t token = i / a->n, id = (uint32_t)global_load(a->ids + token);
    const float x = load_element(a->table, id * a->n + i % a->n, a->type);
    global_store(a->hidden + i, a->scale * x);
  }
}
KERNEL(embed_rows, embed_body, LEARN_THREADS, struct embed_args)

DEVICE void add_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS)
    global_store(a->out + i, global_load_fresh(a->out + i) + global_load(a->a + i));
}
KERNEL(add_elements, add_body, LEARN_THREADS, struct element_args)

DEVICE void bias_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS)
    global_store(a->out + i, global_load_fresh(a->out + i) + global_load(a->a + i % a->period));
}
KERNEL(add_bias, bias_body, LEARN_THREADS, struct element_args)

DEVICE void softcap_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS)
    global_store(a->out + i, a->cap * tanhf(global_load_fresh(a->out + i) / a->cap));
}
KERNEL(softcap_elements, softcap_body, LEARN_THREADS, struct element_args)

DEVICE void softcap_back_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS) {
    const float share = global_load(a->a + i) / a->cap;
    global_store(a->out + i, global_load_fresh(a->out + i) * (1 - share * share));
  }
}
KERNEL(softcap_back, softcap_back_body, LEARN_THREADS, struct element_args)

/* --- gated activations --- */

DEVICE float activation(bool gelu, float x, float *slope) {
  if (!gelu) {
    const float s = 1 / (1 + expf(-x));
    *slope = s * (1 + x * (1 - s));
    return x * s;
  }
  const float scale = 0.7978845608f /* sqrt(2/pi) */, cubic = 0.044715f;
  const float t = tanhf(scale * (x + cubic * x * x * x));
  *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x);
  return 0.5f * x * (1 + t);
}

DEVICE void glu_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS) {
    float slope;
    const float value = activation(a->gelu, global_load(a->a + i), &slope);
    global_store(a->out + i, value * global_load(a->b + i));
  }
}
KERNEL(glu_elements, glu_body, LEARN_THREADS, struct element_args)

/* out = dgate and out2 = dup, which may be a = gate and b = up, from c = dout. */
DEVICE void glu_back_body(const struct element_args *a) {
  for (uint64_t i = first_element(); i < a->n; i += (uint64_t)a->blocks * LEARN_THREADS) {
    float slope;
    const float value = activation(a->gelu, global_load_fresh(a->a + i), &slope);
    const float up = global_load_fresh(a->b + i), d = global_load(a->c + i);
    global_store(a->out + i, d * up * slope);
    global_store(a->out2 + i, d * value);
  }
}
KERNEL(glu_back, glu_back_body, LEARN_THREADS, struct element_args)

/* --- norms --- */

DEVICE float norm_factor(const struct rmsnorm_args *a, uint32_t i) {
  return global_load(a->weight + i) + (a->plus_one ? 1.0f : 0.0f);
}

DEVICE void rmsnorm_body(const struct rmsnorm_args *a) {
  const uint32_t lane = thread_index() % 32;
  for (uint32_t row = block_index() * LEARN_WARPS + thread_index() / 32; row < a->rows;
       row += a->blocks * LEARN_WARPS) {
    const float *x = a->x + (uint64_t)row * a->n;
    float *y = a->y + (uint64_t)row * a->n, sum = 0;
    for (uint32_t i = lane; i < a->n; i += 32) {
      const float v = global_load_fresh(x + i);
      sum = fmaf(v, v, sum);
    }
    const float scale = 1.0f / sqrtf(warp_sum(sum) / (float)a->n + a->eps);
    for (uint32_t i = lane; i < a->n; i += 32)
      global_store(y + i, global_load_fresh(x + i) * scale * norm_factor(a, i));
    if (a->inverse && lane == 0) global_store(a->inverse + row, scale);
  }
}
KERNEL(rmsnorm_rows, rmsnorm_body, LEARN_THREADS, struct rmsnorm_args)

DEVICE void rmsnorm_back_body(const struct rmsnorm_args *a) {
  const uint32_t lane = thread_index() % 32;
  for (uint32_t row = block_index() * LEARN_WARPS + thread_index() / 32; row < a->rows;
       row += a->blocks * LEARN_WARPS) {
    const uint64_t at = (uint64_t)row * a->n;
    const float s = global_load(a->inverse + row);
    float sum = 0;
    for (uint32_t i = lane; i < a->n; i += 32)
      sum = fmaf(global_load(a->dy + at + i) * norm_factor(a, i), global_load(a->x + at + i), sum);
    const float mean = s * s * (warp_sum(sum) / (float)a->n);
    for (uint32_t i = lane; i < a->n; i += 32) {
      const float g = global_load(a->dy + at + i) * norm_factor(a, i);
      const float d = s * (g - global_load(a->x + at + i) * mean);
      global_store(a->y + at + i, a->accumulate ? global_load_fresh(a->y + at + i) + d : d);
    }
  }
}
KERNEL(rmsnorm_back, rmsnorm_back_body, LEARN_THREADS, struct rmsnorm_args)

/* --- rotation --- */

DEVICE void rope_body(const struct rope_args *a) {
  for (uint64_t p = first_element(); p < a->pairs; p += (uint64_t)a->blocks * LEARN_THREADS) {
    const uint32_t i = (uint32_t)(p % a->half);
    const uint64_t head = p / a->half, row = head / a->heads;
    const uint64_t angle = row % a->length * a->half + i;
    float *x = a->x + head * 2 * a->half + i;
    const float c = global_load(a->cos + angle), s = a->sign * global_load(a->sin + angle);
    const float low = global_load_fresh(x), high = global_load_fresh(x + a->half);
    global_store(x, low * c - high * s);
    global_store(x + a->half, high * c + low * s);
  }
}
KERNEL(rope_pairs, rope_body, LEARN_THREADS, struct rope_args)

#endif
