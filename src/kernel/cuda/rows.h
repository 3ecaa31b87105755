/* Kernels over rows and elements: the formulas are those of kernel/ops.h. After a vocabulary. */
#ifndef TSR_KERNEL_CUDA_ROWS_H
#define TSR_KERNEL_CUDA_ROWS_H

#include "kernel/cuda/common.h"

/* --- elements --- */

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
