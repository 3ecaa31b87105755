/* A row of scores to probabilities rounded to bf16: included after bf16_pack_body.h and vec_math.h.
 * Contract: kernel/bf16_kernels.h. */
#include <math.h>

/* VL scores from column j on, minus infinity outside of [low, high). */
INLINE vf visible_scores(const float *scores, int64_t j, int64_t low, int64_t high) {
  const vf none = vf_set(-INFINITY);
  if (j >= low && j + VL <= high) return vf_load(scores + j);
  if (j + VL <= low || j >= high) return none;
  vf x = vf_load(scores + j);
  if (j < low) x = vf_select(vm_part(low - j), none, x);
  return j + VL > high ? vf_select(vm_part(high - j), x, none) : x;
}

/* scores = softcap * tanh(scale * score / softcap), for families that cap them. */
static void cap_scores(float *scores, int64_t n, float scale, float softcap) {
  const vf factor = vf_set(scale / softcap), cap = vf_set(softcap);
  for (int64_t j = 0; j < n; j += VL)
    vf_store(scores + j, vf_mul(cap, vf_tanh(vf_mul(factor, vf_load(scores + j)))));
}

static float softmax_row(float *scores, int64_t low, int64_t high, int64_t n, float scale,
                         float softcap, float *max, float *sum, uint16_t *out) {
  if (low >= high) {
    for (int64_t j = 0; j < n; j += BF16_STEP, out += BF16_CHUNK)
      memset(out, 0, BF16_STEP * sizeof *out);
    return 1;
  }
  if (softcap > 0) {
    cap_scores(scores, n, scale, softcap);
    scale = 1;
  }
  vf largest = vf_set(-INFINITY), total = vf_zero();
  for (int64_t j = low / VL * VL; j < high; j += VL)
    largest = vf_max(visible_scores(scores, j, low, high), largest);
  float top = fmaxf(*max, scale * vf_largest(largest)), rescale = expf(*max - top);
  const vf factor = vf_set(scale), shift = vf_set(top);
  for (int64_t j = 0; j < n; j += BF16_STEP, out += BF16_CHUNK) {
    vf x[BF16_STEP / VL];
    for (int v = 0; v < BF16_STEP / VL; v++)
      x[v] = vf_sub(vf_mul(factor, visible_scores(scores, j + v * VL, low, high)), shift);
    vf_exp_each(BF16_STEP / VL, x);
    for (int v = 0; v < BF16_STEP / VL; v++) {
      total = vf_add(total, x[v]);
      bf16_store(out + v * VL, x[v]);
    }
  }
  *sum = *sum * rescale + vf_sum(total);
  *max = top;
  return rescale;
}
