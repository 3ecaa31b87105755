/* The vector vocabulary in AArch64 NEON: eight floats, in a pair of 128-bit registers. The same
 * names as vec_avx2.h, so that one body serves both. A `part` is the first n of the VL lanes,
 * 0 <= n <= VL.
 *
 * Why pairs: the bodies' sums then run in the order of AVX2, so that both give the same bits (but
 * for subnormals, see flush_begin); a 6 x 16 tile of C takes 24 of the 32 registers for its sums
 * and 4 for B; and every loop has two independent chains where a single register has one. */
#ifndef TSR_KERNEL_VEC_H
#define TSR_KERNEL_VEC_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "tensor/dtype.h"

enum { VL = 8, TILE_VECTORS = 2 };
#define TILE_ROWS 6
#define INLINE static inline __attribute__((always_inline, unused))

typedef struct {
  float32x4_t low, high;
} vf; /* floats */
typedef struct {
  int32x4_t low, high;
} vi; /* 32-bit integers */
typedef struct {
  uint32x4_t low, high;
} vm; /* a lane is chosen when all its bits are set */
typedef struct {
  float64x2_t low, high;
} vd; /* half as many doubles */

/* Between the two calls subnormal operands count as zero and subnormal results become zero: each
 * may trap to microcode, and saturated softmaxes make many. Tininess is found before rounding here
 * and after rounding on x86, so a result that rounds up to the smallest normal number differs. */
INLINE unsigned flush_begin(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"(before | UINT64_C(1) << 24) : "memory");
  return (unsigned)before;
}
INLINE void flush_end(unsigned before) {
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)before) : "memory");
}

