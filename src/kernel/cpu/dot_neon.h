/* The vocabulary of integer dot products in AArch64 NEON: included after vec_neon.h; see
 * dot_avx2.h. Signed bytes are multiplied as they are; two products of a magnitude of at most 128
 * and one of at most 127 fit 16 bits. */
#ifndef TSR_KERNEL_DOT_H
#define TSR_KERNEL_DOT_H

#include "kernel/quant_x.h"

enum { WIDE_RAISED = 0, NARROW_RAISED = 0, KEPT_TIMES_16 = 0 };

INLINE vi dot_load(const uint8_t *p) { return vi_load((const int32_t *)(const void *)p); }
INLINE vi dot_bytes(int b) { return vi_set((int32_t)((uint32_t)(b & 0xff) * 0x01010101u)); }
INLINE vi dot_four(const void *p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return vi_set(word);
}
INLINE vi dot_sixteen(const void *p) {
  const int32x4_t x = vld1q_s32(p);
  return (vi){x, x};
}
INLINE vi dot_index(vi code, vi base) { return vi_or(vi_and(code, dot_bytes(3)), base); }
INLINE int32x4_t look_up(int32x4_t x, int32x4_t index) {
  return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(x), vreinterpretq_u8_s32(index)));
}
INLINE vi dot_pick(vi x, vi index) {
  return (vi){look_up(x.low, index.low), look_up(x.high, index.high)};
}
INLINE vi vi_max_bits(vi a, vi b) {
  return (vi){vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)};
}

INLINE int32x4_t dot_half(int32x4_t sum, int32x4_t w, int32x4_t x) {
  const int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vpadalq_s16(sum, vpaddq_s16(low, high));
}
INLINE vi wide_line(vi line) { return vi_xor(line, dot_bytes(0x80)); }
INLINE vi wide_start(const struct quant_x *x, int g) { return vi_set(0); }
INLINE vi wide_dot(vi sum, vi w, vi x) {
  return (vi){dot_half(sum.low, w.low, x.low), dot_half(sum.high, w.high, x.high)};
}
INLINE vi wide_kept_dot(vi sum, vi w, vi picked) { return wide_dot(sum, w, picked); }

INLINE vi narrow_start(int32_t total) { return vi_set(total); }
INLINE vi narrow_dot(vi sum, vi w, vi x) { return wide_dot(sum, w, x); }
INLINE vi narrow_kept_dot(vi sum, vi w, vi picked) { return wide_dot(sum, w, picked); }
INLINE vi narrow_total(vi sum, int32_t start) { return sum; }
INLINE int32x4_t upper_nibbles(int32x4_t x) {
  return vreinterpretq_s32_s8(vshrq_n_s8(vreinterpretq_s8_s32(x), 4));
}
INLINE vi kept_high(vi line) { return (vi){upper_nibbles(line.low), upper_nibbles(line.high)}; }
INLINE vi kept_low(vi line) { return kept_high(vi_shl(line, 4)); }

/* Nothing is raised. */
INLINE vi raised_sum(vi sum, vi w) { return sum; }
INLINE vi raised_total(vi sum) { return sum; }

#endif
