/* The vector vocabulary in AVX-512 (F, BW, DQ, VL): sixteen floats. The same names as vec_avx2.h,
 * so that one body serves both. A `part` is the first n of the VL lanes, 0 <= n <= VL. */
#ifndef TSR_KERNEL_VEC_H
#define TSR_KERNEL_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "tensor/dtype.h"

enum { VL = 16, TILE_VECTORS = 2 };
#define TILE_ROWS 12
#define INLINE static inline __attribute__((always_inline, unused))

typedef __m512 vf;    /* floats */
typedef __m512i vi;   /* 32-bit integers */
typedef __mmask16 vm; /* one bit a lane */
typedef __m512d vd;   /* half as many doubles */

/* Between the two calls subnormal operands count as zero and subnormal results become zero: each
 * would cost some hundred cycles, and saturated softmaxes make many. */
INLINE unsigned flush_begin(void) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040); /* flush to zero, subnormals are zero */
  return before;
}
INLINE void flush_end(unsigned before) { _mm_setcsr(before); }

INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a * b + c */
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_round(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
/* The magnitude of a with the sign of s. */
INLINE vf vf_copysign(vf a, vf s) {
  const vf sign = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, s));
}

INLINE vm vf_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vf vf_select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }

INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
INLINE void vi_store(int32_t *p, vi x) { _mm512_storeu_si512(p, x); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
INLINE vi vi_select(vm m, vi yes, vi no) { return _mm512_mask_blend_epi32(m, no, yes); }
#define vi_shl(a, n) _mm512_slli_epi32(a, n)
#define vi_shr(a, n) _mm512_srli_epi32(a, n)
#define vi_sar(a, n) _mm512_srai_epi32(a, n)
INLINE vi vi_shrv(vi a, vi n) { return _mm512_srlv_epi32(a, n); }
INLINE vm vi_equal(vi a, vi b) { return _mm512_cmpeq_epi32_mask(a, b); }
INLINE vi vi_of_bits(vf a) { return _mm512_castps_si512(a); }
INLINE vf vf_of_bits(vi a) { return _mm512_castsi512_ps(a); }
INLINE vf vf_of_int(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vi_of_float(vf a) { return _mm512_cvtps_epi32(a); } /* rounds to nearest */

/* For 32 x 32 -> 64 bit products: those of the even lanes, over pairs of lanes; odd lanes moved to
 * even ones, zeros into the odd; and the even lanes of two vectors dealt out in turn. */
INLINE vi vi_mul_even(vi a, vi b) { return _mm512_mul_epu32(a, b); }
INLINE vi vi_odd(vi a) { return _mm512_srli_epi64(a, 32); }
INLINE vi vi_interleave(vi even, vi odd) {
  return _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

INLINE __mmask16 part_mask(int64_t n) { return (__mmask16)_bzhi_u32(0xffff, (unsigned)n); }
INLINE vm vm_part(int64_t n) { return part_mask(n); }
/* Lanes past the part are zero. */
INLINE vf vf_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(part_mask(n), p); }
INLINE void vf_store_part(float *p, int64_t n, vf x) { _mm512_mask_storeu_ps(p, part_mask(n), x); }

/* Reductions, in a fixed tree. */
INLINE float vf_sum(vf x) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vf_largest(vf x) { return _mm512_reduce_max_ps(x); }

INLINE vd vd_zero(void) { return _mm512_setzero_pd(); }
INLINE vd vd_low(vf x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
INLINE vd vd_high(vf x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
INLINE double vd_sum(vd x) {
  __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1));
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

/* VL elements of a native dtype, widened. */
INLINE vf vf_load_as(enum dtype dtype, const void *p) {
  if (dtype == DTYPE_F32) return _mm512_loadu_ps(p);
  __m256i half = _mm256_loadu_si256(p);
  if (dtype == DTYPE_F16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* VL signed bytes as floats, and VL integers as bytes, saturated. */
INLINE vf vf_load_bytes(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE void vi_store_bytes(int8_t *p, vi x) {
  _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(x));
}
/* The nearest fp16 of each lane. */
INLINE void vf_store_halves(uint16_t *p, vf x) {
  _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* For the 4 x 4 transposes inside 128-bit lanes: four floats of each of VL / 4 rows that lie
 * 4 * ld apart, one row a lane. */
INLINE vf vf_load_quads(const float *p, int64_t ld) {
  vf x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 4 * ld), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 8 * ld), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 12 * ld), 3);
}
INLINE void vf_store_quads(float *p, int64_t ld, vf x) {
  _mm_storeu_ps(p, _mm512_castps512_ps128(x));
  _mm_storeu_ps(p + 4 * ld, _mm512_extractf32x4_ps(x, 1));
  _mm_storeu_ps(p + 8 * ld, _mm512_extractf32x4_ps(x, 2));
  _mm_storeu_ps(p + 12 * ld, _mm512_extractf32x4_ps(x, 3));
}
INLINE void vf_transpose_quads(vf x[4]) {
  vf a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
  vf c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
  x[0] = _mm512_shuffle_ps(a, c, 0x44);
  x[1] = _mm512_shuffle_ps(a, c, 0xEE);
  x[2] = _mm512_shuffle_ps(b, d, 0x44);
  x[3] = _mm512_shuffle_ps(b, d, 0xEE);
}

/* The high half of each lane. */
INLINE void vi_store_high_halves(uint16_t *p, vi x) {
  _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
}

/* VL nibbles, the low one of each byte first. */
INLINE vi vi_nibbles(const uint8_t *p) {
  int32_t words[2];
  memcpy(words, p, sizeof words);
  const vi shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  vi both = _mm512_mask_set1_epi32(_mm512_set1_epi32(words[0]), 0xff00, words[1]);
  return _mm512_and_si512(_mm512_srlv_epi32(both, shift), _mm512_set1_epi32(15));
}

/* The activations that VL kept weights of a 2:4 row meet: x (2 * VL), `codes` the 2 * VL bits of
 * their VL / 2 nibbles. Kept weight l has bits 2l and 2l + 1: its position in group l / 2. */
INLINE vi pick_index(uint32_t codes) {
  const vi shift = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const vi group = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  vi position = _mm512_srlv_epi32(_mm512_set1_epi32((int)codes), shift);
  return _mm512_ternarylogic_epi32(group, position, _mm512_set1_epi32(3), 0xF8); /* a | b & c */
}
INLINE vf pick(const float *x, vi index) {
  return _mm512_permutex2var_ps(_mm512_loadu_ps(x), index, _mm512_loadu_ps(x + VL));
}

/* The other way: VL kept weights spread over 2 * VL columns with their zeros. */
INLINE void spread(vf values, uint32_t codes, float *out) {
  const vi position = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  const vi shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
  const vi three = _mm512_set1_epi32(3);
  for (int i = 0; i < 2; i++) {
    vi first = _mm512_srlv_epi32(_mm512_set1_epi32((int)(codes >> 16 * i)), shift);
    __mmask16 is_first = _mm512_cmpeq_epi32_mask(_mm512_and_si512(first, three), position);
    __mmask16 is_second =
        _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_srli_epi32(first, 2), three), position);
    vi at = _mm512_add_epi32(_mm512_srli_epi32(shift, 1), _mm512_set1_epi32(8 * i));
    vf x = _mm512_maskz_permutexvar_ps(is_first, at, values);
    at = _mm512_add_epi32(at, _mm512_set1_epi32(1));
    _mm512_storeu_ps(out + VL * i, _mm512_mask_permutexvar_ps(x, is_second, at, values));
  }
}

/* --- strips (sparse/strips.h): lines of u32 that hold two 16-bit weights each --- */

/* VL of them widened: the low halves and the high ones. */
INLINE void vf_load_pairs(enum dtype dtype, const void *p, vf *low, vf *high) {
  vi both = _mm512_load_si512(p);
  if (dtype == DTYPE_BF16) {
    *low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *high = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
    return;
  }
  *low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
  *high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
}
/* Four floats again and again, and the one of each lane's four that the low two bits name. */
INLINE vf vf_broadcast4(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
INLINE vf vf_pick4(vf fours, vi index) { return _mm512_permutevar_ps(fours, index); }
/* The same in two steps, as the others have it. */
INLINE vi vi_pick_index(vi code) { return code; }
INLINE vi vi_held(vi x) { return x; }
INLINE vf vf_pick_at(vf fours, vi index) { return vf_pick4(fours, index); }

#endif