INLINE vf vf_zero(void) { return (vf){vdupq_n_f32(0), vdupq_n_f32(0)}; }
INLINE vf vf_set(float x) { return (vf){vdupq_n_f32(x), vdupq_n_f32(x)}; }
INLINE vf vf_load(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p + 4)}; }
INLINE void vf_store(float *p, vf x) {
  vst1q_f32(p, x.low);
  vst1q_f32(p + 4, x.high);
}
INLINE vf vf_add(vf a, vf b) { return (vf){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
INLINE vf vf_sub(vf a, vf b) { return (vf){vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
INLINE vf vf_mul(vf a, vf b) { return (vf){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
INLINE vf vf_div(vf a, vf b) { return (vf){vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
INLINE vf vf_sqrt(vf a) { return (vf){vsqrtq_f32(a.low), vsqrtq_f32(a.high)}; }
INLINE vf vf_fma(vf a, vf b, vf c) { /* a * b + c */
  return (vf){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
INLINE vf vf_fnma(vf a, vf b, vf c) { /* c - a * b */
  return (vf){vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}

INLINE vm vf_less(vf a, vf b) { return (vm){vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
INLINE vf vf_select(vm m, vf yes, vf no) {
  return (vf){vbslq_f32(m.low, yes.low, no.low), vbslq_f32(m.high, yes.high, no.high)};
}
/* Comparisons and not fmax, fmin: beside a NaN the second operand comes out, as on x86. */
INLINE vf vf_max(vf a, vf b) { return vf_select(vf_less(b, a), a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_select(vf_less(a, b), a, b); }
INLINE vf vf_round(vf a) { return (vf){vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
INLINE vf vf_abs(vf a) { return (vf){vabsq_f32(a.low), vabsq_f32(a.high)}; }
/* The magnitude of a with the sign of s. */
INLINE vf vf_copysign(vf a, vf s) {
  const uint32x4_t sign = vdupq_n_u32(0x80000000);
  return (vf){vbslq_f32(sign, s.low, a.low), vbslq_f32(sign, s.high, a.high)};
}

INLINE vi vi_set(int32_t x) { return (vi){vdupq_n_s32(x), vdupq_n_s32(x)}; }
INLINE vi vi_load(const int32_t *p) { return (vi){vld1q_s32(p), vld1q_s32(p + 4)}; }
INLINE void vi_store(int32_t *p, vi x) {
  vst1q_s32(p, x.low);
  vst1q_s32(p + 4, x.high);
}
INLINE vi vi_add(vi a, vi b) { return (vi){vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
INLINE vi vi_sub(vi a, vi b) { return (vi){vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
INLINE vi vi_and(vi a, vi b) { return (vi){vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)}; }
INLINE vi vi_or(vi a, vi b) { return (vi){vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)}; }
INLINE vi vi_xor(vi a, vi b) { return (vi){veorq_s32(a.low, b.low), veorq_s32(a.high, b.high)}; }
INLINE vi vi_select(vm m, vi yes, vi no) {
  return (vi){vbslq_s32(m.low, yes.low, no.low), vbslq_s32(m.high, yes.high, no.high)};
}
/* Shifts by operators: a constant count becomes an immediate. */
INLINE vi vi_shl(vi a, const int n) { return (vi){a.low << n, a.high << n}; }
INLINE vi vi_shr(vi a, const int n) {
  return (vi){vreinterpretq_s32_u32(vreinterpretq_u32_s32(a.low) >> n),
              vreinterpretq_s32_u32(vreinterpretq_u32_s32(a.high) >> n)};
}
INLINE vi vi_sar(vi a, const int n) { return (vi){a.low >> n, a.high >> n}; }
INLINE int32x4_t shift_right_each(int32x4_t a, int32x4_t n) {
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vnegq_s32(n)));
}
INLINE vi vi_shrv(vi a, vi n) {
  return (vi){shift_right_each(a.low, n.low), shift_right_each(a.high, n.high)};
}
INLINE vm vi_equal(vi a, vi b) { return (vm){vceqq_s32(a.low, b.low), vceqq_s32(a.high, b.high)}; }
INLINE vi vi_of_bits(vf a) {
  return (vi){vreinterpretq_s32_f32(a.low), vreinterpretq_s32_f32(a.high)};
}
INLINE vf vf_of_bits(vi a) {
  return (vf){vreinterpretq_f32_s32(a.low), vreinterpretq_f32_s32(a.high)};
}
INLINE vf vf_of_int(vi a) { return (vf){vcvtq_f32_s32(a.low), vcvtq_f32_s32(a.high)}; }
INLINE vi vi_of_float(vf a) { /* rounds to nearest */
  return (vi){vcvtnq_s32_f32(a.low), vcvtnq_s32_f32(a.high)};
}

/* For 32 x 32 -> 64 bit products: those of the even lanes, over pairs of lanes; odd lanes moved to
 * even ones, zeros into the odd; and the even lanes of two vectors dealt out in turn. */
INLINE int32x4_t mul_even(int32x4_t a, int32x4_t b) {
  uint32x2_t x = vmovn_u64(vreinterpretq_u64_s32(a)), y = vmovn_u64(vreinterpretq_u64_s32(b));
  return vreinterpretq_s32_u64(vmull_u32(x, y));
}
INLINE vi vi_mul_even(vi a, vi b) { return (vi){mul_even(a.low, b.low), mul_even(a.high, b.high)}; }
INLINE int32x4_t odd_to_even(int32x4_t a) {
  return vreinterpretq_s32_u64(vshrq_n_u64(vreinterpretq_u64_s32(a), 32));
}
INLINE vi vi_odd(vi a) { return (vi){odd_to_even(a.low), odd_to_even(a.high)}; }
INLINE vi vi_interleave(vi even, vi odd) {
  return (vi){vtrn1q_s32(even.low, odd.low), vtrn1q_s32(even.high, odd.high)};
}

INLINE vm vm_part(int64_t n) {
  static const int32_t lane[VL] = {0, 1, 2, 3, 4, 5, 6, 7};
  const int32x4_t count = vdupq_n_s32((int32_t)n);
  return (vm){vcltq_s32(vld1q_s32(lane), count), vcltq_s32(vld1q_s32(lane + 4), count)};
}
/* Lanes past the part are zero. There are no masked loads: parts go through memory, in pieces of
 * 4, 2 and 1, and are rare. */
INLINE void copy_part(float *to, const float *from, int64_t n) {
  int64_t i = 0;
  if (n & 8) memcpy(to, from, 32);
  if (n & 4) memcpy(to, from, 16), i = 4;
  if (n & 2) memcpy(to + i, from + i, 8), i += 2;
  if (n & 1) to[i] = from[i];
}
INLINE vf vf_load_part(const float *p, int64_t n) {
  float lanes[VL] = {0};
  copy_part(lanes, p, n);
  return vf_load(lanes);
}
INLINE void vf_store_part(float *p, int64_t n, vf x) {
  float lanes[VL];
  vf_store(lanes, x);
  copy_part(p, lanes, n);
}

/* Reductions, in the fixed tree of AVX2. */
INLINE float vf_sum(vf x) {
  float32x4_t s = vaddq_f32(x.low, x.high);
  float32x2_t pair = vadd_f32(vget_low_f32(s), vget_high_f32(s));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
INLINE float vf_largest(vf x) { return vmaxnmvq_f32(vmaxnmq_f32(x.low, x.high)); }

INLINE vd vd_zero(void) { return (vd){vdupq_n_f64(0), vdupq_n_f64(0)}; }
INLINE vd wide(float32x4_t x) { return (vd){vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)}; }
INLINE vd vd_low(vf x) { return wide(x.low); }
INLINE vd vd_high(vf x) { return wide(x.high); }
INLINE vd vd_add(vd a, vd b) { return (vd){vaddq_f64(a.low, b.low), vaddq_f64(a.high, b.high)}; }
INLINE vd vd_fma(vd a, vd b, vd c) {
  return (vd){vfmaq_f64(c.low, a.low, b.low), vfmaq_f64(c.high, a.high, b.high)};
}
INLINE double vd_sum(vd x) {
  float64x2_t s = vaddq_f64(x.low, x.high);
  return vgetq_lane_f64(s, 0) + vgetq_lane_f64(s, 1);
}

/* VL elements of a native dtype, widened. */
INLINE vf vf_load_as(enum dtype dtype, const void *p) {
  if (dtype == DTYPE_F32) return vf_load(p);
  uint16x8_t half = vld1q_u16(p);
  if (dtype == DTYPE_F16) {
    float16x8_t x = vreinterpretq_f16_u16(half);
    return (vf){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
  }
  return (vf){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
              vreinterpretq_f32_u32(vshll_high_n_u16(half, 16))};
}

/* VL signed bytes as floats, and VL integers as bytes, saturated. */
INLINE vf vf_load_bytes(const int8_t *p) {
  int16x8_t words = vmovl_s8(vld1_s8(p));
  return (vf){vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))};
}
INLINE void vi_store_bytes(int8_t *p, vi x) {
  vst1_s8(p, vqmovn_s16(vqmovn_high_s32(vqmovn_s32(x.low), x.high)));
}
/* The nearest fp16 of each lane. */
INLINE void vf_store_halves(uint16_t *p, vf x) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.low), x.high)));
}

/* For the 4 x 4 transposes inside 128-bit lanes: four floats of each of VL / 4 rows that lie
 * 4 * ld apart, one row a lane. */
INLINE vf vf_load_quads(const float *p, int64_t ld) {
  return (vf){vld1q_f32(p), vld1q_f32(p + 4 * ld)};
}
INLINE void vf_store_quads(float *p, int64_t ld, vf x) {
  vst1q_f32(p, x.low);
  vst1q_f32(p + 4 * ld, x.high);
}
/* The 64-bit halves of two registers. */
INLINE float32x4_t lower_halves(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
INLINE float32x4_t upper_halves(float32x4_t a, float32x4_t b) {
  return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
INLINE void transpose_4x4(float32x4_t *x0, float32x4_t *x1, float32x4_t *x2, float32x4_t *x3) {
  float32x4_t a = vtrn1q_f32(*x0, *x1), b = vtrn2q_f32(*x0, *x1);
  float32x4_t c = vtrn1q_f32(*x2, *x3), d = vtrn2q_f32(*x2, *x3);
  *x0 = lower_halves(a, c);
  *x1 = lower_halves(b, d);
  *x2 = upper_halves(a, c);
  *x3 = upper_halves(b, d);
}
INLINE void vf_transpose_quads(vf x[4]) {
  transpose_4x4(&x[0].low, &x[1].low, &x[2].low, &x[3].low);
  transpose_4x4(&x[0].high, &x[1].high, &x[2].high, &x[3].high);
}

/* The high half of each lane. */
INLINE void vi_store_high_halves(uint16_t *p, vi x) {
  vst1q_u16(p, vuzp2q_u16(vreinterpretq_u16_s32(x.low), vreinterpretq_u16_s32(x.high)));
}

/* VL nibbles, the low one of each byte first. */
INLINE vi vi_nibbles(const uint8_t *p) {
  static const int32_t shift[VL] = {0, 4, 8, 12, 16, 20, 24, 28};
  int32_t word;
  memcpy(&word, p, sizeof word);
  return vi_and(vi_shrv(vi_set(word), vi_load(shift)), vi_set(15));
}

/* The activations that VL kept weights of a 2:4 row meet: x (2 * VL), `codes` the 2 * VL bits of
 * their VL / 2 nibbles. Kept weight l has bits 2l and 2l + 1: its position in group l / 2. The
 * index holds the four bytes of each chosen float, for a look-up in the 32 bytes of two groups. */
INLINE vi pick_index(uint32_t codes) {
  static const int32_t shift[VL] = {0, 2, 4, 6, 8, 10, 12, 14};
  static const int32_t first_bytes[4] = {0x03020100, 0x03020100, 0x13121110, 0x13121110};
  const vi at = vi_and(vi_shrv(vi_set((int32_t)codes), vi_load(shift)), vi_set(3));
  const int32x4_t four = vdupq_n_s32(0x04040404), bytes = vld1q_s32(first_bytes);
  return (vi){vmlaq_s32(bytes, at.low, four), vmlaq_s32(bytes, at.high, four)};
}
INLINE float32x4_t pick_four(const float *x, int32x4_t index) {
  uint8x16x2_t two = {{vreinterpretq_u8_f32(vld1q_f32(x)), vreinterpretq_u8_f32(vld1q_f32(x + 4))}};
  return vreinterpretq_f32_u8(vqtbl2q_u8(two, vreinterpretq_u8_s32(index)));
}
INLINE vf pick(const float *x, vi index) {
  return (vf){pick_four(x, index.low), pick_four(x + 8, index.high)};
}

/* The other way: VL kept weights spread over 2 * VL columns with their zeros. Two at a time: the
 * columns of one group. */
INLINE float32x4_t spread_pair(float32x4_t values, const int pair, uint32_t code) {
  static const uint32_t columns[4] = {0, 1, 2, 3};
  const uint32x4_t column = vld1q_u32(columns);
  uint32x4_t v0 =
      vreinterpretq_u32_f32(pair ? vdupq_laneq_f32(values, 2) : vdupq_laneq_f32(values, 0));
  uint32x4_t v1 =
      vreinterpretq_u32_f32(pair ? vdupq_laneq_f32(values, 3) : vdupq_laneq_f32(values, 1));
  v0 = vandq_u32(v0, vceqq_u32(column, vdupq_n_u32(code & 3)));
  v1 = vandq_u32(v1, vceqq_u32(column, vdupq_n_u32(code >> 2 & 3)));
  return vreinterpretq_f32_u32(vorrq_u32(v0, v1));
}
INLINE void spread(vf values, uint32_t codes, float *out) {
  vst1q_f32(out, spread_pair(values.low, 0, codes));
  vst1q_f32(out + 4, spread_pair(values.low, 1, codes >> 4));
  vst1q_f32(out + 8, spread_pair(values.high, 0, codes >> 8));
  vst1q_f32(out + 12, spread_pair(values.high, 1, codes >> 12));
}

/* --- strips (sparse/strips.h): lines of u32 that hold two 16-bit weights each --- */

/* VL of them widened: the low halves and the high ones. */
INLINE void vf_load_pairs(enum dtype dtype, const void *p, vf *low, vf *high) {
  const vi both = vi_load(p);
  if (dtype == DTYPE_BF16) {
    *low = vf_of_bits(vi_shl(both, 16));
    *high = vf_of_bits(vi_and(both, vi_set((int32_t)0xffff0000)));
    return;
  }
  uint16x8_t a = vreinterpretq_u16_s32(both.low), b = vreinterpretq_u16_s32(both.high);
  float16x8_t x = vreinterpretq_f16_u16(vuzp1q_u16(a, b));
  float16x8_t y = vreinterpretq_f16_u16(vuzp2q_u16(a, b));
  *low = (vf){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
  *high = (vf){vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
/* Four floats again and again, and the one of each lane's four that the low two bits name. */
INLINE vf vf_broadcast4(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p)}; }
/* In two steps, for an index that is used again and again. */
INLINE int32x4_t pick4_index(int32x4_t code) {
  return vmlaq_s32(vdupq_n_s32(0x03020100), vandq_s32(code, vdupq_n_s32(3)),
                   vdupq_n_s32(0x04040404));
}
INLINE float32x4_t pick4_at(float32x4_t four, int32x4_t index) {
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(four), vreinterpretq_u8_s32(index)));
}
INLINE vi vi_pick_index(vi code) { return (vi){pick4_index(code.low), pick4_index(code.high)}; }
INLINE vi vi_held(vi x) { return x; }
INLINE vf vf_pick_at(vf fours, vi index) {
  return (vf){pick4_at(fours.low, index.low), pick4_at(fours.high, index.high)};
}
INLINE vf vf_pick4(vf fours, vi code) { return vf_pick_at(fours, vi_pick_index(code)); }

#endif
